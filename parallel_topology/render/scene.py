"""What every picture shows: ranks on hosts, axes and their groups, one chosen rank. The formats only write it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Groups, Ranks
from parallel_topology.topology.notation import parse_axes
from parallel_topology.topology.whole import quoted
from parallel_topology.topology.wording import listed

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.hosts.spans import Spans
    from parallel_topology.render.shards import Shards
    from parallel_topology.topology.rank_view import RankGroup, RankView
    from parallel_topology.topology.topology import ParallelTopology
    from parallel_topology.weights.weight import Weight

MOST_COLUMNS = 16
"""Cells in a row of a box."""
LABELLED = 512
"""Ranks whose elements show their coordinate; of more, each shows its number only."""
OVERVIEW = 1_024
"""Ranks of a page that opens from afar, hosts as tiles; of fewer, every rank is seen from near at once."""
MOST_DRAWN = 32_768
"""Ranks of a picture that has an element for each."""
MOST_LISTED = 65_536
"""Ranks that are looked at one by one; of more, only the first and last hosts are shown."""
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
        links: the kinds of links between members on the same host, the nearest first, where these are known.
    """

    name: str
    view: str
    size: int
    groups: Groups
    spans: Spans | None
    links: tuple[str, ...] = ()

    @property
    def strides(self) -> tuple[int, ...]:
        """The steps, in positions, from member to member; several for an axis that is no single run of steps."""
        return tuple(stride for _, stride in self.groups.modes)

    @property
    def where(self) -> str:
        """`inside hosts`, `crosses hosts`, `2 of 4 cross hosts`, and over which links; "" when hosts are not known."""
        if self.spans is None:
            return ""
        total, crossing = self.groups.size, self.spans.crossing
        where = "inside hosts" if self.spans.inside else f"{crossing:,} of {total:,} cross hosts"
        return ("crosses hosts" if crossing == total else where) + (
            f", over {', '.join(self.links)}" if self.links else ""
        )


@dataclass(frozen=True)
class Run:
    """Neighbouring hosts (or rows of ranks) that are alike.

    Attributes:
        boxes: the hosts.
        extents: axis -> the indices that occur, ascending.
    """

    boxes: tuple[Box, ...]
    extents: Mapping[str, Sequence[int]]

    @cached_property
    def size(self) -> int:
        return sum(count(box.ranks) for box in self.boxes)

    @property
    def whole(self) -> bool:
        """Whether every combination of the indices occurs."""
        return self.size == prod(map(count, self.extents.values()))


class Scene:
    """What is to be seen of a topology.

    Args:
        topology: the layout.
        hosts: where its ranks are, if that is known.
        rank: a rank whose groups and neighbours are picked out.
        axis: the only axis (`"tp"`) or axes together (`"tp-pp"`) to look at; otherwise every one.
        marked: rank -> a short note, for ranks to draw attention to, such as those that move.
        tensor: colours stand for its parts, instead of stages.
        links: how the devices of each host are joined; needs `hosts`.

    Raises:
        TopologyError: `hosts` do not hold all ranks, the tensor cannot be cut so, or there are no such links.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis`, or one that cuts the tensor, is not there.
    """

    def __init__(
        self,
        topology: ParallelTopology,
        *,
        hosts: Hosts | None = None,
        rank: int | None = None,
        axis: str | None = None,
        marked: Mapping[int, str] | None = None,
        tensor: Weight | None = None,
        links: DeviceLinks | None = None,
    ) -> None:
        _require_kinds(topology, hosts, links)
        self.topology = topology
        self.hosts = hosts
        self.shards = None if tensor is None else _shards(tensor, topology)
        self._links = links
        if links is not None and hosts is None:
            raise TopologyError("links are of the devices of a host: say with hosts= (--hosts) who is where")
        self.marked = {} if marked is None else dict(_notes(marked))
        self.rank = rank
        self._view: RankView | None = None if rank is None else topology.at(rank)
        if hosts is not None:
            hosts.require(topology)
        for one in self.marked:
            topology.position(one)
        for one in () if axis is None else require_kind(axis, str, "axis").split("-"):
            if one not in topology.all_axes:
                raise UnknownAxisError(f"{topology} has no axis {one!r}; it has {listed(topology.all_axes)}")
        names = topology.all_axes if axis is None else (topology.group_name(axis),)
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
        counts, many = self._host_sizes(), f"{self.unit_count:,} host{'s' * (self.unit_count > 1)}"
        of = f" of {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "") if counts else ""
        return f"{what} on {many}{of}"

    @property
    def idle(self) -> str:
        """`4 of 8 places stay idle`; "" where none does, or hosts are not known."""
        return "" if self.hosts is None else self.hosts.idle(self.topology)

    @property
    def key(self) -> str:
        """What a star stands for: `* 112 ranks, as 4: was tp1 pp0`; "" where no rank is marked."""
        if not self.marked:
            return ""
        first, note = next(iter(self.marked.items()))
        many = f"{len(self.marked):,} rank{'s' * (len(self.marked) > 1)}"
        return f"* {many}, as {first}: {note}" if note else f"* {many}"

    @property
    def is_listed(self) -> bool:
        """Whether there are few enough ranks to look at each."""
        return self.topology.world_size <= MOST_LISTED

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The hosts that hold ranks of the topology; a single box when hosts are not known."""
        if self.hosts is None:
            return (Box(None, self.topology.world),)
        return tuple(map(self.box_on, self._numbers))

    def box_on(self, host: int) -> Box:
        """The box of one host. Raises: TopologyError: the hosts are not known."""
        every, world = self._known_hosts.ranks_of(host), self.topology.world
        if isinstance(every, range) and world.placement is None:
            ours = range(max(every.start, world.start), min(every.stop, world.start + world.size))
        else:
            ours = [rank for rank in every if rank in world]
        return Box(host, ours, count(every) - count(ours))

    @property
    def unit_count(self) -> int:
        """How many hosts hold ranks of the topology; when these are not known, rows along the fastest axis."""
        return count(self._numbers) if self.hosts is not None else self._rows.size

    def unit(self, number: int) -> Run:
        """One of these, by itself."""
        box = self.box_on(self._numbers[number]) if self.hosts is not None else Box(None, self._rows[number])
        return Run((box,), self._extents(box.ranks))

    @cached_property
    def shown_axes(self) -> tuple[str, ...]:
        """The base axes that tell ranks apart: those of more than one index."""
        return tuple(axis for axis, size in self.topology.sizes.items() if size > 1)

    @cached_property
    def stage_axis(self) -> str:
        """The axis that colours stand for: the pipeline, or the slowest when there is none."""
        return "pp" if "pp" in self.shown_axes or not self.shown_axes else self.shown_axes[-1]

    @property
    def legend(self) -> list[str]:
        """What each colour stands for: `pp0`, or a part of the tensor."""
        if self.shards is not None:
            return list(map(self.shards.name, range(len(self.shards.holders))))
        return [f"{self.stage_axis}{stage}" for stage in range(self.topology.sizes.get(self.stage_axis, 1))]

    @property
    def legend_columns(self) -> int:
        """How many parts of the tensor are next to each other in it; 0 where colours have no such order."""
        return 0 if self.shards is None else len(self.shards.columns)

    @property
    def colored_by(self) -> str:
        """What colours stand for, in words."""
        return self.stage_axis if self.shards is None else str(self.shards)

    @cached_property
    def color_digits(self) -> list[tuple[int, int, int]]:
        """(size, stride, weight): a position's colour is the sum of `position // stride % size * weight`."""
        if self.shards is not None:
            return self.shards.digits
        return [(*mode, 1) for mode in self.topology.groups(self.stage_axis).modes] if self.shown_axes else []

    def color(self, rank: int) -> int:
        """Which colour a rank has."""
        position = self.topology.position(rank)
        return sum(position // stride % size * weight for size, stride, weight in self.color_digits)

    def label(self, rank: int) -> str:
        """`tp1 pp2`, without axes of size 1."""
        coordinate = self.topology.coordinate(rank)
        return " ".join(f"{axis}{coordinate[axis]}" for axis in self.shown_axes)

    @cached_property
    def groups(self) -> dict[str, RankGroup]:
        """Axis -> the chosen rank's group along it; empty when none is chosen."""
        view = self._view
        return {} if view is None else {axis.name: view[tuple(axis.name.split("-"))] for axis in self.axes}

    def relations(self, rank: int) -> tuple[str, ...]:
        """What a rank is to the chosen one: `tp` in its group, `tp<` before it, `tp>` after it, `tp<>` both."""
        return tuple(
            name + "<" * (rank == group.prev_rank) + ">" * (rank == group.next_rank)
            for name, group in self.groups.items()
            if rank != self.rank and rank in group.ranks
        )

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
        runs = list(map(self.unit, range(self.unit_count)))
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
        groups, links = self.topology.groups(*names), self._links
        kinds = () if links is None or self.hosts is None else links.inside(self.hosts, groups)
        return Axis(name, self._home(names), self.topology.size(*names), groups, spans, kinds)

    def _home(self, names: Sequence[str]) -> str:
        """The first factorization that has these axes."""
        texts = {
            "": "-".join(f"{axis}{size}" for axis, size in self.topology.sizes.items()),
            **dict(self.topology.views),
        }
        return next(view for view, text in texts.items() if set(names) <= parse_axes(text.partition("~")[0]).keys())

    @cached_property
    def _numbers(self) -> Sequence[int]:
        """The hosts that hold ranks of the topology. Raises: TopologyError: they are not known."""
        return self._known_hosts.hosts_of(self.topology.world)

    @property
    def _known_hosts(self) -> Hosts:
        if self.hosts is None:
            raise TopologyError(f"the hosts of {self.topology} are not known: say with hosts= (--hosts) who is where")
        return self.hosts

    @cached_property
    def _rows(self) -> Groups:
        """The ranks along the fastest axis, row by row."""
        return self.topology.groups(self.shown_axes[0] if self.shown_axes else self.topology.axes[0])

    def _host_sizes(self) -> list[int]:
        """The numbers of ranks that hosts hold, ascending; none where it would take a look at too many."""
        hosts, world = self.hosts, self.topology.world
        if hosts is None or self.is_listed:
            return sorted({len(box.ranks) for box in self.boxes})
        if world.placement is not None or hosts.ranks is not None:
            return []
        first, last = self._numbers[0], self._numbers[-1]
        ends = {count(self.box_on(first).ranks), count(self.box_on(last).ranks)}
        if isinstance(hosts.starts, range):
            inner = {hosts.starts.step} if last > first + 1 else set[int]()
        else:
            inner = {end - start for start, end in pairwise(hosts.starts[first + 1 : last + 1])}
        return sorted(ends | inner)

    def _extents(self, ranks: Sequence[int]) -> dict[str, Sequence[int]]:
        if not self.is_listed and isinstance(ranks, (range, Ranks)):
            start = self.topology.position(ranks[0])
            if self.topology.position(ranks[-1]) == start + count(ranks) - 1:  # positions that count up
                return {axis: self._run_along(axis, start, count(ranks)) for axis in self.shown_axes}
        coordinates = [self.topology.coordinate(rank) for rank in ranks]
        return {axis: tuple(sorted({at[axis] for at in coordinates})) for axis in self.shown_axes}

    def _run_along(self, axis: str, start: int, ranks: int) -> Sequence[int]:
        """The indices along a base axis of positions from `start` on."""
        ((size, stride),) = self.topology.groups(axis).modes
        first, last = start // stride, (start + ranks - 1) // stride
        if last - first + 1 >= size:
            return range(size)
        first, last = first % size, last % size
        return range(first, last + 1) if first <= last else [*range(last + 1), *range(first, size)]


def count(members: Sequence[int]) -> int:
    """How many there are, where `len` cannot say it either."""
    if isinstance(members, range):
        return max(0, -((members.start - members.stop) // members.step))
    return members.size if isinstance(members, Ranks) else len(members)


def _shards(tensor: Weight, topology: ParallelTopology) -> Shards:
    from parallel_topology.render.shards import Shards  # with weights, which most pictures need not wait for

    return Shards(tensor, topology)


def _require_kinds(topology: object, hosts: object, links: object) -> None:
    from parallel_topology.topology.topology import ParallelTopology

    require_kind(topology, ParallelTopology, "topology")
    if hosts is not None:
        from parallel_topology.hosts.hosts import Hosts

        require_kind(hosts, Hosts, "hosts")
    if links is not None:
        from parallel_topology.hosts.device_links import DeviceLinks

        require_kind(links, DeviceLinks, "links")


def _notes(marked: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    require_kind(marked, Mapping, "marked")
    return ((rank, _printable(require_kind(note, str, f"marked[{quoted(rank)}]"))) for rank, note in marked.items())


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
