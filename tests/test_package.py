"""The package as a whole: its names, and what its doors say where torch is not installed."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import parallel_topology

ROOT = Path(__file__).parents[1]
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


def test_a_tree_on_the_import_path_has_a_version():
    """Engines carry copies of what they need, not installed."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import parallel_topology as p; print(p.__version__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("0+tree\n", "")


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("from parallel_topology import GroupManager", "GroupManager"),
        ("import parallel_topology; parallel_topology.Handle", "Handle"),
        ("from parallel_topology.testing import run_ranks", "parallel_topology.testing.run_ranks"),
        ("from parallel_topology.testing import simulate", "parallel_topology.testing.simulate"),
        ("from parallel_topology.ray import RayEngine", "parallel_topology.ray.RayEngine"),
        ("from parallel_topology.ray import Ticket", "parallel_topology.ray.Ticket"),
        ("import parallel_topology.functional", "parallel_topology.functional"),
        ("from parallel_topology import functional", "parallel_topology.functional"),
        ("import parallel_topology.interop", "parallel_topology.interop"),
        ("from parallel_topology.interop.device_mesh import device_mesh", "parallel_topology.interop"),
        ("from parallel_topology.interop.deepspeed import mpu", "parallel_topology.interop"),
        ("from parallel_topology.groups.manager import GroupManager", "parallel_topology.groups"),
        ("import parallel_topology.communicators.handle", "parallel_topology.communicators"),
        ("import parallel_topology.meeting.rendezvous", "parallel_topology.meeting"),
    ],
)
def test_every_door_that_needs_torch_says_so(program: str, what: str):
    done = without_torch(program)
    said = f"{what} needs torch, which is not installed: pip install 'torch>=2.8'"
    assert done.stderr.splitlines()[-1] == f"parallel_topology.errors.MissingExtraError: {said}"
    assert "ModuleNotFoundError" not in done.stderr


def test_what_needs_no_torch_goes_on():
    program = """
from parallel_topology import MissingExtraError, ParallelTopology
assert ParallelTopology(tp=2).world_size == 2
from parallel_topology.ray import Place, rank_order
from parallel_topology.testing import RanksUsageError, strategies
from parallel_topology.weights import Weights
import parallel_topology.testing.plugin, parallel_topology.ray, parallel_topology.render.svg
"""
    done = without_torch(program)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["selftest", "demo"])
def test_a_command_that_needs_torch_says_so(command: str):
    done = without_torch("from parallel_topology.__main__ import main; main()", command)
    assert done.returncode == 1
    assert done.stderr == "this command needs torch, which is not installed: pip install 'torch>=2.8'\n"


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = parallel_topology.nothing


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_is_for_people_who_have_nothing_else(tmp_path: Path):
    """Builds it as an index gets it: types, examples, a page on which no link leads nowhere."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=280)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [about] = (name for name in names if name.endswith("dist-info/METADATA"))
        page = archive.read(about).decode()
    assert {"parallel_topology/py.typed", "parallel_topology/examples/two_engines.py"} <= names
    assert "- Getting started (`docs/getting-started.md`): " in page
    assert [target for target in re.findall(r"\]\(([^)]+)\)", page) if not target.startswith("https://")] == []
    assert "\nProject-URL:" not in page
