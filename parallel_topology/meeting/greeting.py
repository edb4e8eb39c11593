"""Greeting: each rank finds out from the one before it who that is; that is how new groups are verified.

Every rank has said, under its proof of the token where there is one, where all its groups listen, and all were told
the same. So a rank that answers where it said, and that its neighbours in the world take for the right one, is that for
all, in all groups; and a greeting takes two connections, however large the world. Neighbours that share memory, as
each said after it had found the one of that nonce, are there, and need none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from parallel_topology.communicators.communicator import Work
from parallel_topology.communicators.links import Links
from parallel_topology.errors import CreationError
from parallel_topology.meeting.deadline import Deadline, Overtaken


def greet(links: Links, rank: int, deadline: Deadline, known: Collection[int] = ()) -> None:
    """Tell the next member who this is, and hear it of the one before. It waits in gloo: call it where the deadline can
    overtake it.

    Args:
        known: ranks that know this one, and are known to it, already.

    Raises:
        CreationError: it is not the one that was expected there.
    """
    size = len(links.ranks)
    position = links.ranks.index(rank)
    before, after = (position - 1) % size, (position + 1) % size
    told, heard = torch.tensor([rank]), torch.tensor([-1])
    works: list[Work] = []
    strangers = {peer for peer in (before, after) if links.ranks[peer] not in known}
    for peer in sorted(strangers, key=lambda peer: not _connects(links, peer)):
        # To whom this member connects comes first: that waits for nobody, so nobody waits for who waits.
        works += [_gloo(links).send([told], peer, 0)] if peer == after else []
        works += [_gloo(links).recv([heard], peer, 0)] if peer == before else []
        if links.contacts is not None:
            links.contacts.met.add(peer)
    for work in works:
        work.wait(deadline.timedelta())
    if before in strangers and int(heard) != links.ranks[before]:
        raise CreationError(
            f"group {links.label} has rank {int(heard)} at position {before}, expected {links.ranks} in this order"
        )


def _connects(links: Links, peer: int) -> bool:
    return links.contacts is None or links.contacts.connects(peer)


def _gloo(links: Links) -> Any:
    if (group := links.cpu_group) is None:
        raise Overtaken  # it was taken down meanwhile
    return group
