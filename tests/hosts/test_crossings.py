"""Messages across hosts, against each message of each group."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.hosts.crossings import Crossings, Pattern, messages

PATTERNS: list[Pattern] = ["ring", "pairs", "chain", "ends"]


def each(group: list[int], hosts: Hosts, pattern: Pattern) -> list[tuple[int, int]]:
    """(source, target) of each message."""
    ordered = sorted(group, key=hosts.host_of)
    return {
        "ring": [*pairwise(ordered), (ordered[-1], ordered[0])],
        "pairs": list(permutations(group, 2)),
        "chain": list(pairwise(group)),
        "ends": [(group[-1], group[0])],
    }[pattern]


@given(st.data(), st.sampled_from(PATTERNS))
def test_each_message(data: st.DataObject, pattern: Pattern):
    sizes: dict[str, Any] = {axis: data.draw(st.integers(1, 4)) for axis in ("tp", "dp", "pp")}
    order = "-".join(data.draw(st.permutations([*sizes])))
    first = data.draw(st.integers(0, 3))
    topology = ParallelTopology(**sizes, order=order, first_rank=first)
    count = topology.world_size + first
    if data.draw(st.booleans()):
        hosts = Hosts.uniform(count=count, ranks_per_host=data.draw(st.integers(1, count)))
    else:
        ranks = data.draw(st.permutations(range(count)))
        cut = data.draw(st.integers(1, count))
        hosts = Hosts.listed([part for part in (ranks[:cut], ranks[cut:]) if part])
    axes = data.draw(st.sets(st.sampled_from([*sizes]), min_size=1))
    groups = topology.groups(*axes)
    crossings = Crossings(hosts)
    for _ in range(2):  # found, and known
        found = crossings.of(groups, pattern)
        sent = [message for group in groups if len(group) > 1 for message in each(list(group), hosts, pattern)]
        assert found == sum(hosts.host_of(source) != hosts.host_of(target) for source, target in sent)
        assert messages(groups[0].size, pattern) * groups.size == len(sent)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_large_world(pattern: Pattern):
    """2^40 ranks: what begins at the same place of a host is looked at once."""
    topology = ParallelTopology(tp=8, dp=2**34, pp=8)
    hosts = Hosts.uniform(count=2**37, ranks_per_host=8)
    assert Crossings(hosts).of(topology.groups("tp"), pattern) == 0
    assert Crossings(hosts).of(topology.groups("pp"), pattern) == messages(8, pattern) * 2**37
