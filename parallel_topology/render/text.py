"""A layout as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from parallel_topology.render.cells import Painter, drawn, wrapped
from parallel_topology.render.scene import MOST_DRAWN, MOST_LISTED, Axis, Run, Scene, count
from parallel_topology.topology.layout import Ranks

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.render.shards import Shards
    from parallel_topology.topology.rank_view import RankGroup
    from parallel_topology.topology.topology import ParallelTopology
    from parallel_topology.weights.weight import Weight

NARROWEST = 20
"""Columns that a picture needs at least; it is drawn so wide when it is given fewer."""
MOST_CELLS = 128
"""Ranks that are drawn one by one; more are folded."""
MOST_RUNS = 32
"""Lines that hosts are folded to, where they are alike enough."""
ENDS = 8
"""Hosts at the beginning, and at the end, of a world that is too large to look at each rank."""
MOST_GROUPS = 16
"""Groups of an axis that are written out."""


def show(
    topology: ParallelTopology,
    *,
    hosts: Hosts | None = None,
    rank: int | None = None,
    axis: str | None = None,
    marked: Mapping[int, str] | None = None,
    tensor: Weight | None = None,
    links: DeviceLinks | None = None,
    width: int = 80,
    color: bool = False,
    fold: bool | None = None,
) -> str:
    """A picture of a layout for the terminal: hosts as boxes, ranks as cells, and a line for each axis.

    >>> from parallel_topology import Hosts, ParallelTopology
    >>> print(show(ParallelTopology(tp=2, pp=2), hosts=Hosts.parse("2x2"), rank=3, axis="pp", width=60))
    tp2-pp2: 4 ranks on 2 hosts of 2
    ╭ host 0 ─────────╮ ╭ host 1 ─────────╮
    │ 0       1       │ │ 2       [3]     │
    │ tp0 pp0 tp1 pp0 │ │ tp0 pp1 tp1 pp1 │
    │         pp<>    │ │                 │
    ╰─────────────────╯ ╰─────────────────╯
    <BLANKLINE>
    axis  groups  size  stride  hosts each
    pp         2     2       2           2  crosses hosts
    <BLANKLINE>
    rank 3 on host 1, local rank 1: tp1 pp1
      pp  [1, 3] position 1, prev 1, next 1; hosts 0-1

    Args:
        topology: the layout.
        hosts: where its ranks are, if that is known.
        rank: a rank whose groups and neighbours are marked: `<` is the previous one, `>` the next.
        axis: the only axis (`"tp"`) or axes together (`"tp-pp"`) to look at; otherwise every one.
        marked: rank -> a short note, for ranks to draw attention to, such as those that move.
        tensor: a tensor and its cut, as `Weight("tensor", "4096/tp 1024")`: colours stand for its parts.
        links: how the devices of each host are joined, as `DeviceLinks.parse` reads it.
        width: the most columns that a line may take, 20 or more.
        color: whether to colour by pipeline stage, with ANSI escapes.
        fold: whether to sum up hosts that are alike instead of drawing each rank; None does for more than 128 ranks.

    Raises:
        TopologyError: the tensor cannot be cut so, `hosts` do not hold all ranks.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """
    scene = Scene(topology, hosts=hosts, rank=rank, axis=axis, marked=marked, tensor=tensor, links=links)
    folded = topology.world_size > MOST_CELLS if fold is None else fold
    picture = _Text(scene, max(width, NARROWEST), Painter(scene, color))
    return "\n".join(line.rstrip() for line in picture.lines(folded))


class _Text:
    """One picture while it is being written."""

    def __init__(self, scene: Scene, width: int, paint: Painter) -> None:
        self.scene = scene
        self.width = width
        self.paint = paint

    def lines(self, folded: bool) -> Iterator[str]:
        scene = self.scene
        yield from wrapped(f"{scene.title}: {scene.summary}", self.width)
        if folded:
            yield from self._folded()
            if scene.rank is not None and scene.hosts is not None:
                home = scene.box_on(scene.hosts.host_of(scene.rank))
                if count(home.ranks) <= MOST_DRAWN:
                    yield ""
                    yield from drawn(scene, [home], self.width, self.paint)
        else:
            yield from drawn(scene, scene.boxes, self.width, self.paint)
        if scene.shards is not None:
            yield ""
            yield from self._tensor(scene.shards)
        yield ""
        for line in axis_lines(scene):
            yield from wrapped(line, self.width)
        if scene.rank is not None:
            yield ""
            yield from self._chosen(scene.rank)
        elif len(scene.axes) == 1:
            yield ""
            yield from self._groups()
        if self.paint.colors and scene.shards is None:
            yield from wrapped(f"colour: {scene.stage_axis}", self.width)

    # Hosts folded

    def _folded(self) -> Iterator[str]:
        if not self.scene.is_listed:
            yield from self._ends()
            return
        runs = self.scene.runs(MOST_RUNS)
        yield from self._runs(runs[:MOST_RUNS])
        if left := runs[MOST_RUNS:]:
            boxes = sum(len(run.boxes) for run in left)
            yield from wrapped(
                f"... and {boxes:,} more {self._units} with {sum(run.size for run in left):,} ranks", self.width
            )

    def _ends(self) -> Iterator[str]:
        """The first and the last hosts of a world that is too large to look at each."""
        units = self.scene.unit_count
        if units <= MOST_RUNS:
            yield from self._runs(list(map(self.scene.unit, range(units))))
            return
        yield from self._runs(list(map(self.scene.unit, range(ENDS))))
        more = f"... and {units - 2 * ENDS:,} more {self._units}: pick a rank out to see where it is and its groups, "
        yield from wrapped(more + "or draw a part, such as topology.subtopology(pp=0)", self.width)
        yield from self._runs(list(map(self.scene.unit, range(units - ENDS, units))))

    @property
    def _units(self) -> str:
        return "hosts" if self.scene.hosts is not None else "rows"

    def _runs(self, runs: Sequence[Run]) -> Iterator[str]:
        rows = [self._run(run) for run in runs]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for run, (hosts, ranks, indices, notes) in zip(runs, rows, strict=True):
            stages = run.extents.get(self.scene.stage_axis, (0,)) if self.scene.shards is None else ()
            swatch = self.paint("  ", stages[0]) + " " if self.paint.colors and len(stages) == 1 else ""
            text = "  ".join(filter(None, [hosts.ljust(widths[0]), ranks.ljust(widths[1]), indices, notes]))
            first, *more = wrapped(text, self.width - 3 * bool(self.paint.colors))
            yield (swatch or "   " * bool(self.paint.colors)) + first
            yield from more

    def _run(self, run: Run) -> tuple[str, str, str, str]:
        """Hosts, ranks, the indices of each axis, and what is picked out there."""
        hosts = [box.host for box in run.boxes if box.host is not None]
        ranks = run.boxes[0].ranks if len(run.boxes) == 1 else [rank for box in run.boxes for rank in box.ranks]
        here = set(ranks) if isinstance(ranks, list) else ranks
        indices = " ".join(f"{axis}{ranges(values)}" for axis, values in run.extents.items())
        notes: list[str] = [f"[{self.scene.rank}]"] * (self.scene.rank in here)
        for name, group in self.scene.groups.items() if run.size <= MOST_LISTED else ():
            members = sum(rank in group.ranks for rank in ranks)
            notes += [f"{name}: {members}"] * bool(members and group.size > 1)
        if moved := sum(rank in here for rank in self.scene.marked):
            notes.append(f"{moved:,} marked*")
        return (
            f"host{'s' * (len(hosts) > 1)} {ranges(hosts)}" if hosts else "",
            f"rank{'s' * (run.size > 1)} {ranges(ranks)}",
            indices + (" (not all combinations)" if not run.whole else ""),
            f"<- {', '.join(notes)}" if notes else "",
        )

    def _tensor(self, shards: Shards) -> Iterator[str]:
        """The tensor with the ranks that hold each part of it; the chosen one's is in brackets."""
        from parallel_topology.render.shards import table

        yield from wrapped(str(shards), self.width)
        cells = [ranges(ranks) for ranks in shards.holders]
        if self.scene.rank is not None:
            mine = shards.of(self.scene.topology.position(self.scene.rank))
            cells[mine] = f"[{cells[mine]}]"
        yield from table(shards, cells, self.width, self.paint)

    # Lines beneath

    def _chosen(self, rank: int) -> Iterator[str]:
        scene = self.scene
        where = ""
        if scene.hosts is not None:
            where = f" on host {scene.hosts.host_of(rank)}, local rank {scene.hosts.local_rank_of(rank)}"
        yield from wrapped(f"rank {rank}{where}: {scene.label(rank)}".rstrip(": "), self.width)
        longest = max(map(len, scene.groups))
        for name, group in scene.groups.items():
            yield from wrapped(f"  {name.ljust(longest)}  {self._member(group)}", self.width, indent=longest + 4)

    def _member(self, group: RankGroup) -> str:
        if group.size == 1:
            return f"{group.ranks!r} alone"
        text = f"{group.ranks!r} position {group.rank}, prev {group.prev_rank}, next {group.next_rank}"
        return text + self._hosts_of(group.ranks)

    def _hosts_of(self, group: Ranks) -> str:
        if self.scene.hosts is None:
            return ""
        hosts = self.scene.hosts.hosts_of(group)
        return f"; host{'s' * (count(hosts) > 1)} {ranges(hosts)}"

    def _groups(self) -> Iterator[str]:
        """The groups of the only axis that is looked at."""
        (axis,) = self.scene.axes
        for number, group in enumerate(axis.groups[:MOST_GROUPS]):
            yield from wrapped(f"{axis.name} group {number}: {group!r}{self._hosts_of(group)}", self.width)
        if axis.groups.size > MOST_GROUPS:
            yield from wrapped(f"... and {axis.groups.size - MOST_GROUPS:,} more groups", self.width)


def axis_lines(scene: Scene) -> Iterator[str]:
    """A table: for each axis its groups, their size and stride, and how they lie on hosts."""
    hosts = scene.hosts is not None
    heads = ["axis", "groups", "size", "stride"] + ["hosts each"] * hosts
    views = dict(scene.topology.views)
    facts = [[axis.name, *axis_facts(axis)] for axis in scene.axes]
    widths = [max(len(row[column]) for row in [heads, *facts]) for column in range(len(heads))]
    yield _columns(heads, widths)
    shown = ""
    for axis, row in zip(scene.axes, facts, strict=True):
        if axis.view != shown:
            yield f"view {axis.view}: {views[axis.view]}"
            shown = axis.view
        yield _columns(row, widths)
    if scene.topology.ranks is not None:
        listed = isinstance(scene.topology.ranks, tuple)
        yield f"strides count positions: the ranks are placed {'one by one' if listed else 'in steps of their own'}"
    if scene.idle:
        yield scene.idle
    if not hosts:
        yield "hosts are not given, so nothing is said about them"


def axis_facts(axis: Axis) -> list[str]:
    """Groups, size, stride and, when hosts are known, hosts of each group and whether it crosses them."""
    facts = [f"{axis.groups.size:,}", f"{axis.size:,}", ",".join(map(str, axis.strides)) or "-"]
    if axis.spans is None:
        return facts
    counts = axis.spans.histogram
    return [*facts, ranges(counts) if len(counts) > 1 else f"{axis.spans.widest:,}", axis.where]


def grid(topology: ParallelTopology) -> list[str]:
    """The ranks as a table: a row per index of the slowest axis, a column per coordinate of the others.

    >>> from parallel_topology import ParallelTopology
    >>> print("\\n".join(grid(ParallelTopology(tp=2, pp=2))))
           tp0  tp1
    pp0      0    1
    pp1      2    3
    """
    *inner, outer = topology.axes
    columns = list(topology.groups(*inner)[0]) if inner else [topology.world[0]]
    heads = [_label(topology.coordinate(rank), inner) for rank in columns]
    width = max(map(len, [*heads, str(max(topology.world))]))
    margin = len(f"{outer}{topology.size(outer) - 1}") + 2
    lines = [" " * margin + "".join(head.rjust(width + 2) for head in heads)] if inner else []
    for index, row in enumerate(topology.groups(*inner) if inner else ([rank] for rank in topology.world)):
        lines.append(f"{outer}{index}".ljust(margin) + "".join(str(rank).rjust(width + 2) for rank in row))
    return [line.rstrip() for line in lines]


def ranges(numbers: Iterable[int], most: int = 4) -> str:
    """Numbers as runs, of which the first few are written out.

    >>> ranges([0, 1, 2, 3, 8, 10, 11]), ranges(range(0, 40, 2))
    ('0-3,8,10-11', '0,2,4,6,... 38 (20)')
    """
    runs: list[tuple[int, int]] = []
    for first, last in _runs_of(numbers):
        if runs and first == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], last)
        elif len(runs) == most and isinstance(numbers, Sequence):  # enough is known
            runs.append((first, numbers[-1]))
            break
        else:
            runs.append((first, last))
    shown = ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs[:most])
    if len(runs) <= most:
        return shown
    total = count(numbers) if isinstance(numbers, Sequence) else sum(last - first + 1 for first, last in runs)
    return f"{shown},... {runs[-1][1]} ({total:,})"


def _runs_of(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of parts that count up, not always the longest, without looking at each number of strides."""
    if isinstance(numbers, range):
        numbers = Ranks(numbers.start, ((count(numbers), numbers.step),)) if numbers else ()
    if isinstance(numbers, Ranks) and numbers.placement is None and numbers.modes and numbers.modes[0][1] == 1:
        length = numbers.modes[0][0]
        return ((first, first + length - 1) for first in Ranks(numbers.start, numbers.modes[1:]))
    return ((number, number) for number in numbers)


def plain(text: str) -> str:
    """A picture without the characters that not every terminal has."""
    return text.translate(str.maketrans("╭╮╰╯├┼┤┬┴─│…", "+++++++++-|~"))


def _columns(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first to the left, numbers to the right, what has no width as it is."""
    cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=False)]
    return "  ".join([row[0].ljust(widths[0]), *cells, *row[len(widths) :]])


def _label(coordinate: dict[str, int], axes: list[str]) -> str:
    return " ".join(f"{axis}{coordinate[axis]}" for axis in axes)
