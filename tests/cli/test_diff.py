"""`diff`: what moves, with the exit status of diff(1)."""

from __future__ import annotations

import json


def test_nothing_moves(run):
    done = run("diff", "tp2-pp2", "tp2-pp2")
    assert (done.status, done.out) == (0, "tp2-pp2 -> tp2-pp2: 0 of 4 ranks move\n")


def test_ranks_move_and_groups_cross(run):
    done = run("diff", "tp2-pp2", "pp2-tp2", "--hosts", "2x2")
    assert done.status == 1
    assert done.out.splitlines() == [
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
