"""vllm.distributed.parallel_state, served: its answers are those after its own initialisation, and its groups' methods.

    pip install --no-deps --target FOLDER vllm==0.33.0 psutil pyzmq regex urllib3

Its configuration, which its initialisation asks for one size, needs packages that need a GPU: here it is two numbers.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupArgumentError, GroupManager, ParallelTopology, TopologyError
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.vllm import VLLM
from tests.interop.parallel_state.layouts import answers, names, served
from tests.interop.world import run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
LAYOUTS: list[tuple[str, dict[str, Any], int]] = [
    ("tp1-pcp1-pp1-dp1", {}, 1),
    ("tp2-pcp1-pp2-dp1", {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, 1),
    ("tp2-pcp1-pp1-dp2", {"tensor_model_parallel_size": 2}, 2),
    ("tp2-pp2", {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, 1),
    (
        "tp2-pcp2-pp1-dp1/decode:dcp4-replicas1~pcp-tp-pp-dp",
        {
            "tensor_model_parallel_size": 2,
            "prefill_context_model_parallel_size": 2,
            "decode_context_model_parallel_size": 4,
        },
        1,
    ),
]


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("vllm.distributed.parallel_state")


def test_every_name_is_in_the_table_and_no_other():
    new, gone = names(VLLM)
    assert new == {"vllm.distributed.parallel_state": set()}, "new names: they need rows"
    assert gone == {"vllm.distributed.parallel_state": set()}, "rows of names that are gone"


def _initialize(sizes: dict[str, Any], dp: int) -> None:
    import vllm.distributed.parallel_state as theirs  # pyright: ignore[reportMissingImports]

    parallel = SimpleNamespace(
        data_parallel_size=dp, enable_elastic_ep=False, use_all2all=False, enable_eplb=False, nnodes_within_dp=1
    )
    config: Any = ModuleType("vllm.config")
    config.get_current_vllm_config = lambda: SimpleNamespace(
        parallel_config=parallel, engram_config=None, model_config=None
    )
    config.get_current_vllm_config_or_none = lambda: None
    sys.modules["vllm.config"] = config
    theirs._WORLD = theirs.init_world_group(list(range(dist.get_world_size())), dist.get_rank(), "gloo")
    theirs.initialize_model_parallel(**sizes, backend="gloo")


def _left_out(name: str) -> bool:
    """What asks about hosts, or which has no meaning without more configuration."""
    return name in ("get_node_count", "get_inner_dp_world_group", "get_eplb_group", "graph_capture")


def _both(groups: GroupManager, sizes: dict[str, Any], dp: int) -> Any:
    import vllm.distributed.parallel_state as theirs  # pyright: ignore[reportMissingImports]

    before = served(VLLM, groups, _left_out)
    with serving(groups, "vllm"):
        theirs.init_distributed_environment(groups.world.size, groups.rank, "tcp://nowhere:1", 0, "gloo")
        theirs.ensure_model_parallel_initialized(
            **{"pipeline_model_parallel_size": 1, "tensor_model_parallel_size": 1, **sizes}
        )
        with pytest.raises(TopologyError, match="initialize_model_parallel"):
            theirs.initialize_model_parallel(groups.world.size + 1)
        with pytest.raises(TopologyError, match=r"decode_context_model_parallel_size=3"):
            theirs.initialize_model_parallel(**{**sizes, "decode_context_model_parallel_size": 3})
    assert not theirs.model_parallel_is_initialized()
    _initialize(sizes, dp)
    own = answers(VLLM, _left_out)
    assert served(VLLM, groups, _left_out) == before
    assert answers(VLLM, _left_out) == own
    return own, before


@pytest.mark.parametrize(("text", "sizes", "dp"), LAYOUTS, ids=[text for text, *_ in LAYOUTS])
def test_every_answer_is_vllms_own(text: str, sizes: dict[str, Any], dp: int):
    axes = [axis for axis in ("tp", "pcp", "dp") if axis in ParallelTopology.parse(text).all_axes]
    declared = [tuple(axes)] if len(axes) > 1 else []
    for own, ours in run_in_world(text, _both, sizes, dp, groups=declared, timeout=200):
        assert ours == own
        assert len(own) > 15


def _methods(groups: GroupManager) -> None:
    from vllm.distributed.parallel_state import (  # pyright: ignore[reportMissingImports]
        GroupCoordinator,
        get_pp_group,
        get_tp_group,
        get_world_group,
    )

    rank = groups.rank
    with serving(groups, "vllm"):
        tp, pp, world = get_tp_group(), get_pp_group(), get_world_group()
    assert isinstance(tp, GroupCoordinator)
    x = torch.full((2, 4), float(rank))
    total = tp.all_reduce(x)
    assert total.unique().tolist() == [sum(tp.ranks)]
    assert x.unique().tolist() == [rank], "out of place"
    assert tp.all_gather(x).shape == (2, 8)
    assert tp.all_gather(x, dim=0)[:, 0].tolist() == [float(member) for member in tp.ranks for _ in range(2)]
    assert tp.all_gatherv(x[: tp.rank_in_group + 1, 0], sizes=[1, 2]).tolist() == [tp.ranks[0], *[tp.ranks[1]] * 2]
    assert tp.reduce_scatter(x).tolist() == [[sum(tp.ranks)] * 2] * 2
    assert tp.reduce_scatterv(x, dim=1, sizes=[1, 3]).shape == (2, [1, 3][tp.rank_in_group])
    gathered = tp.gather(x, dst=1, dim=0)
    assert (gathered is None) == (tp.rank_in_group != 1)
    assert tp.broadcast(x.clone(), src=1).unique().tolist() == [tp.ranks[1]]
    request = {"ids": [1, 2], "text": "a"}
    assert world.broadcast_object(request if rank == 1 else None, src=1) == request
    assert world.broadcast_object_list([rank, None], src=0) == [0, None]
    tensors = {"x": x, "ints": torch.arange(3), "none": torch.empty(0, 2), "n": 7}
    got = world.broadcast_tensor_dict(tensors if rank == 0 else None, src=0)
    assert (got["n"], got["ints"].tolist(), got["none"].shape, got["x"].sum().item()) == (7, [0, 1, 2], (0, 2), 0)
    same = {"hidden": torch.arange(8.0), "n": rank, "own": torch.full((4,), float(tp.rank_in_group))}
    if pp.is_first_rank:
        pp.send_tensor_dict(same, all_gather_group=tp, all_gather_tensors={"own": False})
        pp.send_object({"a": 1}, dst=1)
        pp.send(x)
        for handle in pp.isend_tensor_dict({"y": x}):
            handle.wait()
    else:
        received = pp.recv_tensor_dict(all_gather_group=tp, all_gather_tensors={"own": False})
        assert received["hidden"].tolist() == list(range(8))
        assert received["own"].tolist() == [tp.rank_in_group] * 4
        assert received["n"] == pp.prev_rank
        assert pp.recv_object(src=0) == {"a": 1}
        assert pp.recv(x.shape, x.dtype).unique().tolist() == [pp.prev_rank]
        assert pp.recv_tensor_dict()["y"].unique().tolist() == [pp.prev_rank]
    world.barrier()
    with pytest.raises(GroupArgumentError, match=r"destroy of <GroupCoordinator .* has no meaning"):
        tp.destroy()
    with pytest.raises(GroupArgumentError, match="make_sibling_device_group of "):
        tp.make_sibling_device_group()


def test_its_groups_do_what_theirs_do():
    run_in_world("tp2-pp2", _methods, timeout=200)
