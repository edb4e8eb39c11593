"""Pictures on the terminal and in files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import fail
from parallel_topology.render.text import plain, show
from parallel_topology.topology.topology import ParallelTopology

OutputOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the picture to a .svg or .html file.", show_default=False)
]


def require_one_form(output: Path | None, as_json: bool) -> None:
    """Data or a file: the line that says what was written would stand in the middle of the data."""
    if output is not None and as_json:
        fail("both --json and --output are given: expected one of them")


def print_picture(topology: ParallelTopology, **seen: Any) -> None:
    """As wide as the terminal, or COLUMNS; 80 columns in a pipe, for a picture has to end somewhere.

    Args:
        seen: hosts, rank, axis and marked, as for `show`.
    """
    width = shutil.get_terminal_size().columns
    text = show(topology, **seen, width=width, color=_is_colorful())
    typer.echo(text if _has_boxes() else plain(text), color=True)


def write_picture(output: Path, topology: ParallelTopology, **seen: Any) -> None:
    """The picture that the file's name asks for; arguments as for `print_picture`."""

    def svg() -> str:
        from parallel_topology.render.svg import svg as draw

        return draw(topology, **seen)

    def html() -> str:
        from parallel_topology.render.html import html as draw

        return draw(topology, **seen)

    write_drawn(output, svg, html)


def write_drawn(output: Path, svg: Callable[[], str], html: Callable[[], str]) -> None:
    """The one of these that the file's name asks for."""
    draw = {".svg": svg, ".html": html}.get(output.suffix.lower())
    if draw is None:
        fail(f"cannot tell from its name what to write to {output}: expected a name in .svg or .html")
    text = draw()
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")
    typer.echo(f"wrote {output}: {len(text.encode()):,} bytes")


def _is_colorful() -> bool:
    """Whether the reader is a terminal that wants colours: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _has_boxes() -> bool:
    """Whether the reader's encoding has the characters that boxes are drawn with."""
    try:
        "╭─…".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
