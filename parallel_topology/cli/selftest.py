"""`parallel-topology selftest`: does every collective work on every group, how fast, and who is to blame?"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, spec
from parallel_topology.cli.output import console, print_json, print_table, table, without_numpy_warning
from parallel_topology.errors import NoLauncherError
from parallel_topology.installed import imported
from parallel_topology.launch import LaunchInfo
from parallel_topology.topology.topology import ParallelTopology

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from parallel_topology.selftest.verdict import GroupResult, Verdict

SHOWN = 8
"""Groups of an axis in the table, and ranks in a list, the worst ones."""

_HELP = "A topology of the ranks there are; alone tp2-pp2, under a launcher the ranks inside and across hosts."


def selftest(
    topology: Annotated[ParallelTopology | None, spec(help=_HELP)] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for other ranks.")] = 20.0,
    size: Annotated[int, typer.Option(min=4, help="Bytes of the large messages.")] = 1 << 20,
    as_json: JsonOption = False,
) -> None:
    """Try every collective on every group, and name slow and broken ranks.

    Under a launcher such as torchrun it runs on the ranks that were started; alone, in processes of this machine.

    Exit status: 0 when all worked, 1 when something is broken or gives wrong values, 2 when the input is wrong.

    Example: parallel-topology selftest tp2-pp2

    Example: torchrun --standalone --nproc-per-node 2 -m parallel_topology selftest
    """
    without_numpy_warning()
    imported("torch", "this command")
    with one_line_errors():
        info = _launch_info()
        from parallel_topology.selftest.worlds import alone, default_topology, launched  # torch

        if info is None:
            topology = topology or ParallelTopology(tp=2, pp=2)
            verdict = alone(topology, size=size, timeout=timeout)
            ok = verdict.ok
        else:
            topology = topology or default_topology(info)
            outcome = launched(topology, info, size=size, timeout=timeout)
            verdict, ok = outcome.verdict, outcome.ok
            if outcome.said:
                typer.echo(f"parallel-topology: {outcome.said}", err=True)
    if verdict is not None and as_json:
        print_json(_document(topology, size, verdict))
    elif verdict is not None:
        _show(console(), topology, size, verdict, info)
    if not ok:
        sys.exit(1)


def _launch_info() -> LaunchInfo | None:
    try:
        return LaunchInfo.from_env(os.environ)
    except NoLauncherError:
        return None


def _document(topology: ParallelTopology, size: int, verdict: Verdict) -> dict[str, Any]:
    return {"topology": str(topology), "size": size, "ok": verdict.ok, **asdict(verdict)}


def _show(out: Console, topology: ParallelTopology, size: int, verdict: Verdict, info: LaunchInfo | None) -> None:
    started = f"started by {info.launcher}" if info else "started here, for no launcher was found"
    out.print(f"{topology}: {topology.world_size:,} ranks, {started}; {verdict.where}; messages of {size:,} bytes\n")
    if verdict.groups:
        print_table(_table(verdict.groups))
        out.print()
    for group, times in verdict.slow_groups.items():
        out.print(f"slow: {group}, {times:.1f} times the median of the axis's groups", style="yellow")
    for rank, times in verdict.slow_ranks.items():
        out.print(f"slow: rank {rank}, {times:.1f} times the median to even its fastest neighbour", style="yellow")
    for sentence in verdict.wrong:
        out.print(f"wrong: {sentence}", style="red")
    if verdict.suspects:
        out.print(f"suspect: {', '.join(f'rank {rank}' for rank in verdict.suspects)}", style="bold red")
    named = verdict.missing or list(verdict.broken)
    for rank in named[:SHOWN]:
        out.print(f"broken: rank {rank} {verdict.broken[rank]}", style="bold red")
    if more := len(verdict.broken) - len(named[:SHOWN]):
        met = next((f"; rank {rank} {said}" for rank, said in verdict.broken.items() if rank not in named), "")
        out.print(f"and {more:,} more failed, --json says how{met}", style="red")
    for sentence in verdict.unseen:
        out.print(f"not seen: {sentence}", style="dim")
    if verdict.ok:
        out.print("every collective gave the right values on every group", style="bold")


def _table(results: list[GroupResult]) -> Table:
    rows = table("group", "ranks", "collective")
    for heading in ("latency us", "algbw GB/s", "busbw GB/s"):
        rows.add_column(heading, justify="right")
    by_kind: defaultdict[tuple[str, str], list[GroupResult]] = defaultdict(list)
    for one in results:
        by_kind[one.group.partition("[")[0], one.check].append(one)
    for kind in by_kind.values():
        worst = sorted(kind, key=lambda one: one.times_median, reverse=True)[:SHOWN]
        for one in kind if len(kind) <= SHOWN else worst:
            rows.add_row(*_row(one))
        if len(kind) > SHOWN:
            rows.add_row(f"... and {len(kind) - SHOWN:,} faster")
    return rows


def _row(one: GroupResult) -> list[str]:
    ranks = ", ".join(map(str, one.ranks[:SHOWN])) + ", ..." * (len(one.ranks) > SHOWN)
    speeds = ["" if speed is None else f"{speed / 1e9:.3f}" for speed in (one.algorithm_bandwidth, one.bus_bandwidth)]
    return [one.group, ranks, one.check, f"{one.latency * 1e6:.0f}", *speeds]
