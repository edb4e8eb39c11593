"""A pytest run leaves nothing behind: not after hundreds of tests, and not when ranks fail, crash and are stuck."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.util import get_temp_dir

import pytest

import_module("parallel_topology.testing.pytest_ranks")  # pytester forgets what an inner run is the first to import

FILE = """
import gc, os, tempfile, threading, time
from pathlib import Path
import pytest, torch

def state():
    gc.collect()
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        parents[int(name.split()[0])] = int(rest.split()[1])
    kin = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in kin} - kin:
        kin |= more
    return {
        "threads": len(os.listdir("/proc/self/task")), "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(kin), "folders": len(list(Path(tempfile.gettempdir()).glob("ranks-*"))),
    }

def expect(before, **more):
    deadline = time.monotonic() + 40  # what gloo still waits in ends with its own deadline, of 35 s
    while time.monotonic() < deadline:
        now = state()
        if all(count <= before[what] + more.get(what, 0) for what, count in now.items()):
            return
        time.sleep(0.1)
    raise AssertionError((before, now))

seen = {}
"""


@pytest.fixture
def of_its_own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for temporary files that no other test writes to, at a path short enough for sockets."""
    get_temp_dir()  # of multiprocessing, which keeps it for this process's life
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.mark.usefixtures("of_its_own")
@pytest.mark.parametrize("threads", [30, pytest.param(180, marks=pytest.mark.slow)])
def test_tests_that_pass(pytester: pytest.Pytester, threads: int):
    pytester.makepyfile(
        FILE
        + """
@pytest.mark.ranks("tp2-pp2")
@pytest.mark.parametrize("number", range(THREADS))
def test_threads(groups, number):
    groups.world.all_reduce(torch.ones(1))

@pytest.mark.ranks(2, world="processes")
@pytest.mark.parametrize("number", range(20))
def test_processes(groups, number):
    groups.world.all_reduce(torch.ones(1))

def test_after():
    expect(seen["test_threads"], processes=4, descriptors=12, threads=2)  # the workers, their server, its tracker

@pytest.fixture(autouse=True)
def look(request):
    yield
    kind, number = request.node.originalname, request.node.name.partition("[")[2]
    if kind == "test_threads" and number == "2]":  # of processes this is the ranks' fixture
        seen[kind] = state()
    if kind == "test_threads" and number == f"{THREADS - 1}]":
        expect(seen[kind])
        """.replace("THREADS", str(threads))
    )
    if threads > 100:  # the whole of it where nothing else has run
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", timeout=110)
    else:
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q")
    result.assert_outcomes(passed=threads + 21)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("of_its_own")
def test_tests_that_fail(pytester: pytest.Pytester):
    """Every way to fail, round after round. All that stays is the thread of a rank that nothing can interrupt."""
    pytester.makepyfile(
        FILE
        + """
ROUNDS = 4
pytestmark = pytest.mark.parametrize("number", range(ROUNDS), scope="module")

@pytest.mark.ranks("tp2-pp2", world=["threads", "processes"])
def test_fails(groups, number):
    assert groups.rank != 2
    groups.world.barrier()

@pytest.mark.ranks("tp2-pp2", world=["threads", "processes"])
def test_deadlock(groups, number):
    (groups.tp if groups.rank == 0 else groups.world).all_reduce(torch.ones(3))

@pytest.mark.ranks("tp2-pp2", timeout=1)
def test_stuck_in_python(groups, number):
    while groups.rank == 2:
        time.sleep(0.01)
    groups.world.barrier()

@pytest.mark.ranks("tp2-pp2", timeout=1, check=False)
def test_stuck_in_recv(groups, number):
    if groups.rank == 2:
        groups.tp.recv(torch.ones(1))
    groups.world.barrier()

@pytest.mark.ranks(2, timeout=1, world=["threads", "processes"])
def test_stuck_for_ever(groups, number):
    if groups.rank == 1:
        threading.Event().wait()
    groups.world.barrier()

@pytest.mark.ranks(2, world="processes")
def test_crashes(groups, number):
    if groups.rank == 1:
        os.kill(os.getpid(), 11)
    groups.world.barrier()

@pytest.mark.ranks(2, world=["threads", "processes"])
def test_passes(groups, number, world):
    groups.world.barrier()

def test_what_is_left(number):
    seen[number] = state()
    if number == ROUNDS - 1:
        expect(seen[0], threads=number)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", "--tb=line", timeout=280)
    result.assert_outcomes(failed=4 * 9, passed=4 * 3)
