"""`parallel-topology demo`: engines of different topologies side by side in the same processes."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_topology.cli.errors import fail, one_line_errors
from parallel_topology.cli.output import console, print_table, table, without_numpy_warning
from parallel_topology.errors import TopologyError
from parallel_topology.installed import imported
from parallel_topology.render.text import grid
from parallel_topology.topology.topology import ParallelTopology

if TYPE_CHECKING:
    from rich.console import Console

MOST_TEXT = 16 * 1024
"""Bytes of a file that the demo reads: enough to see it work, few enough to end within a minute on two cores."""


def demo(
    text: Annotated[Path | None, typer.Option(help="A file to run through the engines; its bytes are tokens.")] = None,
    engines: Annotated[str, typer.Option(help="Topologies of equal world size, joined by commas.")] = "tp2-pp2,tp4",
) -> None:
    """Run engines of different topologies side by side in the same processes, over real process groups.

    Example: parallel-topology demo --text README.md --engines tp2-pp2,tp4,pp4
    """
    out = console()
    without_numpy_warning()
    imported("torch", "this command")
    with one_line_errors():
        topologies = _engine_topologies(engines)
        content = _content(text)
        two_engines: Any = import_module("parallel_topology.examples.two_engines")
        two_engines.check(topologies)
        for number, topology in enumerate(topologies):
            out.print(f"engine {number}: {topology}", style="bold")
            out.print("\n".join(grid(topology)) + "\n")
        out.print(f"{topologies[0].world_size} processes, {len(content):,} bytes of text\n")

        def on_phase(name: str) -> None:
            out.print(f"... {name}")

        outcome = two_engines.run(topologies, content, on_phase)
    _show_outcome(out, topologies, outcome, two_engines.TOLERANCE)
    if not outcome.agrees:
        sys.exit(1)


def _engine_topologies(text: str) -> list[ParallelTopology]:
    """The demo's topologies; its model asks each for a `tp` and a `pp` axis."""
    topologies: list[ParallelTopology] = []
    for part in text.split(","):
        given = ParallelTopology.parse(part)
        if unused := [axis for axis in given.axes if axis not in ("tp", "pp")]:
            raise TopologyError(f"--engines {part!r}: the demo's model uses tp and pp only, not {', '.join(unused)}")
        order = given.order if len(given.axes) == 2 else "tp-pp"
        topologies.append(given.model_copy(update={"tp": 1, "pp": 1, **given.sizes, "order": order}))
    sizes = {topology.world_size for topology in topologies}
    if len(sizes) > 1 or len(topologies) < 2:
        listed = ", ".join(f"{topology} has {topology.world_size}" for topology in topologies)
        raise TopologyError(f"--engines {text!r}: expected two or more of the same number of ranks; {listed}")
    return topologies


def _content(path: Path | None) -> bytes:
    """The text to run: this file, unless another is given."""
    try:
        content = (path or Path(__file__)).read_bytes()[:MOST_TEXT]
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    return content or fail(f"{path} is empty: expected some text")


def _show_outcome(out: Console, topologies: list[ParallelTopology], outcome: Any, tolerance: float) -> None:
    out.print()
    rows = table("engine")
    for heading in ("ranks that compared", "largest difference", "after engine 0 closed"):
        rows.add_column(heading)
    for number, topology in enumerate(topologies):
        after = f"{outcome.after_close[number - 1]:.1e}" if number else "closed"
        row = (f"{number}: {topology}", str(outcome.checked[number]), f"{outcome.differences[number]:.1e}", after)
        rows.add_row(*row)
    print_table(rows)
    out.print()
    for phase, seconds in outcome.seconds.items():
        out.print(f"{seconds:6.2f} s  {phase}")
    verdict = "all engines agree with the reference" if outcome.agrees else "an engine differs from the reference"
    out.print(f"\n{verdict}: {outcome.tokens:,} tokens, tolerance {tolerance:g}", style="bold")
