"""The command line, a module for each command. Torch is imported by the commands that need it, not here."""

from __future__ import annotations

from typing import Annotated

import typer

import parallel_topology
from parallel_topology.cli.check import check
from parallel_topology.cli.demo import demo
from parallel_topology.cli.diff import diff
from parallel_topology.cli.env import env
from parallel_topology.cli.errors import OneLineErrors
from parallel_topology.cli.fit import fit
from parallel_topology.cli.globals import read_globals
from parallel_topology.cli.layouts import layouts
from parallel_topology.cli.orders import orders
from parallel_topology.cli.refit import refit
from parallel_topology.cli.selftest import selftest
from parallel_topology.cli.show import show

app = typer.Typer(
    name="parallel-topology",
    cls=OneLineErrors,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"parallel-topology {parallel_topology.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:  # pyright: ignore[reportUnusedFunction] (typer registers it)
    """Layouts and process groups for models spread over many devices."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (show, check, fit, layouts, orders, diff, refit, env, selftest, demo):  # as --help lists them
    app.command()(_command)
app.command("globals")(read_globals)
