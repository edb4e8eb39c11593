"""Neighbours: ranks of one host, which read each other's buffers in place of messages.

What one packs for another is then copied once into memory that both have, and once out of it, and nothing goes through
gloo but a note that says in which buffer it is, and an answer when it has been read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from parallel_topology.communicators.handle import Handle
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.staging import opened, part
from parallel_topology.wire.frames import TAGS

ANSWERS = TAGS - 1
"""The tag of what receivers say."""
_SHARING = frozenset({"shared_memory", "two_levels"})
"""Communicators of groups whose ranks may share memory."""


def may_share(group: ParallelGroup) -> bool:
    """Whether ranks of one host that are in this group use memory that they share."""
    return group.device.type == "cpu" and any(one.name in _SHARING for one in group.communicators)


class Neighbours:
    """Those of one rank.

    Args:
        offers: global rank -> where its buffers are found, empty where they are not.
        sources, targets: from and to whom messages go.
        nbytes, count: of every rank's buffers.
    """

    def __init__(
        self, group: ParallelGroup, offers: Mapping[int, str], sources: Iterable[int], targets: Iterable[int],
        nbytes: int, count: int,
    ) -> None:  # fmt: skip
        self._group = group
        self._nbytes = nbytes
        self._said: list[Handle[None]] = []
        self._lent: dict[int, Tensor] = {}
        self._reads: dict[int, bool] = {}
        self._asked: dict[int, Handle[Tensor]] = {}
        mine = offers[group.ranks[group.rank]]
        for target in targets if mine else ():
            self._asked[target] = self.answer_of(target)
        for source in sources:
            if offers[source]:
                found = opened(offers[source], nbytes, count)
                if found is not None:
                    self._lent[source] = found
                self._say(source, found is not None)

    def lent_by(self, source: int, number: int) -> Tensor:
        """A buffer of a source's."""
        return part(self._lent[source], number, self._nbytes)

    def lends(self, source: int) -> bool:
        """Whether this rank reads a source's buffers."""
        return source in self._lent

    def reads(self, target: int) -> bool:
        """Whether a target reads this rank's buffers, as it has said."""
        if target in self._asked:
            self._reads[target] = bool(self._asked.pop(target).wait())
        return self._reads.get(target, False)

    def answer_of(self, target: int) -> Handle[Tensor]:
        """What a target says next: first whether it reads this rank's buffers, then of each message that it has."""
        return self._group.irecv(torch.empty(1, dtype=torch.uint8, device="cpu"), src_rank=target, tag=ANSWERS)

    def answer(self, source: int) -> None:
        """Tell a source that its message has been read."""
        self._say(source, True)

    def finish(self) -> None:
        """Wait until all have been told what they are to be told."""
        for handle in self._said:
            handle.wait()

    def _say(self, source: int, what: bool) -> None:
        said = torch.tensor([what], dtype=torch.uint8, device="cpu")
        self._said.append(self._group.isend(said, dst_rank=source, tag=ANSWERS))
