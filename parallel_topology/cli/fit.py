"""`parallel-topology fit`: what the ranks of a model need, the heaviest first, and whether they have it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, ModelOption, SpecArgument, read_model
from parallel_topology.cli.output import print_json, print_table, table
from parallel_topology.cli.pictures import OutputOption, require_one_form, write_drawn
from parallel_topology.cli.uses import (
    BatchOption,
    CommunicatorOption,
    ContextOption,
    MemoryOption,
    OptimizerOption,
    ZeroOption,
    use_of,
)
from parallel_topology.render import bars
from parallel_topology.render.bars import stages_of
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import shown_bytes
from parallel_topology.weights.fit import Load, loads, most
from parallel_topology.weights.memory import Serving, Training
from parallel_topology.weights.model import Model


def fit(
    spec: SpecArgument,
    model: ModelOption,
    memory: MemoryOption,
    optimizer: OptimizerOption = "",
    zero: ZeroOption = 0,
    batch: BatchOption = 1,
    context: ContextOption = 4096,
    communicator: CommunicatorOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what memory a model takes, stage by stage, the heaviest first, and whether that is there.

    Exit status: 0 when it fits, 1 when it does not, 2 when the input is wrong.

    Example: parallel-topology fit tp2-pp2-dp2 --model docs/examples/llama.json --memory 80GiB --optimizer adam
    """
    require_one_form(output, as_json)
    with one_line_errors():
        use = use_of(optimizer, zero, batch, context, communicator)
        read = Model.from_config(read_model(model))
        found = loads(read, spec, use)
        fits = found[0].memory.total <= memory.bytes
        would = [] if fits else _would_fit(read, spec, use, memory.bytes)
    if as_json:
        print_json(_document(spec, found, memory.bytes, would))
    else:
        _show(found, memory.bytes, would)
        if output is not None:
            drawn = found, memory.bytes, f"{spec}: memory of the heaviest rank of each stage"
            write_drawn(output, lambda: bars.svg(*drawn), lambda: bars.html(*drawn))
    if not fits:
        sys.exit(1)


def _would_fit(model: Model, topology: ParallelTopology, use: Training | Serving, memory: int) -> list[str]:
    """What would do without another layout: the first that fits of each kind."""

    def fits(other: Training | Serving) -> bool:
        return most(model, topology, other) <= memory

    return [said for said in (_more_divided(use, fits), *_fewer(use, fits), _computed_again(use, fits)) if said]


def _more_divided(use: Training | Serving, fits: Callable[[Training | Serving], bool]) -> str:
    if not isinstance(use, Training):
        return ""
    return next((f"--zero {zero}" for zero in range(use.zero + 1, 4) if fits(replace(use, zero=zero))), "")


def _fewer(use: Training | Serving, fits: Callable[[Training | Serving], bool]) -> Iterator[str]:
    for name in ("batch", "context"):
        whole: int = getattr(use, name)
        if whole > 1 and fits(replace(use, **{name: 1})):  # else none of them does
            sizes = (whole >> halved for halved in range(1, whole.bit_length()))
            yield next(f"--{name} {size}" for size in sizes if fits(replace(use, **{name: size})))


def _computed_again(use: Training | Serving, fits: Callable[[Training | Serving], bool]) -> str:
    again = isinstance(use, Training) and fits(replace(use, recompute="full"))
    return "all activations computed again" if again else ""


def _document(topology: ParallelTopology, found: list[Load], memory: int, would: list[str]) -> dict[str, Any]:
    stages = [
        {
            "stages": list(load.stages),
            "layers": load.layers,
            "rank": load.rank,
            "bytes": load.memory.total,
            "parts": load.memory.parts,
            "lightest": load.lightest,
            "why": load.why,
        }
        for load in found
    ]
    fits = found[0].memory.total <= memory
    return {"topology": str(topology), "memory": memory, "fits": fits, "would_fit": would, "stages": stages}


def _show(found: list[Load], memory: int, would: list[str]) -> None:
    parts = list(dict.fromkeys(part for load in found for part in load.memory.parts))
    rows = table("stage", "rank", "layers", *parts, "total", "")
    for load in found:
        sizes = (shown_bytes(load.memory.parts.get(part, 0)) for part in parts)
        total = shown_bytes(load.memory.total)
        rows.add_row(stages_of(load), f"{load.rank:,}", str(load.layers), *sizes, total, load.why)
    print_table(rows)
    most = found[0].memory.total
    typer.echo()
    if most <= memory:
        typer.echo(f"fits: {shown_bytes(memory - most)} of {shown_bytes(memory)} are left on rank {found[0].rank:,}")
        return
    typer.echo(f"does not fit: rank {found[0].rank:,} lacks {shown_bytes(most - memory)} of {shown_bytes(most)}")
    typer.echo(f"would fit: {'; or '.join(would) or 'nothing but another layout, or more memory'}")
