"""`parallel-topology orders`: all orders of a topology's axes, ranked by what crosses hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import HostsOption, JsonOption, SpecArgument, names
from parallel_topology.cli.output import console, print_json, print_table, table
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.traffic import RankedOrder, left_out, ranked_orders
from parallel_topology.topology.topology import ParallelTopology

SHOWN = 24
"""Orders in the table: all those of four axes."""


def orders(
    spec: SpecArgument,
    hosts: HostsOption,
    heaviest: Annotated[
        str,
        typer.Option(metavar="AXES", help="Axes that come before tp, cp, ... because their traffic is heavier."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Rank the orders of a topology's axes by what crosses hosts: the mean number of hosts of a group, axis by axis.

    The axis with the heaviest traffic decides, then the next one: tp, cp, ep, dp, pp unless --heaviest says otherwise.

    Example: parallel-topology orders tp4-dp2-pp2 --hosts 2x8

    Example: parallel-topology orders tp4-dp2-pp2 --hosts 2x8 --heaviest tp,pp
    """
    with one_line_errors():
        ranked = ranked_orders(spec, hosts, names(heaviest))
    if as_json:
        listed = [{"order": one.order, "hosts_per_group": one.hosts_per_group} for one in ranked]
        more = {"left_out": left_out(spec)} if left_out(spec) else {}
        print_json({"topology": str(spec), "hosts": str(hosts), "orders": listed, **more})
    else:
        _show(ranked, spec, hosts)


def _show(ranked: list[RankedOrder], topology: ParallelTopology, hosts: Hosts) -> None:
    rows = table("order")
    axes = list(ranked[0].hosts_per_group)
    for axis in axes:
        rows.add_column(f"{axis} on hosts", justify="right")
    rows.add_column("")
    for one in ranked[:SHOWN]:
        counts = [f"{count:g}" for count in one.hosts_per_group.values()]
        rows.add_row(one.order, *counts, "as given" if one.order == topology.order else "")
    out = console()
    print_table(rows)
    if len(ranked) > SHOWN:
        out.print(f"... and {len(ranked) - SHOWN:,} more, all of them with --json")
    if others := left_out(topology):
        out.print(f"{others:,} orders were left out: none of them is better, as far as the axes themselves go")
    if idle := hosts.idle(topology):
        out.print(idle)
