"""What ranks need of a model's memory, as bars: an image, and a page around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from parallel_topology.render.palette import ink, stage_colors
from parallel_topology.render.paper import LINE, MARGIN, image, page
from parallel_topology.topology.wording import shown_bytes
from parallel_topology.weights.fit import Load

WIDTH = 900
"""Pixels of the longest bar, or of the memory that there is where that is more."""
LEFT, HEIGHT, GAP = 200, 24, 6


def svg(found: Sequence[Load], memory: int, title: str) -> str:
    """A bar for the heaviest rank of each kind of stages, by what it needs memory for; a line at what there is.

    Args:
        found: as from `loads`; stages stand in their order.
        memory: bytes that a rank has.
        title: what is shown.
    """
    rows = sorted(found, key=lambda load: load.stages)
    names = list(dict.fromkeys(name for load in found for name in load.memory.parts))
    scale = WIDTH / max(memory, *(load.memory.total for load in found))
    top = 2 * MARGIN + 2 * LINE + HEIGHT
    body = [*_legend(names), *(line for row, load in enumerate(rows) for line in _bar(load, top, row, names, scale))]
    bottom = top + len(rows) * (HEIGHT + GAP)
    at = round(LEFT + memory * scale, 2)
    body.append(f'<line class="limit" x1="{at}" x2="{at}" y1="{top - GAP}" y2="{bottom}"/>')
    body.append(f'<text x="{at}" y="{bottom + LINE}" text-anchor="end">{shown_bytes(memory)} there</text>')
    words = "; ".join(f"{_name(load)}: {_said(load)}" for load in rows)
    colors = [
        f"& .p{number} {{ fill: {color}; }} & .legend .p{number} + text {{ fill: {ink(color)}; }}"
        for number, color in enumerate(stage_colors(len(names)))
    ]
    limit = "& .limit { stroke: #b00020; stroke-width: 2; stroke-dasharray: 5 3; }"
    size = LEFT + WIDTH + 2 * MARGIN + 90, bottom + LINE + MARGIN
    return image("bars", title, words, size, body, [*colors, limit, "& .limit { stroke: #ff6b81; }"])


def html(found: Sequence[Load], memory: int, title: str) -> str:
    """A page with the image, and the same figures in a table; arguments as for `svg`. It loads nothing."""
    names = list(dict.fromkeys(name for load in found for name in load.memory.parts))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("stages", "rank", *names, "total", ""))
    rows = "\n".join(
        f'<tr><th scope="row">{escape(stages_of(load))}</th><td>{load.rank:,}</td>'
        + "".join(f"<td>{shown_bytes(load.memory.parts.get(name, 0))}</td>" for name in names)
        + f"<td>{shown_bytes(load.memory.total)}</td><td>{escape(load.why)}</td></tr>"
        for load in sorted(found, key=lambda load: load.stages)
    )
    body = f"{svg(found, memory, title)}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return page(title, body)


def _legend(names: Sequence[str]) -> Iterator[str]:
    left, top = MARGIN, MARGIN + LINE + GAP
    yield '<g class="legend">'
    for number, name in enumerate(names):
        wide = 8 * len(name) + 2 * GAP
        yield f'<rect class="p{number}" x="{left}" y="{top}" width="{wide}" height="{HEIGHT}"/>'
        yield f'<text x="{left + GAP}" y="{top + LINE - 1}">{escape(name)}</text>'
        left += wide + GAP
    yield "</g>"


def _bar(load: Load, top: int, row: int, names: Sequence[str], scale: float) -> Iterator[str]:
    y, left = top + row * (HEIGHT + GAP), float(LEFT)
    yield f'<g class="bar"><title>{escape(f"{_name(load)}: {_said(load)}")}</title>'
    yield f'<text x="{LEFT - GAP}" y="{y + LINE - 1}" text-anchor="end">{escape(_name(load))}</text>'
    for name, nbytes in load.memory.parts.items():
        wide = nbytes * scale
        yield (
            f'<rect class="p{names.index(name)}" x="{left:.2f}" y="{y}" width="{wide:.2f}" height="{HEIGHT}">'
            f"<title>{escape(name)}: {shown_bytes(nbytes)}</title></rect>"
        )
        left += wide
    yield f'<text class="total" x="{LEFT + WIDTH + GAP}" y="{y + LINE - 1}">{shown_bytes(load.memory.total)}</text></g>'


def _name(load: Load) -> str:
    return f"stage{'s' * (len(load.stages) > 1)} {stages_of(load)}, rank {load.rank:,}"


def stages_of(load: Load) -> str:
    """`0`, `1..14`, or `0, 3`."""
    first, last = min(load.stages), max(load.stages)
    whole = 0 < last - first == len(load.stages) - 1
    return f"{first}..{last}" if whole else ",".join(map(str, load.stages))


def _said(load: Load) -> str:
    parts = ", ".join(f"{name} {shown_bytes(nbytes)}" for name, nbytes in load.memory.parts.items())
    return f"{shown_bytes(load.memory.total)} ({parts})"
