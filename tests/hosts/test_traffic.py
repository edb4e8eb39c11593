"""Ranked orders against looking at every group of every order."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ORDERS, Hosts, ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.hosts import traffic
from parallel_topology.hosts.traffic import HEAVIEST, left_out, ranked_orders
from parallel_topology.testing.strategies import hosts_for


@st.composite
def placed(draw):
    sizes = {axis: draw(st.integers(1, 4)) for axis in draw(st.permutations(["tp", "cp", "dp", "pp"]))[:3]}
    topology = ParallelTopology(order="-".join(sizes), **sizes)
    return topology, draw(hosts_for(topology))


@given(placed())
def test_each_order_once_with_the_mean_of_what_every_group_spans(case):
    topology, hosts = case
    ranked = ranked_orders(topology, hosts)
    moving = [axis for axis in topology.axes if topology.size(axis) > 1]
    assert len({one.order for one in ranked}) == len(ranked) == len(list(permutations(moving)))
    for one in ranked:
        layout = topology.model_copy(update={"order": one.order})
        assert list(one.hosts_per_group) == sorted(moving, key=HEAVIEST.index)
        for axis, mean in one.hosts_per_group.items():
            spans = [len({hosts.host_of(rank) for rank in group}) for group in layout.groups(axis)]
            assert mean == pytest.approx(sum(spans) / len(spans))


@given(placed(), st.data())
def test_the_heaviest_axis_decides_first(case, data):
    topology, hosts = case
    heaviest = data.draw(st.lists(st.sampled_from(topology.axes), unique=True))
    ranked = ranked_orders(topology, hosts, heaviest)
    weights = [*heaviest, *HEAVIEST]
    keys = [([*one.hosts_per_group.values()], [*map(weights.index, one.order.split("-"))]) for one in ranked]
    assert keys == sorted(keys)
    first = [axis for axis in heaviest if topology.size(axis) > 1]
    assert all(list(one.hosts_per_group)[: len(first)] == first for one in ranked)


def test_megatrons_order_is_best_where_tp_fills_a_host():
    topology = ParallelTopology(order="pp-dp-cp-tp", tp=4, cp=2, dp=2, pp=2)
    assert ranked_orders(topology, Hosts.parse("4x8"))[0].order == "tp-cp-dp-pp"
    assert ranked_orders(topology, Hosts.parse("4x8"), ["tp", "pp"])[0].order == "tp-pp-cp-dp"


def test_views_count_and_leave_out_orders_they_do_not_fit():
    topology = ParallelTopology(tp=2, dp=3, pp=2, views={"expert": "etp1-ep6-pp2"})
    ranked = ranked_orders(topology, Hosts.parse("2x6"))
    assert [one.order for one in ranked] == ["tp-dp-pp", "dp-tp-pp"]
    assert list(ranked[0].hosts_per_group) == ["tp", "ep", "dp", "pp"]


def test_every_axis_of_every_system_has_a_weight():
    assert {axis for order in ORDERS.values() for axis in order.axes} <= set(HEAVIEST)


def test_an_axis_of_ones_own_comes_last():
    topology = ParallelTopology(order="zp-tp-pp", zp=2, tp=2, pp=2)
    assert list(ranked_orders(topology, Hosts.parse("2x4"))[0].hosts_per_group) == ["tp", "pp", "zp"]


def test_bad_input():
    with pytest.raises(UnknownAxisError, match="tp4 has no axis 'xp'; it has 'tp'"):
        ranked_orders(ParallelTopology(tp=4), Hosts.parse("1x4"), ["xp"])
    with pytest.raises(TopologyError, match="rank 3 is on no host"):
        ranked_orders(ParallelTopology(tp=4), Hosts.parse("1x2"))


# More orders than are ranked


@given(placed(), st.integers(1, 7))
def test_of_many_orders_the_best_are_ranked(case, most):
    topology, hosts = case
    every = ranked_orders(topology, hosts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "MOST_ORDERS", most)
        assert ranked_orders(topology, hosts) == every[:most]
        assert left_out(topology) == max(0, len(every) - most)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("axes", "ranked"), [(7, 5040), (8, 5040), (9, 217), (10, 97)])
def test_many_axes(axes, ranked):
    names = ["tp", "cp", "ep", "dp", "pp", "a", "b", "c", "d", "e"][:axes]
    topology = ParallelTopology.parse("-".join(f"{name}2" for name in reversed(names)))
    hosts = Hosts.uniform(count=2 ** (axes - 3), ranks_per_host=8)
    found = ranked_orders(topology, hosts)
    assert (len(found), left_out(topology)) == (ranked, factorial(axes) - ranked)
    assert found[0].order == "-".join([*names[:5], *reversed(names[5:])])  # of one's own, as in the topology
    assert list(found[0].hosts_per_group.values()) == [1.0] * 3 + [2.0] * (axes - 3)


@pytest.mark.timeout(30)
def test_many_axes_and_a_view():
    names = ["tp", "cp", "ep", "dp", "pp", "a", "b", "c"]
    topology = ParallelTopology.parse("-".join(f"{name}2" for name in names) + "/expert:x16-y16")
    found = ranked_orders(topology, Hosts.parse("32x8"))
    assert len(found) == 5040
    assert found[0].order == "-".join(names)
    assert list(found[0].hosts_per_group) == [*names[:5], *names[5:], "x", "y"]
