"""`parallel-topology diff`: which ranks move when one topology takes another's place."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, OptionalHostsOption, SpecArgument
from parallel_topology.cli.output import console, print_json
from parallel_topology.diff import Diff
from parallel_topology.hosts import Hosts
from parallel_topology.topology import ParallelTopology


def diff(
    before: SpecArgument,
    after: SpecArgument,
    hosts: OptionalHostsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which ranks move when one topology takes another's place; with hosts, also what crosses them.

    Exit status: 0 when nothing moves, 1 when something does, 2 when the input is wrong.

    Example: parallel-topology diff tp2-pp4 pp4-tp2 --hosts 2x4
    """
    with one_line_errors():
        if hosts is not None:
            hosts.require(before)
            hosts.require(after)
    found = before.diff(after)
    if as_json:
        print_json(_document(found, hosts))
    else:
        _show(console(), found, hosts)
    if found:
        sys.exit(1)


def _show(out: Console, found: Diff, hosts: Hosts | None) -> None:
    """Everything that is shown; a picture of both layouts, the moved ranks marked, belongs here."""
    out.print(str(found))
    if hosts is not None:
        for name, topology in (("before", found.before), ("after", found.after)):
            out.print(f"{name}: {topology} on hosts {hosts}")
            for axis in _divided_axes(topology):
                out.print(f"  {hosts.spans(topology, axis)}")


def _document(found: Diff, hosts: Hosts | None) -> dict[str, Any]:
    moved = [{"rank": rank, "before": old, "after": new} for rank, old, new in found.moved]
    document: dict[str, Any] = {
        "before": str(found.before),
        "after": str(found.after),
        "moved": moved,
        "removed": found.removed,
        "added": found.added,
    }
    if hosts is not None:
        document["hosts"] = str(hosts)
        document["groups_across_hosts"] = {
            name: {axis: hosts.spans(topology, axis).crossing for axis in _divided_axes(topology)}
            for name, topology in (("before", found.before), ("after", found.after))
        }
    return document


def _divided_axes(topology: ParallelTopology) -> list[str]:
    return [axis for axis in topology.all_axes if topology.size(axis) > 1]
