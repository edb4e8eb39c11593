"""`parallel-topology layouts`: on which layouts a model fits, the one that sends least across hosts first."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import HostsOption, JsonOption, ModelOption, read_model
from parallel_topology.cli.output import print_json, print_table, table
from parallel_topology.cli.uses import (
    BatchOption,
    CommunicatorOption,
    ContextOption,
    MemoryOption,
    OptimizerOption,
    ZeroOption,
    use_of,
)
from parallel_topology.errors import TopologyError
from parallel_topology.topology.wording import shown_bytes
from parallel_topology.weights.model import Model
from parallel_topology.weights.search import Search, search

SHOWN = 10
"""Layouts in the table; `--json` has all."""


def layouts(
    ranks: Annotated[int, typer.Option("--ranks", help="How many there are.", metavar="N", min=1, show_default=False)],
    model: ModelOption,
    memory: MemoryOption,
    hosts: HostsOption,
    optimizer: OptimizerOption = "",
    zero: ZeroOption = 0,
    batch: BatchOption = 1,
    context: ContextOption = 4096,
    communicator: CommunicatorOption = None,
    global_batch: Annotated[
        int | None,
        typer.Option(
            "--global-batch",
            help="Sequences in a step of training, of all ranks together; --batch of each rank if it is left out.",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the layouts of so many ranks on which a model fits, the fewest bytes across hosts first.

    Looks at all products of tp, cp, pp, dp and ep, each in the best order of its axes. Bytes are those that all ranks
    together send for one token. How long stages wait for each other is not counted.

    Exit status: 0 when there are such layouts, 1 when there are none, 2 when the input is wrong.

    Example: parallel-topology layouts --ranks 8 --model docs/examples/llama.json --memory 80GiB --hosts 2x4
    """
    with one_line_errors():
        use = use_of(optimizer, zero, batch, context, communicator)
        if global_batch is not None and not optimizer:
            raise TopologyError(f"--global-batch {global_batch} is for training; expected --optimizer adam with it")
        read = Model.from_config(read_model(model))
        found = search(read, ranks, use, memory=memory.bytes, hosts=hosts, sequences=global_batch)
    if as_json:
        print_json(_document(found, ranks, memory.bytes, str(hosts)))
    else:
        _show(found, ranks, memory.bytes)
    if not found.fitting:
        sys.exit(1)


def _document(found: Search, ranks: int, memory: int, hosts: str) -> dict[str, Any]:
    fitting = [
        {
            "topology": str(one.topology),
            "bytes": one.memory,
            "across_hosts_per_token": round(one.across),
            "inside_hosts_per_token": round(one.inside),
        }
        for one in found.fitting
    ]
    return {"ranks": ranks, "hosts": hosts, "memory": memory, "layouts": fitting, "out": dict(found.out)}


def _show(found: Search, ranks: int, memory: int) -> None:
    if found.fitting:
        rows = table("layout", "memory", "across hosts", "inside hosts")
        for one in found.fitting[:SHOWN]:
            sent = (f"{shown_bytes(round(nbytes))} a token" for nbytes in (one.across, one.inside))
            rows.add_row(str(one.topology), shown_bytes(one.memory), *sent)
        print_table(rows)
        typer.echo()
    count = len(found.fitting)
    more = f", {count - SHOWN:,} more of them with --json" if count > SHOWN else ""
    typer.echo(f"{count + sum(found.out.values()):,} layouts of {ranks:,} ranks: {count:,} fit{more}")
    for reason, number in found.out.items():
        said = f"{reason} than {shown_bytes(memory)}" if reason == "needs more memory" else reason
        typer.echo(f"{number:,} do not: {said}")
