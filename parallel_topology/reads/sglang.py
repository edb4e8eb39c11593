"""What the functions of sglang.srt.distributed.parallel_state ask of a manager. Read in sglang 0.5.23.

Axes as in `order="sglang"`: `tp`, `pp`, and `attn_tp`, `attn_cp`, `moe_tp`, `moe_ep`, `moe_dp`, `dcp` of views; those
that were not declared are what SGLang makes of a model without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_topology.errors import TopologyError
from parallel_topology.reads.rows import Composed, Constant, Own, Refused, Row, Table, ask
from parallel_topology.reads.vllm import same_world

_DESTROYED = Refused("the groups end with their manager: groups.close()")
_COMMUNICATORS = Refused("who carries calls out is said when the manager is made: options={'tp': GroupOptions(...)}")
_DECLARED = Refused("groups are declared when the manager is made: GroupManager(..., groups=[...])")
_ANOTHER = Refused("another group for a while is another manager: a block of serving() of its own")


_WIDTHS = {
    "tp_size": "tp",
    "pp_size": "pp",
    "attn_cp_size": "attn_cp",
    "moe_ep_size": "moe_ep",
    "moe_dp_size": "moe_dp",
    "attn_dcp_size": "dcp",
}
"""What SGLang publishes before it initializes -> axis."""


def _same_widths(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    published = module.get_parallel()
    for width, axis in _WIDTHS.items():
        there = groups.topology.size(axis) if axis in groups.topology.all_axes else 1
        if getattr(published, width) != there:
            raise TopologyError(
                f"initialize_model_parallel: get_parallel() has {width} {getattr(published, width)}, but "
                f"{groups.topology} has {axis} {there}"
            )
    return None


def _decoding(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    return ask("dcp.coordinator") if "dcp" in groups.topology.all_axes else None


def _group(name: str, axis: str, sizes: str) -> dict[str, Row]:
    return {
        f"get_{name}_group": ask(f"{axis}.coordinator"),
        f"get_{sizes}_world_size": ask(f"{axis}.size"),
        f"get_{sizes}_rank": ask(f"{axis}.rank"),
    }


_ROWS: dict[str, Row] = {
    "init_distributed_environment": Composed("groups.require(topology)", same_world),
    "initialize_model_parallel": Composed("groups.require(topology)", _same_widths),
    "model_parallel_is_initialized": Composed("not groups.closed", lambda module, groups, arguments: not groups.closed),
    "destroy_model_parallel": _DESTROYED,
    "destroy_distributed_environment": _DESTROYED,
    "abort_distributed_environment": Refused("groups.abort()"),
    "cleanup_dist_env_and_memory": _DESTROYED,
    "get_world_group": ask("world.coordinator"),
    "get_world_size": ask("world.size"),
    "get_world_rank": ask("world.rank"),
    **_group("tp", "tp", "tensor_model_parallel"),
    "get_tensor_model_parallel_group": ask("tp.coordinator"),
    **_group("pp", "pp", "pipeline_model_parallel"),
    "get_pipeline_model_parallel_group": ask("pp.coordinator"),
    **_group("attn_tp", "attn_tp", "attn_tensor_model_parallel"),
    **_group("attn_cp", "attn_cp", "attn_context_model_parallel"),
    **_group("moe_dp", "moe_dp", "moe_data_parallel"),
    **_group("moe_ep", "moe_ep", "moe_expert_parallel"),
    **_group("moe_tp", "moe_tp", "moe_tensor_parallel"),
    **_group("dcp", "dcp", "dcp"),
    "get_dcp_group_no_assert": Composed("groups.dcp", _decoding),
    "get_shared_experts_tp_group": Refused("SGLang has one only where shared experts have a width of their own"),
    "get_self_pp_group": ask(".coordinator"),
    "get_mooncake_transfer_engine": Constant(None, "None"),
    "graph_capture": Own("groups.capture()"),
    "set_custom_all_reduce": _COMMUNICATORS,
    "set_mscclpp": _COMMUNICATORS,
    "set_torch_symm_mem_all_reduce": _COMMUNICATORS,
    "set_flashinfer_allreduce_only": _COMMUNICATORS,
    "init_world_group": _DECLARED,
    "init_model_parallel_group": _DECLARED,
    "create_custom_parallel_group": _DECLARED,
    "patch_pipeline_parallel_group": _ANOTHER,
    "patch_tensor_parallel_group": _ANOTHER,
    "pdmux_prefill_tp_group": _ANOTHER,
    "monkey_patch_vllm_parallel_state": Refused("serve vLLM's own: serving(groups, 'vllm')"),
    # what is given a group, or its name
    **dict.fromkeys(
        [
            "in_the_same_node_as",
            "get_torch_distributed_pg_options",
            "get_default_distributed_backend",
            "inplace_all_reduce",
            "outplace_all_reduce",
            "flashinfer_allreduce",
            "reg_all_gather_into_tensor",
            "reg_reduce_scatter_tensor",
            "reg_all_to_all_single",
            "GraphCaptureContext",
            "GroupCoordinator",
            "P2PWork",
            "TensorMetadata",
        ],
        Own(),
    ),
}

SGLANG = Table(
    system="sglang",
    package="sglang",
    versions="sglang 0.5.23",
    modules={"sglang.srt.distributed.parallel_state": _ROWS},
    aliases={"sglang.srt.distributed": "sglang.srt.distributed.parallel_state"},
    without={"attn_tp": ("tp",), "attn_cp": (), "moe_tp": ("tp",), "moe_ep": (), "moe_dp": (), "dcp": ()},
)
