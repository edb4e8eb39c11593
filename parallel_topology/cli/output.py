"""How commands print. Rich is imported when something is printed with it, which is not in every command."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNBOUNDED = 10_000
"""Columns of a pipe: nothing is wrapped or cut for who reads it line by line."""


def console() -> Console:
    """A console that prints text as it is; rich sees to colours, which pipes and `NO_COLOR` switch off."""
    from rich.console import Console

    return Console(width=columns(), highlight=False, markup=False, emoji=False)


def columns() -> int:
    """How many a line may have."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED


def table(*headings: str) -> Table:
    """A table without lines, to which columns and rows are added; without headings it has no head.

    The columns of these headings hold names: where there is little room, the others wrap first.
    """
    from rich.table import Column, Table

    names = [Column(heading, no_wrap=True) for heading in headings]
    return Table(*names, box=None, show_header=bool(headings), pad_edge=False)


def print_table(rows: Table) -> None:
    """Without the spaces that rich fills the last column with."""
    out = console()
    with out.capture() as captured:
        out.print(rows)
    lines = captured.get().splitlines()
    typer.echo("\n".join(re.sub(r" +((?:\x1b\[[0-9;]*m)*)$", r"\1", line) for line in lines), color=True)


def print_json(value: Any) -> None:
    """One document with nothing beside it, indented for a person, on one line for a program."""
    typer.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def without_numpy_warning() -> None:
    """torch works without NumPy and warns that it is not there, here and in every process started from here."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Failed to initialize NumPy")
