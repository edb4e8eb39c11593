"""DeepSpeed's `mpu`: what `deepspeed.initialize(mpu=)` asks about model, data, pipeline and sequence parallelism.

The methods are those that deepspeed 0.19.8 calls (deepspeed/utils/groups.py, utils/bwc.py, runtime/), by its words:

| role              | axes                | its group is                                                   |
|-------------------|---------------------|----------------------------------------------------------------|
| data              | `dp` or `data`      | that axis                                                      |
| tensor            | `tp` or `model`     | that axis                                                      |
| pipeline          | `pp` or `pipe`      | that axis                                                      |
| sequence          | `sp` or `cp`        | that axis                                                      |
| model             |                     | tensor and pipeline together                                   |
| sequence data     |                     | sequence and data together: what ZeRO shards over              |
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch.distributed as dist

from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.manager import GroupManager
from parallel_topology.interop.alone import ProcessGroups

ROLES: Mapping[str, str] = MappingProxyType(
    {
        "dp": "data",
        "data": "data",
        "tp": "tensor",
        "model": "tensor",
        "pp": "pipe",
        "pipe": "pipe",
        "sp": "sequence",
        "cp": "sequence",
    }
)
"""Axis -> what it is to DeepSpeed."""


class Mpu:
    """A manager as the `mpu` of `deepspeed.initialize(model=..., mpu=Mpu(groups), ...)`. It creates no process group.

    A role that no axis has is a group of this rank only.

    Args:
        groups: made by `GroupManager.from_world`, for DeepSpeed asks torch for the ranks of these groups. Where
            several of its axes have more than one rank, with their combinations declared, as in
            `groups=[("tp", "pp")]`.

    Raises:
        GroupArgumentError: an axis of more than one rank has no role here, or two have the same; or data and
            sequence parallelism have one rank, whose group DeepSpeed could not look up in torch's registry.
        UnknownAxisError: a combination was not declared; says which.
        ClosedError: `groups` was closed.
    """

    def __init__(self, groups: GroupManager) -> None:
        axes = _axes_of_roles(groups)
        if not {"data", "sequence"} & axes.keys():
            raise GroupArgumentError(
                f"{groups!r}: DeepSpeed looks its data-parallel group up in torch's registry, and one rank alone has "
                "none there; expected an axis dp, data, sp or cp of more than one rank"
            )
        process_groups = ProcessGroups(groups)
        self._data = _Member(groups, process_groups, axes, "data")
        self._tensor = _Member(groups, process_groups, axes, "tensor")
        self._pipe = _Member(groups, process_groups, axes, "pipe")
        self._sequence = _Member(groups, process_groups, axes, "sequence")
        self._model = _Member(groups, process_groups, axes, "tensor", "pipe")
        self._sequence_data = _Member(groups, process_groups, axes, "sequence", "data")

    def get_data_parallel_rank(self) -> int:
        return self._data.rank

    def get_data_parallel_world_size(self) -> int:
        return self._data.size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._data.group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self._data.ranks

    def get_model_parallel_rank(self) -> int:
        return self._model.rank

    def get_model_parallel_world_size(self) -> int:
        return self._model.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._model.group

    def get_tensor_model_parallel_rank(self) -> int:
        return self._tensor.rank

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._tensor.size

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._tensor.group

    def get_tensor_model_parallel_src_rank(self) -> int:
        return self._tensor.ranks[0]

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._pipe.rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._pipe.size

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        return self._pipe.group

    def get_sequence_parallel_rank(self) -> int:
        return self._sequence.rank

    def get_sequence_parallel_world_size(self) -> int:
        return self._sequence.size

    def get_sequence_parallel_group(self) -> dist.ProcessGroup:
        return self._sequence.group

    def get_sequence_data_parallel_rank(self) -> int:
        return self._sequence_data.rank

    def get_sequence_data_parallel_world_size(self) -> int:
        return self._sequence_data.size

    def get_sequence_data_parallel_group(self) -> dist.ProcessGroup:
        return self._sequence_data.group


class _Member:
    """This rank's group in one or two roles."""

    def __init__(
        self, groups: GroupManager, process_groups: ProcessGroups, axes: Mapping[str, str], *roles: str
    ) -> None:
        along = [axes[role] for role in roles if role in axes]
        self.ranks = list(groups.topology.group(*along, rank=groups.rank)) if along else [groups.rank]
        self.rank = self.ranks.index(groups.rank)
        self.size = len(self.ranks)
        self.group = process_groups.along(*along) if along else process_groups.alone


def _axes_of_roles(groups: GroupManager) -> dict[str, str]:
    axes: dict[str, str] = {}
    for axis, size in groups.topology.sizes.items():
        if size == 1:
            continue
        if axis not in ROLES:
            raise GroupArgumentError(f"{groups!r}: axis {axis!r} is nothing to DeepSpeed; expected {', '.join(ROLES)}")
        if ROLES[axis] in axes:
            raise GroupArgumentError(
                f"{groups!r}: the axes {axes[ROLES[axis]]!r} and {axis!r} are both {ROLES[axis]} to DeepSpeed; "
                "expected one of them"
            )
        axes[ROLES[axis]] = axis
    return axes
