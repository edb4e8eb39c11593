"""`diff`: what moves, with the exit status of diff(1)."""

from __future__ import annotations

import json
import re

import pytest


def test_nothing_moves(run):
    done = run("diff", "tp2-pp2", "tp2-pp2")
    assert (done.status, done.out) == (0, "tp2-pp2 -> tp2-pp2: 0 of 4 ranks move\n")


def test_ranks_move_and_groups_cross(run):
    done = run("diff", "tp2-pp2", "pp2-tp2", "--hosts", "2x2")
    assert done.status == 1
    table, _, picture = done.out.partition("\n\n")
    assert table.splitlines() == [
        "tp2-pp2 -> pp2-tp2: 2 of 4 ranks move",
        "  rank 1: tp=1 pp=0 -> pp=1 tp=0",
        "  rank 2: tp=0 pp=1 -> pp=0 tp=1",
        "before: tp2-pp2 on hosts 2x2",
        "  tp: 2 groups of 2, inside hosts",
        "  pp: 2 groups of 2, 2 across hosts (up to 2 hosts); pp group 0 = [0, 2] spans hosts 0 and 1",
        "after: pp2-tp2 on hosts 2x2",
        "  pp: 2 groups of 2, inside hosts",
        "  tp: 2 groups of 2, 2 across hosts (up to 2 hosts); tp group 0 = [0, 2] spans hosts 0 and 1",
    ]
    assert picture.splitlines()[:5] == [
        "pp2-tp2: 4 ranks on 2 hosts of 2",
        "╭ host 0 ─────────────────╮ ╭ host 1 ─────────────────╮",
        "│ 0           1*          │ │ 2*          3           │",
        "│ pp0 tp0     pp1 tp0     │ │ pp0 tp1     pp1 tp1     │",
        "│             was tp1 pp0 │ │ was tp0 pp1             │",
    ]


def test_a_picture_says_where_ranks_were_and_which_are_new(run):
    picture = run("diff", "tp2-pp2", "tp3-pp2").out.partition("\n\n")[2]
    assert re.findall(r"\d\*", picture) == ["2*", "3*", "4*", "5*"]
    assert re.findall(r"was (?:\w+\d ?)+\b|new", picture) == ["was tp0 pp1", "was tp1", "new", "new"]


def test_ranks_that_a_picture_would_only_count_have_none(run):
    assert "╭" in run("diff", "tp8-pp16", "pp16-tp8").out
    many = run("diff", "tp8-pp17", "pp17-tp8").out
    assert many.startswith("tp8-pp17 -> pp17-tp8: ")
    assert many.endswith(" more\n")


@pytest.mark.parametrize("name", ["moved.svg", "moved.html"])
def test_a_picture_in_a_file(run, tmp_path, name):
    file = tmp_path / name
    done = run("diff", "tp2-pp2", "pp2-tp2", "--output", str(file))
    assert done.status == 1
    assert done.out.splitlines()[:2] == [
        f"wrote {file}: {file.stat().st_size:,} bytes",
        "tp2-pp2 -> pp2-tp2: 2 of 4 ranks move",
    ]
    assert "╭" not in done.out
    assert file.read_text(encoding="utf-8").count("was tp") == (
        3 if name.endswith("html") else 4
    )  # and what a star means


def test_json(run):
    done = run("diff", "tp2-pp2", "tp2-pp3", "--json")
    assert done.status == 1
    assert json.loads(done.out) == {
        "before": "tp2-pp2",
        "after": "tp2-pp3",
        "moved": [],
        "removed": [],
        "added": [4, 5],
    }
    done = run("diff", "tp2-pp2", "pp2-tp2", "--json", "--hosts", "2x2")
    found = json.loads(done.out)
    assert found["moved"][0] == {"rank": 1, "before": {"tp": 1, "pp": 0}, "after": {"pp": 1, "tp": 0}}
    assert found["groups_across_hosts"] == {"before": {"tp": 0, "pp": 2}, "after": {"pp": 0, "tp": 2}}
