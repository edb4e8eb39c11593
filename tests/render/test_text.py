"""The picture in the terminal: nothing is lost, nothing is too wide, and it stays as it was looked at."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.errors import RankError, TopologyError, UnknownAxisError
from parallel_topology.render.text import plain, ranges, show
from tests.render.drawn import CASES, SNAPSHOTS, drawing
from tests.render.pictures import pictures

Picture = tuple[ParallelTopology, dict[str, Any]]


def uncolored(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# Laws


@settings(deadline=None)
@given(pictures(), st.integers(20, 200), st.booleans(), st.sampled_from([None, False, True]))
def test_no_line_is_too_wide_and_colour_changes_no_word(picture: Picture, width: int, color: bool, fold: Any):
    topology, seen = picture
    text = show(topology, **seen, width=width, color=color, fold=fold)
    assert max(map(len, uncolored(text).splitlines())) <= width
    assert color or "\x1b" not in text
    if color and not fold:
        without = show(topology, **seen, width=width, fold=fold)
        assert [line.rstrip() for line in uncolored(text).splitlines()[:-1]] == without.splitlines()


@settings(deadline=None)
@given(pictures(), st.integers(20, 200))
def test_every_rank_has_one_cell(picture: Picture, width: int):
    topology, seen = picture
    text = show(topology, **seen, width=width, fold=False)
    labels = topology.world_size > 1
    looked_at = topology.all_axes if seen["axis"] is None else [seen["axis"]]
    related = seen["rank"] is not None and any(topology.size(*name.split("-")) > 1 for name in looked_at)
    notes = related or any(
        letter.isprintable() and letter != " " for note in seen["marked"].values() for letter in note
    )
    found: list[int] = []
    row = 0
    for line in text.splitlines():
        if line.startswith("│"):
            if row % (1 + labels + notes) == 0:
                found += [int(number) for number in re.findall(r"\d+", line)]
            row += 1
        else:
            row = 0
    assert sorted(found) == sorted(topology.world)


@settings(deadline=None)
@given(pictures(512), st.integers(20, 200))
def test_folded_lines_count_every_rank_once(picture: Picture, width: int):
    """Where ranks count up, the ranges written out, with what is said to be left, are the world."""
    topology, seen = picture
    if topology.ranks is None and (seen["hosts"] is None or seen["hosts"].ranks is None):
        unmarked: dict[str, Any] = seen | {"rank": None, "marked": None}
        text = " ".join(show(topology, **unmarked, width=width, fold=True).split())
        picture_part = text.split(" axis groups")[0]
        left = sum(
            int(n.replace(",", "")) for n in re.findall(r"more (?:hosts|rows) with ([\d,]+) ranks", picture_part)
        )
        covered = 0
        for first, last in re.findall(r"\branks? (\d+)(?:-(\d+))?", re.sub(r"[\d,]+ ranks? on", "", picture_part)):
            covered += int(last or first) - int(first) + 1
        assert covered + left == topology.world_size


# Cases


@pytest.mark.parametrize("case", CASES)
def test_pictures_stay_as_they_were_looked_at(case: str):
    """On purpose? Then `python -m tests.render.drawn`, and look at what git says has changed."""
    assert drawing(case) == (SNAPSHOTS / f"{case}.txt").read_text(encoding="utf-8")


def test_there_is_no_picture_that_nobody_draws():
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(CASES)


def test_a_thousand_ranks_fit_in_a_terminal():
    text = show(ParallelTopology.parse("tp8-dp16-pp8"), hosts=Hosts.parse("128x8"), width=80)
    assert len(text.splitlines()) < 24
    assert "hosts 16-31    ranks 128-255   tp0-7 dp0-15 pp1" in text


def test_hosts_that_are_not_alike_are_not_summed_up():
    """On hosts of 3, boxes are cut: each is a line of its own, and says that combinations are missing."""
    text = show(ParallelTopology.parse("tp4-pp3"), hosts=Hosts.parse("4x3"), fold=True)
    assert "host 1  ranks 3-5   tp0-1,3 pp0-1 (not all combinations)" in text
    assert text.count("host ") == 4


def test_what_folding_leaves_out_is_counted():
    text = show(ParallelTopology(tp=7, pp=100), hosts=Hosts.parse("140x5"), width=80)
    assert "... and 108 more hosts with 540 ranks" in text


def test_neighbours_are_marked_by_direction():
    text = show(ParallelTopology(tp=4), rank=1, hosts=Hosts.parse("1x4"))
    assert text.splitlines()[2:5] == [
        "│ 0   [1] 2   3   │",
        "│ tp0 tp1 tp2 tp3 │",
        "│ tp<     tp> tp  │",
    ]


def test_an_axis_of_which_some_groups_cross_hosts():
    text = show(ParallelTopology(tp=2, pp=6), hosts=Hosts.parse("7,5"))
    assert "tp         6     2       1         1-2  1 of 6 cross hosts" in text


def test_a_terminal_without_boxes():
    text = plain(show(ParallelTopology(tp=2), rank=0, marked={1: "a note that is too long"}))
    assert text.isascii()
    assert "+---" in text


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"hosts": Hosts.parse("1x4")}, TopologyError, "rank 7 is on no host"),
        ({"rank": 8}, RankError, "rank 8 is not in the world"),
        ({"marked": {9: "x"}}, RankError, "rank 9 is not in the world"),
        ({"axis": "cp"}, UnknownAxisError, "has no axis 'cp'"),
        ({"axis": ""}, UnknownAxisError, "has no axis ''"),
    ],
)
def test_what_is_not_there_cannot_be_shown(given: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        show(ParallelTopology(tp=2, pp=4), **given)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), unique=True).map(sorted))
def test_ranges_name_every_number(numbers: list[int]):
    spans = [span.split("-") for span in ranges(numbers, most=100).split(",") if span]
    assert [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)] == numbers
