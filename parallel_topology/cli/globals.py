"""`parallel-topology globals`: where a tree reads parallel_state's globals, and what to write instead."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from parallel_topology.cli.errors import fail
from parallel_topology.cli.options import JsonOption
from parallel_topology.cli.output import print_json
from parallel_topology.reads.tree import Found, find


def read_globals(
    path: Annotated[Path, typer.Argument(help="A Python file, or a folder of them.", show_default=False)],
    at_most: Annotated[int, typer.Option("--at-most", metavar="N", min=0, help="How many there may be.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List where code reads the globals of a parallel_state, and what to write instead.

    It knows those of Megatron-core, vLLM, SGLang and DeepSpeed, by import and name; nothing is imported or run.

    Exit status: 0 when there are none, or no more than --at-most; 1 when there are more; 2 when the input is wrong.

    Example: parallel-topology globals docs --at-most 120
    """
    try:
        found = find(path)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    if not found.files:
        fail(f"{path}: no Python files; expected some")
    if as_json:
        print_json({"path": str(path), "at_most": at_most, "count": len(found.reads), **asdict(found)})
    else:
        _show(found, at_most)
    if len(found.reads) > at_most:
        sys.exit(1)


def _show(found: Found, at_most: int) -> None:
    lines = [f"{read.file}:{read.line}: {read.name} in {read.function}: {read.instead}" for read in found.reads]
    lines += [f"{file}: not read: {' '.join(why.split())}" for file, why in found.unreadable.items()]
    count, files = len(found.reads), len({read.file for read in found.reads})
    limit = f"; at most {at_most} allowed" if at_most else ""
    if count < at_most:
        limit += f", lower it to {count}"
    typer.echo("\n".join([*lines, f"{count} reads of globals in {files} of {found.files} files{limit}"]))
