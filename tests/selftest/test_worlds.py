"""The self-test on real processes: what works is found good, and a planted fault is found where it was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import LaunchInfo, ParallelTopology, TopologyError
from parallel_topology.selftest.collectives import CHECKS
from parallel_topology.selftest.verdict import judge
from parallel_topology.selftest.worlds import alone, default_topology, launched
from tests.ports import free_port
from tests.selftest import faults

FACTORS = {"all_reduce": 2}
WHOLE = ("broadcast", "broadcast_object", "reduce", "send/recv ring", "send_tensors ring")
TOPOLOGY = ParallelTopology(tp=2, pp=2)


def test_four_processes_of_this_machine():
    verdict = alone(TOPOLOGY, size=1 << 16, timeout=30)
    assert verdict.ok, verdict
    assert verdict.where == "gloo on cpu"
    assert (verdict.broken, verdict.missing, verdict.wrong, verdict.suspects) == ({}, [], [], [])
    groups = {"world": (0, 1, 2, 3), "tp[0]": (0, 1), "tp[1]": (2, 3), "pp[0]": (0, 2), "pp[1]": (1, 3)}
    found = {(one.group, one.ranks, one.check) for one in verdict.groups}
    assert found == {(group, ranks, check.name) for group, ranks in groups.items() for check in CHECKS}
    for one in verdict.groups:
        assert one.latency > 0
        if one.check == "barrier":
            assert one.bus_bandwidth is None
        else:
            assert one.algorithm_bandwidth
            factor = FACTORS.get(one.check, 1.0) * (len(one.ranks) - 1) / len(one.ranks)
            factor = 1 if one.check in WHOLE else factor
            assert one.bus_bandwidth == pytest.approx(one.algorithm_bandwidth * factor)


@pytest.mark.timeout(20)
def test_more_ranks_than_a_machine_should_start():
    large = ParallelTopology(tp=8, dp=1_600_000)
    with pytest.raises(
        TopologyError, match="has 12,800,000 ranks; without a launcher each is a process of this machine"
    ):
        alone(large, size=64, timeout=5)
    info = LaunchInfo.from_env({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    with pytest.raises(
        TopologyError, match=r"started ranks 0\.\.1, but tp8-dp1600000 has \[0, 1, 2, .* \(12,800,000 ranks\)"
    ):
        launched(large, info, size=64, timeout=5)


@pytest.mark.parametrize("spec", ["tp3", "tp1", "tp2-dp2@4/other:xp4"])
def test_odd_groups_single_ranks_and_views(spec):
    verdict = alone(ParallelTopology.parse(spec), size=1000, timeout=30)
    assert verdict.ok, verdict


def test_a_slow_rank_is_named():
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=30, manager=faults.Slow)
    assert verdict.ok, verdict
    assert list(verdict.slow_ranks) == [faults.FAULTY]


@pytest.mark.parametrize(("fault", "check"), [(faults.BadLater, "all_reduce"), (faults.BadHalves, "all_gather")])
def test_values_are_looked_at_in_every_call_and_dtype(fault, check):
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=30, manager=fault)
    assert not verdict.ok
    assert any(sentence.startswith(f"{check} on ") for sentence in verdict.wrong)
    assert all(sentence.startswith(f"{check} on ") for sentence in verdict.wrong)


def test_what_cannot_be_seen_is_said():
    assert "a slow rank: each waits for the other" in " ".join(judge(ParallelTopology(tp=2), {}, {}).unseen)
    assert judge(TOPOLOGY, {}, {}).unseen == []


def test_a_rank_that_adds_wrongly_is_named():
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=30, manager=faults.BadSum)
    assert not verdict.ok
    assert verdict.suspects == [faults.FAULTY]
    assert "all_reduce on tp[1]: wrong values at rank 2" in verdict.wrong
    assert not verdict.broken


def test_a_rank_that_sends_what_it_should_not_is_named():
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=30, manager=faults.BadSource)
    assert verdict.suspects == [faults.FAULTY]
    assert "all_gather on tp[1]: wrong values from rank 2 at ranks 2, 3" in verdict.wrong
    assert "all_reduce on tp[1]: wrong values at ranks 2, 3" in verdict.wrong


def test_a_rank_that_ends_is_named():
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=30, manager=faults.Ending)
    assert verdict.missing == [faults.FAULTY]
    assert verdict.broken[faults.FAULTY].startswith("its process exited with status 7")


@pytest.mark.slow
def test_a_rank_that_is_stuck_is_named():
    verdict = alone(TOPOLOGY, size=1 << 10, timeout=2, manager=faults.Stuck)
    assert verdict.missing == [faults.FAULTY]
    assert "still running at its end" in verdict.broken[faults.FAULTY]
    assert set(verdict.broken) == {0, 1, 2, 3}
    assert "all_gather" in verdict.broken[0]


def info(world_size: int, local_size: int | None = None, **facts: Any) -> LaunchInfo:
    given: dict[str, Any] = {"rank": 0, "address": "127.0.0.1", "port": 1, **facts}
    return LaunchInfo(launcher="torchrun", world_size=world_size, local_size=local_size, **given)


@pytest.mark.parametrize(
    ("world_size", "local_size", "spec"),
    [(8, 4, "local4-host2"), (8, None, "tp8"), (8, 8, "tp8"), (8, 1, "tp8"), (8, 3, "tp8"), (1, 1, "tp1")],
)
def test_the_topology_of_whoever_names_none(world_size, local_size, spec):
    assert str(default_topology(info(world_size, local_size))) == spec


def test_ranks_that_do_not_even_meet():
    """They have nothing to report over: each says itself what it waited for."""
    agents = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    alone_there = launched(ParallelTopology(tp=3), info(3, port=agents.port, store_is_hosted=True), size=4, timeout=0.5)
    assert (alone_there.ok, alone_there.verdict) == (False, None)
    assert alone_there.said.startswith("ranks 1, 2 did not come within 0.5 s")


def test_a_store_that_is_not_there():
    nowhere = launched(ParallelTopology(tp=2), info(2, rank=1, port=free_port()), size=4, timeout=0.5)
    assert (nowhere.ok, nowhere.verdict) == (False, None)
    assert nowhere.said.startswith("cannot reach the store at 127.0.0.1:")


@pytest.mark.parametrize("spec", ["tp2", "tp4@4"])
def test_another_number_of_ranks_than_were_started(spec):
    with pytest.raises(TopologyError, match=r"torchrun started ranks 0..3, but tp.* expected a topology of the same"):
        launched(ParallelTopology.parse(spec), info(4), size=1, timeout=1)
