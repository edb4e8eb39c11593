"""`show`, as a person, a pipe and a terminal run it; what a picture says is tested in tests/render."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.running import cpu_seconds, on_terminal, shell

LARGE = "show tp8-dp64-pp32 --hosts 2048x8 --rank 77 --json"


def test_a_pipe_gets_80_columns_without_colour(run):
    done = run("show", "tp2-pp4", "--hosts", "2x4", "--rank", "5")
    assert done.status == 0, done.err
    assert done.out.startswith(
        "tp2-pp4: 8 ranks on 2 hosts of 4\n"
        "╭ host 0 ─────────────────────────╮ ╭ host 1 ─────────────────────────╮\n"
        "│ 0       1       2       3       │ │ 4       [5]     6       7       │\n"
        "│ tp0 pp0 tp1 pp0 tp0 pp1 tp1 pp1 │ │ tp0 pp2 tp1 pp2 tp0 pp3 tp1 pp3 │\n"
        "│         pp              pp<     │ │ tp<>                    pp>     │\n"
    )
    assert "tp         4     2       1           1  inside hosts\n" in done.out
    assert "pp         2     4       2           2  crosses hosts\n" in done.out


def test_only_one_axis(run):
    done = run("show", "tp2-pp4", "--hosts", "2x4", "--axis", "tp")
    assert "tp group 3: [6, 7]; host 1\n" in done.out
    assert not re.search(r"^pp ", done.out, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 200])
def test_a_terminal_gets_colour_and_its_width(columns):
    sent = on_terminal("show tp2-pp4 --hosts 2x4", columns)
    assert "\x1b[48;5;178;38;5;16m" in sent
    lines = re.sub(r"\x1b\[[0-9;]*m", "", sent).splitlines()
    assert max(map(len, lines)) <= columns
    assert ("host 1" in lines[1]) == (columns == 200)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour(env):
    assert "\x1b" not in on_terminal("show tp2-pp4", 80, **env)


def test_an_empty_no_color_means_nothing():
    """As https://no-color.org has it."""
    assert "\x1b" in on_terminal("show tp2", 80, NO_COLOR="")


def test_columns_says_how_wide(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, run("show", "tp2-pp4", "--hosts", "2x4").out.splitlines())) <= 30


def test_a_reader_without_boxes():
    done = shell("parallel-topology show tp2-pp4 --hosts 2x4", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "+ host 0 ---" in done.stdout


def test_data_of_16384_ranks(run):
    data = json.loads(run(*LARGE.split()).out)
    assert len(data["ranks"]) == data["world_size"] == 16_384
    assert data["rank"]["groups"]["tp"]["ranks"] == list(range(72, 80))


def test_files(run, tmp_path: Path):
    image, page = tmp_path / "layout.svg", tmp_path / "layout.html"
    for file in (image, page):
        done = run("show", "tp2-pp4", "--output", str(file))
        assert done.out == f"wrote {file}: {file.stat().st_size:,} bytes\n"
    assert ElementTree.parse(image).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow  # test_large has larger ones, and more time
@pytest.mark.parametrize(("line", "seconds"), [("show tp2-pp4 --hosts 2x4", 0.5), (LARGE, 1)])
def test_it_takes_a_moment(line, seconds):
    assert statistics.median(cpu_seconds(line) for _ in range(3)) < seconds


def test_a_tensor_over_the_ranks(run):
    done = run("show", "tp4-dp2", "--tensor", "4096x1024", "--cut", "0:tp")
    assert "tensor 4096/tp 1024: 4 shards of 1024x1024, each on 2 ranks" in done.out
    assert "1024-2047  │ 1,5 │" in done.out
    both = run("show", "tp4-dp2", "--tensor", "4096x1024", "--cut", "0:dp", "--cut", "1:tp", "--json")
    assert json.loads(both.out)["tensor"]["shards"][1] == {"ranges": [[0, 2048], [256, 512]], "ranks": [1]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--cut", "0:tp"], "say of which shape with --tensor"),
        (["--tensor", "4x"], "cannot read --tensor '4x'"),
        (["--tensor", "4", "--cut", "tp"], "cannot read --cut 'tp'"),
        (["--tensor", "4", "--cut", "0:tp", "--cut", "0:dp"], "each dim once"),
        (["--tensor", "6", "--cut", "0:tp"], "6 elements over tp 4 leave 2 over"),
        (["--tensor", "8", "--cut", "1:tp"], "expected dims of [8]"),
        (["--links", "/nowhere"], "--links /nowhere: No such file"),
        (["--links", __file__, "--hosts", "2x4"], "expected the output of `nvidia-smi topo -m`"),
    ],
)
def test_a_tensor_or_links_that_cannot_be(run, given: list[str], words: str):
    done = run("show", "tp4-dp2", *given)
    assert done.status == 2
    assert words in done.err
