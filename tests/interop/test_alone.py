"""Process groups for code that insists on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import ClosedError, GroupManager, MissingExtraError, ParallelTopology, UnknownAxisError
from parallel_topology.installed import required
from parallel_topology.interop.alone import ProcessGroups
from parallel_topology.testing import run_ranks
from tests.interop.world import registered


def test_groups_are_found_by_their_ranks():
    def body(groups: GroupManager) -> None:
        process_groups = ProcessGroups(groups)
        tp, dp = groups.tp.device_group, groups.dp.device_group
        assert process_groups.along("tp") is tp
        assert process_groups.along("tp", "cp") is tp, "an axis of size 1 changes nothing"
        assert process_groups.along("dp", "cp", "pp") is dp
        assert process_groups.along("ep") is groups.world.device_group
        assert process_groups.along("ep") is not groups.beside.device_group, "isolated"
        assert process_groups.along("cp") is process_groups.along("pp") is process_groups.alone

    run_ranks("tp2-cp1-dp2-pp1/expert:ep4-pp1", body, isolated={"beside": ("ep",)})


def test_a_combination_that_was_not_declared():
    def body(groups: GroupManager) -> None:
        with pytest.raises(UnknownAxisError, match=r"Declare combinations .* groups=\[\('tp', 'dp'\)\]"):
            ProcessGroups(groups).along("tp", "dp")

    run_ranks("tp2-dp2-pp2", body)


def test_an_isolated_group_is_not_lent():
    def body(groups: GroupManager) -> None:
        with pytest.raises(UnknownAxisError, match="has no group 'tp-dp'"):
            ProcessGroups(groups).along("tp", "dp")

    run_ranks("tp2-dp2-pp2", body, isolated={"beside": ("tp", "dp")})


def test_alone_communicates_with_nobody():
    """Where None would mean everybody."""
    before = registered()
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        alone: Any = ProcessGroups(groups).alone
        x, gathered = torch.arange(3.0), torch.empty(3)
        dist.all_reduce(x, group=alone)
        alone.allgather([[gathered]], [x]).wait()
        assert x.tolist() == gathered.tolist() == [0, 1, 2]
        assert (alone.size(), alone.rank()) == (1, 0)
        assert registered() == before


def test_of_a_manager_that_was_closed():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        pass
    with pytest.raises(ClosedError, match="engine was closed"):
        ProcessGroups(groups)


class TestRequired:
    def test_is_there(self):
        assert required("json.decoder", "json").JSONDecoder

    def test_is_not_installed(self):
        with pytest.raises(MissingExtraError) as caught:
            required("no_such_engine.layers", "no-such-engine")
        assert str(caught.value) == "no_such_engine.layers is not installed: pip install no-such-engine"

    def test_is_there_and_lacks_something_itself(self, pytester: pytest.Pytester):
        pytester.syspathinsert()
        pytester.makepyfile(lacking="import no_such_dependency")
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            required("lacking", "lacking")
