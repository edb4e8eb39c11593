"""What ranks need of a model's memory, as bars: an image, and a page around it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from html import escape

from parallel_topology.render.palette import ink, stage_colors
from parallel_topology.topology.wording import shown_bytes
from parallel_topology.weights.fit import Load

WIDTH = 900
"""Pixels of the longest bar, or of the memory that there is where that is more."""
LEFT, MARGIN, LINE, HEIGHT, GAP = 200, 12, 18, 24, 6


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
    name = "bars-" + hashlib.sha256("".join([title, *body]).encode()).hexdigest()[:12]
    width, height = LEFT + WIDTH + 2 * MARGIN + 90, bottom + LINE + MARGIN
    colors = "".join(
        f"#{name} .p{number} {{ fill: {color}; }} #{name} .legend .p{number} + text {{ fill: {ink(color)}; }}\n"
        for number, color in enumerate(stage_colors(len(names)))
    )
    drawn = "\n".join(body)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" id="{name}" role="img" aria-labelledby="{name}-title {name}-desc"
 width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title id="{name}-title">{escape(title)}</title>
<desc id="{name}-desc">{escape(words)}</desc>
<style>
#{name} {{ font: 13px ui-monospace, monospace; }}
#{name} text {{ fill: #1a1a1a; }} #{name} .paper {{ fill: #ffffff; }}
#{name} .limit {{ stroke: #b00020; stroke-width: 2; stroke-dasharray: 5 3; }}
@media (prefers-color-scheme: dark) {{
#{name} text {{ fill: #eeeeee; }} #{name} .paper {{ fill: #161616; }} #{name} .limit {{ stroke: #ff6b81; }}
}}
{colors}</style>
<rect class="paper" width="100%" height="100%"/>
<text x="{MARGIN}" y="{MARGIN + LINE}">{escape(title)}</text>
{drawn}
</svg>
"""


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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
:root {{ color-scheme: light dark; font: 14px system-ui, sans-serif; }}
svg {{ max-width: 100%; height: auto; }}
h1 {{ font-size: 1.2rem; }}
td, th {{ padding: 0.2rem 0.8rem; text-align: right; white-space: nowrap; }}
td:last-child {{ text-align: left; white-space: normal; }}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{svg(found, memory, title)}<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


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
