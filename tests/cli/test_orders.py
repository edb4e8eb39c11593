"""`orders`: the table and the JSON; the ranking is tested in test_traffic."""

from __future__ import annotations

import json


def test_the_best_order_is_first_and_the_given_one_marked(run):
    done = run("orders", "pp2-tp4", "--hosts", "2x4")
    assert done.status == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["order", "tp", "on", "hosts", "pp", "on", "hosts"],
        ["tp-pp", "1", "2"],
        ["pp-tp", "2", "1", "as", "given"],
    ]


def test_another_axis_may_be_the_heaviest(run):
    done = run("orders", "pp2-tp4", "--hosts", "2x4", "--heaviest", "pp", "--json")
    assert json.loads(done.out) == {
        "topology": "pp2-tp4",
        "hosts": "2x4",
        "orders": [
            {"order": "pp-tp", "hosts_per_group": {"pp": 1.0, "tp": 2.0}},
            {"order": "tp-pp", "hosts_per_group": {"pp": 2.0, "tp": 1.0}},
        ],
    }


def test_a_long_list_is_cut_in_the_table_only(run):
    line = ["orders", "tp2-cp2-ep2-dp2-pp2", "--hosts", "4x8"]
    lines = run(*line).out.splitlines()
    assert len(lines) == 1 + 24 + 1
    assert lines[-1] == "... and 96 more, all of them with --json"
    assert len(json.loads(run(*line, "--json").out)["orders"]) == 120
