"""`fit`: what the heaviest ranks need, whether they have it, and what would do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from time import perf_counter

import pytest

from parallel_topology import ParallelTopology
from parallel_topology.weights import Model, Serving, Training, memory_on
from tests.waiting import SOON
from tests.weights import configurations as published

MODEL = str(Path(__file__).parents[2] / "docs/examples/llama.json")
LARGE = "tp8-dp128-pp16/expert:etp1-ep64-edp16-pp16"


def asked(run, *arguments: str):
    done = run("fit", *arguments, "--model", MODEL, "--json")
    return done.status, json.loads(done.out)


@pytest.mark.parametrize("training", [False, True])
def test_the_heaviest_rank_is_that_of_all(run, training: bool):
    more = ["--optimizer", "adam", "--zero", "1"] if training else []
    _, found = asked(run, "tp2-dp2-pp4", "--memory", "80GiB", "--batch", "3", "--context", "1000", *more)
    use = Training(zero=1, batch=3, context=1000) if training else Serving(batch=3, context=1000)
    model, topology = Model.from_config(json.loads(Path(MODEL).read_text())), ParallelTopology(tp=2, dp=2, pp=4)
    every = [memory_on(model, topology, rank, use) for rank in topology.world]
    assert found["stages"][0]["bytes"] == max(memory.total for memory in every)
    assert sorted(stage for one in found["stages"] for stage in one["stages"]) == [0, 1, 2, 3]
    assert all(one["parts"] == every[one["rank"]].parts for one in found["stages"])


def test_status_says_whether_it_fits_to_the_byte(run):
    _, found = asked(run, "tp2-pp2", "--memory", "80GiB")
    most = found["stages"][0]["bytes"]
    assert asked(run, "tp2-pp2", "--memory", str(most))[0] == 0
    status, found = asked(run, "tp2-pp2", "--memory", str(most - 1))
    assert (status, found["fits"]) == (1, False)


@pytest.mark.parametrize("more", ["--optimizer adam --context 65536 --batch 4", "--context 65536 --batch 64"])
def test_what_would_fit_does(run, more: str):
    arguments = ["tp2-pp2-dp2", "--memory", "2.05GiB", *more.split()]
    status, found = asked(run, *arguments)
    assert status == 1
    options = [shlex.split(said) for said in found["would_fit"] if said.startswith("--")]
    assert {option for option, _ in options} >= {"--context"}
    for option in options:
        assert asked(run, *arguments, *option)[0] == 0
    for name, size in options:
        if name != "--zero":
            assert asked(run, *arguments, name, str(2 * int(size)))[0] == 1


def test_zero_is_what_would_do(run):
    arguments = ["dp8", "--optimizer", "adam", "--context", "1"]
    least = asked(run, *arguments, "--zero", "2", "--memory", "80GiB")[1]["stages"][0]["bytes"]
    assert "--zero 2" in asked(run, *arguments, "--memory", str(least))[1]["would_fit"]


def test_buffers_of_communicators_are_an_assumption(run):
    """The world, tp and pp of each rank."""
    parts = [
        asked(run, "tp2-pp2", "--memory", "80GiB", *more)[1]["stages"][0]["parts"].get("communicators")
        for more in ([], ["--communicator", "1GiB"], ["--communicator", "0"])
    ]
    assert parts == [3 * 2**29, 3 * 2**30, None]


@pytest.mark.parametrize("name", ["bars.svg", "bars.HTML"])
def test_bars_in_a_file(run, tmp_path: Path, name: str):
    """Also where it does not fit, which the status still says."""
    done = run("fit", "tp2-pp2", "--model", MODEL, "--memory", "1GiB", "--output", str(tmp_path / name))
    assert done.status == 1
    written = (tmp_path / name).read_text()
    assert written.count('<g class="bar">') == 2
    assert "tp2-pp2: memory of the heaviest rank of each stage" in written
    assert f"wrote {tmp_path / name}" in done.out


def test_one_form(run, tmp_path: Path):
    for more, says in ((["--json"], "both --json and --output"), ([], "expected a name in .svg or .html")):
        done = run("fit", "tp2", "--model", MODEL, "--memory", "80GiB", "--output", str(tmp_path / "bars.png"), *more)
        assert done.status == 2
        assert says in done.err


def test_nothing_would_do(run):
    done = run("fit", "tp2", "--model", MODEL, "--memory", "1MiB")
    assert done.status == 1
    assert re.search(r"^does not fit: rank 0 lacks .* of .*\nwould fit: nothing but another layout", done.out, re.M)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--memory 80G", "'80G' is no size; expected one such as 80GiB or 80GB"),
        ("--memory 0", "'0' is no size"),
        ("--memory -1GiB", "'-1GiB' is no size"),
        ("--memory 1GB --zero 1", "--zero 1 divides what training keeps; expected --optimizer adam"),
        ("--memory 1GB --optimizer sgd", "optimizer='sgd': expected one of 'adam'"),
        ("--memory 1GB --optimizer adam --zero 4", "zero=4: expected 0, 1, 2 or 3"),
        ("--memory 1GB --batch 0", "batch"),
    ],
)
def test_what_cannot_be_is_refused(run, arguments: str, says: str):
    done = run("fit", "tp2", "--model", MODEL, *arguments.split())
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert says in done.err


def test_a_large_world_is_answered_at_once(run, tmp_path: Path):
    """Also where it does not fit, and all that would do is tried."""
    (tmp_path / "config.json").write_text(json.dumps(published.DEEPSEEK_V3))
    start = perf_counter()
    done = run("fit", LARGE, "--model", str(tmp_path / "config.json"), "--memory", "1GiB", "--optimizer", "adam")
    took = perf_counter() - start
    assert done.status == 1
    assert took < SOON, f"{took:.2f} s"
