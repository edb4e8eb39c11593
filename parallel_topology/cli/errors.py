"""How a command ends when its input is wrong: one line on stderr, exit status 2. Typer's own errors too."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from parallel_topology.errors import ParallelTopologyError

# typer 0.26 brought a click of its own: what both call ClickException, found through a name that typer exports.
_ClickError: Any = typer.BadParameter.__mro__[2]


class OneLineErrors(TyperGroup):
    """Commands whose usage errors (an unknown option, a bad value) are one line, without a box around them."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except _ClickError as error:
            fail(error.format_message())
        except typer.Abort:
            status = 130  # as a shell says of what Ctrl-C ended
        sys.exit(status or 0)


@contextmanager
def one_line_errors() -> Generator[None]:
    """Within this, an error of ours is one line on stderr and exit status 2."""
    try:
        yield
    except ParallelTopologyError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command: one line on stderr, exit status 2."""
    typer.echo(f"parallel-topology: {' '.join(message.split())}", err=True)
    sys.exit(2)
