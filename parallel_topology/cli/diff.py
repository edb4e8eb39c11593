"""`parallel-topology diff`: which ranks move when one topology takes another's place."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, OptionalHostsOption, spec
from parallel_topology.cli.output import columns, print_json
from parallel_topology.cli.pictures import OutputOption, print_picture, require_one_form, write_picture
from parallel_topology.errors import TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.render.cells import wrapped
from parallel_topology.render.scene import MOST_DRAWN, MOST_LISTED
from parallel_topology.render.text import MOST_CELLS
from parallel_topology.topology.diff import Diff
from parallel_topology.topology.topology import ParallelTopology


def diff(
    before: Annotated[ParallelTopology, spec("BEFORE", "The topology there is, fastest axis first, as in tp2-pp4.")],
    after: Annotated[ParallelTopology, spec("AFTER", "The one that takes its place.")],
    hosts: OptionalHostsOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which ranks move when one topology takes another's place; with hosts, also what crosses them.

    The picture, of up to 128 ranks, is of AFTER: a rank that moved has a star, and beneath it where it was.

    Exit status: 0 when nothing changes, 1 when ranks move, come or go, 2 when the input is wrong.

    Example: parallel-topology diff tp2-pp4 pp4-tp2 --hosts 2x4
    """
    require_one_form(output, as_json)
    found = before.diff(after)
    with one_line_errors():
        if hosts is not None:
            hosts.require(before)
            hosts.require(after)
        if as_json:
            print_json(_document(found, hosts))
        else:
            notes = found.notes if after.world_size <= MOST_DRAWN else {}
            if output is not None:  # first: where it cannot be written, there is an error and nothing else
                write_picture(output, after, hosts=hosts, marked=notes)
            _show(found, hosts)
            if output is None and notes and after.world_size <= MOST_CELLS:  # of more there are only counts
                typer.echo()
                print_picture(after, hosts=hosts, marked=notes)
    if found:
        sys.exit(1)


def _show(found: Diff, hosts: Hosts | None) -> None:
    lines = str(found).splitlines()
    if hosts is not None:
        for name, topology in (("before", found.before), ("after", found.after)):
            idle = hosts.idle(topology)
            lines.append(f"{name}: {topology} on hosts {hosts}{f'; {idle}' if idle else ''}")
            lines += [f"  {hosts.spans(topology, axis)}" for axis in _divided_axes(topology)]
    width = columns()
    for line in lines:
        typer.echo("\n".join(wrapped(line, width)))


def _document(found: Diff, hosts: Hosts | None) -> dict[str, Any]:
    _require_listed(found)
    moved = [{"rank": rank, "before": old, "after": new} for rank, old, new in found.moved]
    document: dict[str, Any] = {
        "before": str(found.before),
        "after": str(found.after),
        "moved": moved,
        "removed": list(found.removed),
        "added": list(found.added),
    }
    if hosts is not None:
        document["hosts"] = str(hosts)
        document["groups_across_hosts"] = {
            name: {axis: hosts.spans(topology, axis).crossing for axis in _divided_axes(topology)}
            for name, topology in (("before", found.before), ("after", found.after))
        }
    return document


def _require_listed(found: Diff) -> None:
    if not found:
        return
    ranks = max(found.before.world_size, found.after.world_size)
    if ranks > MOST_LISTED:
        raise TopologyError(f"{ranks:,} ranks are more than the {MOST_LISTED:,} that --json lists: leave it out")


def _divided_axes(topology: ParallelTopology) -> list[str]:
    return [axis for axis in topology.all_axes if topology.size(axis) > 1]
