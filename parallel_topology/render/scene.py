"""What every picture shows: ranks on hosts, axes and their groups, one chosen rank. The formats only write it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from typing import TYPE_CHECKING

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Groups
from parallel_topology.topology.notation import parse_axes

if TYPE_CHECKING:
    from parallel_topology.hosts.hosts import Hosts, Spans
    from parallel_topology.topology.rank_view import RankGroup, RankView
    from parallel_topology.topology.topology import ParallelTopology

MOST_COLUMNS = 16
"""Cells in a row of a box."""
LABELLED = 512
"""Ranks whose elements show their coordinate; of more, each shows its number only."""
MOST_DRAWN = 32_768
"""Ranks of a picture that has an element for each."""
MOST_SAVED = 1_024
"""Ranks of such a picture that a notebook keeps in its file."""


@dataclass(frozen=True)
class Box:
    """One host and the topology's ranks on it; or all ranks, when hosts are not known.

    Attributes:
        host: the host's number, or None.
        ranks: global ranks, in the order of their local ranks.
        others: how many ranks on this host are not the topology's.
    """

    host: int | None
    ranks: Sequence[int]
    others: int = 0


@dataclass(frozen=True)
class Axis:
    """One axis, or several together, and how its groups lie on the hosts.

    Attributes:
        name: `"tp"`, or `"tp-pp"` for both together.
        view: the view it belongs to; "" for the base.
        size: ranks in each group.
        groups: all of them.
        spans: their hosts; None when hosts are not known.
    """

    name: str
    view: str
    size: int
    groups: Groups
    spans: Spans | None

    @property
    def strides(self) -> tuple[int, ...]:
        """The steps, in positions, from member to member; several for an axis that is no single run of steps."""
        return tuple(stride for _, stride in self.groups.modes)

    @property
    def where(self) -> str:
        """`inside hosts`, `crosses hosts`, or `2 of 4 cross hosts`; "" when hosts are not known."""
        if self.spans is None:
            return ""
        if self.spans.inside:
            return "inside hosts"
        total = len(self.groups)
        return "crosses hosts" if self.spans.crossing == total else f"{self.spans.crossing} of {total} cross hosts"


@dataclass(frozen=True)
class Run:
    """Neighbouring hosts (or rows of ranks) that are alike.

    Attributes:
        boxes: the hosts.
        extents: axis -> the indices that occur, ascending.
    """

    boxes: tuple[Box, ...]
    extents: Mapping[str, tuple[int, ...]]

    @cached_property
    def size(self) -> int:
        return sum(len(box.ranks) for box in self.boxes)

    @property
    def whole(self) -> bool:
        """Whether every combination of the indices occurs."""
        return self.size == prod(map(len, self.extents.values()))


class Scene:
    """What is to be seen of a topology.

    Args:
        topology: the layout.
        hosts: where its ranks are, if that is known.
        rank: a rank whose groups and neighbours are picked out.
        axis: the only axis (`"tp"`) or axes together (`"tp-pp"`) to look at; otherwise every one.
        marked: rank -> a short note, for ranks to draw attention to, such as those that move.

    Raises:
        TopologyError: `hosts` do not hold all ranks.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """

    def __init__(
        self,
        topology: ParallelTopology,
        *,
        hosts: Hosts | None = None,
        rank: int | None = None,
        axis: str | None = None,
        marked: Mapping[int, str] | None = None,
    ) -> None:
        self.topology = topology
        self.hosts = hosts
        self.marked = {marked_rank: _printable(note) for marked_rank, note in (marked or {}).items()}
        self.rank = rank
        self._view: RankView | None = None if rank is None else topology.at(rank)
        if hosts is not None:
            hosts.require(topology)
        for one in self.marked:
            topology.position(one)
        names = topology.all_axes if axis is None else (topology.group_name(*axis.split("-")),)
        self.axes = tuple(map(self._axis, names))

    @property
    def title(self) -> str:
        """The topology, short enough for a line: of explicit ranks, the first few."""
        base, *views = str(self.topology).split("/")
        axes, at, places = base.partition("@")
        ranks = places.split(",")
        short = ",".join(ranks[:4]) + (",..." if len(ranks) > 4 else "")
        return "/".join([axes + at + short, *views])

    @property
    def summary(self) -> str:
        """`8 ranks on 2 hosts of 4`"""
        ranks = self.topology.world_size
        what = f"{ranks:,} rank{'s' * (ranks > 1)}"
        if self.hosts is None:
            return what
        counts = sorted({len(box.ranks) for box in self.boxes})
        many = f"{len(self.boxes):,} host{'s' * (len(self.boxes) > 1)}"
        return f"{what} on {many} of {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The hosts that hold ranks of the topology; a single box when hosts are not known."""
        world = self.topology.world
        if self.hosts is None:
            return (Box(None, world),)
        boxes: list[Box] = []
        for host in self.hosts.hosts_of(world):
            every = self.hosts.ranks_of(host)
            ours = [rank for rank in every if rank in world]
            boxes.append(Box(host, ours, len(every) - len(ours)))
        return tuple(boxes)

    @cached_property
    def shown_axes(self) -> tuple[str, ...]:
        """The base axes that tell ranks apart: those of more than one index."""
        return tuple(axis for axis, size in self.topology.sizes.items() if size > 1)

    @cached_property
    def stage_axis(self) -> str:
        """The axis that colours stand for: the pipeline, or the slowest when there is none."""
        return "pp" if "pp" in self.shown_axes or not self.shown_axes else self.shown_axes[-1]

    @property
    def stages(self) -> int:
        """How many colours there are."""
        return self.topology.sizes.get(self.stage_axis, 1)

    def stage(self, rank: int) -> int:
        """Which colour a rank has."""
        return self.topology.coordinate(rank).get(self.stage_axis, 0)

    def label(self, rank: int) -> str:
        """`tp1 pp2`, without axes of size 1."""
        coordinate = self.topology.coordinate(rank)
        return " ".join(f"{axis}{coordinate[axis]}" for axis in self.shown_axes)

    @cached_property
    def groups(self) -> dict[str, RankGroup]:
        """Axis -> the chosen rank's group along it; empty when none is chosen."""
        view = self._view
        return {} if view is None else {axis.name: view[tuple(axis.name.split("-"))] for axis in self.axes}

    @cached_property
    def relations(self) -> dict[int, tuple[str, ...]]:
        """Rank -> what it is to the chosen one: `tp` in its group, `tp<` before it, `tp>` after it, `tp<>` both."""
        found: dict[int, list[str]] = {}
        for name, group in self.groups.items():
            for member in group.ranks:
                if member != self.rank:
                    near = "<" * (member == group.prev_rank) + ">" * (member == group.next_rank)
                    found.setdefault(member, []).append(name + near)
        return {rank: tuple(names) for rank, names in found.items()}

    def require_drawable(self) -> None:
        """Check that there are not too many ranks for a picture that has an element for each, or a `TopologyError`."""
        if self.topology.world_size > MOST_DRAWN:
            raise TopologyError(
                f"{self.title} has {self.topology.world_size:,} ranks; a picture shows at most {MOST_DRAWN:,}. "
                "Draw a part, such as topology.subtopology(pp=0)"
            )

    def columns(self, ranks: int, fit: int = MOST_COLUMNS) -> int:
        """How many cells stand in a row of a box of so many: as many as fit, so that rows begin where an axis does."""
        fit = min(fit, MOST_COLUMNS)
        if ranks <= fit and self.hosts is not None:
            return ranks
        sizes = [self.topology.sizes[axis] for axis in self.shown_axes]
        periods = [prod(sizes[:count]) for count in range(1, len(sizes))] or [ranks]
        return max((period for period in periods if period <= fit), default=max(1, min(fit, ranks)))

    def runs(self, most: int) -> list[Run]:
        """The hosts, neighbours joined along one axis at a time until there are at most `most`, if that can be.

        Joined are only runs that are alike but for one axis, and that have every combination of their indices.
        """
        runs = [Run((box,), self._extents(box.ranks)) for box in self._units()]
        while len(runs) > most:
            joined = _joined(runs, len(runs))
            if len(joined) == len(runs):
                break
            if len(joined) == 1:  # that everything is there says nothing: join evenly, no more than needed
                joined = _joined(runs, -(-len(runs) // most))
            runs = joined
        return runs

    # Private

    def _axis(self, name: str) -> Axis:
        names = name.split("-")
        spans = None if self.hosts is None else self.hosts.spans(self.topology, *names)
        return Axis(name, self._home(names), self.topology.size(*names), self.topology.groups(*names), spans)

    def _home(self, names: Sequence[str]) -> str:
        """The first factorization that has these axes."""
        texts = {
            "": "-".join(f"{axis}{size}" for axis, size in self.topology.sizes.items()),
            **dict(self.topology.views),
        }
        return next(view for view, text in texts.items() if set(names) <= parse_axes(text.partition("~")[0]).keys())

    def _units(self) -> Iterator[Box]:
        """The hosts; when these are not known, rows along the fastest axis."""
        if self.hosts is not None:
            yield from self.boxes
            return
        row = self.topology.size(self.shown_axes[0]) if self.shown_axes else 1
        ranks = iter(self.topology.world)
        while members := list(islice(ranks, row)):
            yield Box(None, members)

    def _extents(self, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
        coordinates = [self.topology.coordinate(rank) for rank in ranks]
        return {axis: tuple(sorted({at[axis] for at in coordinates})) for axis in self.shown_axes}


def _printable(text: str) -> str:
    """One line without control characters: no terminal and no XML takes them."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _joined(runs: list[Run], most: int) -> list[Run]:
    """One pass: neighbours that differ along one axis only become one run, of at most `most`."""
    chains: list[list[Run]] = []
    along: str | None = None
    seen: set[int] = set()  # the last chain's indices along that axis
    for run in runs:
        axis = _continues(chains[-1][-1], run) if chains else None
        if axis is not None and along is None:
            seen = set(chains[-1][0].extents[axis])
        if axis is None or along not in (None, axis) or len(chains[-1]) == most or seen & set(run.extents[axis]):
            chains.append([run])
            along = None
        else:
            chains[-1].append(run)
            seen.update(run.extents[axis])
            along = axis
    return list(map(_united, chains))


def _continues(run: Run, other: Run) -> str | None:
    """The one axis along which the two differ, if both have every combination."""
    differing = [axis for axis, indices in run.extents.items() if indices != other.extents[axis]]
    return differing[0] if len(differing) == 1 and run.whole and other.whole else None


def _united(runs: list[Run]) -> Run:
    extents = {axis: tuple(sorted({i for run in runs for i in run.extents[axis]})) for axis in runs[0].extents}
    return Run(tuple(box for run in runs for box in run.boxes), extents)
