"""Mixed-radix arithmetic on plain ints: sizes and strides, position <-> coordinate, a group as a few numbers.

A *position* counts a topology's ranks from 0. An axis is one or more *modes*, pairs of (size, stride): index `i` of
an axis with the single mode (4, 2) adds `2 * i` to the position. Nothing here enumerates ranks unless it is iterated.
The form is that of CuTe layouts (https://docs.nvidia.com/cutlass/media/docs/cpp/cute/01_layout.html), fastest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from math import prod
from typing import TypeAlias, cast, overload

Mode: TypeAlias = tuple[int, int]
"""(size, stride)"""
Modes: TypeAlias = tuple[Mode, ...]
"""Fastest-varying first, whatever the strides are."""


def coalesce(modes: Iterable[Mode]) -> Modes:
    """The same enumeration in the fewest modes: sizes of 1 dropped, contiguous neighbours merged.

    >>> coalesce([(2, 1), (1, 7), (3, 2)])
    ((6, 1),)
    """
    merged: list[Mode] = []
    for size, stride in modes:
        if size == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return tuple(merged)


def offset(modes: Modes, index: int) -> int:
    """What element `index` of the enumeration adds to the start."""
    total = 0
    for size, stride in modes:
        index, digit = divmod(index, size)
        total += digit * stride
    return total


def locate(modes: Modes, distance: int) -> int | None:
    """The inverse of `offset`: which element adds `distance`, or None if none does."""
    if len(modes) == 1:  # most groups
        size, stride = modes[0]
        index, rest = divmod(distance, stride)
        return index if rest == 0 and 0 <= index < size else None
    weights: list[tuple[int, int, int]] = []
    weight = 1
    for size, stride in modes:
        weights.append((stride, size, weight))
        weight *= size
    index = 0
    for stride, size, weight in sorted(weights, reverse=True):
        digit, distance = divmod(distance, stride)
        if not 0 <= digit < size:
            return None
        index += digit * weight
    return index if distance == 0 else None


def _spread(positions: Iterable[int], steps: range) -> Iterator[int]:
    return (position + step for position in positions for step in steps)


def _equal(ours: Sequence[object], theirs: Sequence[object]) -> bool:
    return len(ours) == len(theirs) and all(mine == yours for mine, yours in zip(ours, theirs, strict=True))


class Placement:
    """An explicit global rank for each position; ranks need be neither contiguous nor ascending."""

    __slots__ = ("position_of", "ranks")

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.position_of = {rank: position for position, rank in enumerate(ranks)}


class Ranks(Sequence[int]):
    """Global ranks in group order, held as a start and a few strides; equal to any list or tuple of the same ranks.

    >>> Ranks(1, ((4, 2),))
    [1, 3, 5, 7]
    >>> Ranks(1, ((4, 2),)) == [1, 3, 5, 7], 5 in Ranks(1, ((4, 2),)), Ranks(1, ((4, 2),)).index(5)
    (True, True, 2)

    Attributes:
        start: where the enumeration begins: a rank, or a position under a placement.
        modes: (size, stride) pairs, fastest first.
        placement: the global rank of each position, where these are not the same.
    """

    __slots__ = ("modes", "placement", "start")

    def __init__(self, start: int, modes: Modes, placement: Placement | None = None) -> None:
        self.start = start
        self.modes = modes
        self.placement = placement

    def __len__(self) -> int:
        return prod(size for size, _ in self.modes)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        length = len(self)
        if index < 0:
            index += length
        if not 0 <= index < length:
            raise IndexError(f"index {index} is outside a group of {length} ranks")
        position = self.start + offset(self.modes, index)
        return self.placement.ranks[position] if self.placement else position

    def _positions(self) -> Iterator[int]:
        if len(self.modes) <= 1:
            size, stride = self.modes[0] if self.modes else (1, 1)
            return iter(range(self.start, self.start + size * stride, stride))
        positions: Iterable[int] = (self.start,)
        for size, stride in reversed(self.modes):  # the slowest mode is the outermost loop
            positions = _spread(positions, range(0, size * stride, stride))
        return iter(positions)

    def __iter__(self) -> Iterator[int]:
        if self.placement is None:
            return self._positions()
        return map(self.placement.ranks.__getitem__, self._positions())

    def _find(self, rank: object) -> int | None:
        if not isinstance(rank, int):
            return None
        if self.placement is None:
            return locate(self.modes, rank - self.start)
        position = self.placement.position_of.get(rank)
        return None if position is None else locate(self.modes, position - self.start)

    def __contains__(self, rank: object) -> bool:
        return self._find(rank) is not None

    def index(self, value: int, start: int = 0, stop: int | None = None) -> int:
        found = self._find(value)
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"rank {value!r} is not in {self!r}")
        return found

    def count(self, value: int) -> int:
        return int(value in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranks) and self.placement is None and other.placement is None:
            return self.start == other.start and self.modes == other.modes
        if not isinstance(other, (Ranks, list, tuple, range)):
            return NotImplemented
        return _equal(self, cast("Sequence[object]", other))

    def __hash__(self) -> int:
        return hash(tuple(self))  # equal to a tuple of the same ranks, so it must hash like one

    def __repr__(self) -> str:
        shown = ", ".join(map(str, islice(self, 16)))
        return f"[{shown}]" if len(self) <= 16 else f"[{shown}, ... {self[-1]}] ({len(self)} ranks)"


class Groups(Sequence[Ranks]):
    """All groups of some axes, in the order of their first positions; each is computed when it is asked for.

    >>> Groups(Ranks(0, ((2, 4),)), ((2, 1),))
    [0, 1] [4, 5]

    Attributes:
        starts: of each group, as in `Ranks`.
        modes, placement: of every group, as in `Ranks`.
    """

    __slots__ = ("modes", "placement", "starts")

    def __init__(self, starts: Ranks, modes: Modes, placement: Placement | None = None) -> None:
        self.starts = starts
        self.modes = modes
        self.placement = placement

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Ranks: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ranks]: ...
    def __getitem__(self, index: int | slice) -> Ranks | list[Ranks]:
        if isinstance(index, slice):
            return [Ranks(start, self.modes, self.placement) for start in self.starts[index]]
        return Ranks(self.starts[index], self.modes, self.placement)

    def index(self, value: Ranks, start: int = 0, stop: int | None = None) -> int:
        """The number of a group, in closed form."""
        number = self.starts.index(value.start)
        if self[number] != value or number not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{value!r} is not among {self!r}")
        return number

    def __iter__(self) -> Iterator[Ranks]:
        return map(Ranks, self.starts, repeat(self.modes), repeat(self.placement))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Groups, list, tuple)):
            return NotImplemented
        return _equal(self, cast("Sequence[object]", other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = " ".join(map(repr, islice(self, 16)))
        return shown if len(self) <= 16 else f"{shown} ... ({len(self)} groups)"


@dataclass(frozen=True)
class Layout:
    """Named axes, fastest first, each with its modes; together they number the positions 0 .. size - 1 exactly once."""

    modes: Mapping[str, Modes]

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Layout:
        """Axes in the order given, the first one fastest."""
        modes: dict[str, Modes] = {}
        stride = 1
        for axis, size in sizes.items():
            modes[axis] = ((size, stride),)
            stride *= size
        return cls(modes)

    @cached_property
    def size(self) -> int:
        """The number of positions."""
        return prod(size for modes in self.modes.values() for size, _ in modes)

    def axis_size(self, axis: str) -> int:
        return prod(size for size, _ in self.modes[axis])

    def index(self, axis: str, position: int) -> int:
        """Where `position` stands along one axis."""
        index, weight = 0, 1
        for size, stride in self.modes[axis]:
            index += position // stride % size * weight
            weight *= size
        return index

    def position(self, coordinate: Mapping[str, int]) -> int:
        return sum(offset(self.modes[axis], index) for axis, index in coordinate.items())

    @cached_property
    def _known(self) -> dict[tuple[frozenset[str], bool], Modes]:
        return {}

    def _joined(self, axes: frozenset[str], *, inside: bool) -> Modes:
        """The modes of `axes`, or of all other axes, as one enumeration; found once for each set of axes."""
        known = self._known.get((axes, inside))
        if known is None:
            known = coalesce(mode for axis, modes in self.modes.items() if (axis in axes) is inside for mode in modes)
            self._known[axes, inside] = known
        return known

    def group(self, axes: frozenset[str], position: int, first: int, placement: Placement | None) -> Ranks:
        """The group along `axes` that holds `position`, in closed form."""
        modes = self._joined(axes, inside=True)
        start = position
        for size, stride in modes:
            start -= position // stride % size * stride
        return Ranks(first + start, modes, placement)

    def groups(self, axes: frozenset[str], first: int, placement: Placement | None) -> Groups:
        """All groups along `axes`."""
        outer = self._joined(axes, inside=False)
        return Groups(Ranks(first, outer), self._joined(axes, inside=True), placement)
