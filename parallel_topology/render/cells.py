"""Hosts as boxes of cells, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from textwrap import wrap
from typing import NamedTuple

from parallel_topology.render.palette import stage_colors, terminal_colors
from parallel_topology.render.scene import Box, Scene

NOTES = (14, 8)
"""Characters of a note that a cell shows: where there is room, and where there is not."""


class Painter:
    """Colours text by pipeline stage, or by part of a tensor, with ANSI escapes, or leaves it as it is."""

    def __init__(self, scene: Scene, color: bool) -> None:
        self.colors = stage_colors(len(scene.legend)) if color else []

    def __call__(self, text: str, color: int, *, bold: bool = False, underlined: bool = False) -> str:
        if not self.colors:
            return text
        paper, ink = terminal_colors(self.colors[color])
        codes = ["1"] * bold + ["4"] * underlined + [f"48;5;{paper}", f"38;5;{ink}"]
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


@dataclass(frozen=True)
class Label:
    """How a cell says where its rank is: `tp1 pp2` if named, else `1.2`."""

    axes: tuple[str, ...]
    named: bool

    def of(self, coordinate: Mapping[str, int]) -> str:
        if self.named:
            return " ".join(f"{axis}{coordinate[axis]}" for axis in self.axes)
        return ".".join(str(coordinate[axis]) for axis in self.axes)


class _Way(NamedTuple):
    """One way to draw the cells: in which words, how wide, how many in a row."""

    label: Label
    notes: list[str]
    cell: int
    columns: int


def drawn(scene: Scene, boxes: Sequence[Box], width: int, paint: Painter) -> Iterator[str]:
    """Lines of at most `width` columns, in which each rank of `boxes` has a cell."""
    ranks = [rank for box in boxes for rank in box.ranks]
    way = _way(scene, ranks, max(len(box.ranks) for box in boxes), width - 3)
    if not way.label.named:
        yield from wrapped(f"in each cell: rank, {'.'.join(way.label.axes)}", width)
    noted = dict(zip(ranks, way.notes, strict=True)) if any(way.notes) else {}
    inner = min(max(way.columns * (way.cell + 1) + 1, *map(len, map(_name, boxes)), 0), width - 2)
    pictures = [_box(scene, box, way, noted, inner, paint) for box in boxes]
    abreast = max(1, (width + 1) // (inner + 3))
    for start in range(0, len(pictures), abreast):
        beside = pictures[start : start + abreast]
        height = max(map(len, beside))
        beside = [[*box[:-1], *["│" + " " * inner + "│"] * (height - len(box)), box[-1]] for box in beside]
        yield from (" ".join(parts) for parts in zip(*beside, strict=True))


def fitted(text: str, width: int) -> str:
    """The text, or as much of it as there is room for."""
    return text if len(text) <= width else text[: width - 1] + "…"


def wrapped(line: str, width: int, indent: int = 4) -> list[str]:
    """The line, or several where it is too long, all but the first with an indent."""
    if len(line) <= width:
        return [line]
    before, after = " " * (len(line) - len(line.lstrip())), " " * min(indent, width // 3)
    return wrap(line.lstrip(), width, initial_indent=before, subsequent_indent=after, break_on_hyphens=False)


def _way(scene: Scene, ranks: Sequence[int], largest: int, room: int) -> _Way:
    """The most telling way that puts as many ranks in a row as there should be, or else the leanest."""
    coordinates = [scene.topology.coordinate(rank) for rank in ranks]
    numbers = max(len(_number(scene, rank)) for rank in ranks)
    wanted = scene.columns(largest)
    ways: list[_Way] = []
    for label, longest in product((Label(scene.shown_axes, True), Label(scene.shown_axes, False)), NOTES):
        notes = [_note(scene, rank, longest) for rank in ranks]
        words = max(len(label.of(coordinate)) for coordinate in coordinates)
        cell = min(max(numbers, words, *map(len, notes)), room - 1)
        ways.append(_Way(label, notes, cell, scene.columns(largest, room // (cell + 1))))
    return next((way for way in ways if way.columns == wanted), ways[-1])


def _box(scene: Scene, box: Box, way: _Way, noted: Mapping[int, str], inner: int, paint: Painter) -> list[str]:
    lines = ["╭" + fitted(_name(box), inner).ljust(inner, "─") + "╮"]
    for start in range(0, len(box.ranks), way.columns):
        row = box.ranks[start : start + way.columns]
        texts = [[_number(scene, rank) for rank in row]]
        if way.label.axes:
            texts.append([way.label.of(scene.topology.coordinate(rank)) for rank in row])
        if noted:
            texts.append([noted[rank] for rank in row])
        empty = " " * (inner - 1 - len(row) * (way.cell + 1))
        for parts in texts:
            cells = [_cell(scene, rank, part, way.cell, paint) for part, rank in zip(parts, row, strict=True)]
            lines.append("│ " + " ".join(cells) + empty + " │")
    return [*lines, "╰" + "─" * inner + "╯"]


def _name(box: Box) -> str:
    return "" if box.host is None else f" host {box.host} " + f"(+{box.others} other) " * bool(box.others)


def _cell(scene: Scene, rank: int, text: str, width: int, paint: Painter) -> str:
    chosen = rank == scene.rank
    near = chosen or bool(scene.relations(rank)) or rank in scene.marked
    return paint(fitted(text, width).ljust(width), scene.color(rank), bold=near, underlined=near and not chosen)


def _number(scene: Scene, rank: int) -> str:
    """The rank: `[5]` the chosen one, `5*` a marked one."""
    return f"[{rank}]" if rank == scene.rank else f"{rank}{'*' * (rank in scene.marked)}"


def _note(scene: Scene, rank: int, longest: int) -> str:
    """What there is to say of a rank, short."""
    return fitted(" ".join(filter(None, [scene.marked.get(rank, ""), ",".join(scene.relations(rank))])), longest)
