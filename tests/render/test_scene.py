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
