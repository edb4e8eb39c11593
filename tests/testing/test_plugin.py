"""The pytest plugin, from outside: what a test file gets, and what is reported when ranks fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

# Inner runs forget the modules that they were the first to import: torch cannot be imported twice, and each inner run
# would start a fork server of its own.
for module in (
    "multiprocessing.forkserver",
    "multiprocessing.popen_forkserver",
    "parallel_topology.testing.pytest_ranks",
):
    import_module(module)

FILE = """
import os, random, sys
import pytest, torch
from parallel_topology.testing import rank_fixture, rank_generator, rank_seed
"""


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Write a test file and run pytest on it, in this process."""

    def run(code: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(FILE + code)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    return run


def test_marks_fixtures_and_parameters(run, world: str):
    result = run(
        """
        @rank_fixture
        def mine(groups, scale):
            yield torch.full((2,), float(groups.rank * scale))

        @pytest.fixture
        def scale():
            return 2

        @pytest.mark.ranks(4)
        def test_number(groups, topology, world, mine, tmp_path):
            assert world == WORLD and str(topology) == "tp4" and tmp_path.is_dir()
            assert groups.tp.all_reduce(mine).tolist() == [12, 12]

        @pytest.mark.ranks(["tp2", "tp2-pp2"])
        @pytest.mark.parametrize("op", ["a", "b"])
        def test_list(groups, topology, op):
            assert groups.topology == topology

        @pytest.mark.ranks
        @pytest.mark.parametrize("topology", ["dp2"])
        def test_own_topology(groups):
            assert groups.dp.size == 2

        @pytest.mark.ranks("tp2-pp2", groups=[("tp", "pp")], timeout=20)
        class TestClass:
            def test_options(self, groups):
                assert groups["tp", "pp"].size == 4

        @pytest.mark.ranks("tp2")
        def test_skip(groups):
            pytest.skip("not here")

        @pytest.mark.ranks("tp2")
        @pytest.mark.xfail(raises=KeyError, strict=True)
        def test_expected(groups):
            raise KeyError(groups.rank)

        def test_plain():
            pass
        """.replace("\n        ", "\n").replace("WORLD", repr(world)),
        f"--ranks-world={world}",
    )
    result.assert_outcomes(passed=8, skipped=1, xfailed=1)


def test_one_report_with_the_first_failure_as_pytest_shows_it(run, world: str):
    result = run(
        """
@pytest.mark.ranks("tp2-pp2")
def test_it(groups):
    print(f"said by {groups.rank}")  # in one piece: threads write between the pieces
    names = ["a", "b", groups.rank]
    if groups.rank != 2:
        groups.world.barrier()
    assert names == ["a", "b", 7]
        """,
        f"--ranks-world={world}",
        "-p",
        "no:logging",
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    result.stdout.fnmatch_lines(['>*assert names == *"a", "b", 7*', "E*At index 2 diff: 2 != 7", "*- 3 more -*"])
    assert "rank 2 of tp2-pp2 {'tp': 0, 'pp': 1}" in text
    assert "said by 2" in text
    others = "".join(line for line in text.splitlines() if line.startswith("rank") and "said" not in line)
    assert all(str(rank) in others for rank in (0, 1, 3))


def test_a_deadlock_names_rank_group_and_operation(run, world: str):
    result = run(
        """
@pytest.mark.ranks("tp2-pp2")
def test_it(groups):
    (groups.tp if groups.rank == 0 else groups.world).all_reduce(torch.ones(3))
        """,
        f"--ranks-world={world}",
    )
    result.assert_outcomes(failed=1)
    said = (
        "rank 0, in its call 0, all_reduce of float32[3] on engine/tp[0] = [0, 1], "
        "waits for rank 1, which is in all_reduce on engine/world"
    )
    assert said in result.stdout.str()
    assert result.duration < 20  # it did not take the deadline of 30 s


def test_a_crash_names_rank_signal_group_and_operation(run):
    result = run(
        """
@pytest.mark.ranks("tp2-pp2", world="processes")
def test_it(groups):
    groups.tp.all_reduce(torch.ones(3))
    print("last words", flush=True)
    if groups.rank == 3:
        os.kill(os.getpid(), 11)
    groups.world.barrier()

@pytest.mark.ranks("tp2-pp2", world="processes")
def test_the_next_one_gets_new_workers(groups):
    groups.world.barrier()
        """
    )
    result.assert_outcomes(failed=1, passed=1)
    said = "its process died by SIGSEGV after all_reduce of float32[3] on engine/tp[1] = [2, 3]"
    assert said in result.stdout.str()
    result.stdout.fnmatch_lines(
        ["*test_a_crash_names*: rank 3 last called it here: groups.tp.all_reduce(torch.ones(3))"]
    )
    result.stdout.fnmatch_lines(["*captured output of rank 3*", "last words", "*Segmentation fault*", "*in test_it"])


def test_a_silent_wrong_result_is_found(run, world: str):
    """gloo adds up [2, 3] and [3, 2] without a word."""
    result = run(
        """
@pytest.mark.ranks("tp2-pp2")
def test_it(groups):
    groups.tp.all_reduce(torch.ones(2, 3) if groups.tp.is_first else torch.ones(3, 2))
        """,
        f"--ranks-world={world}",
    )
    result.assert_outcomes(failed=1)
    assert "shape [2, 3] against [3, 2]" in result.stdout.str() or "shape [3, 2] against [2, 3]" in result.stdout.str()
    assert "all_reduce of float32[3, 2] on engine/tp[" in result.stdout.str()


def test_what_a_fixture_sets_reaches_the_ranks(run):
    """In threads from the one fixture; processes make it themselves."""
    result = run(
        """
@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"), torch.no_grad():
        yield

@pytest.mark.ranks(2, world=["threads", "processes"])
def test_it(groups):
    assert torch.empty(0).is_meta and not torch.is_grad_enabled()
        """
    )
    result.assert_outcomes(passed=2)


def test_workers_leak_nothing_between_tests(run, tmp_path: Path):
    result = run(
        """
@pytest.mark.ranks(2, world="processes")
def test_dirty(groups, tmp_path):
    os.environ["LEAKED"] = "yes"
    os.chdir(tmp_path)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    sys.path.insert(0, "/leaked")

@pytest.mark.ranks(2, world="processes")
def test_clean(groups):
    assert "LEAKED" not in os.environ and "/leaked" not in sys.path
    assert "test_dirty" not in os.getcwd()
    assert torch.get_default_dtype() is torch.float32 and torch.get_num_threads() == 1 and torch.is_grad_enabled()
    os.environ["WORKER"] = "seen"

@pytest.mark.ranks(2, world="processes")
def test_default_group(groups):
    import torch.distributed as dist
    from torch.distributed import HashStore
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)

@pytest.mark.ranks(2, world="processes")
def test_no_default_group(groups):
    import torch.distributed as dist
    assert not dist.is_initialized()
        """
    )
    result.assert_outcomes(passed=4)


def test_seeds_are_the_same_in_every_run_and_world(run):
    result = run(
        """
@pytest.mark.ranks(2, world="threads")
@pytest.mark.parametrize("again", [1, 2])
def test_threads(groups, generator, rng, expected, again):
    assert (torch.rand(1, generator=generator).item(), rng.random()) == expected[groups.rank]

@pytest.fixture
def expected():
    return {rank: (torch.rand(1, generator=rank_generator(rank)).item(), random.Random(rank_seed(rank)).random())
            for rank in range(2)}

@pytest.mark.ranks(2, world="processes")
@pytest.mark.parametrize("again", [1, 2])
def test_processes(groups, generator, rng, expected, again):
    assert (torch.rand(1, generator=generator).item(), rng.random()) == expected[groups.rank]
    assert torch.initial_seed() == rank_seed(groups.rank)
        """
    )
    result.assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def test_it(groups): pass", "runs on no ranks: mark it with @pytest.mark.ranks(4)"),
        ("@pytest.mark.ranks\ndef test_it(groups): pass", "@pytest.mark.ranks has 0 arguments: expected one"),
        ("@pytest.mark.ranks('tp0')\ndef test_it(groups): pass", "tp"),
        ("@pytest.mark.ranks(['tp2', 'tp'])\ndef test_it(groups): pass", "test_it: "),
        ("@pytest.mark.ranks(2.5)\ndef test_it(groups): pass", "2.5 is no topology: expected a number of ranks"),
        ("@pytest.mark.ranks(2)\nasync def test_it(groups): pass", "is a coroutine function"),
        (
            "from hypothesis import given, strategies as st\n"
            "@pytest.mark.ranks(2)\n@given(n=st.integers())\ndef test_it(n): pass",
            "call parallel_topology.testing.run_ranks inside it",
        ),
        (
            "import unittest\n@pytest.mark.ranks(2)\nclass TestIt(unittest.TestCase):\n    def test_it(self): pass",
            "TestIt::test_it is a method of a TestCase, which gets no fixtures",
        ),
        (
            "import unittest\nclass TestIt(unittest.TestCase):\n    @pytest.mark.ranks(2)\n    def test_it(self): pass",
            "TestIt::test_it is a method of a TestCase, which gets no fixtures",
        ),
        (
            "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.ranks([1, 2]))])\ndef test_it(n): pass",
            "a list runs a test once on each, and comes too late here",
        ),
        (
            "@pytest.fixture\ndef model(groups): return groups.tp.size\n"
            "@pytest.mark.ranks(2)\ndef test_it(model): pass",
            "a fixture that needs it is made with parallel_topology.testing.rank_fixture",
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_on_ranks_is_told(run, code: str, said: str):
    result = run(code)
    assert said in result.stdout.str()
    assert result.ret != 0
    if "_ ERROR at setup" in result.stdout.str():
        assert "plugin.py" not in result.stdout.str()


def test_marks_of_parameters_and_of_hooks(run, pytester: pytest.Pytester):
    pytester.makeconftest(
        """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if item.originalname == "test_hook":
            item.add_marker(pytest.mark.ranks("tp2-dp2", world="processes", seed=3))
        """
    )
    result = run(
        """
@pytest.mark.parametrize(
    "size", [pytest.param(2, marks=pytest.mark.ranks(2)), pytest.param(4, marks=pytest.mark.ranks("tp2-pp2"))]
)
def test_parameter(groups, size):
    assert groups.world.size == size

def test_hook(groups, rng):
    assert groups.dp.size == 2
    assert rng.random() == random.Random(rank_seed(groups.rank, 3)).random()
        """
    )
    result.assert_outcomes(passed=3)


def test_hypothesis_and_ranks(run):
    """Around the ranks, where all see one example; or inside each, where each draws the same ones."""
    result = run(
        """
from hypothesis import given, settings, strategies as st
from parallel_topology.testing import run_ranks

@settings(max_examples=3, deadline=None)
@given(size=st.integers(1, 3))
def test_around(size):
    assert run_ranks(size, lambda groups: groups.tp.all_reduce(torch.ones(1)).item()) == [size] * size

@pytest.mark.ranks(2, world=["threads", "processes"])
def test_inside(groups):
    drawn = []

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(n=st.integers())
    def law(n):
        drawn.append(n)

    law()
    assert groups.tp.all_gather_object(drawn) == [drawn] * 2
        """
    )
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("threads", "this is rank 1 of tp2"), ("processes", "run again with --ranks-world=threads --pdb")],
)
def test_pdb_says_what_to_do(run, kind: str, said: str):
    code = """
import pdb
class Quiet(pdb.Pdb):
    def interaction(self, frame, traceback):  # from Python 3.13 on pytest gives the exception
        traceback = getattr(traceback, "__traceback__", traceback)
        while getattr(traceback, "tb_next", None):
            traceback = traceback.tb_next
        print("PDB IN", (traceback.tb_frame if hasattr(traceback, "tb_frame") else frame).f_code.co_name)

@pytest.mark.ranks(2)
def test_it(groups):
    assert groups.rank == 0
    """
    result = run(code, "--pdb", f"--ranks-world={kind}", "--pdbcls=test_pdb_says_what_to_do:Quiet")
    assert said in result.stdout.str()
    if kind == "threads":
        assert "PDB IN test_it" in result.stdout.str()


def test_exitfirst_and_xdist(pytester: pytest.Pytester):
    pytester.makepyfile(
        FILE
        + """
@pytest.mark.ranks(2)
@pytest.mark.parametrize("number", range(4))
def test_it(groups, number):
    assert groups.tp.all_reduce(torch.ones(1)).item() == 2
    assert number != 2
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n2", timeout=100)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["FAILED *test_it?2? - rank ? of tp2*"])
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-x")
    result.assert_outcomes(passed=2, failed=1)


def test_time_that_a_worker_takes_to_import_the_file_is_not_the_ranks(run):
    result = run(
        """
import time
time.sleep(3.5)  # an import may take its time

@pytest.mark.ranks(2, world="processes", timeout=3)
def test_it(groups):
    groups.world.barrier()
        """
    )
    result.assert_outcomes(passed=1)


def test_importlib_mode(run):
    result = run(
        "@pytest.mark.ranks(2, world='processes')\ndef test_it(groups):\n    assert [1, groups.rank] == [1, 5]\n",
        "--import-mode=importlib",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*At index 1 diff: ? != 5"])


def test_a_stuck_rank_does_not_block_the_exit(pytester: pytest.Pytester):
    """One waits where nothing can interrupt it, one runs in Python."""
    pytester.makepyfile(
        FILE
        + """
import threading

@pytest.mark.ranks(4, timeout=1)
def test_it(groups):
    if groups.rank == 1:
        threading.Event().wait()
    while groups.rank == 2:
        pass
    groups.world.barrier()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=110)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "StuckRankError: still running at its end (1 s after the start), " in text
    assert "waiting in barrier on engine/world = [0, 1, 2, 3]" in text
    assert "threading.Event().wait()" in text


def test_without_a_marked_test_torch_is_not_imported():
    code = (
        "import pytest, sys\n"
        "assert pytest.main(['-q', '--co', '-p', 'no:cacheprovider', '-c', '/dev/null', '--rootdir', '/tmp', "
        "'--markers']) == 0\n"
        "assert 'parallel_topology.testing.plugin' in sys.modules\n"
        "found = {'torch', 'pydantic', 'multiprocessing'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "@pytest.mark.ranks(topology" in done.stdout


def test_inner_runs_close_their_workers(run):
    before = set(threading.enumerate())
    run("@pytest.mark.ranks(2, world='processes')\ndef test_it(groups): pass").assert_outcomes(passed=1)
    assert set(threading.enumerate()) <= before
