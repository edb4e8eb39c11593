"""What people expect to be answered: absent axes, names of groups, other kinds of numbers, parts of tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, RankError, TopologyError, UnknownAxisError
from parallel_topology.testing import simulate
from parallel_topology.testing.strategies import topologies
from parallel_topology.topology.orders import DEFAULT_ORDER
from parallel_topology.topology.shares import shard


class TestConventionalAxes:
    @given(topologies(), st.data())
    def test_those_that_were_not_given_have_size_1_and_every_rank_is_alone(self, topology, data):
        rank = data.draw(st.sampled_from(list(topology.world)))
        for axis in set(DEFAULT_ORDER) - set(topology.all_axes):
            assert getattr(topology, axis) == topology.size(axis) == 1
            assert topology.groups(axis) == [[other] for other in topology.world]
            group = getattr(topology.at(rank), axis)
            assert (group.name, group.ranks, group.rank, group.size) == (axis, [rank], 0, 1)
            assert (group.is_first, group.is_last, group.next_rank, group.prev_rank) == (True, True, rank, rank)
            assert topology.rank(**{**topology.coordinate(rank), axis: 0}) == rank
            with pytest.raises(RankError, match=f"{axis}=1 is outside axis '{axis}' of .*: expected 0..0"):
                topology.rank(**{**topology.coordinate(rank), axis: 1})

    @given(topologies())
    def test_beside_others_they_fall_away(self, topology):
        for absent in set(DEFAULT_ORDER) - set(topology.all_axes):
            for axis in topology.all_axes:
                assert topology.group_name(axis, absent) == axis
                assert topology.groups(absent, axis) == topology.groups(axis)
                assert topology.size(absent, axis) == topology.size(axis)

    def test_they_are_no_part_of_the_topology(self):
        topology = ParallelTopology(tp=4)
        assert (topology.pp, topology.at(0).pp.is_last) == (1, True)
        assert topology == ParallelTopology.parse("tp4")
        assert (str(topology), topology.axes, topology.sizes) == ("tp4", ("tp",), {"tp": 4})
        assert list(topology.plan().families) == ["world", "tp"]
        assert topology.at(1).coordinate == {"tp": 1}
        assert "pp" not in topology.model_dump()
        assert topology.group_name("pp", "cp") == "cp-pp"
        assert topology.group_name("pp") == "pp"

    def test_a_view_may_have_one_of_them(self):
        topology = ParallelTopology(tp=4, views={"v": "x2-pp2"})
        assert topology.pp == 2
        assert topology.at(3).pp.ranks == [1, 3]

    @pytest.mark.parametrize("axis", ["ep", "dp_shard", "model", "pipe", "nonsense"])
    def test_other_names_still_raise(self, axis: str):
        topology = ParallelTopology(tp=4)
        for ask in (
            lambda: getattr(topology, axis),
            lambda: getattr(topology.at(0), axis),
            lambda: topology.size(axis),
        ):
            with pytest.raises(UnknownAxisError, match=f"tp4 has no axis '{axis}'; it has 'tp'"):
                ask()


class TestNamesOfGroups:
    @given(topologies(), st.data())
    def test_a_group_answers_to_its_name(self, topology, data):
        rank = data.draw(st.sampled_from(list(topology.world)))
        axes = data.draw(st.lists(st.sampled_from(topology.axes), min_size=1, unique=True))
        name = topology.group_name(*axes)
        view = topology.at(rank)
        assert view[name] == view[tuple(axes)]
        assert view[name].name == name
        assert topology.groups(name) == topology.groups(*axes)
        assert topology.group(name, rank=rank) == topology.group(*axes, rank=rank)
        assert topology.size(name) == topology.size(*axes)

    @given(topologies())
    def test_the_world_is_a_group_of_that_name(self, topology):
        view = topology.at(topology.world[0])
        assert view["world"] == view.world
        assert view.world.name == "world"
        assert topology.groups("world") == [list(topology.world)]
        assert topology.size("world") == topology.world_size

    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            (("tp", "tp"), "axis 'tp' of tp2-pp4 was named 2 times; expected it once"),
            (("tp-pp", "pp"), "axis 'pp' of tp2-pp4 was named 2 times; expected it once"),
            (("tp-tp",), "axis 'tp' of tp2-pp4 was named 2 times; expected it once"),
            (("dp", "dp"), "axis 'dp' of tp2-pp4 was named 2 times; expected it once"),
            (("tp-",), "tp2-pp4 has no axis ''; it has 'tp', 'pp'"),
            (("world", "tp"), "tp2-pp4 has no axis 'world'; it has 'tp', 'pp'"),
            ((["tp", "pp"],), "['tp', 'pp'] names no axis of tp2-pp4: expected names, as in 'tp', 'pp'"),
            ((None,), "None names no axis of tp2-pp4"),
            ((0,), "0 names no axis of tp2-pp4"),
        ],
    )
    def test_refused_everywhere(self, axes: tuple[Any, ...], message: str):
        topology = ParallelTopology(tp=2, pp=4)
        asked = [
            lambda: topology.groups(*axes),
            lambda: topology.group(*axes, rank=0),
            lambda: topology.size(*axes),
            lambda: topology.group_name(*axes),
            lambda: topology.at(0)[axes],
            lambda: topology.plan(groups=[axes]),
            lambda: topology.plan(isolated={"alone": axes}),
        ]
        for ask in asked:
            with pytest.raises(UnknownAxisError) as caught:
                ask()
            assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("groups", [3, "tp", [3], ["tp"], None, [None]])
    def test_what_names_no_groups_for_a_plan(self, groups: Any):
        with pytest.raises(TopologyError, match="expected tuples of axes"):
            ParallelTopology(tp=2, pp=4).plan(groups=groups)

    def test_a_simulated_manager_answers_alike(self):
        def ask(groups):
            assert groups.dp is groups.dp is groups["dp"]
            with pytest.raises(UnknownAxisError, match="no group 'tp-pp'"):
                groups["tp", "pp"]
            assert groups["tp", "dp"] is groups.tp
            assert groups["world"] is groups.world
            assert groups.dp.all_reduce(torch.ones(1)) == 1
            return groups.dp.size, groups.dp.is_last, groups["cp-dp"].ranks == [groups.rank]

        assert set(simulate("tp2-pp2", ask).results.values()) == {(1, True, True)}


def test_a_group_is_a_value():
    view = ParallelTopology(tp=2, pp=4).at(5)
    assert view.tp == view["tp"] == ParallelTopology(tp=2, pp=4).at(5).tp
    assert hash(view.tp) == hash(view["tp"])
    assert view.tp != ParallelTopology(tp=2, pp=4).at(4).tp  # another member
    assert view.tp != ParallelTopology(dp=2, pp=4).at(5).dp  # another name
    assert view.tp != ParallelTopology(tp=2, pp=4).at(3).tp  # other ranks
    assert len({view.tp, view["tp"], view.pp}) == 2


@given(topologies())
def test_ranks_and_groups_go_through_json(topology):
    axis = topology.axes[0]
    assert json.loads(json.dumps(topology.world, default=list)) == list(topology.world)
    assert json.loads(json.dumps(topology.groups(axis), default=list)) == [list(g) for g in topology.groups(axis)]


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_integers(number):
    topology = ParallelTopology(tp=number(2), pp=number(4), first_rank=number(8), world_size=number(8))
    assert topology == ParallelTopology(tp=2, pp=4, first_rank=8)
    assert {type(size) for size in topology.sizes.values()} == {int}
    assert ParallelTopology(tp=2, ranks=list(np.array([5, 3]))) == ParallelTopology(tp=2, ranks=(5, 3))
    assert topology.at(number(9)).rank == 9
    assert type(topology.at(number(9)).rank) is int
    assert topology.rank(tp=number(1), pp=number(0)) == topology.group("tp", rank=number(8))[number(1)] == 9
    assert number(9) in topology.world
    assert topology.at(9).tp.shard(number(8)) == range(4, 8)
    assert topology.filling(number(16), axis="dp").dp == 2


class TestShardOf:
    @given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 12), st.data())
    def test_the_part_is_that_of_shard_and_a_view(self, size, dims, length, data):
        dim = data.draw(st.integers(-dims - 1, dims))
        shape = [2] * (dims + 1)
        shape[dim] = length
        tensor = torch.arange(int(np.prod(shape))).reshape(shape)
        for rank in range(size):
            group = ParallelTopology(tp=size).at(rank).tp
            part = shard(length, rank, size, uneven="chunk")
            found = group.shard_of(tensor, dim, uneven="chunk")
            assert torch.equal(found, tensor.narrow(dim, part.start, len(part)))
            assert np.array_equal(group.shard_of(tensor.numpy(), dim, uneven="chunk"), found.numpy())
            assert found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()

    @pytest.mark.parametrize(
        ("tensor", "dim", "message"),
        [
            (torch.ones(4, 4), 2, "dim=2 is not one of the dims of a tensor of shape [4, 4]"),
            (torch.ones(4, 4), -3, "dim=-3 is not one"),
            (torch.ones(4, 4), True, "dim=True is not one"),
            (torch.ones(()), 0, "dim=0 is not one of the dims of a tensor of shape []"),
            ([1, 2], 0, "dim=0 is not one of the dims of a tensor of shape []"),
            (torch.ones(3, 4), 0, "a dim of 3 divided by 2 leaves 1 over"),
        ],
    )
    def test_refused(self, tensor, dim, message):
        with pytest.raises(TopologyError) as caught:
            ParallelTopology(tp=2).at(0).tp.shard_of(tensor, dim)
        assert str(caught.value).startswith(message)
