"""Plan: which process groups a manager creates, in which order, as a pure property of topology and declared groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.modes import Modes
from parallel_topology.topology.validation import require_free
from parallel_topology.topology.whole import quoted

if TYPE_CHECKING:
    from parallel_topology.topology.topology import ParallelTopology


@dataclass(frozen=True)
class Family:
    """All groups of one name.

    Attributes:
        name: `"world"`, an axis, a combination such as `"tp-pp"`, or the name of an isolated family.
        axes: the axes its groups run along.
        size: ranks in each group.
        count: groups in all.
        shares: the earlier family whose groups have the same ranks in the same order, and so serve this one too.
    """

    name: str
    axes: tuple[str, ...]
    size: int
    count: int
    shares: str | None

    @property
    def creates(self) -> bool:
        """Whether its groups need process groups of their own: not for one rank, nor where others serve."""
        return self.size > 1 and self.shares is None


class Plan:
    """The groups of a topology, each that is created once, in the order of creation: the same on every rank.

    >>> from parallel_topology import ParallelTopology
    >>> print(ParallelTopology(tp=2, pp=2).plan())
    world  1 group of 4
    tp     2 groups of 2
    pp     2 groups of 2
    created: 5 in all, at most 3 per rank; created naively: 5 on every rank

    Attributes:
        topology: whose groups these are.
        families: by name, in the order of creation: the world, each axis, the combinations, the isolated ones.
    """

    def __init__(
        self,
        topology: ParallelTopology,
        combinations: Iterable[tuple[str, ...]],
        isolated: Mapping[str, tuple[str, ...]],
        separate: Iterable[str] = (),
    ) -> None:
        self.topology = topology
        self.families: dict[str, Family] = {}
        homes: dict[Modes, str] = {}  # one form for each enumeration, and a family's groups are shifts of each other
        require_kind(isolated, Mapping, "isolated")
        separate = _names(separate)
        alone = {*isolated, *separate}
        for name, axes in _declared(topology, combinations, isolated):
            first = topology.group(*axes, rank=topology.world[0])
            shares = None if name in alone else homes.setdefault(first.modes, name)
            self.families[name] = Family(
                name=name,
                axes=axes,
                size=first.size,
                count=topology.world_size // first.size,
                shares=None if shares == name else shares,
            )
        if unknown := [name for name in separate if name not in self.families]:
            raise UnknownAxisError(
                f"options for {unknown[0]!r}: there is no such group; there are {', '.join(self.families)}"
            )

    @property
    def sequence(self) -> Iterator[tuple[str, Ranks]]:
        """Name and ranks of every group that is created, in order."""
        for family in self.families.values():
            if family.creates:
                for ranks in self.topology.groups(*family.axes):
                    yield family.name, ranks

    def of_rank(self, rank: int) -> list[tuple[str, Ranks]]:
        """The part of the sequence that one rank takes part in.

        Raises:
            RankError: `rank` is not in the topology.
        """
        return [
            (family.name, self.topology.group(*family.axes, rank=rank))
            for family in self.families.values()
            if family.creates
        ]

    @property
    def created(self) -> int:
        """Process groups created in the whole world, each counted once."""
        return sum(family.count for family in self.families.values() if family.creates)

    @property
    def created_per_rank(self) -> int:
        """Process groups that one rank is a member of; every rank of as many."""
        return sum(family.creates for family in self.families.values())

    def __str__(self) -> str:
        width = max(map(len, self.families))
        lines = [f"{family.name.ljust(width)}  {_described(family)}" for family in self.families.values()]
        naive = sum(family.count for family in self.families.values())  # as a plain loop over `new_group` does
        total = (
            f"created: {self.created:,} in all, at most {self.created_per_rank:,} per rank; "
            f"created naively: {naive:,} on every rank"
        )
        return "\n".join([*lines, total])


def _names(separate: Iterable[str]) -> tuple[str, ...]:
    names = tuple(separate) if isinstance(separate, Iterable) else (separate,)  # pyright: ignore[reportUnnecessaryIsInstance]
    return tuple(require_kind(name, str, "separate") for name in names)


def _declared(
    topology: ParallelTopology, combinations: Iterable[tuple[str, ...]], isolated: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and axes of every family."""
    seen = {"world": topology.axes, **{axis: (axis,) for axis in topology.all_axes}}
    if isinstance(combinations, str) or not isinstance(combinations, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnknownAxisError(f"groups={quoted(combinations)}: expected tuples of axes, as in [('tp', 'pp')]")
    for axes in combinations:
        if not isinstance(axes, (tuple, list)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownAxisError(f"groups={quoted(axes)}: expected tuples of axes, as in [('tp', 'pp')]")
        name = topology.group_name(*axes)
        seen.setdefault(name, tuple(name.split("-")))
    yield from seen.items()
    for name, axes in isolated.items():
        if name in seen:
            raise TopologyError(f"isolated group {name!r}: there is a group of this name; choose another")
        if not isinstance(axes, (tuple, list)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownAxisError(
                f"isolated={{{name!r}: {quoted(axes)}}}: expected a tuple of axes, as in ('tp', 'pp')"
            )
        require_free(require_kind(name, str, "isolated"))
        along = topology.group_name(*axes)
        yield name, topology.axes if along == "world" else tuple(along.split("-"))


def _described(family: Family) -> str:
    groups = f"{family.count:,} group{'' if family.count == 1 else 's'} of {family.size:,}"
    if family.shares is not None and family.size > 1:
        return f"{groups}, shared with {family.shares}"
    return groups if family.size > 1 else f"{groups}, nothing to create"
