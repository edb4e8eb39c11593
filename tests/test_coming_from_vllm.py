"""Every row of docs/coming-from-vllm.md, evaluated on real groups against what the old call returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-vllm.md"
CELLS = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
ROWS = {old.strip("` "): new.strip("` ") for old, new in CELLS}
TP, PP = 2, 4


def expected(rank: int) -> dict[str, Any]:
    """What vLLM's functions returned, by the formulas of its `parallel_state.py` at v0.4.3."""
    first = rank % TP
    pipeline = list(range(first, TP * PP, TP))
    at = pipeline.index(rank)
    return {
        "model_parallel_is_initialized()": True,
        "get_local_rank()": rank,
        "get_tensor_model_parallel_world_size()": TP,
        "get_tensor_model_parallel_rank()": rank % TP,
        "get_tensor_model_parallel_src_rank()": rank // TP * TP,
        "get_pipeline_model_parallel_world_size()": PP,
        "get_pipeline_model_parallel_rank()": at,
        "get_pipeline_model_parallel_first_rank()": pipeline[0],
        "get_pipeline_model_parallel_last_rank()": pipeline[-1],
        "get_pipeline_model_parallel_next_rank()": pipeline[(at + 1) % PP],
        "get_pipeline_model_parallel_prev_rank()": pipeline[(at - 1) % PP],
        "ensure_model_parallel_initialized(tp, pp)": None,
    }


GROUPS = {
    "get_cpu_world_group()": lambda rank: TP * PP,
    "get_tensor_model_parallel_group()": lambda rank: TP,
    "get_pipeline_model_parallel_group()": lambda rank: PP,
}
OTHERS = {
    "init_distributed_environment(world_size, rank, init_method, local_rank, backend)",
    "initialize_model_parallel(tp, pp)",
    "destroy_model_parallel()",
}


def test_every_row_is_tested():
    assert set(ROWS) == set(expected(0)) | set(GROUPS) | OTHERS


@pytest.mark.ranks(f"tp{TP}-pp{PP}")
def test_what_each_call_gives(groups: GroupManager):
    scope = {"groups": groups, "ParallelTopology": ParallelTopology, "tp": TP, "pp": PP}
    for call, value in expected(groups.rank).items():
        assert eval(ROWS[call], scope) == value, call
    for call, size in GROUPS.items():
        group = eval(ROWS[call], scope)
        assert isinstance(group, dist.ProcessGroup)
        assert group.size() == size(groups.rank)


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("call", sorted(OTHERS - {"destroy_model_parallel()"}))
def test_beginning_and_end(groups: GroupManager, store: dist.Store, tmp_path: Path, call: str):
    scope: dict[str, Any] = {"GroupManager": GroupManager, "ParallelTopology": ParallelTopology, "tp": 2, "pp": 1}
    scope |= {"rank": groups.rank, "store": store, "local_rank": groups.rank, "backend": "gloo"}
    scope |= {"topology": ParallelTopology(tp=2), "init_method": f"file://{tmp_path}/store"}
    made = eval(ROWS[call], scope)
    assert made.tp.size == 2
    eval(ROWS["destroy_model_parallel()"], {"groups": made})
    assert made.closed
