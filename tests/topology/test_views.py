"""Further factorizations of the same ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.testing.strategies import topologies_of


def test_an_expert_view_over_dp_and_tp():
    topology = ParallelTopology(tp=2, dp=4, pp=2, views={"expert": "etp1-ep8-pp2"})
    assert topology.groups("ep") == [list(range(8)), list(range(8, 16))]
    assert topology.groups("edp") == [[rank] for rank in range(16)]
    assert topology.all_axes == ("tp", "dp", "pp", "etp", "ep", "edp")
    assert topology.ep == 8
    assert str(topology) == "tp2-dp4-pp2/expert:etp1-ep8-edp1-pp2"
    assert topology.rank(etp=0, ep=3, edp=0, pp=1) == 11


def test_one_size_may_be_left_out():
    assert ParallelTopology(tp=2, dp=4, views={"v": "a2-b"}).b == 4
    assert ParallelTopology(tp=2, dp=4, pp=4, views={"expert": "etp1-ep4-pp4"}).edp == 2
    assert str(ParallelTopology(tp=4, dp=4, views={"expert": "ep4-x2-edp2"})) == "tp4-dp4/expert:ep4-x2-edp2"


def test_a_walk_in_another_order_gives_members_that_do_not_ascend():
    topology = ParallelTopology(tp=2, pcp=2, pp=2, order="tp-pcp-pp", views={"decode": "dcp4-pp2~pcp-tp-pp"})
    assert topology.groups("dcp") == [[0, 2, 1, 3], [4, 6, 5, 7]]
    group = topology.at(1).dcp
    assert (group.rank, group.prev_rank, group.next_rank) == (2, 2, 3)


def test_a_view_that_walks_in_another_order_keeps_it_as_a_topology_of_its_own():
    topology = ParallelTopology(tp=2, pcp=2, pp=2, order="tp-pcp-pp", views={"decode": "dcp4-pp2~pcp-tp-pp"})
    view = topology.view("decode")
    assert str(view) == "dcp4-pp2@0,2,1,3,4,6,5,7"
    assert view.groups("dcp") == topology.groups("dcp") == [[0, 2, 1, 3], [4, 6, 5, 7]]
    assert view.groups("pp") == [[0, 4], [2, 6], [1, 5], [3, 7]]
    placed = topology.model_copy(update={"ranks": (7, 3, 5, 1, 6, 2, 4, 0)}).view("decode")
    assert placed.groups("dcp") == [[7, 5, 3, 1], [6, 4, 2, 0]]


def _with_view(base: ParallelTopology, text: str) -> ParallelTopology | None:
    """None if the view's sizes do not fit the strides it walks over."""
    try:
        return base.model_copy(update={"views": {"other": text}})
    except TopologyError as error:
        refusal = str(error)
    assert "cut the base's ranks unevenly" in refusal
    return None


@given(st.integers(1, 24), st.data())
def test_a_view_as_a_topology_of_its_own_has_the_same_groups(world_size, data):
    base, other = (data.draw(topologies_of(world_size, axes)) for axes in (("a", "b"), ("c", "d")))
    walk = data.draw(st.permutations(base.axes)) if world_size != 12 else base.axes
    text = "-".join(f"{axis}{size}" for axis, size in other.sizes.items()) + "~" + "-".join(walk)
    topology = _with_view(base, text)
    if topology is None:
        return
    view = topology.view("other")
    assert sorted(view.world) == sorted(base.world)
    for axes in [*[(axis,) for axis in other.axes], other.axes]:
        assert sorted(map(sorted, topology.groups(*axes))) == sorted(map(sorted, view.groups(*axes)))
        for group in topology.groups(*axes):
            assert view.group(*axes, rank=group[0]) == group
    assert ParallelTopology.parse(str(topology)) == topology
    assert ParallelTopology.model_validate_json(topology.model_dump_json()) == topology


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"v": "dp4-x2"}, "axis 'dp' of v is not that of the base: its first group is [0, 1, 2, 3], not [0, 2, 4, 6]"),
        ({"v": "x4-tp2"}, "axis 'tp' of v is not that of the base: its first group is [0, 4], not [0, 1]"),
        ({"v": "a2"}, "view 'v', 'a2', has 2 positions, which is not the world_size 8; leave one size out"),
        ({"v": "a3-b"}, "view 'v', 'a3-b', has 3 positions without b, which does not divide the world_size 8"),
        ({"v": "a-b"}, "view 'v', 'a-b', leaves out the sizes of ['a', 'b']; expected at most one"),
        ({"v": "a0-b"}, "view 'v', 'a0-b', has an axis of size 0"),
        ({"v": "a2-b?"}, "cannot read 'b?' in 'a2-b?'"),
        ({"V": "a8"}, "'V' cannot name a view"),
        ({"v": "close8"}, "'close' cannot name an axis"),
        ({"v": "a8~tp"}, "view 'v' walks over 'tp': expected each of the base's axes tp-dp once"),
        ({"v": "a8~"}, "order '': '' is not an axis name"),
        ({"v": "a8", "w": "a4-b2"}, "axis 'a' of w is not that of v"),
    ],
)
def test_what_makes_no_view(views: dict[str, str], message: str):
    with pytest.raises(TopologyError) as caught:
        ParallelTopology(tp=2, dp=4, views=views)
    assert str(caught.value).startswith(message)


def test_a_walk_that_would_be_cut_unevenly():
    with pytest.raises(TopologyError, match="axis 'a' of size 2 would cut the base's ranks unevenly"):
        ParallelTopology(tp=2, dp=3, views={"v": "a2-b3~dp-tp"})


def test_axes_of_different_factorizations_have_no_common_groups():
    topology = ParallelTopology(tp=2, dp=4, views={"v": "a8"})
    with pytest.raises(UnknownAxisError, match="'tp' and 'a' stand in no common factorization"):
        topology.groups("tp", "a")


@pytest.mark.parametrize("text", ["tp2/", "tp2/v", "tp2/v:a2/v:a2"])
def test_view_text_that_cannot_be_read(text: str):
    with pytest.raises(TopologyError):
        ParallelTopology.parse(text)


def test_a_view_that_is_not_there_is_told_from_those_that_are():
    topology = ParallelTopology(tp=2, dp=4, views={"v": "a8", "w": "b8"})
    with pytest.raises(UnknownAxisError) as caught:
        topology.view("x")
    assert str(caught.value) == f"{topology} has no view 'x'; it has 'v', 'w'"


def test_leaving_a_size_out_is_advised_only_where_none_is():
    with pytest.raises(TopologyError, match=r"does not divide the world_size 8$"):
        ParallelTopology(tp=2, dp=4, views={"v": "a3-b"})
