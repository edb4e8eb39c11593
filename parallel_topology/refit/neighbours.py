"""Neighbours: ranks of one host, which read each other's buffers in place of messages.

What one packs for another is then copied once into memory that both have, and once out of it. Slips say which buffers
are full, and which have been read: no message is sent, but for one that says whether the memory could be opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from parallel_topology.communicators.handle import Handle
from parallel_topology.communicators.host_memory import process_of
from parallel_topology.communicators.links import Call
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.slips import Loan, Peer, Slip
from parallel_topology.refit.staging import Buffer, Shared, Staging, opened
from parallel_topology.wire.frames import TAGS

ANSWERS = TAGS - 1
"""The tag of what readers say."""
_SHARING = frozenset({"shared_memory", "two_levels"})
"""Communicators of groups whose ranks may share memory."""


def sharing(group: ParallelGroup) -> str:
    """The communicator by which ranks of one host that are in this group share memory; empty if they do not."""
    if group.device.type != "cpu":
        return ""
    return next((one.name for one in group.communicators if one.name in _SHARING), "")


class Lent(NamedTuple):
    """Waits until what was lent has been read."""

    neighbours: Neighbours
    target: int
    number: int

    def wait(self) -> None:
        self.neighbours.wait_returned(self.target, self.number)


class Borrowed(NamedTuple):
    """Waits for the next buffer of a source's."""

    neighbours: Neighbours
    source: int
    number: int

    def wait(self) -> tuple[Tensor, int]:
        """What is in it, and its digest."""
        return self.neighbours.wait_lent(self.source, self.number)


class Neighbours:
    """Those of one rank.

    Args:
        offers: global rank -> where its buffers are found, empty where they are not.
        sources: from whom messages come.
        targets: to whom they go.
        staging: this rank's buffers.
        nbytes: of each rank's buffers.
        count: of them.
    """

    def __init__(
        self, group: ParallelGroup, offers: Mapping[int, str], sources: Iterable[int], targets: Iterable[int],
        staging: Staging, nbytes: int, count: int,
    ) -> None:  # fmt: skip
        self._group = group
        self._offers = offers
        self._staging = staging
        self._said: list[Handle[None]] = []
        self._asked: dict[int, Handle[Tensor]] = {}
        self._readers: dict[int, Slip] = {}
        self._lenders: dict[int, tuple[Slip, Shared]] = {}
        self._borrowed: dict[int, int] = {}
        mine = group.ranks[group.rank]
        for target in targets if offers[mine] else ():
            answer = torch.empty(1, dtype=torch.uint8, device="cpu")
            self._asked[target] = group.irecv(answer, src_rank=target, tag=ANSWERS)
        for source in sources:
            if offers[source]:
                found = opened(offers[source], nbytes, count, group.size)
                if found is not None:
                    self._lenders[source] = self._slip(found, group.rank, source, lends=False), found
                said = torch.tensor([found is not None], dtype=torch.uint8, device="cpu")
                self._said.append(group.isend(said, dst_rank=source, tag=ANSWERS))

    def lends(self, source: int) -> bool:
        """Whether this rank reads a source's buffers."""
        return source in self._lenders

    def reads(self, target: int) -> bool:
        """Whether a target reads this rank's buffers, as it has said."""
        shared = self._staging.shared
        if target in self._asked and bool(self._asked.pop(target).wait()) and shared is not None:
            self._readers[target] = self._slip(shared, self._group.ranks.index(target), target, lends=True)
        return target in self._readers

    def lend(self, target: int, buffer: Buffer, digest: int) -> Lent:
        """Let a target read a buffer."""
        return Lent(self, target, self._readers[target].lend(Loan(buffer.number, digest)))

    def borrow(self, source: int) -> Borrowed:
        """The next buffer of a source's."""
        number = self._borrowed[source] = self._borrowed.get(source, 0) + 1
        return Borrowed(self, source, number)

    def give_back(self, source: int) -> None:
        """Tell a source that its oldest buffer has been read."""
        self._lenders[source][0].give_back()

    def wait_returned(self, target: int, number: int) -> None:
        """
        Raises:
            CollectiveError, GroupTimeoutError: the target is gone, or does not come.
        """
        try:
            self._readers[target].wait(number)
        except RuntimeError as error:
            raise self._group.failure(Call("refit"), error) from error

    def wait_lent(self, source: int, number: int) -> tuple[Tensor, int]:
        """
        Raises:
            CollectiveError, GroupTimeoutError: the source is gone, or does not come.
        """
        slip, shared = self._lenders[source]
        try:
            loan = slip.borrowed(number)
        except RuntimeError as error:
            raise self._group.failure(Call("refit"), error) from error
        return shared.buffer(loan.buffer), loan.digest

    def finish(self) -> None:
        """Wait until all have been told what they are to be told."""
        for handle in self._said:
            handle.wait()

    def leave(self) -> None:
        """Nobody need wait for this rank any more."""
        for slip in (*self._readers.values(), *(slip for slip, _ in self._lenders.values())):
            slip.leave()

    def _slip(self, shared: Shared, member: int, peer: int, *, lends: bool) -> Slip:
        who = Peer(peer, process_of(self._offers[peer]) if self._offers[peer] else (0, 0))
        timeout = self._group.links.timeout
        return Slip(shared, Shared.slip(member), who, lends=lends, timeout=timeout, look=self._require_open)

    def _require_open(self) -> None:
        if self._group.links.closed:
            raise RuntimeError("closed")
