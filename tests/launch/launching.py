"""Starting programs by real launchers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPORT = [sys.executable, str(Path(__file__).parent / "reported.py")]
# Variables of whatever launcher started the tests.
FOREIGN = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "PALS_", "TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")


def needs(*commands: str) -> list[str]:
    """Where these commands are; the test is skipped if one is absent."""
    path = os.environ["PATH"] + ":/usr/sbin"  # where daemons are
    found = {command: shutil.which(command, path=path) for command in commands}
    if missing := [command for command, place in found.items() if place is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    return [place for place in found.values() if place is not None]


def launch(*command: str, **env: str) -> str:
    """The output of a command that has to succeed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, check=False, env=own | {"OMP_NUM_THREADS": "1"} | env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def reports(output: str) -> list[dict[str, Any]]:
    """What the processes reported, by rank."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: line.get("rank", -1))
