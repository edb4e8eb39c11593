"""sglang.srt.distributed.parallel_state, served: its answers are those after its own initialisation.

    pip install --no-deps --target FOLDER sglang==0.5.23 psutil pyzmq orjson requests urllib3 certifi idna \
        charset_normalizer pydantic_settings ipython traitlets fastapi starlette uvicorn aiohttp multidict yarl \
        propcache aiohappyeyeballs aiosignal frozenlist pybase64 tqdm triton msgspec partial_json_parser pillow dill \
        cloudpickle anyio sniffio h11

It imports without a GPU; its layers, of which its initialisation asks two flags, do not: these two stand here.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupArgumentError, GroupManager, TopologyError
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.sglang import SGLANG
from tests.interop.parallel_state.layouts import answers, names, served
from tests.interop.world import run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
WIDTHS = {"tp_size": 1, "pp_size": 1, "attn_dp_size": 1, "attn_cp_size": 1, "moe_ep_size": 1, "moe_dp_size": 1}
LAYOUTS: list[tuple[str, dict[str, int]]] = [
    ("tp1-pp1", {}),
    ("tp2-pp2", {"tp_size": 2, "pp_size": 2}),
    (
        "tp4-pp1/attention:attn_tp1-attn_cp2-attn_dp2-pp1/moe:moe_tp1-moe_ep2-moe_dp2-pp1",
        {"tp_size": 4, "attn_dp_size": 2, "attn_cp_size": 2, "moe_ep_size": 2, "moe_dp_size": 2},
    ),
    ("tp4-pp1/moe:moe_tp2-moe_ep2-pp1", {"tp_size": 4, "moe_ep_size": 2}),
]


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("sglang.srt.distributed.parallel_state")


def test_every_name_is_in_the_table_and_no_other():
    new, gone = names(SGLANG)
    assert new == {"sglang.srt.distributed.parallel_state": set()}, "new names: they need rows"
    assert gone == {"sglang.srt.distributed.parallel_state": set()}, "rows of names that are gone"


def _left_out(name: str) -> bool:
    """Without decode context parallelism there is no such group, and what asks for it raises."""
    return "dcp" in name or name in ("graph_capture", "get_mooncake_transfer_engine")


def _both(groups: GroupManager, widths: dict[str, int]) -> Any:
    import sglang.srt.distributed.parallel_state as theirs  # pyright: ignore[reportMissingImports]
    from sglang.srt.runtime_context import get_parallel  # pyright: ignore[reportMissingImports]

    rank, size = dist.get_rank(), dist.get_world_size()
    before = served(SGLANG, groups, _left_out)
    tp = widths.get("tp_size", 1)
    derived = {
        "attn_tp_size": tp // widths.get("attn_dp_size", 1) // widths.get("attn_cp_size", 1),
        "moe_tp_size": tp // widths.get("moe_ep_size", 1) // widths.get("moe_dp_size", 1),
        "attn_dcp_size": 1,
        "shared_experts_tp_size": None,
    }
    get_parallel().override_permanently(**{**WIDTHS, **derived, **widths})
    with serving(groups, "sglang"):
        theirs.init_distributed_environment(size, rank)
        theirs.initialize_model_parallel()
        with (
            get_parallel().override(pp_size=8),
            pytest.raises(TopologyError, match="get_parallel"),
        ):
            theirs.initialize_model_parallel()
    theirs.set_custom_all_reduce(False)  # it is of a GPU
    os.environ["SGLANG_NCCL_SO_PATH"] = (
        "none"  # nor NCCL, which torch may have brought; without a library it does without
    )
    for name, value in (
        ("dp_attention.is_allocation_symmetric", lambda: False),
        ("sampler.SYNC_TOKEN_IDS_ACROSS_TP", False),
    ):
        module, _, member = name.partition(".")  # of modules that import all models
        sys.modules[f"sglang.srt.layers.{module}"] = stub = ModuleType(module)
        setattr(stub, member, value)
    theirs.init_distributed_environment(size, rank, local_rank=rank, backend="gloo")
    theirs.initialize_model_parallel(backend="gloo")
    own = answers(SGLANG, _left_out)
    assert served(SGLANG, groups, _left_out) == before
    return own, before


@pytest.mark.parametrize(("text", "widths"), LAYOUTS, ids=[text for text, _ in LAYOUTS])
def test_every_answer_is_sglangs_own(text: str, widths: dict[str, int]):
    for own, ours in run_in_world(text, _both, widths, timeout=200):
        assert ours == own
        assert len(own) > 25


def _methods(groups: GroupManager) -> None:
    from sglang.srt.distributed.parallel_state import (  # pyright: ignore[reportMissingImports]
        GroupCoordinator,
        get_pp_group,
        get_tp_group,
    )

    rank = groups.rank
    with serving(groups, "sglang"):
        tp, pp = get_tp_group(), get_pp_group()
    assert isinstance(tp, GroupCoordinator)
    x = torch.full((2, 4), float(rank))
    assert tp.all_reduce(x).unique().tolist() == [sum(tp.ranks)]
    outputs = [torch.empty(2, 4), torch.empty(2, 4)]
    tp.all_gather(x, output_tensor_list=outputs)
    assert [output[0, 0].item() for output in outputs] == tp.ranks
    whole = torch.empty(4, 4)
    tp.all_gather_into_tensor(whole, x)
    assert whole[:, 0].tolist() == [float(member) for member in tp.ranks for _ in range(2)]
    assert tp.all_gatherv(x[: tp.rank_in_group + 1], [1, 2]).shape == (3, 4)
    part = torch.empty(1, 4)
    tp.reduce_scatter_tensor(part, x)
    assert part.unique().tolist() == [sum(tp.ranks)]
    tp.reduce_scatter(part, [x[:1], x[1:]])
    assert part.unique().tolist() == [sum(tp.ranks)]
    assert tp.reduce_scatter_along_dim(x).shape == (2, 2)
    assert tp.reduce_scatterv(x, sizes=[2, 0]).shape[0] == [2, 0][tp.rank_in_group]
    exchanged = torch.empty(2, 4)
    tp.all_to_all_single(exchanged, x)
    assert exchanged[:, 0].tolist() == tp.ranks
    assert tp.all_gather_object(rank) == tp.ranks
    if pp.is_first_rank:
        works = pp.send_tensor_dict({"x": torch.ones(2, 4)}, all_gather_group=tp, async_send=True)
        pp.send_object({"a": 1}, dst=1, async_send=True)
        for work in works:
            work.work.wait()
    else:
        assert pp.recv_tensor_dict(all_gather_group=tp)["x"].shape == (2, 4)
        assert pp.recv_object(src=0) == {"a": 1}
    with pytest.raises(GroupArgumentError, match="fused_allreduce_rmsnorm of <GroupCoordinator"):
        tp.fused_allreduce_rmsnorm(x, x, x, 1e-6)


def test_its_groups_do_what_theirs_do():
    run_in_world("tp2-pp2", _methods, timeout=200)
