"""The strategies draw what they promise, all of it, and shrink to the simplest."""

from __future__ import annotations

from hypothesis import find, given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.testing.strategies import hosts_for, orders, topologies, topologies_of, topology_pairs


@given(topologies(max_world=12))
def test_worlds_are_bounded(topology: ParallelTopology):
    assert 1 <= topology.world_size <= 12


@given(st.integers(1, 100).flatmap(lambda size: st.tuples(st.just(size), topologies_of(size))))
def test_worlds_of_one_size(drawn: tuple[int, ParallelTopology]):
    assert drawn[1].world_size == drawn[0]


@given(topology_pairs(same_world=True))
def test_pairs_of_the_same_world(pair: tuple[ParallelTopology, ParallelTopology]):
    assert pair[0].world_size == pair[1].world_size


@given(topologies().flatmap(lambda topology: st.tuples(st.just(topology), hosts_for(topology))))
def test_hosts_hold_all_ranks(drawn: tuple[ParallelTopology, Hosts]):
    topology, hosts = drawn
    hosts.require(topology)
    assert set(topology.world) <= {rank for host in hosts for rank in host}


@given(orders())
def test_orders_are_of_all_axes(order: str):
    assert sorted(order.split("-")) == ["cp", "dp", "pp", "tp"]


def test_they_shrink_to_the_simplest():
    assert find(topologies(), lambda _: True) == ParallelTopology(tp=1)
    assert str(find(topologies(), lambda topology: topology.world_size >= 6)) == "tp6"
    assert find(orders(), lambda _: True) == "tp-cp-dp-pp"


def test_every_kind_of_topology_can_be_drawn():
    for kind in (
        lambda topology: topology.ranks is not None,
        lambda topology: topology.first_rank > 0,
        lambda topology: "ep" in topology.axes,
        lambda topology: len([size for size in topology.sizes.values() if size > 1]) >= 3,
        lambda topology: topology.order.startswith("pp-"),
    ):
        find(topologies(), kind)
