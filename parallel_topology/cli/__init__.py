"""The command line, a module for each command. Torch is imported by the commands that need it, not here."""

from __future__ import annotations

import typer

from parallel_topology.cli.demo import demo
from parallel_topology.cli.show import show

app = typer.Typer(name="parallel-topology", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction] (typer: keeps a single command a subcommand)
    """Layouts and process groups for models spread over many devices."""


app.command()(demo)
app.command()(show)
