"""What the functions of megatron.core.parallel_state ask of a manager. Read in megatron-core 0.16.1 and 0.19.2.

Axes as in docs/coming-from-megatron.md: `tp`, `cp`, `dp`, `pp`, and `etp`, `ep`, `edp` of a view. Without a view these
are what Megatron makes of a model without experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_topology.reads.rows import (
    Ask,
    Buffer,
    Composed,
    Constant,
    Kept,
    Options,
    Own,
    Refused,
    Required,
    Row,
    Table,
    ask,
)

_OPEN = Composed("not groups.closed", lambda module, groups, arguments: not groups.closed)
_DESTROYED = Refused("the groups end with their manager: groups.close()")
_OTHER_RANK = Refused("a rank or size of its own is another topology: ask topology.at(rank)")
_PARTIAL = Refused("one instance of the optimizer: an axis of the topology may be two, as in dp_near and dp_far", True)
_HIERARCHICAL = Refused("declare the inner and outer ranks: views={'hierarchical': 'tp2-near2-far2-rest'}", True)
_OWN_BUFFER = "a buffer belongs to who uses it"
_GATHER = "declare it: isolated={'gather': ('cp', 'dp')}"
_REMAT = "weights that are cut over data-parallel ranks, too, and put together for use (GTP) have no axis here"
_PASSING = (
    *("is_unitialized", "get_data_modulo_expert_parallel_group", "has_separate_all_gather_group"),
    *(f"{what}_global_symmetric_memory_buffer" for what in ("get", "destroy", "_set")),
    *("create_all_gather_groups", "get_gtp_weight_remat_global_ranks", "get_expert_gtp_weight_remat_global_ranks"),
    *(f"get_{of}gtp_weight_remat_{what}" for of in ("", "expert_") for what in ("group", "world_size", "rank")),
)
_VIRTUAL = "pass vp_stage to who runs the chunk; groups.pp.stage_chunks(layers, virtual=...) has its layers"


def _embedding_group(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    pipeline = groups.pp
    if pipeline.size <= 2:
        return Ask(("pp",), "device_group")
    if pipeline.is_first or pipeline.is_last:
        return Refused(
            "the ends of a pipeline of more than two stages are a group along no axis: make it a manager of its own, "
            "of ParallelTopology(order='ends', ends=2, ranks=(groups.pp.first_rank, groups.pp.last_rank))"
        )
    return _absent(arguments, "this rank is at no end of its pipeline, and in no group of embeddings")


def _position_embedding_group(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
    if groups.pp.is_first:
        return Ask((), "device_group")
    return _absent(arguments, "this rank is not of the first stage, and in no group of position embeddings")


def _absent(arguments: Mapping[str, Any], why: str) -> Refused:
    return Refused(why, absent=True)


def _in_embedding_group(module: Any, groups: Any, arguments: Mapping[str, Any]) -> bool:
    if arguments["ignore_virtual"]:
        return groups.pp.is_first or groups.pp.is_last
    stage: dict[str, Any] = {"ignore_virtual": False, "vp_stage": arguments["vp_stage"]}
    if groups.pp.is_first:
        return module.is_pipeline_first_stage(**stage)
    return groups.pp.is_last and module.is_pipeline_last_stage(**stage)


def _group(name: str, axes: str, *, gloo: bool = False) -> dict[str, Row | Options]:
    """A group's getter, and those of its size and rank."""
    rows: dict[str, Row | Options] = {
        f"get_{name}_group": ask(f"{axes}.device_group"),
        f"get_{name}_world_size": ask(f"{axes}.size"),
        f"get_{name}_rank": ask(f"{axes}.rank"),
    }
    return rows | ({f"get_{name}_group_gloo": ask(f"{axes}.cpu_group")} if gloo else {})


def _data_parallel(what: str) -> Options:
    both = ask(f"cp-dp.{what}")
    return Options(
        {
            (): ask(f"dp.{what}"),
            ("with_context_parallel",): both,
            ("with_context_parallel", "partial_data_parallel"): both,  # of one instance of the optimizer: all of it
        }
    )


def _expert_data_parallel(what: str) -> Options:
    whole = ask(f"edp.{what}")
    return Options({(): whole, ("partial_expert_data_parallel",): whole})


_TENSOR_AND_DATA = {(): ask("tp-dp.device_group"), ("with_context_parallel",): ask("tp-cp-dp.device_group")}

_ROWS: dict[str, Row | Options] = {
    # beginning and end
    "initialize_model_parallel": Required(
        sizes={
            "tensor_model_parallel_size": "tp",
            "context_parallel_size": "cp",
            "pipeline_model_parallel_size": "pp",
        },
        expert={"expert_tensor_parallel_size": "etp", "expert_model_parallel_size": "ep"},
        order="order",
        kept={"virtual_pipeline_model_parallel_size": ("virtual_size", "virtual_rank")},
        refused={
            "num_distributed_optimizer_instances": (1, "the optimizer has one instance here"),
            "hierarchical_context_parallel_sizes": (None, _HIERARCHICAL.why),
            "hybrid_context_parallel": (False, _HIERARCHICAL.why),
            "create_all_gather_group": (False, _GATHER),
            "gtp_remat_size": (1, _REMAT),
            "expert_gtp_remat_size": (1, _REMAT),
            "get_embedding_ranks": (None, "embeddings are on the first and the last stage here"),
            "get_position_embedding_ranks": (None, "position embeddings are on the first stage here"),
        },
    ),
    "is_initialized": _OPEN,
    "is_unitialized": Own("groups.closed"),
    "model_parallel_is_initialized": _OPEN,
    "destroy_model_parallel": _DESTROYED,
    # tensor, pipeline, context and data parallelism
    **_group("tensor_model_parallel", "tp"),
    "get_tensor_model_parallel_src_rank": ask("tp.first_rank"),
    **_group("pipeline_model_parallel", "pp"),
    "get_pipeline_model_parallel_first_rank": ask("pp.first_rank"),
    "get_pipeline_model_parallel_last_rank": ask("pp.last_rank"),
    "get_pipeline_model_parallel_next_rank": ask("pp.next_rank"),
    "get_pipeline_model_parallel_prev_rank": ask("pp.prev_rank"),
    "is_pipeline_first_stage": Own("groups.pp.is_first"),
    "is_pipeline_last_stage": Own("groups.pp.is_last"),
    **_group("context_parallel", "cp"),
    "get_context_parallel_global_ranks": ask("cp.ranks"),
    "get_hierarchical_context_parallel_groups": _HIERARCHICAL,
    "get_data_parallel_group": Options(
        {
            **_data_parallel("device_group").rows,
            ("with_context_parallel", "independent_all_gather"): Refused(
                f"{_GATHER}, and take groups.gather.device_group"
            ),
        }
    ),
    "get_data_parallel_group_gloo": _data_parallel("cpu_group"),
    "get_data_parallel_world_size": _data_parallel("size"),
    "get_data_parallel_rank": _data_parallel("rank"),
    "get_data_parallel_src_rank": Options(
        {(): ask("dp.first_rank"), ("with_context_parallel",): ask("cp-dp.first_rank")}
    ),
    "has_separate_all_gather_group": Constant(False, "False"),
    "create_all_gather_groups": Refused(f"{_GATHER}, and take groups.gather.device_group"),
    "get_hybrid_data_context_parallel_groups": _HIERARCHICAL,
    **_group("gtp_weight_remat", ""),
    "get_gtp_weight_remat_global_ranks": ask(".ranks"),
    "get_all_ranks": Own(
        '"_".join(map(str, [groups.tp.rank, groups.dp.rank, groups.cp.rank, groups.pp.rank, groups.ep.rank]))'
    ),
    # several axes together
    "get_model_parallel_group": ask("tp-pp.device_group"),
    "get_model_parallel_src_rank": ask("tp-pp.first_rank"),
    **_group("tensor_and_context_parallel", "tp-cp"),
    "get_tensor_and_data_parallel_group": Options(_TENSOR_AND_DATA),
    "get_amax_reduction_group": Options(
        {
            **_TENSOR_AND_DATA,
            ("tp_only_amax_red",): ask("tp.device_group"),
            ("with_context_parallel", "tp_only_amax_red"): ask("tp-cp.device_group"),
        }
    ),
    "get_intra_distributed_optimizer_instance_group": ask("world.device_group"),
    "get_inter_distributed_optimizer_instance_group": _PARTIAL,
    # experts
    **_group("expert_model_parallel", "ep"),
    "get_expert_model_parallel_src_rank": ask("ep.first_rank"),
    **_group("expert_tensor_parallel", "etp"),
    **_group("expert_gtp_weight_remat", ""),
    "get_expert_gtp_weight_remat_global_ranks": ask(".ranks"),
    **_group("expert_tensor_and_model_parallel", "etp-ep"),
    "get_expert_tensor_model_pipeline_parallel_group": ask("etp-ep-pp.device_group"),
    "get_expert_data_parallel_group": _expert_data_parallel("device_group"),
    "get_data_modulo_expert_parallel_group": Own("groups.edp.device_group"),
    "get_expert_data_parallel_group_gloo": _expert_data_parallel("cpu_group"),
    "get_expert_data_parallel_world_size": _expert_data_parallel("size"),
    "get_expert_data_parallel_rank": _expert_data_parallel("rank"),
    # embeddings
    "get_embedding_group": Composed("groups.pp.device_group", _embedding_group),
    "get_position_embedding_group": Composed("groups.pp.is_first", _position_embedding_group),
    "is_rank_in_embedding_group": Composed("groups.pp.is_first or groups.pp.is_last", _in_embedding_group),
    "is_rank_in_position_embedding_group": ask("pp.is_first"),
    # values that are set
    "get_virtual_pipeline_model_parallel_rank": Kept("virtual_rank", f"# {_VIRTUAL}"),
    "set_virtual_pipeline_model_parallel_rank": Kept("virtual_rank", f"# {_VIRTUAL}"),
    "get_virtual_pipeline_model_parallel_world_size": Kept("virtual_size", f"# {_VIRTUAL}"),
    "set_virtual_pipeline_model_parallel_world_size": Kept("virtual_size", f"# {_VIRTUAL}"),
    **dict.fromkeys(
        [
            "set_tensor_model_parallel_world_size",
            "set_pipeline_model_parallel_world_size",
            "set_expert_model_parallel_world_size",
            "set_expert_tensor_parallel_world_size",
            "set_tensor_model_parallel_rank",
            "set_pipeline_model_parallel_rank",
            "set_data_parallel_rank",
            "set_expert_model_parallel_rank",
            "set_expert_tensor_parallel_rank",
        ],
        _OTHER_RANK,
    ),
    # memory
    "get_global_memory_buffer": Buffer(f"# {_OWN_BUFFER}"),
    "destroy_global_memory_buffer": Refused(_OWN_BUFFER),
    "get_global_symmetric_memory_buffer": Refused(_OWN_BUFFER),
    "destroy_global_symmetric_memory_buffer": Refused(_OWN_BUFFER),
    "_set_global_memory_buffer": Refused(_OWN_BUFFER),
    "_set_global_symmetric_memory_buffer": Refused(_OWN_BUFFER),
    # what makes groups out of its arguments alone
    "get_nccl_options": Own(),
    "overwrite_nccl_comm_cfgs": Own(),
    "generate_masked_orthogonal_rank_groups": Own(),
    "default_embedding_ranks": Own(),
    "default_position_embedding_ranks": Own(),
    "RankGenerator": Own(),
    "create_group": Refused("its groups stand in torch's registry: declare them, GroupManager(..., groups=[...])"),
    "create_hierarchical_groups": _HIERARCHICAL,
    "create_hybrid_dp_cp_groups": _HIERARCHICAL,
    "update_pg_timeout": Refused("of one group: groups.tp.set_timeout(seconds)"),
}

MEGATRON = Table(
    system="megatron",
    package="megatron-core",
    versions="megatron-core 0.16.1 and 0.19.2",
    modules={"megatron.core.parallel_state": _ROWS},
    aliases={"megatron.core.mpu": "megatron.core.parallel_state"},
    without={"ep": (), "etp": ("tp",), "edp": ("cp", "dp")},
    optional="check_initialized",
    moot=frozenset({"with_gtp_remat", "with_egtp_remat"}),
    passing=frozenset(_PASSING),
)
