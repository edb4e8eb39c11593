"""vllm.distributed.parallel_state of mid-2024, served: its answers are those after its own initialisation.

    pip download --no-deps vllm==0.4.3 && unzip vllm-0.4.3*.whl vllm/distributed/parallel_state.py vllm/logger.py vllm/envs.py 'vllm/logging/*'

These files are enough, and all that its package lets import beside a torch of today.
"""  # noqa: E501 (a command to copy)

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import GroupManager, TopologyError
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.vllm import VLLM_2024
from tests.interop.parallel_state.layouts import answers, names, served
from tests.interop.world import run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def installed() -> None:
    module = pytest.importorskip("vllm.distributed.parallel_state")
    if hasattr(module, "GroupCoordinator"):
        pytest.skip("a later vLLM is installed")


def test_every_name_is_in_the_table_and_no_other():
    new, gone = names(VLLM_2024)
    assert new == {"vllm.distributed.parallel_state": set()}
    assert gone == {"vllm.distributed.parallel_state": set()}


def _both(groups: GroupManager, tp: int, pp: int) -> Any:
    import vllm.distributed.parallel_state as theirs  # pyright: ignore[reportMissingImports]

    before = served(VLLM_2024, groups)
    with serving(groups, "vllm-2024"):
        theirs.init_distributed_environment(groups.world.size, groups.rank)
        theirs.ensure_model_parallel_initialized(tp, pp)
        with pytest.raises(TopologyError, match="initialize_model_parallel"):
            theirs.initialize_model_parallel(tp, pp + 1)
    assert not theirs.model_parallel_is_initialized()
    theirs.set_custom_all_reduce(False)
    sys.modules["vllm.distributed.device_communicators"] = ModuleType("device_communicators")
    nccl: Any = ModuleType("pynccl")  # which needs a GPU
    nccl.PyNcclCommunicator = lambda **_: None
    sys.modules["vllm.distributed.device_communicators.pynccl"] = nccl
    theirs.init_distributed_environment(groups.world.size, groups.rank, "env://", dist.get_rank(), "gloo")
    theirs._DEVICE_WORLD_GROUP = theirs._CPU_WORLD_GROUP = dist.group.WORLD  # which it makes where there is none yet
    theirs._LOCAL_RANK = groups.local_rank
    theirs.initialize_model_parallel(tp, pp, "gloo")
    own = answers(VLLM_2024)
    assert served(VLLM_2024, groups) == before
    return own, before


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_every_answer_is_its_own(tp: int, pp: int):
    for own, ours in run_in_world(f"tp{tp}-pp{pp}", _both, tp, pp, timeout=200):
        assert ours == own
        assert len(own) > 17
