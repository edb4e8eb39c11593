"""Position <-> coordinate, and a group of ranks as a few numbers: `Ranks`, `Groups`, `Layout`.

A *position* counts a topology's ranks from 0. An axis is one or more *modes*, pairs of (size, stride). Nothing here
enumerates ranks unless it is iterated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from math import prod
from operator import eq
from typing import Any, NoReturn, cast, overload

from parallel_topology.errors import ImmutableError, RankError, TopologyError
from parallel_topology.topology.modes import Modes, coalesce, compose, locate, offset
from parallel_topology.topology.whole import whole

HASHED_AS_TUPLE = 1 << 20
"""Ranks that are looked at one by one for a hash. More are equal to no tuple, and hash by their ends in no time."""


class Placement:
    """An explicit global rank for each position; ranks need be neither contiguous nor ascending.

    Attributes:
        ranks: by position; of any number when they are strided.
        position_of: rank -> position.
    """

    __slots__ = ("position_of", "ranks")

    ranks: Sequence[int]
    position_of: Mapping[int, int]

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = ranks
        self.position_of = (
            _Positions(ranks) if isinstance(ranks, Ranks) else {rank: place for place, rank in enumerate(ranks)}
        )


class Ranks(Sequence[int]):
    """Global ranks in group order, held as a start and a few strides; equal to any list or tuple of the same ranks.

    >>> Ranks(1, ((4, 2),))
    [1, 3, 5, 7]
    >>> Ranks(1, ((4, 2),)) == [1, 3, 5, 7], 5 in Ranks(1, ((4, 2),)), Ranks(1, ((4, 2),)).index(5)
    (True, True, 2)
    >>> import json
    >>> json.dumps(Ranks(1, ((4, 2),)), default=list)
    '[1, 3, 5, 7]'

    It hashes like the tuple, and so cannot be equal to a `range`, which hashes otherwise. Nothing but iterating, and
    hashing what has at most `HASHED_AS_TUPLE` ranks, looks at each rank.

    Attributes:
        start: where the enumeration begins: a rank, or a position under a placement.
        modes: (size, stride) pairs, fastest first.
        placement: the global rank of each position, where these are not the same.
    """

    __slots__ = ("modes", "placement", "start")

    start: int
    modes: Modes
    placement: Placement | None

    def __init__(self, start: int, modes: Modes, placement: Placement | None = None) -> None:
        _set_start(self, start)
        _set_modes(self, modes)
        _set_placement(self, placement)

    @property
    def size(self) -> int:
        """The number of ranks; `len` cannot say one above `sys.maxsize`."""
        modes = self.modes
        return modes[0][0] if len(modes) == 1 else prod(size for size, _ in modes)

    def __len__(self) -> int:
        return length(self.size)

    def __bool__(self) -> bool:
        return self.size > 0

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        length = self.size
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(length))]
        if index < 0:
            index += length
        if not 0 <= index < length:
            raise IndexError(f"index {index} is outside a group of {length} ranks")
        position = self.start + offset(self.modes, index)
        return position if self.placement is None else self.placement.ranks[position]

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

    def find(self, rank: object) -> int | None:
        """Where `rank` stands, or None."""
        number = rank if type(rank) is int else whole(rank)
        if number is None:
            return None
        if self.placement is None:
            return locate(self.modes, number - self.start)
        position = self.placement.position_of.get(number)
        return None if position is None else locate(self.modes, position - self.start)

    def __contains__(self, rank: object) -> bool:
        return self.find(rank) is not None

    def index(self, value: int, start: int = 0, stop: int | None = None) -> int:
        found = self.find(value)
        if found is None or ((start or stop is not None) and not _between(found, start, stop, self.size)):
            raise RankError(f"rank {value!r} is not in {self!r}")
        return found

    def count(self, value: int) -> int:
        return int(value in self)

    def plain(self) -> tuple[int, Modes] | None:
        """Start and modes of the ranks themselves, in the one form that they have; None if a table places them."""
        if self.placement is None:
            return self.start, coalesce(self.modes)
        places = self.placement.ranks
        outer = places.plain() if isinstance(places, Ranks) else None
        inner = None if outer is None else compose(outer[1], self.start, self.modes)
        return None if outer is None or inner is None else (outer[0] + inner[0], inner[1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranks):
            if self.placement is other.placement and self.start == other.start and self.modes == other.modes:
                return True
            mine, theirs = self.plain(), other.plain()
            if mine is not None and theirs is not None:
                return mine == theirs
            return self.size == other.size and all(map(eq, self, other))
        if isinstance(other, list) or (isinstance(other, tuple) and self.size <= HASHED_AS_TUPLE):
            return _equal(self, self.size, cast("Sequence[object]", other))
        return NotImplemented

    def __hash__(self) -> int:
        size = self.size
        if size <= HASHED_AS_TUPLE:
            return hash(tuple(self))  # equal to a tuple of the same ranks, so it must hash like one
        return hash((size, self[0], self[1], self[-1]))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ImmutableError(f"cannot assign to {name!r}: ranks do not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise ImmutableError(f"cannot delete {name!r}: ranks do not change")

    def __reduce__(self) -> tuple[Any, ...]:
        return Ranks, (self.start, self.modes, self.placement)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, islice(self, 16)))
        return f"[{shown}]" if self.size <= 16 else f"[{shown}, ... {self[-1]}] ({self.size:,} ranks)"


# Setters of the slots: quicker than object.__setattr__, and ranks are made for every question.
_set_start, _set_modes, _set_placement = (vars(Ranks)[name].__set__ for name in ("start", "modes", "placement"))


class Groups(Sequence[Ranks]):
    """All groups of some axes, as the other axes count them, fastest first; each is computed when it is asked for.

    >>> groups = Groups(Ranks(0, ((2, 4),)), ((2, 1),))
    >>> groups
    [0, 1] [4, 5]
    >>> import json
    >>> json.dumps(groups, default=list)
    '[[0, 1], [4, 5]]'

    Equal to any list or tuple of the same groups, and hashes like the tuple; as for `Ranks`.

    Attributes:
        starts: of each group, as in `Ranks`.
        modes, placement: of every group, as in `Ranks`.
    """

    __slots__ = ("modes", "placement", "starts")

    starts: Ranks
    modes: Modes
    placement: Placement | None

    def __init__(self, starts: Ranks, modes: Modes, placement: Placement | None = None) -> None:
        _set_starts(self, starts)
        _set_group_modes(self, modes)
        _set_group_placement(self, placement)

    @property
    def size(self) -> int:
        """The number of groups; `len` cannot say one above `sys.maxsize`."""
        return self.starts.size

    def __len__(self) -> int:
        return length(self.size)

    def __bool__(self) -> bool:
        return self.size > 0

    @overload
    def __getitem__(self, index: int) -> Ranks: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ranks]: ...
    def __getitem__(self, index: int | slice) -> Ranks | list[Ranks]:
        if isinstance(index, slice):
            return [Ranks(start, self.modes, self.placement) for start in self.starts[index]]
        return Ranks(self.starts[index], self.modes, self.placement)

    def index(self, value: Sequence[int], start: int = 0, stop: int | None = None) -> int:
        """The number of a group, given as `Ranks`, list or tuple; in closed form."""
        number = self._begun_by(value)
        if number is None:
            raise RankError(f"{value!r} is not among {self!r}: its first rank is not in the first place of any")
        if self[number] != value or not _between(number, start, stop, self.size):
            raise RankError(f"{value!r} is not among {self!r}")
        return number

    def __contains__(self, value: object) -> bool:
        number = self._begun_by(value)
        return number is not None and self[number] == value

    def count(self, value: Sequence[int]) -> int:
        return int(value in self)

    def plain(self) -> tuple[int, Modes, Modes] | None:
        """The first rank of all, modes of the first ranks and of each group; None if a table places them."""
        first, outer = self.starts.start, self.starts.modes
        if self.placement is None:
            return first, coalesce(outer), coalesce(self.modes)
        if Ranks(first, (*self.modes, *outer), self.placement).plain() is None:
            return None  # a step of theirs carries, so not all groups have the same modes
        starts, group = Ranks(first, outer, self.placement).plain(), self[0].plain()
        return None if starts is None or group is None else (*starts, group[1])

    def _begun_by(self, value: object) -> int | None:
        """The number of the group that begins as `value` does."""
        if not isinstance(value, (Ranks, list, tuple)) or not value:
            return None
        first = cast("object", value[0])
        if self.placement is not None:
            rank = whole(first)
            first = None if rank is None else self.placement.position_of.get(rank)
        return self.starts.find(first)

    def __iter__(self) -> Iterator[Ranks]:
        return map(Ranks, self.starts, repeat(self.modes), repeat(self.placement))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Groups):
            if self.placement is other.placement and self.starts == other.starts and self.modes == other.modes:
                return True
            mine, theirs = self.plain(), other.plain()
            if mine is not None and theirs is not None:
                return mine == theirs
            return self.size == other.size and all(map(eq, self, other))
        if isinstance(other, list) or (isinstance(other, tuple) and self._is_hashed_as_tuple()):
            return _equal(self, self.size, cast("Sequence[object]", other))
        return NotImplemented

    def __hash__(self) -> int:
        if self._is_hashed_as_tuple():
            return hash(tuple(self))
        return hash((self.size, self[0], self[-1]))

    def _is_hashed_as_tuple(self) -> bool:
        each = prod(size for size, _ in self.modes)
        return self.size * (each if each <= HASHED_AS_TUPLE else 1) <= HASHED_AS_TUPLE

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ImmutableError(f"cannot assign to {name!r}: groups do not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise ImmutableError(f"cannot delete {name!r}: groups do not change")

    def __reduce__(self) -> tuple[Any, ...]:
        return Groups, (self.starts, self.modes, self.placement)

    def __repr__(self) -> str:
        shown = " ".join(map(repr, islice(self, 16)))
        return shown if self.size <= 16 else f"{shown} ... ({self.size:,} groups)"


_set_starts, _set_group_modes, _set_group_placement = (
    vars(Groups)[name].__set__ for name in ("starts", "modes", "placement")
)


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
    def _inside(self) -> dict[frozenset[str], Modes]:
        """The modes of a set of axes as one enumeration, found once."""
        return {}

    @cached_property
    def _outside(self) -> dict[frozenset[str], Modes]:
        """Those of all other axes."""
        return {}

    def _join(self, known: dict[frozenset[str], Modes], axes: frozenset[str], *, inside: bool) -> Modes:
        modes = coalesce(mode for axis, modes in self.modes.items() if (axis in axes) is inside for mode in modes)
        return known.setdefault(axes, modes)

    def group(self, axes: frozenset[str], position: int, first: int, placement: Placement | None) -> Ranks:
        """The group along `axes` that holds `position`, in closed form."""
        modes = self._inside.get(axes)
        if modes is None:
            modes = self._join(self._inside, axes, inside=True)
        start = first + position
        for size, stride in modes:
            start -= position // stride % size * stride
        return Ranks(start, modes, placement)

    def groups(self, axes: frozenset[str], first: int, placement: Placement | None) -> Groups:
        """All groups along `axes`."""
        outer = self._outside.get(axes)
        if outer is None:
            outer = self._join(self._outside, axes, inside=False)
        return Groups(Ranks(first, outer), self.group(axes, 0, first, placement).modes, placement)


class _Positions(Mapping[int, int]):
    """rank -> position, of strided ranks."""

    __slots__ = ("_ranks",)

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __getitem__(self, rank: int) -> int:
        position = self._ranks.find(rank)
        if position is None:
            raise KeyError(rank)
        return position

    def __iter__(self) -> Iterator[int]:
        return iter(self._ranks)

    def __len__(self) -> int:
        return len(self._ranks)


def _spread(positions: Iterable[int], steps: range) -> Iterator[int]:
    return (position + step for position in positions for step in steps)


def _equal(ours: Iterable[object], size: int, theirs: Sequence[object]) -> bool:
    return size == len(theirs) and all(map(eq, ours, theirs))


def _between(index: int, start: int, stop: int | None, length: int) -> bool:
    first, last, _ = slice(start, stop).indices(length)
    return first <= index < last


def length(size: int) -> int:
    """What `__len__` returns, where Python can take it.

    Raises:
        TopologyError: it cannot.
    """
    if size > sys.maxsize:
        raise TopologyError(f"{size} is more than len() can say: use .size")
    return size
