"""Megatron-core's ProcessGroupCollection over a manager's groups: the `pg_collection=` of its models and layers.

Read in megatron-core 0.16.1 and 0.19.2 (megatron/core/process_groups_config.py; what each holds: parallel_state.py):

| fields                              | groups                                                      |
|-------------------------------------|-------------------------------------------------------------|
| tp, pp, cp, dp                      | `tp`, `pp`, `cp`, `dp`                                      |
| mp, tp_cp, dp_cp, tp_dp_cp          | combinations: `tp-pp`, `tp-cp`, `cp-dp`, `tp-cp-dp`         |
| ep, expt_tp, expt_dp                | `ep`, `etp`, `edp`, of a view                               |
| tp_ep, tp_ep_pp                     | combinations of that view: `etp-ep`, `etp-ep-pp`            |
| intra_dp_cp, intra_expt_dp          | as dp_cp and expt_dp, for one instance of the optimizer     |
| intra_dist_opt                      | the world, for one instance of the optimizer                |
| dp_cp_gtp_remat, expt_dp_gtp_remat, | 0.19.2: as dp_cp, expt_dp and tp_ep_pp, as no weights are   |
| tp_ep_pp_with_egtp_remat            | cut over data-parallel ranks (GTP)                          |
| gtp_remat, expt_gtp_remat           | 0.19.2: this rank alone                                     |
| dp_cp_ag, expt_dp_ag                | 0.19.2: None, as Megatron's own until they are set          |
| embd, pos_embd                      | the first and last stage; the first. See `process_group_collection` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch.distributed as dist

from parallel_topology.errors import BackendError, UnknownAxisError
from parallel_topology.groups.manager import GroupManager
from parallel_topology.installed import required
from parallel_topology.interop.alone import ProcessGroups

AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tp": ("tp",),
        "pp": ("pp",),
        "cp": ("cp",),
        "dp": ("dp",),
        "mp": ("tp", "pp"),
        "tp_cp": ("tp", "cp"),
        "dp_cp": ("cp", "dp"),
        "tp_dp_cp": ("tp", "cp", "dp"),
        "ep": ("ep",),
        "expt_tp": ("etp",),
        "expt_dp": ("edp",),
        "tp_ep": ("etp", "ep"),
        "tp_ep_pp": ("etp", "ep", "pp"),
        "intra_dp_cp": ("cp", "dp"),
        "intra_expt_dp": ("edp",),
        "dp_cp_gtp_remat": ("cp", "dp"),
        "expt_dp_gtp_remat": ("edp",),
        "tp_ep_pp_with_egtp_remat": ("etp", "ep", "pp"),
    }
)
"""Field -> the axes that its group runs along."""
ALONE = ("gtp_remat", "expt_gtp_remat")
"""Fields whose group is this rank alone."""
NOT_SEPARATE = ("dp_cp_ag", "expt_dp_ag")
"""Fields that are None unless gathering has a communicator of its own."""
NOT_ALONG_AXES = ("embd", "pos_embd", "hcp", "inter_dist_opt")
"""Fields whose ranks are not always a group along axes."""


def process_group_collection(groups: GroupManager) -> Any:
    """What Megatron-core takes as `pg_collection=`: every field that the manager's groups can fill.

    Reading a field that could not be filled raises an error that says which groups to declare. Any field may be set:
    so `embd` where a pipeline has more than two stages, whose ends are a group along no axis.

    Args:
        groups: with the axes `tp`, `cp`, `dp` and `pp`, of size 1 where there is no such parallelism. Where Megatron
            asks torch for a group's ranks (pipeline schedules, distributed checkpoints), made by
            `GroupManager.from_world`.

    Raises:
        MissingExtraError: Megatron-core is not installed.
        BackendError: there is no default process group, without which Megatron takes every group for one of size 1.
        ClosedError: `groups` was closed.
    """
    config = required("megatron.core.process_groups_config", "megatron-core")
    if not dist.is_initialized():
        raise BackendError(
            "Megatron-core takes every group for one of a single rank while torch.distributed has no default group: "
            "call torch.distributed.init_process_group first"
        )
    process_groups = ProcessGroups(groups)
    known: dict[str, Any] = {"intra_dist_opt": process_groups.along(*groups.topology.axes)}
    reasons: dict[str, str] = {field: f"set it: collection.{field} = ..." for field in NOT_ALONG_AXES}
    for field, axes in AXES.items():
        try:
            known[field] = process_groups.along(*axes)
        except UnknownAxisError as error:
            reasons[field] = str(error)
    if "pp" in known and groups.pp.size <= 2:
        known["embd"] = known["pp"]
    if "pp" in known:
        known["pos_embd"] = process_groups.alone if groups.pp.is_first else None
    known |= dict.fromkeys(ALONE, process_groups.alone) | dict.fromkeys(NOT_SEPARATE)
    there = {field.name for field in fields(config.ProcessGroupCollection)}  # newer versions have more
    filled = {field: group for field, group in known.items() if field in there}
    return _collection_type(config.ProcessGroupCollection, reasons)(**filled)


def _collection_type(theirs: Any, reasons: Mapping[str, str]) -> Any:
    class Collection(theirs):
        """Megatron's, whose fields say why they are not set."""

        def __getattr__(self, field: str) -> Any:
            if field in reasons:
                raise UnknownAxisError(f"the collection has no {field!r}: {reasons[field]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {field!r}")

    return Collection
