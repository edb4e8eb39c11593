"""Who sends how much to whom, as a matrix: an image, and a page around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from parallel_topology.render.paper import LINE, MARGIN, image, page

SIDE, LEFT, TOP = 22, 70, 90
"""Pixels of a cell, and before the first one."""
LEAST = 0.15
"""Opacity of a cell with a byte; the fullest one has 1."""

Pairs = Mapping[tuple[int, int], int]
"""(source, target) -> bytes; with one rank twice, what it keeps."""


def svg(pairs: Pairs, title: str) -> str:
    """A cell for each pair: a row for each rank that sends, a column for each that receives; what is kept in outline.

    Args:
        pairs: at least one.
        title: what is shown.
    """
    rows, columns = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    most = max((nbytes for (source, target), nbytes in pairs.items() if source != target), default=0)
    body: list[str] = [f'<text x="{MARGIN}" y="{TOP - 2 * LINE}">from, to</text>']
    for number, rank in enumerate(columns):
        x, y = LEFT + number * SIDE + SIDE / 2 + 4, TOP - 6
        body.append(f'<text x="{x:g}" y="{y}" transform="rotate(-60 {x:g} {y})">{rank:,}</text>')
    for number, rank in enumerate(rows):
        y = TOP + number * SIDE
        body.append(f'<text x="{LEFT - 6}" y="{y + LINE - 2}" text-anchor="end">{rank:,}</text>')
        body += _cells(pairs, rank, columns, y, most)
    bottom = TOP + len(rows) * SIDE + LINE
    body.append(f'<text x="{LEFT}" y="{bottom + MARGIN}">darkest: {most:,} bytes; outline: kept</text>')
    words = "; ".join(said(*pair, nbytes) for pair, nbytes in sorted(pairs.items()))
    width = max(LEFT + len(columns) * SIDE + 2 * MARGIN, 8 * len(title) + 2 * MARGIN, 480)
    styles = [
        "& .sent { fill: #0b5cad; stroke: none; }",
        "& .kept { fill: none; stroke: #666666; stroke-width: 2; }",
        "& .sent { fill: #7cc4ff; } & .kept { stroke: #aaaaaa; }",
    ]
    return image("matrix", title, words, (width, bottom + 2 * LINE), body, styles)


def html(pairs: Pairs, title: str) -> str:
    """A page with the image, and the same figures in a table; arguments as for `svg`. It loads nothing."""
    rows = "\n".join(
        f'<tr><th scope="row">{source:,}</th><td>{target:,}</td><td>{nbytes:,}</td>'
        f"<td>{'kept' if source == target else ''}</td></tr>"
        for (source, target), nbytes in sorted(pairs.items())
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("from", "to", "bytes", ""))
    body = f"{svg(pairs, title)}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return page(title, body)


def said(source: int, target: int, nbytes: int) -> str:
    """A pair in words."""
    return f"{source} keeps {nbytes:,} bytes" if source == target else f"{source} to {target} {nbytes:,} bytes"


def _cells(pairs: Pairs, source: int, columns: list[int], y: int, most: int) -> Iterator[str]:
    for number, target in enumerate(columns):
        nbytes = pairs.get((source, target), 0)
        if not nbytes:
            continue
        inset = 3 if source == target else 1
        side, x = SIDE - 2 * inset, LEFT + number * SIDE + inset
        dark = "" if source == target else f' opacity="{LEAST + (1 - LEAST) * nbytes / most:.3f}"'
        yield (
            f'<rect class="{"kept" if source == target else "sent"}" x="{x}" y="{y + inset}" width="{side}" '
            f'height="{side}"{dark}><title>{escape(said(source, target, nbytes))}</title></rect>'
        )
