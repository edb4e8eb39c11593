"""How commands print."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import typer
from rich.console import Console

UNBOUNDED = 10_000
"""Columns of a pipe: nothing is wrapped or cut for who reads it line by line."""


def console() -> Console:
    """A console that prints text as it is; rich sees to colours, which pipes and `NO_COLOR` switch off."""
    width = None if sys.stdout.isatty() else UNBOUNDED
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One document, indented, with nothing beside it."""
    typer.echo(json.dumps(value, indent=2))


def without_numpy_warning() -> None:
    """torch works without NumPy and warns that it is not there, here and in every process started from here."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Failed to initialize NumPy")
