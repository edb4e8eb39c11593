"""What reports say together, on reports made up for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology
from parallel_topology.selftest.verdict import Link, RankReport, Timing, Wrong, judge

topologies = st.builds(
    lambda sizes: ParallelTopology(**dict(zip(("tp", "dp", "pp"), sizes, strict=True))),
    st.tuples(st.integers(2, 4), st.integers(2, 3), st.integers(1, 3)),
)


def reports(topology, seconds):
    """Each rank's links to its next in each group, and the group's time, as if `seconds(rank)` passed at each rank."""
    found = {rank: RankReport(rank) for rank in topology.world}
    for axis in topology.axes:
        for number, group in enumerate(topology.groups(axis)):
            if len(group) < 2:
                continue
            cost = max(map(seconds, group))
            for position, rank in enumerate(group):
                found[rank].timings.append(Timing(axis, f"{axis}[{number}]", "all_reduce", cost, cost, 1000, 1.5))
                other = group[(position + 1) % len(group)]
                found[rank].links.append(Link(axis, (rank, other), max(seconds(rank), seconds(other))))
    return found


@given(topologies, st.data())
def test_the_slow_rank_and_its_groups_are_named_and_no_other(topology, data):
    slow = data.draw(st.sampled_from(list(topology.world)))
    verdict = judge(topology, reports(topology, lambda rank: 10.0 if rank == slow else 1.0), {})
    assert verdict.slow_ranks == {slow: 10.0}
    for group in verdict.slow_groups:
        assert slow in next(one.ranks for one in verdict.groups if one.group == group)
    for axis in topology.axes:
        if topology.size(axis) > 1 and len(topology.groups(axis)) > 1:
            number = topology.groups(axis).index(topology.group(axis, rank=slow))
            assert verdict.slow_groups[f"{axis}[{number}]"] == 10.0
    assert verdict.ok


@given(topologies)
def test_nothing_is_slow_where_all_are_alike(topology):
    verdict = judge(topology, reports(topology, lambda rank: 1.0), {})
    assert (verdict.slow_ranks, verdict.slow_groups) == ({}, {})


@given(topologies, st.data())
def test_who_adds_a_wrong_number_is_suspected(topology, data):
    """All members of its groups see wrong sums; only the rank itself is in all of these groups."""
    bad = data.draw(st.sampled_from(list(topology.world)))
    found = reports(topology, lambda rank: 1.0)
    for axis in topology.axes:
        if topology.size(axis) > 1:
            for rank in topology.group(axis, rank=bad):
                found[rank].wrong.append(Wrong(f"{axis}[0]", "all_reduce", ()))
    verdict = judge(topology, found, {})
    assert verdict.suspects == [bad]
    assert not verdict.ok


def test_bandwidths_are_those_of_the_slowest_member():
    found = {rank: RankReport(rank) for rank in (0, 1)}
    found[0].timings.append(Timing("tp", "tp[0]", "all_gather", 1e-3, 0.5, 1000, 0.5))
    found[1].timings.append(Timing("tp", "tp[0]", "all_gather", 2e-3, 0.25, 1000, 0.5))
    (one,) = judge(ParallelTopology(tp=2), found, {}).groups
    assert (one.latency, one.algorithm_bandwidth, one.bus_bandwidth) == (2e-3, 2000, 1000)
    assert one.times_median == 1


def test_who_did_not_report_is_broken_and_so_is_who_failed():
    verdict = judge(ParallelTopology(tp=3), {0: RankReport(0), 2: RankReport(2, error="lost rank 1")}, {1: "ended"})
    assert (verdict.missing, verdict.broken) == ([1], {1: "ended", 2: "failed: lost rank 1"})
    assert judge(ParallelTopology(tp=1), {}, {}).broken == {0: "did not report: dead or stuck"}


def test_who_sent_what_was_wrong_is_said():
    found = {rank: RankReport(rank, wrong=[Wrong("world", "all_gather", (1,))]) for rank in (2, 0)}
    verdict = judge(ParallelTopology(tp=3), found | {1: RankReport(1)}, {})
    assert verdict.wrong == ["all_gather on world: wrong values from rank 1 at ranks 0, 2"]
    assert verdict.suspects == [1]


@pytest.mark.parametrize("latency", [1e-3, 1.0])
def test_a_barrier_counts_by_its_latency(latency):
    found = {0: RankReport(0, timings=[Timing("tp", "tp[0]", "barrier", latency)])}
    (one,) = judge(ParallelTopology(tp=1), found, {}).groups
    assert (one.latency, one.algorithm_bandwidth, one.bus_bandwidth, one.times_median) == (latency, None, None, 1)


def test_nobody_is_suspected_where_everybody_could_be():
    found = {rank: RankReport(rank, wrong=[Wrong("tp[0]", "all_reduce", ())]) for rank in (0, 1)}
    verdict = judge(ParallelTopology(tp=2), found, {})
    assert (verdict.wrong, verdict.suspects) == (["all_reduce on tp[0]: wrong values at ranks 0, 1"], [])
