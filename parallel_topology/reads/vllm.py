"""What the functions of vllm.distributed.parallel_state ask of a manager. Read in vLLM 0.33.0, and in 0.4.3.

Axes as in `order="vllm"`: `tp`, `pcp`, `pp`, `dp`, and `dcp`, `ep` of views; those that were not declared are what vLLM
makes of a model without them. `VLLM_2024` is the module of globals that docs/coming-from-vllm.md speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_topology.reads.rows import Ask, Composed, Constant, Own, Refused, Required, Row, Table, ask

_OPEN = Composed("not groups.closed", lambda module, groups, arguments: not groups.closed)
_DESTROYED = Refused("the groups end with their manager: groups.close()")
_COMMUNICATORS = Refused("who carries calls out is said when the manager is made: options={'tp': GroupOptions(...)}")
_DECLARED = Refused("groups are declared when the manager is made: GroupManager(..., groups=[...])")


def same_world(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    """What `init_distributed_environment` gives: nothing, if it is about the manager's ranks."""
    for argument, there in (("world_size", groups.world.size), ("rank", groups.world.rank)):
        if arguments[argument] not in (-1, there):
            return Refused(f"{argument}={arguments[argument]} is not {there}, as of the manager")
    return None


def _part_of_decoding(module: Any, groups: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    if not arguments["enabled"] or "dcp" not in groups.topology.all_axes:
        return 1, 0
    return groups.dcp.size, groups.dcp.rank


def _balancing(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    if "eplb" in groups.plan.families:
        return Ask(("eplb",), "coordinator")
    return Refused("it was not declared: GroupManager(..., isolated={'eplb': ('ep',)})")


def _local_first(module: Any, groups: Any, arguments: Mapping[str, Any]) -> bool:
    return groups.local_rank == 0


_SIZES = {
    "tensor_model_parallel_size": "tp",
    "prefill_context_model_parallel_size": "pcp",
    "pipeline_model_parallel_size": "pp",
}
_INITIALIZED = Required(
    sizes=_SIZES, order="tp-pcp-pp-rest", free="rest", parts={"decode_context_model_parallel_size": "dcp"}
)

_ROWS: dict[str, Row] = {
    "init_distributed_environment": Composed("groups.require(topology)", same_world),
    "initialize_model_parallel": _INITIALIZED,
    "ensure_model_parallel_initialized": _INITIALIZED,
    "model_parallel_is_initialized": _OPEN,
    "destroy_model_parallel": _DESTROYED,
    "destroy_distributed_environment": _DESTROYED,
    "cleanup_dist_env_and_memory": _DESTROYED,
    "get_world_group": ask("world.coordinator"),
    "get_tp_group": ask("tp.coordinator"),
    "get_pp_group": ask("pp.coordinator"),
    "get_dp_group": ask("dp.coordinator"),
    "get_pcp_group": ask("pcp.coordinator"),
    "get_dcp_group": ask("dcp.coordinator"),
    "get_dcp_world_size_and_rank": Composed("(groups.dcp.size, groups.dcp.rank)", _part_of_decoding),
    "get_ep_group": ask("ep.coordinator"),
    "get_eplb_group": Composed("groups.eplb", _balancing),
    "get_etp_group": ask("tp.coordinator"),
    "get_engram_dp_group": Constant(None, "None"),
    "get_engram_dp_size": Constant(1, "1"),
    "get_inner_dp_world_group": Refused("the ranks of one data-parallel replica: declare their axes together"),
    "get_tensor_model_parallel_world_size": ask("tp.size"),
    "get_tensor_model_parallel_rank": ask("tp.rank"),
    "get_pipeline_model_parallel_rank": ask("pp.rank"),
    "get_node_count": Refused("a topology does not know hosts: Hosts does"),
    "is_global_first_rank": ask("world.is_first"),
    "is_local_first_rank": Composed("groups.local_rank == 0", _local_first),
    "graph_capture": Own("groups.capture()"),
    "set_custom_all_reduce": _COMMUNICATORS,
    "suspend_device_comms": _COMMUNICATORS,
    "resume_device_comms": _COMMUNICATORS,
    "checkpoint_prepare_distributed_state": _COMMUNICATORS,
    "checkpoint_restore_distributed_state": _COMMUNICATORS,
    "init_world_group": _DECLARED,
    "init_model_parallel_group": _DECLARED,
    "_replace_active_groups": Refused("another layout is another manager: groups.rebind(topology)"),
    # what is given a group, or its name
    **dict.fromkeys(
        [
            "in_the_same_node_as",
            "all_reduce",
            "all_reduce_fake",
            "all_gather",
            "all_gather_fake",
            "reduce_scatter",
            "reduce_scatter_fake",
            "patched_fused_scaled_matmul_reduce_scatter",
            "patched_fused_scaled_matmul_reduce_scatter_fake",
            "GraphCaptureContext",
            "GroupCoordinator",
            "Handle",
            "TensorMetadata",
        ],
        Own(),
    ),
}

VLLM = Table(
    system="vllm",
    package="vllm",
    versions="vLLM 0.33.0",
    modules={"vllm.distributed.parallel_state": _ROWS},
    aliases={"vllm.distributed": "vllm.distributed.parallel_state"},
    without={"ep": ("tp", "pcp", "dp"), "pcp": (), "dcp": ()},
)


_INITIALIZED_2024 = Required(
    sizes={"tensor_model_parallel_size": "tp", "pipeline_model_parallel_size": "pp"}, order="tp-pp-rest", free="rest"
)
_ROWS_2024: dict[str, Row] = {
    "init_distributed_environment": Composed("groups.require(topology)", same_world),
    "initialize_model_parallel": _INITIALIZED_2024,
    "ensure_model_parallel_initialized": _INITIALIZED_2024,
    "model_parallel_is_initialized": _OPEN,
    "destroy_model_parallel": _DESTROYED,
    "get_local_rank": Composed("groups.local_rank", lambda module, groups, arguments: groups.local_rank),
    "get_cpu_world_group": ask("world.cpu_group"),
    "get_tensor_model_parallel_group": ask("tp.device_group"),
    "get_tensor_model_parallel_cpu_group": ask("tp.cpu_group"),
    "get_tensor_model_parallel_world_size": ask("tp.size"),
    "get_tensor_model_parallel_rank": ask("tp.rank"),
    "get_tensor_model_parallel_src_rank": ask("tp.first_rank"),
    "get_pipeline_model_parallel_group": ask("pp.device_group"),
    "get_pipeline_model_parallel_cpu_group": ask("pp.cpu_group"),
    "get_pipeline_model_parallel_world_size": ask("pp.size"),
    "get_pipeline_model_parallel_rank": ask("pp.rank"),
    "get_pipeline_model_parallel_first_rank": ask("pp.first_rank"),
    "get_pipeline_model_parallel_last_rank": ask("pp.last_rank"),
    "get_pipeline_model_parallel_next_rank": ask("pp.next_rank"),
    "get_pipeline_model_parallel_prev_rank": ask("pp.prev_rank"),
    # communicators of their own, of which a manager's groups have none to show
    "get_tp_pynccl_communicator": Constant(None, "None"),
    "get_pp_pynccl_communicator": Constant(None, "None"),
    "get_tp_ca_communicator": Constant(None, "None"),
    "set_custom_all_reduce": _COMMUNICATORS,
}

VLLM_2024 = Table(
    system="vllm-2024",
    package="vllm==0.4.3",
    versions="vLLM 0.4.3",
    modules={"vllm.distributed.parallel_state": _ROWS_2024},
    aliases={"vllm.distributed": "vllm.distributed.parallel_state"},
)
