"""The laws of the pure half, then its table of cases, then what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import parallel_topology
from parallel_topology import Hosts, ParallelTopology, RankError, TopologyError, UnknownAxisError
from parallel_topology.testing.strategies import topologies, topologies_of, topology_pairs
from parallel_topology.topology.validation import RESERVED


@st.composite
def topologies_and_axes(draw: st.DrawFn) -> tuple[ParallelTopology, tuple[str, ...]]:
    topology = draw(topologies())
    return topology, tuple(draw(st.lists(st.sampled_from(topology.axes), min_size=1, unique=True)))


class TestLaws:
    @given(topologies_and_axes())
    def test_groups_along_any_axes_partition_the_world(self, drawn: tuple[ParallelTopology, tuple[str, ...]]):
        topology, axes = drawn
        groups = topology.groups(*axes)
        assert sorted(rank for group in groups for rank in group) == sorted(topology.world)
        assert {len(group) for group in groups} == {topology.size(*axes)}

    @given(topologies_and_axes())
    def test_a_group_is_the_ranks_that_differ_only_along_its_axes(self, drawn):
        topology, axes = drawn
        for rank in topology.world:
            fixed = {axis: i for axis, i in topology.coordinate(rank).items() if axis not in axes}
            same = [other for other in topology.world if fixed.items() <= topology.coordinate(other).items()]
            assert topology.group(*axes, rank=rank) == same

    @given(topologies_and_axes())
    def test_group_agrees_with_groups(self, drawn):
        topology, axes = drawn
        groups = topology.groups(*axes)
        for number, group in enumerate(groups):
            assert groups[number] == group
            assert groups.index(group) == number
            for rank in group:
                assert topology.group(*axes, rank=rank) == group

    @given(topologies_and_axes(), st.randoms())
    def test_the_order_of_the_axes_asked_for_does_not_matter(self, drawn, random):
        topology, axes = drawn
        shuffled = random.sample(axes, len(axes))
        assert topology.groups(*shuffled) == topology.groups(*axes)
        assert topology.group_name(*shuffled) == topology.group_name(*axes)

    @given(topologies())
    def test_rank_and_coordinate_are_inverse(self, topology):
        seen = set()
        for rank in topology.world:
            coordinate = topology.coordinate(rank)
            assert topology.rank(**coordinate) == rank
            assert all(0 <= index < topology.sizes[axis] for axis, index in coordinate.items())
            seen.add(tuple(coordinate.values()))
        assert len(seen) == topology.world_size

    @given(topologies())
    def test_position_and_world_are_inverse(self, topology):
        assert [topology.position(rank) for rank in topology.world] == list(range(topology.world_size))

    @given(topologies())
    def test_two_axes_groups_of_one_rank_meet_only_in_it(self, topology):
        for a, b in combinations(topology.axes, 2):
            for rank in topology.world:
                assert set(topology.group(a, rank=rank)) & set(topology.group(b, rank=rank)) == {rank}

    @given(topologies())
    def test_next_and_prev_are_inverse_and_wrap_around(self, topology):
        for rank in topology.world:
            for axis in topology.axes:
                group = topology.at(rank)[axis]
                assert topology.at(group.next_rank)[axis].prev_rank == rank
                assert topology.at(group.prev_rank)[axis].next_rank == rank
                assert group.is_last == (group.next_rank == group.first_rank)
                assert group.ranks[group.rank] == rank

    @given(topologies())
    def test_text_round_trip(self, topology):
        assert ParallelTopology.parse(str(topology)) == topology

    @given(topologies(), st.randoms())
    def test_json_round_trip_whatever_the_order_of_the_keys(self, topology, random):
        fields = list(json.loads(topology.model_dump_json()).items())
        random.shuffle(fields)
        assert ParallelTopology.model_validate_json(json.dumps(dict(fields))) == topology

    @given(topologies())
    def test_copies_are_equal_and_hash_alike(self, topology):
        for twin in (pickle.loads(pickle.dumps(topology)), copy.deepcopy(topology), copy.copy(topology)):
            assert twin == topology
            assert hash(twin) == hash(topology)
            assert twin.groups(topology.axes[0]) == topology.groups(topology.axes[0])

    @given(st.data())
    def test_topologies_are_equal_exactly_when_they_lay_out_ranks_alike(self, data):
        world_size = data.draw(st.integers(1, 12))
        one, two = (data.draw(topologies_of(world_size)) for _ in range(2))
        alike = one.axes == two.axes and [(r, one.coordinate(r)) for r in one.world] == [
            (r, two.coordinate(r)) for r in two.world
        ]
        alike = alike and one.views.keys() == two.views.keys()
        alike = alike and one.all_axes == two.all_axes
        alike = alike and all(one.groups(axis) == two.groups(axis) for axis in one.all_axes)
        assert (one == two) == alike
        assert (one.fingerprint == two.fingerprint) == alike


class TestTheOriginalLayout:
    topology = ParallelTopology(tp=2, pp=4)

    def test_groups(self):
        assert self.topology.groups("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
        assert self.topology.groups("pp") == [[0, 2, 4, 6], [1, 3, 5, 7]]
        assert self.topology.groups("pp", "tp") == [[0, 1, 2, 3, 4, 5, 6, 7]]
        assert self.topology.group("pp", rank=5) == [1, 3, 5, 7]

    def test_places(self):
        assert self.topology.world_size == 8
        assert self.topology.coordinate(5) == {"tp": 1, "pp": 2}
        assert self.topology.rank(tp=1, pp=2) == 5

    def test_neighbours(self):
        pp = self.topology.at(5).pp
        assert (pp.first_rank, pp.prev_rank, pp.next_rank, pp.last_rank) == (1, 3, 7, 7)
        assert (self.topology.at(7).pp.next_rank, self.topology.at(1).pp.prev_rank) == (1, 7)
        assert self.topology.at(6).pp.is_last
        assert not self.topology.at(6).pp.is_first

    def test_sizes(self):
        assert (self.topology.tp, self.topology.pp) == (2, 4)
        assert self.topology.sizes == {"tp": 2, "pp": 4}
        assert self.topology.size("pp", "tp") == 8


class TestOrderAndPlace:
    def test_the_default_order_does_not_follow_the_arguments(self):
        assert ParallelTopology(pp=2, dp=3, cp=4, tp=5).axes == ("tp", "cp", "dp", "pp")

    def test_an_explicit_order(self):
        assert ParallelTopology(tp=2, dp=2, pp=2, order="tp-dp-pp").groups("pp")[0] == [0, 4]
        assert ParallelTopology(tp=2, dp=2, pp=2, order="pp-dp-tp").groups("pp")[0] == [0, 1]

    def test_first_rank(self):
        topology = ParallelTopology(tp=2, dp=2, pp=2, order="tp-dp-pp", first_rank=8)
        assert list(topology.world) == list(range(8, 16))
        assert topology.groups("tp") == [[8, 9], [10, 11], [12, 13], [14, 15]]
        assert str(topology) == "tp2-dp2-pp2@8"

    def test_explicit_ranks(self):
        topology = ParallelTopology(tp=2, pp=2, ranks=(0, 4, 1, 5))
        assert topology.groups("tp") == [[0, 4], [1, 5]]
        assert topology.at(1).pp.prev_rank == 0
        assert topology.coordinate(1) == {"tp": 0, "pp": 1}
        assert str(topology) == "tp2-pp2@0,4,1,5"

    def test_a_world_of_one_rank_is_its_group(self):
        for topology in (ParallelTopology(tp=1), ParallelTopology(tp=1, pp=1, first_rank=3)):
            assert topology.world == topology.group("tp", rank=topology.world[0])

    def test_ranks_that_count_up_are_a_first_rank(self):
        assert ParallelTopology(tp=2, ranks=[3, 4]) == ParallelTopology(tp=2, first_rank=3)

    def test_up_to_16_ranks_are_written_out_and_more_as_steps(self):
        assert str(ParallelTopology(tp=16, ranks=range(0, 32, 2))) == "tp16@" + ",".join(map(str, range(0, 32, 2)))
        assert str(ParallelTopology(tp=17, ranks=range(0, 34, 2))) == "tp17@0+17x2"

    def test_an_inferred_size(self):
        assert ParallelTopology(tp=8, pp=4, dp=-1, world_size=256).dp == 8

    def test_a_size_of_one_is_still_an_axis(self):
        assert ParallelTopology(tp=1, pp=2).at(1).tp.size == 1

    def test_a_coordinate_may_leave_out_axes_of_size_one(self):
        assert ParallelTopology(tp=1, pp=2).rank(pp=1) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "no axes were given; expected at least one, as in ParallelTopology(tp=2, pp=4)"),
    ({"tp": 0}, "tp=0: expected a size, a whole number of at least 1"),
    ({"tp": -2, "dp": -2}, "tp=-2: expected a size, a whole number of at least 1"),
    ({"tp": True}, "tp=True: expected a size, a whole number of at least 1"),
    ({"tp": 2.0}, "tp=2.0: expected a size, a whole number of at least 1"),
    ({"tp": "2"}, "tp='2': expected a size, a whole number of at least 1"),
    ({"tp": None}, "tp=None: expected a size, a whole number of at least 1"),
    ({"tp": 2, "pp": 3, "world_size": 8}, "world_size 8 is not tp 2 x pp 3 = 6"),
    ({"tp": 2, "pp": 3, "world_size": 4}, "world_size 4 is not tp 2 x pp 3 = 6"),
    ({"tp": 8, "dp": -1, "world_size": 12}, "world_size 12 leaves 4 ranks over when divided by tp 8 = 8"),
    ({"tp": 8, "dp": -1, "world_size": 4}, "world_size 4 leaves 4 ranks over when divided by tp 8 = 8"),
    ({"tp": 8, "dp": -1}, "dp=-1: expected at most one size to be inferred, and world_size to infer it from"),
    ({"tp": -1, "dp": -1, "world_size": 4}, "tp=-1 and dp=-1: expected at most one size to be inferred"),
    ({"tp": -1, "world_size": 0}, "world_size 0 leaves 0 ranks over when divided by 1"),
    ({"ep": 2}, "axis 'ep' has no place in the default order tp-cp-dp-pp: say where it stands, as in order='ep'"),
    ({"tp": 2, "pp": 2, "order": "tp"}, "order 'tp' misses 'pp'; expected every axis of 'tp', 'pp' once"),
    ({"tp": 2, "pp": 2, "order": "tp-pp-tp"}, "order 'tp-pp-tp' names 'tp' 2 times; expected each axis once"),
    ({"tp": 2, "order": "tp-dp"}, "order 'tp-dp' names 'dp', which has no size; the axes given are 'tp'"),
    ({"tp": 2, "order": "megatronn"}, "order 'megatronn' is no system's order: expected one of 'megatron', "),
    ({"dp": 2, "cp": 2, "order": "dp_shard-cp"}, "order 'dp_shard-cp' misses 'dp'"),  # 'dp' is a part of it
    ({"tp": 2, "order": "TP"}, "order 'TP': 'TP' is not an axis name"),
    ({"tp": 2, "order": ""}, "order '': '' is not an axis name"),
    ({"tp": 2, "order": 3}, "order 3: expected axis names joined by '-'"),
    ({"close": 2}, "'close' cannot name an axis: it is taken by an attribute"),
    ({"groups": 2}, "'groups' cannot name an axis: it is taken by an attribute"),
    ({"model_x": 2}, "'model_x' cannot name an axis: it is taken by an attribute"),
    ({"Tp": 2}, "'Tp' cannot name an axis: expected lower-case letters and '_'"),
    ({"tp": 2, "first_rank": -1}, "first_rank=-1: expected a rank, a whole number of at least 0"),
    ({"tp": 2, "first_rank": True}, "first_rank=True: expected a rank, a whole number of at least 0"),
    ({"tp": 2, "first_rank": 1, "ranks": (0, 1)}, "both first_rank=1 and ranks=(0, 1) were given"),
    ({"tp": 2, "ranks": (0, 0)}, "rank 0 was given 2 times; expected each rank once"),
    ({"tp": 2, "ranks": (0, -1)}, "ranks=(0, -1): expected ranks, whole numbers of at least 0"),
    ({"tp": 2, "ranks": (0, 1, 2)}, "3 ranks were given for tp 2 = 2 positions"),
]


class TestRefused:
    @pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[str(arguments) for arguments, _ in REFUSED])
    def test_what_makes_no_topology(self, arguments: dict[str, Any], message: str):
        with pytest.raises(TopologyError) as caught:
            ParallelTopology(**arguments)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        "text", ["", "tp", "2", "tp2-", "tp2--pp2", "tp2pp4", "tp2 pp4", "tp0", "tp2-tp2", "tp2@", "tp2@x", "tp2@1,,2"]
    )
    def test_text_that_cannot_be_read(self, text: str):
        with pytest.raises(TopologyError):
            ParallelTopology.parse(text)

    topology = ParallelTopology(tp=2, pp=4, first_rank=8)

    @pytest.mark.parametrize(
        ("ask", "error", "message"),
        [
            (lambda t: t.at(7), RankError, "rank 7 is not in the world of tp2-pp4@8: expected one of [8, 9, 10"),
            (lambda t: t.at(16), RankError, "rank 16 is not in the world"),
            (lambda t: t.at(17), RankError, "rank 17 is not in the world"),
            (lambda t: t.coordinate(True), RankError, "rank True is not in the world"),
            (lambda t: t.group("tp", rank=8.0), RankError, "rank 8.0 is not in the world"),
            (lambda t: t.rank(tp=2, pp=0), RankError, "tp=2 is outside axis 'tp' of tp2-pp4@8: expected 0..1"),
            (lambda t: t.rank(tp=-1, pp=0), RankError, "tp=-1 is outside axis 'tp'"),
            (lambda t: t.rank(tp=True, pp=0), RankError, "tp=True is outside axis 'tp'"),
            (lambda t: t.rank(tp=1), RankError, "the coordinate {'tp': 1} of tp2-pp4@8 lacks pp"),
            (lambda t: t.rank(), UnknownAxisError, "no axis was named; tp2-pp4@8 has 'tp', 'pp'"),
            (lambda t: t.rank(ep=1), UnknownAxisError, "tp2-pp4@8 has no axis 'ep'; it has 'tp', 'pp'"),
            (lambda t: t.groups("ep"), UnknownAxisError, "tp2-pp4@8 has no axis 'ep'; it has 'tp', 'pp'"),
            (lambda t: t.groups(), UnknownAxisError, "no axis was named; tp2-pp4@8 has 'tp', 'pp'"),
            (lambda t: t.ep, UnknownAxisError, "tp2-pp4@8 has no axis 'ep'; it has 'tp', 'pp'"),
            (lambda t: t.at(8).ep, UnknownAxisError, "tp2-pp4@8 has no axis 'ep'; it has 'tp', 'pp'"),
            (lambda t: t.view("expert"), UnknownAxisError, "tp2-pp4@8 has no view 'expert'; it has none"),
        ],
    )
    def test_what_is_not_there(self, ask: Callable[[ParallelTopology], object], error: type[Exception], message: str):
        with pytest.raises(error) as caught:
            ask(self.topology)
        assert str(caught.value).startswith(message)

    def test_an_unknown_axis_is_an_attribute_error_too(self):
        assert not hasattr(self.topology, "ep")
        assert not hasattr(self.topology.at(8), "ep")

    def test_change(self):
        with pytest.raises(ValidationError, match="frozen"):
            self.topology.tp = 4  # pyright: ignore[reportAttributeAccessIssue]
        assert self.topology.tp == 2
        self.topology.sizes["tp"] = 4
        assert self.topology.sizes == {"tp": 2, "pp": 4}

    def test_a_rank_outside_an_explicit_placement(self):
        with pytest.raises(RankError, match=re.escape("rank 2 is not in the world of tp2@1,0: expected one of [1, 0]")):
            ParallelTopology(tp=2, ranks=(1, 0)).position(2)

    def test_a_name_that_is_nowhere(self):
        with pytest.raises(AttributeError, match="nonsense"):
            parallel_topology.nonsense  # noqa: B018
        with pytest.raises(AttributeError, match="nonsense"):
            parallel_topology.testing.nonsense  # noqa: B018

    def test_comparison_with_something_else(self):
        assert self.topology != "tp2-pp4@8"

    def test_a_copy_with_a_change_is_checked_again(self):
        assert self.topology.model_copy() is self.topology
        assert self.topology.model_copy(update={"tp": 4}).world_size == 16
        with pytest.raises(TopologyError, match="tp=0"):
            self.topology.model_copy(update={"tp": 0})


class TestInsideOtherModels:
    class Config(BaseModel):
        topology: ParallelTopology

    def test_from_text_mapping_or_value(self):
        expected = ParallelTopology(tp=2, pp=4)
        for form in ("tp2-pp4", {"tp": 2, "pp": 4}, expected):
            assert self.Config(topology=form).topology == expected  # pyright: ignore[reportArgumentType]

    def test_round_trip(self):
        config = self.Config(topology=ParallelTopology(tp=2, dp=4, views={"expert": "etp1-ep8"}))
        assert self.Config.model_validate_json(config.model_dump_json()) == config

    def test_an_error_is_a_validation_error_with_our_words(self):
        with pytest.raises(ValidationError, match="tp=0: expected a size"):
            self.Config(topology={"tp": 0})  # pyright: ignore[reportArgumentType]


def test_the_fingerprint_is_stable():
    assert ParallelTopology(tp=2, pp=4).fingerprint == "53fe92da8d352e49"


def test_the_pure_half_never_imports_torch():
    program = """
import sys
from parallel_topology import ParallelTopology, LaunchInfo
from parallel_topology.render.text import grid
from parallel_topology.testing import strategies
topology = ParallelTopology(tp=2, dp=4, views={"expert": "etp1-ep8"})
grid(topology), topology.at(5).tp.next_rank, topology.groups("ep"), str(topology), topology.model_dump_json()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_no_axis_can_hide_an_attribute():
    public = {name for name in dir(ParallelTopology(tp=1)) if not name.startswith(("_", "model_"))} - {"tp"}
    public |= {name for name in dir(ParallelTopology(tp=1).at(0)) if not name.startswith("_")}
    assert public <= RESERVED


class TestParts:
    topology = ParallelTopology(tp=2, dp=2, pp=2)

    @given(topologies(), st.data())
    def test_a_part_at_a_fixed_coordinate_has_the_groups_of_the_whole(self, topology, data):
        rank = data.draw(st.sampled_from(list(topology.world)))
        fixed = data.draw(st.lists(st.sampled_from(topology.axes), unique=True))
        if len(fixed) == len(topology.axes):
            fixed = fixed[1:]
        coordinate = topology.coordinate(rank)
        kept = () if fixed else topology.axes
        part = topology.subtopology(*kept, **{axis: coordinate[axis] for axis in fixed})
        assert rank in part.world
        for axis in part.axes:
            assert part.group(axis, rank=rank) == topology.group(axis, rank=rank)
            assert part.coordinate(rank)[axis] == coordinate[axis]

    def test_axes_and_coordinate(self):
        assert self.topology.subtopology("pp", tp=1, dp=0) == ParallelTopology(pp=2, ranks=(1, 5))
        assert self.topology.subtopology("pp", "tp", dp=1) == ParallelTopology(tp=2, pp=2, ranks=(2, 3, 6, 7))
        assert str(self.topology.subtopology("tp", dp=1, pp=1)) == "tp2@6"

    def test_a_draft_model_with_another_tp_inside_the_same_ranks(self):
        stage = self.topology.subtopology(pp=1)
        draft = ParallelTopology(tp=1, dp=4, ranks=list(stage.world))
        assert draft.groups("dp") == [[4, 5, 6, 7]]

    @pytest.mark.parametrize(
        ("axes", "fixed", "error", "message"),
        [
            (("tp",), {"dp": 0}, RankError, "the coordinate {'tp': 0, 'dp': 0} of tp2-dp2-pp2 lacks pp"),
            ((), {"dp": 2}, RankError, "dp=2 is outside axis 'dp'"),
            ((), {"ep": 0}, UnknownAxisError, "tp2-dp2-pp2 has no axis 'ep'"),
            ((), {}, UnknownAxisError, "no axis was named"),
            (("tp",), {"tp": 0, "dp": 0, "pp": 0}, TopologyError, "axis 'tp' is both kept and fixed"),
            ((), {"tp": 0, "dp": 0, "pp": 0}, TopologyError, "no axis is left of tp2-dp2-pp2 at {"),
        ],
    )
    def test_refused(self, axes, fixed, error, message):
        with pytest.raises(error) as caught:
            self.topology.subtopology(*axes, **fixed)
        assert str(caught.value).startswith(message)

    def test_filling(self):
        assert str(ParallelTopology(tp=8, pp=4).filling(256, axis="dp")) == "tp8-dp8-pp4"
        assert str(ParallelTopology(tp=8, dp=3, order="dp-tp").filling(16, axis="dp")) == "dp2-tp8"
        with pytest.raises(TopologyError, match="world_size 100 leaves 4 ranks over when divided by tp 8 x pp 4 = 32"):
            ParallelTopology(tp=8, pp=4).filling(100, axis="dp")


class TestDiff:
    @given(topologies())
    def test_nothing_moves_between_equals(self, topology):
        assert not topology.diff(topology)
        assert list(topology.diff(topology).moved) == []

    @given(topology_pairs(same_world=True))
    def test_exactly_the_ranks_whose_coordinate_changes_move(self, pair):
        before, after = (t.model_copy(update={"first_rank": 0, "ranks": None}) for t in pair)

        def place(topology, rank):
            groups = {axis: topology.group(axis, rank=rank) for axis in topology.all_axes}
            return {axis: group.index(rank) for axis, group in groups.items() if len(group) > 1}

        moved = [rank for rank in before.world if place(before, rank) != place(after, rank)]
        assert [rank for rank, _, _ in before.diff(after).moved] == moved
        assert bool(before.diff(after)) == bool(moved)

    def test_ranks_that_come_and_go(self):
        diff = ParallelTopology(tp=2).diff(ParallelTopology(tp=4, first_rank=1))
        assert (diff.removed, diff.added) == ([0], [2, 3, 4])
        assert str(diff) == (
            "tp2 -> tp4@1: 1 of 1 ranks move\n  rank 1: tp=1 -> tp=0\n  removed: [0]\n  added: [2, 3, 4]"
        )

    def test_a_long_diff_is_cut(self):
        text = str(ParallelTopology(tp=64, pp=2).diff(ParallelTopology(tp=64, pp=2, order="pp-tp")))
        assert text.endswith("  ... and 94 more")
        assert str(ParallelTopology(tp=64).diff(ParallelTopology(tp=64, first_rank=64))).endswith("added: 64 ranks")


class TestHelpForHosts:
    def test_reordered_for(self):
        topology = ParallelTopology(pp=2, dp=2, tp=4, order="pp-dp-tp")
        assert str(topology.reordered_for(Hosts.parse("4x4"))) == "tp4-pp2-dp2"
        assert topology.reordered_for(Hosts.parse("2x8"), keep=["tp", "pp"]).order in ("tp-pp-dp", "pp-tp-dp")
        assert str(ParallelTopology(tp=4, pp=2).reordered_for(Hosts.parse("4x2"), keep=["pp"])) == "pp2-tp4"

    def test_no_order_does(self):
        with pytest.raises(TopologyError, match=r"^no order of tp4-pp2 keeps \('tp',\) inside the hosts 4x2; keep"):
            ParallelTopology(tp=4, pp=2).reordered_for(Hosts.parse("4x2"))
