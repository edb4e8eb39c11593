"""Megatron-core's ProcessGroupCollection over a manager's groups: the `pg_collection=` of its models and layers.

Read in megatron-core 0.16.1 (megatron/core/process_groups_config.py, and parallel_state.py for what each one holds):

| fields                              | groups                                                      |
|-------------------------------------|-------------------------------------------------------------|
| tp, pp, cp, dp                      | `tp`, `pp`, `cp`, `dp`                                      |
| mp, tp_cp, dp_cp, tp_dp_cp          | combinations: `tp-pp`, `tp-cp`, `cp-dp`, `tp-cp-dp`         |
| ep, expt_tp, expt_dp                | `ep`, `etp`, `edp`, of a view                               |
| tp_ep, tp_ep_pp                     | combinations of that view: `etp-ep`, `etp-ep-pp`            |
| intra_dp_cp, intra_expt_dp          | as dp_cp and expt_dp, for one instance of the optimizer     |
| intra_dist_opt                      | the world, for one instance of the optimizer                |
| embd, pos_embd                      | the first and last stage; the first. See `process_group_collection` |
"""

from __future__ import annotations

from collections.abc import Mapping
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
    }
)
"""Field -> the axes that its group runs along."""
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
    return _collection_type(config.ProcessGroupCollection, reasons)(**known)


def _collection_type(theirs: Any, reasons: Mapping[str, str]) -> Any:
    class Collection(theirs):
        """Megatron's, whose fields say why they are not set."""

        def __getattr__(self, field: str) -> Any:
            if field in reasons:
                raise UnknownAxisError(f"the collection has no {field!r}: {reasons[field]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {field!r}")

    return Collection
