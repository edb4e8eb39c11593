"""`parallel-topology show`: a picture of a layout."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, OptionalHostsOption, SpecArgument, names
from parallel_topology.cli.output import print_json
from parallel_topology.cli.pictures import OutputOption, print_picture, require_one_form, write_picture


def show(
    topology: SpecArgument,
    hosts: OptionalHostsOption = None,
    rank: Annotated[
        int | None, typer.Option(metavar="RANK", help="Pick out its groups and neighbours.", show_default=False)
    ] = None,
    axis: Annotated[
        str | None,
        typer.Option(metavar="AXIS", help="Only this axis, or axes together, as in tp-pp.", show_default=False),
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a layout: ranks on hosts, and for each axis how many groups there are and whether they cross hosts.

    Example: parallel-topology show tp2-pp4 --hosts 2x4 --rank 5
    """
    require_one_form(output, as_json)
    seen: dict[str, Any] = {"hosts": hosts, "rank": rank, "axis": "-".join(names(axis)) if axis is not None else None}
    with one_line_errors():
        if as_json:
            from parallel_topology.render.json import as_json as data

            print_json(data(topology, **seen))
        elif output is not None:
            write_picture(output, topology, **seen)
        else:
            print_picture(topology, **seen)
