"""`parallel-topology show`: a picture of a layout."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import fail, one_line_errors
from parallel_topology.hosts import Hosts
from parallel_topology.render.text import plain
from parallel_topology.render.text import show as picture
from parallel_topology.topology import ParallelTopology


def show(
    topology: Annotated[str, typer.Argument(help="Such as tp2-pp4, or tp2-dp4/expert:etp1-ep8.")],
    hosts: Annotated[str | None, typer.Option(help="2x4: 2 hosts of 4 ranks; or 4,4,2; or 0,4/1,5.")] = None,
    rank: Annotated[int | None, typer.Option(help="Pick out this rank's groups and neighbours.")] = None,
    axis: Annotated[str | None, typer.Option(help="Only this axis, or axes together, as in tp-pp.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write a picture to this .svg or .html file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a picture.")] = False,
) -> None:
    """Draw a layout: ranks on hosts, and for each axis how many groups there are and whether they cross hosts.

    Example: parallel-topology show tp2-pp4 --hosts 2x4 --rank 5
    """
    with one_line_errors():
        layout = ParallelTopology.parse(topology)
        seen: dict[str, Any] = {"hosts": None if hosts is None else Hosts.parse(hosts), "rank": rank, "axis": axis}
        if output is not None:
            _write(output, layout, seen)
        elif as_json:
            from parallel_topology.render.json import as_json as data

            typer.echo(json.dumps(data(layout, **seen)))
        else:
            width = shutil.get_terminal_size().columns
            text = picture(layout, **seen, width=width, color=_colorful())
            typer.echo(text if _has_boxes() else plain(text), color=True)


def _write(output: Path, layout: ParallelTopology, seen: dict[str, Any]) -> None:
    """The picture that the file's name asks for."""
    if output.suffix == ".svg":
        from parallel_topology.render.svg import svg as draw
    elif output.suffix == ".html":
        from parallel_topology.render.html import html as draw
    else:
        fail(f"cannot tell from its name what to write to {output}: expected a name in .svg or .html")
    text = draw(layout, **seen)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")
    typer.echo(f"wrote {output}: {len(text.encode()):,} bytes")


def _colorful() -> bool:
    """Whether the reader is a terminal that wants colours: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _has_boxes() -> bool:
    """Whether the reader's encoding has the characters that boxes are drawn with."""
    try:
        "╭─…".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
