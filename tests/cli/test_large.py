"""The commands about a layout of 12.8 million ranks, each in a process of its own: a moment, as for any other."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.running import cpu_seconds, shell

SPEC, HOSTS = "tp8-dp100000-pp16", "1600000x8"


@pytest.mark.parametrize(
    "line",
    [
        f"show {SPEC} --hosts {HOSTS}",
        f"show {SPEC} --hosts {HOSTS} --rank 77",
        f"show {SPEC} --hosts {HOSTS} --rank 77 --json",
        f"show {SPEC}/expert:ep64-x-pp16 --axis ep",
        f"diff {SPEC} {SPEC} --hosts {HOSTS}",
        f"orders {SPEC} --hosts {HOSTS}",
        f"check {SPEC} --hosts {HOSTS} --layers 80",
    ],
)
def test_it_takes_a_moment(line: str):
    assert cpu_seconds(line) < 12  # on a slow machine, too; to enumerate so many ranks takes minutes


def test_what_moves(run):
    done = run("diff", SPEC, "tp8-pp16-dp100000", "--hosts", HOSTS)
    assert done.status == 1
    assert done.out.startswith(
        f"{SPEC} -> tp8-pp16-dp100000: 65,528 of 12,800,000 ranks move at least, as the first 65,536"
    )
    assert run("diff", SPEC, SPEC, "--json").status == 0
    done = run("diff", "tp8-dp100000", "tp8-dp100001")
    assert done.out == (
        "tp8-dp100000 -> tp8-dp100001: 0 of 800,000 ranks move, 8 ranks are new\n"
        f"  added: {list(range(800_000, 800_008))}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", SPEC, "--json"], "at most 65,536 are listed. Choose one with rank= (--rank), or list a part"),
        (["show", SPEC, "--output", "layout.svg"], "has 12,800,000 ranks; a picture shows at most 32,768"),
        (["diff", SPEC, "tp8-pp16-dp100000", "--json"], "12,800,000 ranks are more than the 65,536 that --json lists"),
        (["diff", SPEC, "tp8-pp16-dp100000", "--output", "moved.html"], "a picture shows at most 32,768"),
        (["selftest", SPEC], "12,800,000 ranks; without a launcher each is a process of this machine"),
    ],
)
def test_what_cannot_be_listed_is_refused_in_one_line(run, arguments, message):
    done = run(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_beyond_what_python_counts(run):
    for arguments in (["show", f"tp8-dp{2**70}"], ["show", f"tp8-dp{2**70}", "--rank", "5", "--json"]):
        assert run(*arguments, "--hosts", f"{2**70}x8").status == 0
    done = run("check", f"tp8-dp{2**70}", "--hosts", f"{2**70}x8", "--batch", "512")
    assert (done.status, done.err) == (1, "")
    assert run("orders", f"tp8-dp{2**70}", "--hosts", f"{2**70}x8").status == 0
    assert run("diff", f"tp8-dp{2**70}", f"dp{2**70}-tp8", "--hosts", f"{2**70}x8").status == 1


def test_orders_that_were_left_out_are_counted():
    done = shell("parallel-topology orders a2-b2-c2-d2-e2-f2-g2-h2 --hosts 32x8")
    assert done.stdout.endswith(
        "... and 5,016 more, all of them with --json\n"
        "35,280 orders were left out: none of them is better, as far as the axes themselves go\n"
    )
    found = json.loads(shell("parallel-topology orders a2-b2-c2-d2-e2-f2-g2-h2 --hosts 32x8 --json").stdout)
    assert (len(found["orders"]), found["left_out"]) == (5040, 35_280)


@pytest.mark.parametrize(
    "line",
    [
        f"show {SPEC} --hosts 1700000x8",
        f"show {SPEC} --hosts {HOSTS} --rank 77",
        "show tp8-dp2000 --axis tp",
        f"show {SPEC} --axis dp",
        "diff tp8-dp2000 dp2000-tp8 --hosts 2100x8",
        "diff tp8-dp2000 tp8-dp4000",
        "diff tp8-dp4000 tp8-dp2000",
        "orders a2-b2-c2-d2-e2-f2-g2 --hosts 2000x8",
        f"check {SPEC} --hosts 1700000x8",
    ],
)
def test_counts_have_commas(run, line: str):
    """Numbers of ranks and hosts have none; how many there are is written one way everywhere."""
    done = run(*line.split())
    plain = r"\d{4,} (?:more|of \d|ranks|groups|hosts|places|orders)\b|(?:of|to|than) \d{4,}\b"
    assert re.findall(plain, done.out) == []
    assert re.search(r"\d,\d{3}", done.out)


@pytest.mark.parametrize("command", ["show", "orders", "check"])
def test_places_that_stay_idle_are_said(run, command: str):
    assert "4 stay idle" in (out := run(command, "tp2-pp2", "--hosts", "4x2").out) or "4 of 8 places stay idle" in out
    assert "idle" not in run(command, "tp2-pp2", "--hosts", "2x2").out
