"""Diff: what changes for each rank when one topology takes another's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from operator import eq
from typing import TYPE_CHECKING, TypeAlias, cast

from parallel_topology.topology.layout import Ranks, length
from parallel_topology.topology.modes import coalesce

if TYPE_CHECKING:
    from parallel_topology.topology.topology import ParallelTopology

LOOKED_AT = 1 << 16
"""Ranks in both of which a text counts how many move; of more, how many of the first so many do."""
LISTED = 32
"""Ranks that a text lists."""

Move: TypeAlias = tuple[int, dict[str, int], dict[str, int]]
"""Rank, its coordinate before, and after."""


class Diff:
    """Two topologies, rank by rank; false when nothing moves, comes or goes.

    A rank moves when its coordinate changes, in the base or in a view. Axes of size 1 make no difference to that.

    >>> from parallel_topology import ParallelTopology
    >>> print(ParallelTopology(tp=2, pp=2).diff(ParallelTopology(tp=2, pp=2, order="pp-tp")))
    tp2-pp2 -> pp2-tp2: 2 of 4 ranks move
      rank 1: tp=1 pp=0 -> pp=1 tp=0
      rank 2: tp=0 pp=1 -> pp=0 tp=1

    Attributes:
        before, after: the topologies.
        removed, added: ranks that only one of them has.
    """

    def __init__(self, before: ParallelTopology, after: ParallelTopology) -> None:
        self.before = before
        self.after = after
        self.removed = Without(before.world, after.world)
        self.added = Without(after.world, before.world)

    @property
    def moved(self) -> Iterator[Move]:
        """Rank, coordinate before and after, of each rank in both whose coordinate changes."""
        return iter(()) if self._is_still() else self._moves(self._common())

    @property
    def notes(self) -> dict[int, str]:
        """For a picture of `after`: where each rank that moved was before, or `new`.

        >>> from parallel_topology import ParallelTopology
        >>> ParallelTopology(tp=2, pp=2).diff(ParallelTopology(pp=2, tp=3)).notes
        {2: 'was tp0 pp1', 3: 'was tp1', 4: 'new', 5: 'new'}
        """
        return {rank: _was(old, new) for rank, old, new in self.moved} | dict.fromkeys(self.added, "new")

    def __bool__(self) -> bool:
        if self.removed or self.added:
            return True
        still = self._is_still()
        return next(self.moved, None) is not None if still is None else not still

    def __str__(self) -> str:
        common = self.before.world_size - self.removed.size
        looked = min(common, LOOKED_AT)
        moves = iter(()) if self._is_still() else self._moves(islice(self._common(), looked))
        listed = list(islice(moves, LISTED))
        if _divided(self.before) != _divided(self.after):  # then no coordinate is like another
            count = looked = common
        else:
            count = len(listed) + sum(1 for _ in moves)
        few = f" at least, as the first {looked:,} show" if looked < common and count else ""
        lines = [f"{self.before} -> {self.after}: {count:,} of {common:,} ranks move{few}"]
        for ranks, what in ((self.removed, "gone"), (self.added, "new")):
            if ranks and not count:
                lines[0] += f", {ranks.size:,} rank{'s are' if ranks.size > 1 else ' is'} {what}"
        lines += [f"  rank {rank}: {_shown(old)} -> {_shown(new)}" for rank, old, new in listed]
        lines += [f"  ... and {count - LISTED:,} more"] if count > LISTED else []
        for name, ranks in (("removed", self.removed), ("added", self.added)):
            if ranks:
                lines.append(f"  {name}: {list(ranks) if ranks.size <= LISTED else f'{ranks.size:,} ranks'}")
        return "\n".join(lines)

    # Private

    def _common(self) -> Iterator[int]:
        """The ranks in both, as they stand in `before`."""
        old, new = self.before.world, self.after.world
        if _is_run(old) and _is_run(new):
            yield from range(max(old[0], new[0]), min(old[-1], new[-1]) + 1)
        elif new.size < old.size:
            yield from sorted((rank for rank in new if rank in old), key=old.index)
        else:
            yield from (rank for rank in old if rank in new)

    def _moves(self, ranks: Iterable[int]) -> Iterator[Move]:
        axes = _divided(self.before)
        alike = axes == _divided(self.after)
        before, after = _coordinates(self.before), _coordinates(self.after)
        for rank in ranks:
            old, new = before(rank), after(rank)
            if not (alike and all(old[axis] == new[axis] for axis in axes)):
                yield rank, old, new

    def _is_still(self) -> bool | None:
        """Whether no rank moves, without looking at ranks; None where that cannot be said."""
        if self.before == self.after:
            return True
        if (axes := _divided(self.before)) != _divided(self.after):
            return self.removed.size == self.before.world_size  # as no coordinate is like another
        if self.before.world[0] != self.after.world[0]:
            return None
        until = None
        if self.removed or self.added:
            if not (_is_run(self.before.world) and _is_run(self.after.world)):
                return None
            until = min(self.before.world_size, self.after.world_size)
        for axis in sorted(axes):
            old, new = _digits(self.before, axis, until), _digits(self.after, axis, until)
            if old is None or new is None:
                return None
            if old != new:
                return False
        return True


class Without(Sequence[int]):
    """The ranks of one world that are not in another, in that world's order; equal to any list of the same ranks.

    None is listed before it is asked for.
    """

    def __init__(self, world: Ranks, other: Ranks) -> None:
        self._world = world
        self._other = other

    @cached_property
    def size(self) -> int:
        """How many there are."""
        world, other = self._world, self._other
        if _same_ranks(world, other) or _holds(other, world):
            return 0
        if _holds(world, other):
            return world.size - other.size
        return sum(ranks.stop - ranks.start if isinstance(ranks, range) else len(ranks) for ranks in self._ranks)

    @cached_property
    def _ranks(self) -> tuple[Sequence[int], ...]:
        """They themselves, as runs or listed."""
        world, other = self._world, self._other
        first, end = world[0], world[-1] + 1
        if _is_run(world) and _is_run(other):
            runs = range(first, min(end, other[0])), range(max(first, other[-1] + 1), end)
            return tuple(run for run in runs if run)
        if _is_run(world) and other.size <= world.size:
            taken = sorted(rank for rank in other if rank in world)
            edges = zip([first - 1, *taken], [*taken, end], strict=True)
            return tuple(range(last + 1, rank) for last, rank in edges if rank > last + 1)
        return (tuple(rank for rank in world if rank not in other),)

    def __len__(self) -> int:
        return length(self.size)

    def __bool__(self) -> bool:
        if self._world.size >= self._other.size:  # what has no fewer ranks has others, unless it has the same
            return not _same_ranks(self._world, self._other)
        return self.size > 0

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranks if self else ())

    def __getitem__(self, index: int | slice) -> int | list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(index, slice):
            return list(islice(self, *index.indices(self.size)))
        place = index + self.size if index < 0 else index
        if 0 <= place < self.size:
            return next(islice(self, place, None))
        raise IndexError(f"index {index} is outside {self.size} ranks")

    def __contains__(self, rank: object) -> bool:
        return rank in self._world and rank not in self._other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Without, list)):
            return NotImplemented
        ranks = cast("Without | list[object]", other)
        size = ranks.size if isinstance(ranks, Without) else len(ranks)
        return self.size == size and all(map(eq, self, ranks))

    def __repr__(self) -> str:
        shown = ", ".join(map(str, islice(self, 16)))
        return f"[{shown}]" if self.size <= 16 else f"[{shown}, ...] ({self.size:,} ranks)"


def _same_ranks(one: Ranks, other: Ranks) -> bool:
    """Whether the two are the same ranks, in any order."""
    mine, theirs = one.plain(), other.plain()
    if mine is None or theirs is None:  # a table: each of its ranks is looked at
        return one.size == other.size and all(rank in other for rank in one)
    return (mine[0], *_ascending(mine[1])) == (theirs[0], *_ascending(theirs[1]))


def _ascending(modes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return coalesce(sorted(modes, key=lambda mode: mode[1]))


def _holds(run: Ranks, ranks: Ranks) -> bool:
    """Whether `run` counts up, and past all of `ranks`."""
    plain = ranks.plain()
    if plain is None or not _is_run(run):
        return False
    last = plain[0] + sum((size - 1) * step for size, step in plain[1])
    return run[0] <= plain[0] and last <= run[-1]


def _is_run(ranks: Ranks) -> bool:
    plain = ranks.plain()
    return plain is not None and (not plain[1] or (len(plain[1]) == 1 and plain[1][0][1] == 1))


def _digits(topology: ParallelTopology, axis: str, until: int | None) -> list[tuple[int, int | None, int]] | None:
    """An axis's index as digits of how far a rank is from the first: (step, size, weight in the index), one form each.

    Of `until` ranks that count up, a digit that none of them fills has no size.
    """
    plain = topology.group(axis, rank=topology.world[0]).plain()
    if plain is None:
        return None
    digits: list[tuple[int, int, int]] = []
    weight = 1
    for size, step in plain[1]:
        digits.append((step, size, weight))
        weight *= size
    merged: list[tuple[int, int, int]] = []
    for step, size, weight in sorted(digits):
        last = merged[-1] if merged else (0, 0, 0)
        if (step, weight) == (last[0] * last[1], last[2] * last[1]):
            merged[-1] = (last[0], last[1] * size, last[2])
        else:
            merged.append((step, size, weight))
    if until is None:
        return list(merged)
    return [(step, None if step * size >= until else size, weight) for step, size, weight in merged if step < until]


def _coordinates(topology: ParallelTopology) -> Callable[[int], dict[str, int]]:
    """Where a rank is along the base axes, and then along those that views divide further."""
    more = [axis for axis in topology.all_axes if axis not in topology.axes and topology.size(axis) > 1]

    def coordinate(rank: int) -> dict[str, int]:
        along = {axis: topology.group(axis, rank=rank).index(rank) for axis in more}
        return topology.coordinate(rank) | along

    return coordinate


def _divided(topology: ParallelTopology) -> set[str]:
    """The axes along which ranks differ."""
    return {axis for axis in topology.all_axes if topology.size(axis) > 1}


def _shown(coordinate: dict[str, int]) -> str:
    return " ".join(f"{axis}={index}" for axis, index in coordinate.items())


def _was(old: dict[str, int], new: dict[str, int]) -> str:
    """The indices that changed: a picture shows the others anyway, and has little room."""
    changed = {axis: index for axis, index in old.items() if new.get(axis, 0) != index}
    return f"was {' '.join(f'{axis}{index}' for axis, index in (changed or old).items())}"
