"""What the functions of deepspeed.utils.groups ask of a manager. Read in deepspeed 0.19.8.

Axes `tp` (or `model`), `pp` (or `pipe`), `dp` (or `data`), `sp` (or `cp`), and `ep`, `edp`, `etp` of a view. A group of
experts is asked for by a name, `ep_size_4`, that says its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_topology.reads.rows import Composed, Constant, Own, Refused, Row, Table, ask

_DECLARED = Refused("groups are declared when the manager is made: GroupManager(..., groups=[...])")
_OTHER_RANK = Refused("a rank or size of its own is another topology: ask topology.at(rank)")
_SECONDARY = Refused("secondary partitions are a view: views={'zero': 'zp4-replicas'}")


def _experts(text: str) -> Composed:
    """What a function asks that takes the name of a group of experts."""
    asked = ask(text)

    def compute(module: Any, groups: Any, arguments: Mapping[str, Any]) -> Any:
        there = f"ep_size_{groups.ep.size if 'ep' in groups.topology.all_axes else 1}"
        if arguments["group_name"] != there:
            return Refused(f"group_name={arguments['group_name']!r}: the experts of {groups.topology} are {there!r}")
        return asked

    return Composed(asked.line, compute)


_ROWS: dict[str, Row] = {
    "initialize": Refused("deepspeed has given it up itself: MoE layers take ep_size"),
    "get_tensor_model_parallel_group": ask("tp.device_group"),
    "get_tensor_model_parallel_world_size": ask("tp.size"),
    "get_tensor_model_parallel_rank": ask("tp.rank"),
    "get_tensor_model_parallel_src_rank": ask("tp.first_rank"),
    "get_model_parallel_group": ask("tp.device_group"),
    "get_model_parallel_world_size": ask("tp.size"),
    "get_model_parallel_rank": ask("tp.rank"),
    "get_data_parallel_group": ask("dp.device_group"),
    "get_data_parallel_world_size": ask("dp.size"),
    "get_data_parallel_rank": ask("dp.rank"),
    "set_tensor_model_parallel_world_size": _OTHER_RANK,
    "set_tensor_model_parallel_rank": _OTHER_RANK,
    "_get_data_parallel_group": ask("dp.device_group"),
    "_get_data_parallel_group_ranks": ask("dp.ranks"),
    "_get_data_parallel_world_size": ask("dp.size"),
    "_get_data_parallel_rank": ask("dp.rank"),
    "_get_model_parallel_world_size": ask("tp-pp.size"),
    "_get_sequence_parallel_group": ask("sp.device_group"),
    "_get_sequence_parallel_world_size": ask("sp.size"),
    "_get_sequence_parallel_rank": ask("sp.rank"),
    "_get_sequence_data_parallel_group": ask("sp-dp.device_group"),
    "_get_sequence_data_parallel_world_size": ask("sp-dp.size"),
    "_get_sequence_data_parallel_rank": ask("sp-dp.rank"),
    "_get_broadcast_src_rank": ask("sp-dp.first_rank"),
    "_clone_world_group": ask("world.device_group"),
    # experts
    "_get_expert_parallel_group": _experts("ep.device_group"),
    "_get_expert_parallel_group_ranks": _experts("ep.ranks"),
    "_get_expert_parallel_world_size": _experts("ep.size"),
    "_get_expert_parallel_rank": _experts("ep.rank"),
    "_get_expert_parallel_src_rank": _experts("ep.first_rank"),
    "_get_expert_data_parallel_group": _experts("edp.device_group"),
    "_get_expert_data_parallel_group_ranks": _experts("edp.ranks"),
    "_get_expert_data_parallel_world_size": _experts("edp.size"),
    "_get_expert_data_parallel_rank": _experts("edp.rank"),
    "_get_expert_broadcast_src_rank": _experts("edp.first_rank"),
    "_get_expert_model_parallel_world_size": ask("etp.size"),
    "_get_max_expert_size": ask("ep.size"),
    "_get_max_expert_size_name": Own('f"ep_size_{groups.ep.size}"'),
    "_get_max_expert_parallel_group": Own("groups.ep.device_group"),
    "_get_expert_parallel_group_dict": Refused("a manager has one group of experts: groups.ep"),
    "_get_expert_data_parallel_group_dict": Refused("a manager has one group of experts: groups.edp"),
    "_get_local_all_to_all_group": Refused("a topology does not know hosts: views={'nodes': 'local8-far'} does"),
    # ZeRO's secondary partitions, which there are none of unless they are created
    "_get_zero_param_intra_parallel_group": Constant(None, "None"),
    "_zero_param_parallel_is_initialized": Constant(False, "False"),
    "_get_zero_param_intra_parallel_rank_in_mygroup": _SECONDARY,
    "_get_zero_param_intra_parallel_group_world_size": _SECONDARY,
    "_get_zero_param_intra_parallel_group_ranks": _SECONDARY,
    "_create_zero_param_parallel_group": _SECONDARY,
    # what makes groups, and what computes ranks
    "_init_tp_groups_with_new_group": _DECLARED,
    "_init_tp_mesh_device": _DECLARED,
    "_create_model_parallel": _DECLARED,
    "_create_expert_and_data_parallel": _DECLARED,
    "_create_expert_data_and_model_parallel": _DECLARED,
    "_release_process_group_references": Refused("the groups end with their manager: groups.close()"),
    "_ensure_divisibility": Own(),
    "_get_expert_parallel_ranks": Own(),
}

DEEPSPEED = Table(
    system="deepspeed",
    package="deepspeed",
    versions="deepspeed 0.19.8",
    modules={"deepspeed.utils.groups": _ROWS},
    without={
        "tp": ("model",),
        "pp": ("pipe",),
        "dp": ("data",),
        "sp": ("cp",),
        "ep": (),
        "edp": ("dp",),
        "etp": (),
    },
)
