"""A layout as an SVG image: no script, nothing loaded, light and dark."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from parallel_topology.render.palette import ink, stage_colors
from parallel_topology.render.scene import LABELLED, Box, Scene
from parallel_topology.render.text import axis_lines

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.topology.topology import ParallelTopology
    from parallel_topology.weights.weight import Weight

WIDTH = 1200
"""Pixels that boxes stand abreast in, unless a single one is wider."""
SWATCHES = 24
"""Colours in a row of the legend."""
MARGIN = 12
GAP = 4
LINE = 18


def svg(
    topology: ParallelTopology,
    *,
    hosts: Hosts | None = None,
    rank: int | None = None,
    axis: str | None = None,
    marked: Mapping[int, str] | None = None,
    tensor: Weight | None = None,
    links: DeviceLinks | None = None,
) -> str:
    """An image of a layout; to point at a rank shows its coordinate. Ids and styles are its own, on any page.

    Args:
        topology: the layout.
        hosts: where its ranks are, if that is known.
        rank: a rank whose groups stay bright while others fade; its neighbours are ringed.
        axis: the only axis (`"tp"`) or axes together (`"tp-pp"`) to look at; otherwise every one.
        marked: rank -> a short note, for ranks to draw attention to, such as those that move.
        tensor: a tensor and its cut, as `Weight("tensor", "4096/tp 1024")`: colours stand for its parts.
        links: how the devices of each host are joined, as `DeviceLinks.parse` reads it.

    Raises:
        TopologyError: the tensor cannot be cut so, `hosts` do not hold all ranks, or there are more ranks than an image
            can show.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """
    scene = Scene(topology, hosts=hosts, rank=rank, axis=axis, marked=marked, tensor=tensor, links=links)
    scene.require_drawable()
    drawing = _Drawing.of(scene)
    abreast = min(len(scene.boxes), max(1, (WIDTH - 2 * MARGIN) // (drawing.width + GAP)))
    swatch, swatches = _swatches(scene)
    parts = list(_legend(scene, swatch, swatches))
    top = MARGIN + 2 * LINE + -(-len(parts) // swatches) * (LINE + GAP)
    for start in range(0, len(scene.boxes), abreast):
        row = scene.boxes[start : start + abreast]
        parts += [drawing.box(box, MARGIN + place * (drawing.width + GAP), top) for place, box in enumerate(row)]
        top += max(drawing.height(box) for box in row) + GAP
    lines = [*([scene.key] if scene.key else []), *axis_lines(scene)]
    for line in lines:
        top += LINE
        parts.append(f'<text class="mono" x="{MARGIN}" y="{top}" xml:space="preserve">{escape(line)}</text>')
    title = escape(f"{scene.title}: {scene.summary}; colour: {scene.colored_by}")
    legend = min(len(scene.legend), swatches) * (swatch + GAP) if len(scene.legend) > 1 else 0
    words = int(8.5 * max(map(len, [title, *lines])))
    width = max(abreast * (drawing.width + GAP), legend, words) + 2 * MARGIN
    body = "\n".join(parts)
    name = "layout-" + hashlib.sha256(f"{title}{body}".encode()).hexdigest()[:12]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" id="{name}" role="img" aria-labelledby="{name}-title {name}-desc"
 width="{width}" height="{top + MARGIN}" viewBox="0 0 {width} {top + MARGIN}">
<title id="{name}-title">{title}</title>
<desc id="{name}-desc">{escape("; ".join(lines))}</desc>
<style>
{_style("#" + name, scene)}</style>
<rect class="paper" width="100%" height="100%"/>
<text class="mono" x="{MARGIN}" y="{MARGIN + LINE}">{title}</text>
{body}
</svg>
"""


@dataclass(frozen=True)
class _Drawing:
    """Where things stand, in pixels."""

    scene: Scene
    columns: int
    cell_width: int
    cell_height: int

    @classmethod
    def of(cls, scene: Scene) -> _Drawing:
        columns = scene.columns(max(len(box.ranks) for box in scene.boxes))
        number = 8 * (len(str(max(scene.topology.world))) + 1)
        if scene.topology.world_size > LABELLED:
            return cls(scene, columns, number, 16)
        return cls(scene, columns, max(number, 7 * len(scene.label(scene.topology.world[-1]))) + 8, 34)

    @cached_property
    def width(self) -> int:
        names = max(len(_name(box)) for box in self.scene.boxes)
        return max(self.columns * (self.cell_width + GAP), 7 * names + 2 * GAP) + 2 * GAP

    def height(self, box: Box) -> int:
        rows = -(-len(box.ranks) // self.columns)
        return rows * (self.cell_height + GAP) + 2 * GAP + LINE * (box.host is not None)

    def box(self, box: Box, left: int, top: int) -> str:
        name = _name(box)
        rect = f'<rect class="host" width="{self.width - GAP}" height="{self.height(box) - GAP}" rx="5"/>'
        head = f'<text class="name" x="{2 * GAP}" y="{LINE - GAP}">{name}</text>' if name else ""
        return f'<g transform="translate({left} {top})">{rect}{head}\n{"".join(self._cells(box))}</g>'

    def _cells(self, box: Box) -> Iterator[str]:
        above = GAP + LINE * (box.host is not None)
        for place, rank in enumerate(box.ranks):
            row, column = divmod(place, self.columns)
            x, y = GAP + column * (self.cell_width + GAP), above + row * (self.cell_height + GAP)
            label = self.scene.label(rank)
            notes = [label, self.scene.marked.get(rank, ""), " ".join(self.scene.relations(rank))]
            title = escape(", ".join(filter(None, [f"rank {rank}", *notes])))
            number = f"{rank}*" if rank in self.scene.marked else str(rank)
            below = f'<text x="5" y="28">{label}</text>' if self.cell_height > LINE else ""
            yield (
                f'<g class="{self._classes(rank)}" transform="translate({x} {y})"><title>{title}</title>'
                f'<rect width="{self.cell_width}" height="{self.cell_height}" rx="3"/>'
                f'<text x="5" y="{12 + 2 * bool(below)}">{number}</text>{below}</g>\n'
            )

    def _classes(self, rank: int) -> str:
        relations = self.scene.relations(rank)
        names = [f"s{self.scene.color(rank)}"]
        names += ["at"] * (rank == self.scene.rank)
        names += ["near"] * any(relation[-1] in "<>" for relation in relations)
        names += ["far"] * (self.scene.rank is not None and rank != self.scene.rank and not relations)
        names += ["marked"] * (rank in self.scene.marked)
        return " ".join(names)


def _name(box: Box) -> str:
    return "" if box.host is None else f"host {box.host}" + f" (+{box.others} other)" * bool(box.others)


def _swatches(scene: Scene) -> tuple[int, int]:
    """(the width of a swatch, how many stand in a row of the legend)."""
    width = max(WIDTH // SWATCHES - GAP, 7 * max(map(len, scene.legend)) + 10)
    most = max(1, WIDTH // (width + GAP))
    return width, scene.legend_columns if 1 < scene.legend_columns <= most else most


def _legend(scene: Scene, width: int, abreast: int) -> Iterator[str]:
    """A swatch for each colour, if there are several."""
    for color, name in enumerate(scene.legend if len(scene.legend) > 1 else []):
        row, column = divmod(color, abreast)
        x, y = MARGIN + column * (width + GAP), MARGIN + LINE + 2 * GAP + row * (LINE + GAP)
        yield (
            f'<g class="s{color} swatch" transform="translate({x} {y})"><rect width="{width}" height="{LINE}" rx="3"/>'
            f'<text x="5" y="13">{name}</text></g>'
        )


def _style(name: str, scene: Scene) -> str:
    rules = [
        f"{name} {{ font: 12px system-ui, sans-serif; }}",
        f"{name} {{ --paper: #fff; --text: #1b1e23; --line: #767c86; --ring: #b3005e; }}",
        f"@media (prefers-color-scheme: dark) {{ {name} {{ --paper: #14161a; --text: #e8eaee; --line: #7d8490;"
        " --ring: #ff7ab8; } }",
        f"{name} .paper {{ fill: var(--paper); }}",
        f"{name} .host {{ fill: none; stroke: var(--line); }}",
        f"{name} .mono, {name} .name {{ fill: var(--text); }}",
        f"{name} .mono {{ font: 13px ui-monospace, monospace; }}",
        f"{name} .far {{ opacity: .42; }}",
        f"{name} .near rect {{ stroke: var(--ring); stroke-width: 2; }}",
        f"{name} .at rect {{ stroke: var(--ring); stroke-width: 4; }}",
        f"{name} .marked rect {{ stroke: var(--text); stroke-width: 2; stroke-dasharray: 4 2; }}",
    ]
    for stage, color in enumerate(stage_colors(len(scene.legend))):
        rules.append(f"{name} .s{stage} {{ fill: {ink(color)}; }} {name} .s{stage} rect {{ fill: {color}; }}")
    return "\n".join(rules) + "\n"
