"""`env`: what LaunchInfo says, field by field."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib.metadata import version

from parallel_topology.launch import LaunchInfo

VARIABLES = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_every_field_and_variable_is_shown(run, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    done = run("env")
    assert done.status == 0
    for field in fields(LaunchInfo):
        assert field.name in done.out
    for name, value in VARIABLES.items():
        assert f"{name}={value}\n" in "\n".join(line.rstrip() for line in done.out.splitlines()) + "\n"
    assert "local_rank" in done.out
    assert "not said" in done.out


def test_json(run, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = json.loads(run("env", "--json").out)
    assert (found["rank"], found["world_size"], found["local_rank"]) == (1, 2, None)
    assert found["variables"] == VARIABLES
    assert found["installed"]["torch"] == version("torch")


def test_without_a_launcher_there_is_a_table_and_a_line(run):
    done = run("env")
    assert done.status == 2
    assert re.match(r"launcher +none\nlooked for +torchrun: TORCHELASTIC_RUN_ID\n +deepspeed: ", done.out)
    assert done.err.startswith("parallel-topology: no launcher was found. Start the program with torchrun, or ")
    assert (done.err.count("\n"), "Looked for" in done.err) == (1, False)
    done = run("env", "--json")
    assert done.status == 2
    assert json.loads(done.out)["looked_for"]["slurm"] == ["SLURM_PROCID", "SLURM_STEP_ID"]


def test_variables_that_contradict_each_other(run, monkeypatch):
    for name, value in {**VARIABLES, "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    done = run("env")
    assert (done.status, done.out) == (2, "")
    assert done.err == "parallel-topology: RANK=2 is outside WORLD_SIZE=2: expected 0..1\n"
