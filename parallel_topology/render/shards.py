"""Shards: the parts of a tensor, in the tensor's own shape, and the ranks that hold each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import TypeAlias

from parallel_topology.errors import TopologyError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.placed import Placed
from parallel_topology.weights.weight import Weight

MOST_SHARDS = 1_024
"""Parts that a picture shows."""


class Shards:
    """A tensor cut over a topology, as a table: along its first cut dim the rows, along another one the columns.

    >>> shards = Shards(Weight("tensor", "8/tp 6"), ParallelTopology(tp=2, dp=2))
    >>> print(shards)
    tensor 8/tp 6: 2 shards of 4x6, each on 2 ranks
    >>> [(shards.name(shard), list(ranks)) for shard, ranks in enumerate(shards.holders)]
    [('[0:4, :]', [0, 2]), ('[4:8, :]', [1, 3])]

    Attributes:
        weight: the tensor and its cut.
        rows, columns: the ranges of each; a single one where nothing is cut.
        holders: the ranks that hold each part, row by row.

    Raises:
        TopologyError: a dim does not divide, more than two dims are cut, or there are more parts than can be shown.
        UnknownAxisError: an axis that is not there, or axes of different views.
    """

    def __init__(self, weight: Weight, topology: ParallelTopology) -> None:
        self.weight = require_kind(weight, Weight, "tensor")
        self._placed = placed = Placed(weight, topology, None, weight.dtype or "bfloat16")
        sizes = {dim: prod(topology.size(axis) for axis in weight.axes(dim)) for dim in weight.cut}
        cut = sorted(dim for dim, size in sizes.items() if size > 1)
        if len(cut) > 2:
            raise TopologyError(f"{weight.name} {weight} is cut along {len(cut)} dims: a picture shows at most 2")
        if (parts := prod(sizes.values())) > MOST_SHARDS:
            raise TopologyError(f"{weight.name} {weight} has {parts:,} parts: a picture shows at most {MOST_SHARDS:,}")
        met = list(placed.meeting())
        self._dims = cut
        self._boxes = [box for box, _ in met]
        self.rows, self.columns = (self._along(cut[0]) if cut else ()), (self._along(cut[1]) if cut[1:] else ())
        self.holders: Sequence[Ranks] = [placed.having(runs) for _, runs in met]

    def __str__(self) -> str:
        shapes = sorted({"x".join(str(len(part)) for part in box) for box in self._boxes}, reverse=True)
        many = len(self._boxes)
        what = f"{many:,} shard{'s' * (many > 1)} of {' or '.join(shapes) or 'one element'}"
        copies = self._placed.copies
        return f"{self.weight.name} {self.weight}: {what}, each on {copies:,} rank{'s' * (copies > 1)}"

    def name(self, shard: int) -> str:
        """Its ranges, as one slices them: `[0:1024, :]`."""
        whole = self.weight.shape
        parts = (
            ":" if len(part) == size else f"{part.start}:{part.stop}"
            for part, size in zip(self._boxes[shard], whole, strict=True)
        )
        return f"[{', '.join(parts)}]"

    def ranges(self, shard: int) -> list[list[int]]:
        """Its first index and the one after its last, for each dim."""
        return [[part.start, part.stop] for part in self._boxes[shard]]

    @cached_property
    def digits(self) -> list[tuple[int, int, int]]:
        """(size, stride, weight): the part of a position is the sum of `position // stride % size * weight`."""
        layout, found, weight = self._placed.layout, list[tuple[int, int, int]](), 1
        for dim in reversed(self._dims):  # the last dim's last axis counts fastest
            for axis in reversed(self.weight.axes(dim)):
                for size, stride in layout.modes.get(axis, ()):
                    found.append((size, stride, weight))
                    weight *= size
        return found

    def of(self, position: int) -> int:
        """Which part a position holds."""
        return sum(position // stride % size * weight for size, stride, weight in self.digits)

    def _along(self, dim: int) -> tuple[range, ...]:
        return tuple(dict.fromkeys(box[dim] for box in self._boxes))


Paint: TypeAlias = Callable[[str, int], str]
"""What colours the text of a part."""


def table(shards: Shards, cells: Sequence[str], width: int, paint: Paint = lambda text, _: text) -> Iterator[str]:
    """The tensor as a table of boxes, one a part, with a text in each; as a list where that is too wide.

    >>> print("\\n".join(table(Shards(Weight("w", "4/tp 4"), ParallelTopology(tp=2)), ["0", "1"], 80)))
         ╭───╮
    0-1  │ 0 │
         ├───┤
    2-3  │ 1 │
         ╰───╯
    """
    columns = max(1, len(shards.columns))
    heads = [_span(part) for part in shards.columns]
    names = [_span(part) for part in shards.rows] or [""]
    cell, margin = max(map(len, [*cells, *heads])), max(map(len, names)) + 2
    if margin + columns * (cell + 3) + 1 > width or len(names) > MOST_ROWS:
        yield from _listed(shards, cells, paint)
        return
    lines = {ends: margin * " " + ends[0] + ends[1].join(["─" * (cell + 2)] * columns) + ends[2] for ends in _RULES}
    if heads:
        yield margin * " " + " ".join(f"  {head.ljust(cell)}" for head in heads)
    yield lines[_RULES[0]]
    for row, name in enumerate(names):
        if row:
            yield lines[_RULES[1]]
        here = range(row * columns, (row + 1) * columns)
        yield name.ljust(margin) + "│" + "│".join(paint(f" {cells[part].ljust(cell)} ", part) for part in here) + "│"
    yield lines[_RULES[2]]


_RULES = ("╭┬╮", "├┼┤", "╰┴╯")
MOST_ROWS = 32
"""Rows of such a table, and lines of such a list; of more, the first ones are shown."""


def _listed(shards: Shards, cells: Sequence[str], paint: Paint) -> Iterator[str]:
    names = [shards.name(shard) for shard in range(min(len(cells), MOST_ROWS))]
    longest = max(map(len, names))
    for part, name in enumerate(names):
        yield f"{name.ljust(longest)}  {paint(cells[part], part)}"
    if len(cells) > MOST_ROWS:
        yield f"... and {len(cells) - MOST_ROWS:,} more shards"


def _span(part: range) -> str:
    return f"{part.start}-{part.stop - 1}" if len(part) > 1 else f"{part.start}"
