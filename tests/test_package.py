"""The package as a whole: its names, and what its doors say where torch is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import parallel_topology

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
"""As where it is not installed: a module of that name that cannot be found hides the real one."""


def without_torch(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_dir_lists_what_nobody_has_asked_for():
    program = (
        "import parallel_topology as p, sys; missing = {*p.__all__, '__version__'} - {*dir(p)}; sys.exit(missing or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["GroupManager", "ParallelGroup", "Communicator", "Handle"])
def test_a_name_that_needs_torch_says_so(name: str):
    program = f"""
from parallel_topology import MissingExtraError, ParallelTopology
assert ParallelTopology(tp=2).world_size == 2
try:
    from parallel_topology import {name}
except MissingExtraError as error:
    print(error)
"""
    done = without_torch(program)
    assert done.stdout == f"{name} needs torch, which is not installed: pip install 'torch>=2.8'\n", done.stderr


@pytest.mark.parametrize("command", ["selftest", "demo"])
def test_a_command_that_needs_torch_says_so(command: str):
    done = without_torch("from parallel_topology.__main__ import main; main()", command)
    assert done.returncode == 1
    assert done.stderr == "this command needs torch, which is not installed: pip install 'torch>=2.8'\n"


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = parallel_topology.nothing
