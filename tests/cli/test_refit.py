"""`refit`: what moves between two layouts, and what is wrong with what was given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

MODEL = str(Path(__file__).parents[2] / "docs/examples/llama.json")


def test_who_sends_how_much_to_whom(run):
    found = json.loads(run("refit", "tp2-pp2", "tp2-dp2", "--model", MODEL, "--hosts", "2x2", "--json").out)
    sent = {(pair["source"], pair["target"]): pair["bytes"] for pair in found["pairs"]}
    assert sum(sent.values()) == found["bytes_moved"] + found["bytes_kept"]
    assert sum(nbytes for (one, other), nbytes in sent.items() if one != other) == found["lower_bound"]
    assert found["bytes_across_hosts"] == sum(nbytes for (one, other), nbytes in sent.items() if one // 2 != other // 2)
    table = run("refit", "tp2-pp2", "tp2-dp2", "--model", MODEL, "--hosts", "2x2").out
    assert re.search(f"across hosts +{found['bytes_across_hosts']:,} bytes\n", table)


def test_nothing_moves(run):
    done = run("refit", "tp2-pp2", "tp2-pp2", "--model", MODEL)
    assert done.status == 0
    assert "moved    0 bytes" in done.out
    assert "from" not in done.out


def test_the_way_of_one_tensor(run):
    done = run("refit", "tp2-dp2", "tp4", "--model", MODEL, "--explain", "model.layers.0.self_attn.q_proj.weight")
    assert "[16:32, 0:64]: 0 -> 1\n" in done.out
    assert "[32:48, 0:64]: 1 -> 2\n" in done.out or "[32:48, 0:64]: 3 -> 2\n" in done.out
    assert "[48:64, 0:64]: rank 3 keeps it" in done.out


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nofile.json", "--model nofile.json: No such file or directory; expected a model's config.json"),
        (__file__, "is no JSON; expected a model's config.json"),
    ],
)
def test_what_is_no_model_is_refused(run, model, says):
    done = run("refit", "tp2", "tp4", "--model", model)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert says in done.err


def test_a_list_is_no_configuration(run, tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    assert "is no configuration" in run("refit", "tp2", "tp4", "--model", str(tmp_path / "config.json")).err


def test_a_layout_that_does_not_divide_it_is_named(run):
    done = run("refit", "tp2", "tp3", "--model", MODEL)
    assert done.status == 2
    assert "target tp3: weight" in done.err


def test_it_is_drawn(run, tmp_path: Path):
    for name, has in (("matrix.svg", "<svg "), ("matrix.html", "<table>")):
        done = run("refit", "tp2-pp2", "tp4", "--model", MODEL, "--output", str(tmp_path / name))
        assert f"wrote {tmp_path / name}" in done.out
        assert has in (tmp_path / name).read_text()
    done = run("refit", "tp2-dp256", "tp4", "--model", MODEL, "--output", str(tmp_path / "large.svg"))
    assert done.status == 2
    assert "512 ranks: up to 256 can be drawn" in done.err
