"""`selftest` alone and under torchrun; what it finds is tested in tests/selftest."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.cli.running import shell
from tests.ports import free_port

TORCHRUN = "torchrun --standalone --nproc-per-node 4"


def test_alone(run):
    done = run("selftest", "tp2-pp2", "--size", "4096")
    assert done.status == 0, done.err
    head = "tp2-pp2: 4 ranks, started here, for no launcher was found; gloo on cpu; messages of 4,096 bytes"
    assert done.out.splitlines()[0] == head
    assert re.search(r"^tp\[1\] +2, 3 +all_gather +\d+ +\d\.\d{3} +\d\.\d{3} *$", done.out, re.MULTILINE)
    assert done.out.endswith("every collective gave the right values on every group\n")


def test_alone_as_json(run):
    found = json.loads(run("selftest", "tp2", "--size", "64", "--json").out)
    assert (found["topology"], found["size"], found["ok"], found["broken"]) == ("tp2", 64, True, {})
    assert {one["check"] for one in found["groups"]} >= {"barrier", "all_reduce", "all_gather", "broadcast"}


@pytest.mark.slow
def test_under_torchrun():
    done = shell(f"{TORCHRUN} -m parallel_topology selftest tp2-pp2 --json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one document: rank 0 alone prints
    assert found["ok"]
    assert {tuple(one["ranks"]) for one in found["groups"]} == {(0, 1, 2, 3), (0, 1), (2, 3), (0, 2), (1, 3)}
    assert "started by torchrun" in shell(f"{TORCHRUN} -m parallel_topology selftest").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("Ending", "broken: rank 2 did not report: dead or stuck"),
        ("BadSource", "suspect: rank 2"),
        ("Slow", "slow: rank 2, "),
    ],
)
def test_a_planted_fault_under_torchrun(fault, said):
    done = shell(f"{TORCHRUN} -m tests.cli.faulty_selftest {fault} selftest tp2-pp2 --size 4096")
    assert (done.returncode == 0) is (fault == "Slow")
    assert said in done.stdout, done.stderr
    assert "rank 0 did not report" not in done.stderr  # its word is waited for


@pytest.mark.slow
def test_where_rank_0_runs_the_store_it_stays_until_all_have_read():
    port, command = free_port(), [sys.executable, "-m", "parallel_topology", "selftest", "tp2"]
    surroundings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            command, env={**surroundings, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    (out, err), (nothing, other_err) = (process.communicate(timeout=90) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (err, other_err)
    assert "tp2: 2 ranks, started by env" in out
    assert nothing == ""


@pytest.mark.slow
def test_a_topology_of_other_ranks_than_were_started():
    done = shell(f"{TORCHRUN} -m parallel_topology selftest tp2")
    assert done.returncode == 1  # torchrun's own
    assert "torchrun started ranks 0..3, but tp2 has [0, 1]; expected a topology of the same ranks" in done.stderr
    assert re.search(r"exitcode *: 2", done.stderr)
