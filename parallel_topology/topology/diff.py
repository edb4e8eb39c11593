"""Diff: what changes for each rank when one topology takes another's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel_topology.topology.topology import ParallelTopology


class Diff:
    """Two topologies, rank by rank; false when nothing moves.

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
        old, new = before.world, after.world
        self.removed = [rank for rank in old if rank not in new]
        self.added = [rank for rank in new if rank not in old]

    @property
    def moved(self) -> Iterator[tuple[int, dict[str, int], dict[str, int]]]:
        """Rank, coordinate before and after, of each rank in both whose coordinate changes."""
        for rank in self.before.world:
            if rank in self.after.world:
                old, new = self.before.coordinate(rank), self.after.coordinate(rank)
                if _without_trivial(old, self.before) != _without_trivial(new, self.after):
                    yield rank, old, new

    @property
    def notes(self) -> dict[int, str]:
        """For a picture of `after`: where each rank that moved was before, or `new`.

        >>> from parallel_topology import ParallelTopology
        >>> ParallelTopology(tp=2, pp=2).diff(ParallelTopology(pp=2, tp=3)).notes
        {2: 'was tp0 pp1', 3: 'was tp1', 4: 'new', 5: 'new'}
        """
        return {rank: _was(old, new) for rank, old, new in self.moved} | dict.fromkeys(self.added, "new")

    def __bool__(self) -> bool:
        return bool(self.removed or self.added) or next(self.moved, None) is not None

    def __str__(self) -> str:
        moved = list(self.moved)
        common = self.before.world_size - len(self.removed)
        lines = [f"{self.before} -> {self.after}: {len(moved)} of {common} ranks move"]
        lines += [f"  rank {rank}: {_shown(old)} -> {_shown(new)}" for rank, old, new in moved[:32]]
        lines += [f"  ... and {len(moved) - 32} more"] if len(moved) > 32 else []
        for name, ranks in (("removed", self.removed), ("added", self.added)):
            if ranks:
                lines.append(f"  {name}: {ranks if len(ranks) <= 32 else f'{len(ranks)} ranks'}")
        return "\n".join(lines)


def _without_trivial(coordinate: dict[str, int], topology: ParallelTopology) -> dict[str, int]:
    """Axes of size 1 make no difference to where a rank stands."""
    return {axis: index for axis, index in coordinate.items() if topology.sizes[axis] > 1}


def _shown(coordinate: dict[str, int]) -> str:
    return " ".join(f"{axis}={index}" for axis, index in coordinate.items())


def _was(old: dict[str, int], new: dict[str, int]) -> str:
    """The indices that changed: a picture shows the others anyway, and has little room."""
    changed = {axis: index for axis, index in old.items() if new.get(axis, 0) != index}
    return f"was {' '.join(f'{axis}{index}' for axis, index in (changed or old).items())}"
