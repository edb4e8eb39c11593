"""The arguments of `set_context_parallel_group`. Transformer Engine needs CUDA: its use of them is written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import GroupArgumentError, GroupManager, UnknownAxisError
from parallel_topology.interop.transformer_engine import context_parallel
from parallel_topology.testing import run_ranks
from tests.interop.world import run_in_world

HIERARCHICAL = "tp2-cp4/context:tp2-inner2-outer2"


def test_one_group():
    def body(groups: GroupManager) -> list[int]:
        group, ranks, stream, comm_type = context_parallel(groups, "cp")
        assert group is groups.cp.device_group
        assert (stream, comm_type) == (None, "p2p")
        return ranks

    assert run_ranks("tp2-cp2", body) == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_no_context_parallelism_is_no_group():
    def body(groups: GroupManager) -> None:
        assert context_parallel(groups, "cp", comm_type="all_gather") == (None, [groups.rank], None, "all_gather")

    run_ranks("tp2-cp1", body)


def test_two_groups_for_an_all_to_all_inside_a_ring():
    def body(groups: GroupManager) -> list[int]:
        arguments = context_parallel(groups, "inner", "outer", comm_type="a2a+p2p")
        assert arguments.cp_group == [groups.inner.device_group, groups.outer.device_group]
        return arguments.cp_global_ranks

    assert run_ranks(HIERARCHICAL, body) == [[0, 2, 4, 6], [1, 3, 5, 7]] * 4


def _ring(groups: GroupManager) -> tuple[int, int, list[int]]:
    """Where Transformer Engine sends to and receives from (AttnFuncWithCPAndKVP2P, commit 0001d1b3), and its ring."""
    arguments: Any = context_parallel(groups, "inner", "outer", comm_type="a2a+p2p")
    (a2a, p2p), ranks = arguments.cp_group, arguments.cp_global_ranks
    a2a_size, a2a_rank = dist.get_world_size(a2a), dist.get_rank(a2a)
    size, rank = dist.get_world_size(p2p), dist.get_rank(p2p)
    peers = [ranks[(rank + step) % size * a2a_size + a2a_rank] for step in (1, -1)]
    return peers[0], peers[1], dist.get_process_group_ranks(p2p)


def test_its_ring_stays_in_the_p2p_group():
    for rank, (send_to, receive_from, ring) in enumerate(run_in_world(HIERARCHICAL, _ring)):
        other = ring[1 - ring.index(rank)]
        assert send_to == receive_from == other


def test_refused():
    def body(groups: GroupManager) -> None:
        with pytest.raises(GroupArgumentError, match=r"axes \('cp',\) for comm_type 'a2a\+p2p': expected two axes"):
            context_parallel(groups, "cp", comm_type="a2a+p2p")
        with pytest.raises(GroupArgumentError, match=r"axes \(\) for comm_type 'p2p': expected one axis"):
            context_parallel(groups)
        with pytest.raises(GroupArgumentError, match="one of them has a single rank; use comm_type 'a2a' or 'p2p'"):
            context_parallel(groups, "cp", "tp", comm_type="a2a+p2p")
        with pytest.raises(UnknownAxisError, match="has no axis 'sp'"):
            context_parallel(groups, "sp")

    run_ranks("tp1-cp2", body)
