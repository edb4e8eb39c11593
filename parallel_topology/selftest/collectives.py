"""What the self-test calls on every group, what each call has to give, and how its bandwidth is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup

PERIOD = 8
"""After so many members and elements the values repeat: their sums stay exact in float32 for a million ranks."""


class Pattern:
    """The tensors that the members of a group begin with: each member's differs, and each element's does."""

    def __init__(self, elements: int, device: torch.device) -> None:
        self._elements = torch.arange(elements, device=device, dtype=torch.float32) % PERIOD

    def of(self, position: int) -> Tensor:
        """The tensor of the member at `position`."""
        return self._elements + position % PERIOD

    def total(self, size: int) -> Tensor:
        """The sum of all `size` members' tensors."""
        return self._elements * size + sum(position % PERIOD for position in range(size))


Sources = Callable[[ParallelGroup], Sequence[int]]
Expected = Callable[[Pattern, ParallelGroup], Tensor]


def _everyone(group: ParallelGroup) -> Sequence[int]:
    return range(group.size)


def _joined(sources: Sources) -> Expected:
    return lambda pattern, group: torch.cat([pattern.of(position) for position in sources(group)])


@dataclass(frozen=True)
class Check:
    """One collective.

    Attributes:
        name: as the table shows it.
        call: what is called; gets a tensor of this member's own and returns what it received.
        expected: what it has to return when every member begins with its `Pattern`.
        sources: the positions whose data it returns, a part of equal size from each; none where all are mixed.
        split: whether the size counted is that of all members' tensors together, as for an all-gather.
        bus_factor: group size -> bus bandwidth / algorithm bandwidth, as nccl-tests define it
            (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md); None where no data counts.
    """

    name: str
    call: Callable[[ParallelGroup, Tensor], Tensor]
    expected: Expected
    sources: Sources = lambda group: ()
    split: bool = False
    bus_factor: Callable[[int], float] | None = None


def _ring(group: ParallelGroup, tensor: Tensor) -> Tensor:
    """Everybody sends to the next member. Some receive first: a send may wait until it is received."""
    received = torch.empty_like(tensor)
    if group.rank % 2:
        group.recv(received)
        group.send(tensor)
    else:
        group.send(tensor)
        group.recv(received)
    return received


def _previous(group: ParallelGroup) -> Sequence[int]:
    return [(group.rank - 1) % group.size]


def _first(group: ParallelGroup) -> Sequence[int]:
    return [0]


def _barrier(group: ParallelGroup, tensor: Tensor) -> Tensor:
    group.barrier()
    return tensor


CHECKS = (
    Check("barrier", _barrier, lambda pattern, group: pattern.of(group.rank)),
    Check(
        "all_reduce",
        lambda group, tensor: group.all_reduce(tensor),
        lambda pattern, group: pattern.total(group.size),
        bus_factor=lambda size: 2 * (size - 1) / size,
    ),
    Check(
        "all_gather",
        lambda group, tensor: group.all_gather(tensor),
        _joined(_everyone),
        sources=_everyone,
        split=True,
        bus_factor=lambda size: (size - 1) / size,
    ),
    Check(
        "broadcast",
        lambda group, tensor: group.broadcast(tensor),
        _joined(_first),
        sources=_first,
        bus_factor=lambda size: 1.0,
    ),
    Check("send/recv ring", _ring, _joined(_previous), sources=_previous, bus_factor=lambda size: 1.0),
)
"""Cheapest first: what does not even get through a barrier is found soonest."""
