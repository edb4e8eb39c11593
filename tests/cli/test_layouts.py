"""`layouts`: all that fit, the least across hosts first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from parallel_topology import Hosts
from parallel_topology.weights import Model, Training
from parallel_topology.weights.search import search

MODEL = str(Path(__file__).parents[2] / "docs/examples/llama.json")
BASE = ["layouts", "--ranks", "8", "--model", MODEL, "--hosts", "2x4"]


def test_the_table_is_the_beginning_of_what_is_found(run):
    training = ["--memory", "4GiB", "--optimizer", "adam", "--global-batch", "16"]
    done, listed = run(*BASE, *training), json.loads(run(*BASE, *training, "--json").out)
    model = Model.from_config(json.loads(Path(MODEL).read_text()))
    found = search(model, 8, Training(), memory=4 * 2**30, hosts=Hosts.parse("2x4"), sequences=16)
    assert [one["topology"] for one in listed["layouts"]] == [str(one.topology) for one in found.fitting]
    assert listed["out"] == found.out
    assert done.status == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[1:11]] == [str(one.topology) for one in found.fitting[:10]]
    assert lines[11] == ""
    whole, fit = len(found.fitting) + sum(found.out.values()), len(found.fitting)
    assert lines[12] == f"{whole} layouts of 8 ranks: {fit} fit, {fit - 10} more of them with --json"
    assert sorted(lines[13:]) == sorted(f"{number} do not: {reason}" for reason, number in found.out.items())


def test_none_fits(run):
    done = run(*BASE, "--memory", "1MiB")
    assert done.status == 1
    assert re.fullmatch(r"10 layouts of 8 ranks: 0 fit\n\d do not: needs more memory than 1.0 MiB\n.*\n", done.out)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--memory 1GB --global-batch 8", "--global-batch 8 is for training; expected --optimizer adam"),
        ("--memory 1GB --hosts 1x4", "the hosts 1x4 hold 4 ranks"),
        ("--memory 1", "no config"),
    ],
)
def test_what_cannot_be_is_refused(run, tmp_path: Path, more: str, says: str):
    arguments = [*BASE, *more.split()]
    if says == "no config":
        (tmp_path / "config.json").write_text("[]")
        arguments += ["--model", str(tmp_path / "config.json")]
    done = run(*arguments)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert says in done.err
