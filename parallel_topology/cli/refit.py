"""`parallel-topology refit`: what moves when a model's weights go from one layout to another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, ModelOption, OptionalHostsOption, read_model, spec
from parallel_topology.cli.output import print_json, print_table, table
from parallel_topology.cli.pictures import OutputOption, require_one_form, write_drawn
from parallel_topology.errors import TopologyError
from parallel_topology.refit.facts import matrix
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.render import matrix as picture
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.weights import Weights

MOST_COUNTED = 256
"""Ranks up to which each pair is counted, which takes as many steps as there are moves."""
MOST_SHOWN = 16
"""Ranks up to which the table of who sends to whom is printed."""


def refit(
    source: Annotated[ParallelTopology, spec("SOURCE", "The layout there is, fastest axis first, as in tp2-pp4.")],
    target: Annotated[ParallelTopology, spec("TARGET", "The one to which the weights go; tp4@8,9,10,11 is on ranks.")],
    model: ModelOption,
    hosts: OptionalHostsOption = None,
    explain: Annotated[str, typer.Option("--explain", help="The way of one tensor in words.", metavar="NAME")] = "",
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what moves when a model's weights go from one layout to another, and who sends how much to whom.

    Exit status: 0, or 2 when the input is wrong.

    Example: parallel-topology refit tp2-pp2 tp4 --model docs/examples/llama.json
    """
    require_one_form(output, as_json)
    with one_line_errors():
        plan = RefitPlan(Weights.from_config(read_model(model)), source, target, hosts=hosts)
        plan.verify()
        if explain:
            typer.echo(plan.explain(explain))
            return
        pairs = matrix(plan) if len(plan.ranks) <= MOST_COUNTED else None
        if output is not None and not pairs:
            raise TopologyError(f"--output: {len(plan.ranks)} ranks: up to {MOST_COUNTED} can be drawn")
        if as_json:
            print_json(_document(plan, pairs))
        else:
            _show(plan, pairs)
            if output is not None and pairs:
                drawn = pairs, f"{source} to {target}: who sends how much to whom"
                write_drawn(output, lambda: picture.svg(*drawn), lambda: picture.html(*drawn))


def _loads(pairs: dict[tuple[int, int], int], side: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for pair, nbytes in pairs.items():
        if pair[0] != pair[1]:
            found[pair[side]] = found.get(pair[side], 0) + nbytes
    return found


def _across(plan: RefitPlan, pairs: dict[tuple[int, int], int]) -> int | None:
    hosts = plan.hosts
    if hosts is None:
        return None
    return sum(nbytes for (one, other), nbytes in pairs.items() if hosts.host_of(one) != hosts.host_of(other))


def _document(plan: RefitPlan, pairs: dict[tuple[int, int], int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": str(plan.source.topology),
        "target": str(plan.target.topology),
        "fingerprint": plan.fingerprint,
        "tensors": len(plan.order),
        "bytes_moved": plan.bytes_moved,
        "lower_bound": plan.lower_bound,
        "bytes_kept": plan.bytes_total - plan.bytes_moved,
    }
    if pairs is not None:
        found["bytes_across_hosts"] = _across(plan, pairs)
        found["pairs"] = [
            {"source": one, "target": other, "bytes": nbytes} for (one, other), nbytes in sorted(pairs.items())
        ]
    return found


def _show(plan: RefitPlan, pairs: dict[tuple[int, int], int] | None) -> None:
    rows = table()
    rows.add_row("tensors", f"{len(plan.order):,}")
    rows.add_row("moved", f"{plan.bytes_moved:,} bytes; no plan moves less than {plan.lower_bound:,}")
    rows.add_row("kept", f"{plan.bytes_total - plan.bytes_moved:,} bytes")
    if pairs is not None:
        for side, what in enumerate(("sends", "receives")):
            loads = _loads(pairs, side)
            if loads:
                most = max(loads, key=lambda rank: loads[rank])
                rows.add_row(f"{what} most", f"rank {most}, {loads[most]:,} bytes")
        if (across := _across(plan, pairs)) is not None:
            rows.add_row("across hosts", f"{across:,} bytes")
    print_table(rows)
    if pairs is not None and plan.bytes_moved and len(plan.ranks) <= MOST_SHOWN:
        targets = sorted({other for one, other in pairs if one != other})
        sent = table("from", *(f"to {rank}" for rank in targets))
        for one in sorted({one for one, other in pairs if one != other}):
            cells = (pairs.get((one, other), 0) if one != other else 0 for other in targets)
            sent.add_row(str(one), *(f"{nbytes:,}" if nbytes else "-" for nbytes in cells))
        typer.echo()
        print_table(sent)
