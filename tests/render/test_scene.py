"""What every picture shows, against the topology's and the hosts' own answers."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.errors import TopologyError
from parallel_topology.render.json import as_json
from parallel_topology.render.scene import MOST_DRAWN, Scene
from parallel_topology.render.text import ranges, show
from parallel_topology.topology.layout import Modes, Ranks
from tests.render.pictures import pictures

Picture = tuple[ParallelTopology, dict[str, Any]]


@settings(deadline=None)
@given(pictures())
def test_data_agrees_with_the_topology(picture: Picture):
    topology, seen = picture
    hosts, rank = seen["hosts"], seen["rank"]
    data = as_json(topology, **seen)
    assert ParallelTopology.parse(data["topology"]) == topology
    assert {facts["rank"]: facts["coordinate"] for facts in data["ranks"]} == {
        rank: topology.coordinate(rank) for rank in topology.world
    }
    assert {facts["rank"] for facts in data["ranks"] if "marked" in facts} == set(seen["marked"])
    names = topology.all_axes if seen["axis"] is None else [topology.group_name(*seen["axis"].split("-"))]
    assert [axis["name"] for axis in data["axes"]] == list(names)
    for axis in data["axes"]:
        groups = [list(group) for group in topology.groups(*axis["name"].split("-"))]
        assert axis["groups"] == groups
        if hosts is not None:
            spread = Counter(str(len({hosts.host_of(member) for member in group})) for group in groups)
            assert axis["groups_by_hosts"] == spread
            assert axis["inside"] == (set(spread) == {"1"})
    if hosts is not None:
        assert all(hosts.host_of(facts["rank"]) == facts["host"] for facts in data["ranks"])
        assert sum(box["others"] for box in data["hosts"]) == sum(
            len(hosts.ranks_of(host)) for host in {hosts.host_of(rank) for rank in topology.world}
        ) - len(topology.world)
    if rank is not None:
        for name, group in data["rank"]["groups"].items():
            ours = topology.at(rank)[tuple(name.split("-"))]
            assert group["ranks"] == list(ours.ranks)
            assert (group["position"], group["prev"], group["next"]) == (ours.rank, ours.prev_rank, ours.next_rank)


@settings(deadline=None)
@given(pictures(128), st.integers(1, 40))
def test_runs_are_the_world_in_order_and_say_what_is_there(picture: Picture, most: int):
    topology, seen = picture
    scene = Scene(topology, **seen)
    runs = scene.runs(most)
    ranks = [rank for run in runs for box in run.boxes for rank in box.ranks]
    assert ranks == [rank for box in scene.boxes for rank in box.ranks]
    for run in runs:
        at = {tuple(topology.coordinate(rank).items()) for box in run.boxes for rank in box.ranks}
        for axis, indices in run.extents.items():
            assert {dict(coordinate)[axis] for coordinate in at} == set(indices)
        assert run.whole == (len(at) == prod(map(len, run.extents.values())))
        assert run.whole or len(run.boxes) == 1


def test_hosts_are_joined_along_one_axis_at_a_time():
    scene = Scene(ParallelTopology.parse("tp8-dp4-pp4"), hosts=Hosts.parse("32x4"))
    assert [len(scene.runs(most)) for most in (32, 31, 16, 15, 4, 3)] == [32, 16, 16, 4, 4, 2]


def test_colour_is_the_pipeline_or_else_the_slowest_axis():
    def axis(text: str) -> str:
        return Scene(ParallelTopology.parse(text)).stage_axis

    assert [axis("tp2-pp4-dp2"), axis("tp2-dp4"), axis("tp2-dp4-pp1"), axis("pp1")] == ["pp", "dp", "dp", "pp"]


def test_only_hosts_that_hold_ranks_are_shown():
    scene = Scene(ParallelTopology(tp=2, pp=2, first_rank=5), hosts=Hosts.parse("4x4"))
    assert [(box.host, list(box.ranks), box.others) for box in scene.boxes] == [(1, [5, 6, 7], 1), (2, [8], 3)]
    assert scene.summary == "4 ranks on 2 hosts of 1 to 3"


def test_more_than_can_be_drawn():
    with pytest.raises(TopologyError, match="has 65,536 ranks; a picture shows at most 32,768"):
        Scene(ParallelTopology(tp=8, dp=MOST_DRAWN // 4)).require_drawable()


# Worlds where nobody can look at each rank

LARGE = [12_800_000, 2**40, 2**70]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("ranks", LARGE, ids=["12.8M", "2**40", "2**70"])
def test_a_summary_of_a_large_world_has_the_first_and_the_last_hosts(ranks: int):
    topology = ParallelTopology(tp=8, dp=ranks // 128, pp=16)
    hosts = Hosts.uniform(count=ranks // 8, ranks_per_host=8)
    first, *lines = show(topology, hosts=hosts, width=300).splitlines()
    assert first == f"{topology}: {ranks:,} ranks on {ranks // 8:,} hosts of 8"
    assert lines[0] == "host 0  ranks 0-7    tp0-7 dp0 pp0"
    assert lines[8] == (
        f"... and {ranks // 8 - 16:,} more hosts: pick a rank out to see where it is and its groups, "
        "or draw a part, such as topology.subtopology(pp=0)"
    )
    assert lines[16].split() == [
        "host", f"{ranks // 8 - 1}", "ranks", f"{ranks - 8}-{ranks - 1}", "tp0-7", f"dp{ranks // 128 - 1}", "pp15",
    ]  # fmt: skip
    assert lines[-1].split() == ["pp", f"{ranks // 16:,}", "16", f"{ranks // 16}", "16", "crosses", "hosts"]
    rows = show(topology, axis="tp", width=300).splitlines()
    assert rows[1] == "ranks 0-7    tp0-7 dp0 pp0"
    assert rows[-1] == f"... and {ranks // 8 - 16:,} more groups"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("ranks", LARGE, ids=["12.8M", "2**40", "2**70"])
def test_one_rank_of_a_large_world(ranks: int):
    topology = ParallelTopology(tp=8, dp=ranks // 128, pp=16)
    hosts = Hosts.uniform(count=ranks // 8, ranks_per_host=8)
    rank = ranks - 3
    text = show(topology, hosts=hosts, rank=rank, width=400)
    assert f"╭ host {ranks // 8 - 1} ─" in text
    assert f"rank {rank} on host {ranks // 8 - 1}, local rank 5: tp5 dp{ranks // 128 - 1} pp15\n" in text
    assert f"hosts {15 * ranks // 128}-{ranks // 8 - 1}" in text
    data = as_json(topology, hosts=hosts, rank=rank)
    assert (data["hosts"], data["ranks"], data["axes"][0]["groups"]) == (None, None, None)
    assert data["rank"]["groups"]["tp"]["ranks"] == list(range(ranks - 8, ranks))
    assert data["rank"]["groups"]["tp"]["hosts"] == [ranks // 8 - 1]
    dp = data["rank"]["groups"]["dp"]
    assert (dp["ranks"], dp["hosts"], dp["position"], dp["prev"]) == (None, None, ranks // 128 - 1, rank - 8)
    with pytest.raises(TopologyError, match=r"ranks; at most 65,536 are listed\. Choose one with rank= \(--rank\)"):
        as_json(topology, hosts=hosts)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "hosts", "summary", "line"),
    [
        ("tp8-dp8192-pp4@4", "32769x8", "32,769 hosts of 4 to 8", "host 0  ranks 4-7    tp0-3 dp0 pp0"),
        ("tp8-dp8192-pp4", "100000,162144", "2 hosts of 100,000 to 162,144",
         "host 0  ranks 0-99999        tp0-7 dp0-8191 pp0-1 (not all combinations)"),
        ("dp131072@5+131072x8", "131072x8", "131,072 hosts", "host 0  rank 5   dp0"),
        ("dp131072-tp2@0+131072x2+2x1", "131072x2", "131,072 hosts", "host 0  ranks 0-1    dp0 tp0-1"),
    ],
)  # fmt: skip
def test_large_worlds_that_begin_or_lie_otherwise(text: str, hosts: str, summary: str, line: str):
    first, second, *_ = show(ParallelTopology.parse(text), hosts=Hosts.parse(hosts), width=300).splitlines()
    assert first.endswith(f" ranks on {summary}")
    assert second == line


@settings(deadline=None, max_examples=30)
@given(pictures(128))
def test_ends_are_what_looking_at_each_rank_finds(picture: Picture):
    """The closed forms of large worlds, held against small ones."""
    topology, seen = picture
    listed, scene = Scene(topology, **seen), Scene(topology, **seen)
    scene.__class__ = type("Large", (Scene,), {"is_listed": False})
    for number in range(listed.unit_count):
        ours, wanted = scene.unit(number), listed.unit(number)
        assert list(ours.boxes[0].ranks) == list(wanted.boxes[0].ranks)
        assert ours.boxes[0].others == wanted.boxes[0].others
        assert {axis: sorted(at) for axis, at in ours.extents.items()} == {
            axis: list(at) for axis, at in wanted.extents.items()
        }
    assert scene.summary == listed.summary or scene.summary == listed.summary.partition(" of ")[0]


def test_ranges_of_strides_are_those_of_the_numbers():
    every: list[Modes] = [((4, 1),), ((4, 2),), ((2, 1), (3, 4)), ((2, 1), (2, 4), (2, 6)), ((3, 2), (2, 1)), ()]
    for modes in every:
        ranks = Ranks(5, modes)
        assert ranges(ranks) == ranges(iter(list(ranks)))
    assert ranges(Ranks(0, ((2**70, 1),))) == f"0-{2**70 - 1}"
    assert ranges(Ranks(0, ((2, 1), (2**70, 4)))) == f"0-1,4-5,8-9,12-13,... {2**72 - 3} ({2**71:,})"
    assert ranges(range(0, 2**70, 2)) == f"0,2,4,6,... {2**70 - 2} ({2**69:,})"


def test_where_hosts_are_not_known_none_has_a_box():
    with pytest.raises(TopologyError, match=r"the hosts of tp2 are not known: say with hosts= \(--hosts\)"):
        Scene(ParallelTopology.parse("tp2")).box_on(0)
