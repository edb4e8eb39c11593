"""`parallel-topology env`: which launcher started this process, and which variables say so."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from parallel_topology.cli.errors import fail, one_line_errors
from parallel_topology.cli.options import JsonOption
from parallel_topology.cli.output import print_json, print_table, table
from parallel_topology.errors import NoLauncherError
from parallel_topology.launch import LaunchInfo
from parallel_topology.launch.table import LAUNCHERS

PACKAGES = ("parallel-topology", "torch", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


def env(as_json: JsonOption = False) -> None:
    """Show which launcher started this process, what it says, and which variables decided.

    Exit status: 0, or 2 when there is no launcher or its variables contradict each other.

    Example: RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 parallel-topology env
    """
    installed = {name: number for name in PACKAGES if (number := _version(name))}
    with one_line_errors():
        try:
            found = asdict(LaunchInfo.from_env(os.environ))
        except NoLauncherError as error:
            _show_nothing(installed, as_json=as_json)
            fail(f"{error.said}.")
    if as_json:
        print_json({**found, "installed": installed})
    else:
        _show({**found, "installed": installed})


def _show(found: dict[str, Any]) -> None:
    rows = table()
    for name, value in found.items():
        lines = _lines(value)
        for number, line in enumerate(lines):
            rows.add_row("" if number else name, line)
    print_table(rows)


def _show_nothing(installed: dict[str, str], *, as_json: bool) -> None:
    """No launcher: what was looked for, a line for each."""
    looked_for = {launcher.name: launcher.marks for launcher in LAUNCHERS}
    if as_json:
        print_json({"launcher": None, "looked_for": looked_for, "installed": installed})
        return
    rows = table()
    rows.add_row("launcher", "none")
    for number, (name, marks) in enumerate(looked_for.items()):
        rows.add_row("" if number else "looked for", f"{name}: {', '.join(marks)}")
    for number, line in enumerate(_lines(installed)):
        rows.add_row("" if number else "installed", line)
    print_table(rows)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}={inner}" for key, inner in cast("dict[str, object]", value).items()]
    if isinstance(value, tuple):
        return list(cast("tuple[str, ...]", value)) or ["no other launcher"]
    return ["not said" if value is None else str(value)]


def _version(package: str) -> str | None:
    """As its metadata say: importing torch would take seconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
