"""What the self-test calls on every group, what each call has to give, and how its bandwidth is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup

PERIOD = 8
"""After so many members and elements the values repeat: their sums stay exact in float32 for a million ranks."""
NARROW = {torch.bfloat16: (2, 64), torch.float16: (2, 512), torch.uint8: (PERIOD, 16)}
"""Of dtypes with few digits the period, and how many members begin with anything but zeros: sums stay exact, too."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
"""What values are looked at in; the first one is timed."""


class Pattern:
    """The tensors that the members of a group begin with: each member's differs, and each element's does."""

    def __init__(self, elements: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._period, self._members = NARROW.get(dtype, (PERIOD, None))
        self._elements = (torch.arange(elements, device=device) % self._period).to(dtype)

    def of(self, position: int) -> Tensor:
        """The tensor of the member at `position`."""
        if self._members is not None and position >= self._members:
            return torch.zeros_like(self._elements)
        return self._elements + position % self._period

    def total(self, size: int) -> Tensor:
        """The sum of all `size` members' tensors."""
        counted = size if self._members is None else min(size, self._members)
        return self._elements * counted + sum(position % self._period for position in range(counted))


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


def _tensors_ring(group: ParallelGroup, tensor: Tensor) -> Tensor:
    """As the ring above, with all that comes before the tensor."""
    if group.rank % 2:
        received = group.recv_tensors()
        group.send_tensors({"tensor": tensor})
    else:
        group.send_tensors({"tensor": tensor})
        received = group.recv_tensors()
    return received["tensor"]


def _broadcast_object(group: ParallelGroup, tensor: Tensor) -> Tensor:
    return group.broadcast_object(tensor.cpu()).to(tensor.device)


def _all_gather_object(group: ParallelGroup, tensor: Tensor) -> Tensor:
    return torch.cat(group.all_gather_object(tensor.cpu())).to(tensor.device)


def _barrier(group: ParallelGroup, tensor: Tensor) -> Tensor:
    group.barrier()
    return tensor


def _or_own(received: Tensor | None, tensor: Tensor) -> Tensor:
    """What only the destination receives; elsewhere the member's own tensor, which must not have changed."""
    return tensor if received is None else received


def _scatter(group: ParallelGroup, tensor: Tensor) -> Tensor:
    part = tensor.new_empty(len(tensor) // group.size)
    return group.scatter(part, tensor if group.is_first else None)


def _own(group: ParallelGroup) -> Sequence[int]:
    return [group.rank]


def _first(group: ParallelGroup) -> Sequence[int]:
    return [0]


def _previous(group: ParallelGroup) -> Sequence[int]:
    return [(group.rank - 1) % group.size]


def _all_at_first(group: ParallelGroup) -> Sequence[int]:
    return _everyone(group) if group.is_first else _own(group)


def _share(tensor: Tensor, group: ParallelGroup) -> Tensor:
    return tensor.chunk(group.size)[group.rank]


def _twice_all_but_one(size: int) -> float:
    return 2 * (size - 1) / size


def _all_but_one(size: int) -> float:
    return (size - 1) / size


def _one(_: int) -> float:
    return 1.0


CHECKS = (
    Check("barrier", _barrier, _joined(_own)),
    Check("all_reduce", lambda g, x: g.all_reduce(x), lambda p, g: p.total(g.size), bus_factor=_twice_all_but_one),
    Check("all_gather", lambda g, x: g.all_gather(x), _joined(_everyone), _everyone, True, _all_but_one),
    Check(
        "reduce_scatter",
        lambda g, x: g.reduce_scatter(x),
        lambda p, g: _share(p.total(g.size), g),
        bus_factor=_all_but_one,
    ),
    Check(
        "all_to_all",
        lambda g, x: g.all_to_all(x),
        lambda p, g: torch.cat([_share(p.of(position), g) for position in _everyone(g)]),
        _everyone,
        bus_factor=_all_but_one,
    ),
    Check("broadcast", lambda g, x: g.broadcast(x), _joined(_first), _first, bus_factor=_one),
    Check(
        "reduce",
        lambda g, x: _or_own(g.reduce(x), x),
        lambda p, g: p.total(g.size) if g.is_first else p.of(g.rank),
        bus_factor=_one,
    ),
    Check("gather", lambda g, x: _or_own(g.gather(x), x), _joined(_all_at_first), _all_at_first, True, _all_but_one),
    Check("scatter", _scatter, lambda p, g: _share(p.of(0), g), _first, bus_factor=_all_but_one),
    Check("send/recv ring", _ring, _joined(_previous), _previous, bus_factor=_one),
    Check("send_tensors ring", _tensors_ring, _joined(_previous), _previous, bus_factor=_one),
    Check("broadcast_object", _broadcast_object, _joined(_first), _first, bus_factor=_one),
    Check("all_gather_object", _all_gather_object, _joined(_everyone), _everyone, True, _all_but_one),
)
"""A row for each; the simplest first: what does not even get through a barrier is found soonest."""
