"""What Transformer Engine's `set_context_parallel_group` takes, from a manager's context-parallel groups."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.manager import GroupManager


class ContextParallel(NamedTuple):
    """The arguments of `set_context_parallel_group`, in its order: `layer.set_context_parallel_group(*arguments)`.

    As in NVIDIA/TransformerEngine transformer_engine/pytorch/attention/dot_product_attention, commit 0001d1b3.

    Attributes:
        cp_group: None where there is no context parallelism; two groups, first the all-to-all's, for `"a2a+p2p"`.
        cp_global_ranks: of all ranks that share a sequence, in the order of its parts.
    """

    cp_group: dist.ProcessGroup | list[dist.ProcessGroup] | None
    cp_global_ranks: list[int]
    cp_stream: torch.cuda.Stream | None
    cp_comm_type: str


def context_parallel(
    groups: GroupManager,
    *axes: str,
    comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = "p2p",
    stream: torch.cuda.Stream | None = None,
) -> ContextParallel:
    """How attention layers communicate along context parallelism. It creates no process group.

    For `"a2a+p2p"` the axes are those of the all-to-all and of the ring, which may split `cp` in a view:
    `ParallelTopology(tp=2, cp=4, views={"context": "tp2-inner2-outer2"})` and `axes="inner", "outer"`.

    Args:
        groups: made by `GroupManager.from_world`, for Transformer Engine addresses its peers by global rank.
        axes: one axis such as `"cp"`, or two for `"a2a+p2p"`.
        stream: a CUDA stream besides the current one, over which `"p2p"` and `"all_gather"` overlap their work.

    Raises:
        GroupArgumentError: the number of axes is not that of `comm_type`, or one of two has a single rank.
        UnknownAxisError: an axis is not there.
        ClosedError: `groups` was closed.
    """
    expected = 2 if comm_type == "a2a+p2p" else 1
    if len(axes) != expected:
        raise GroupArgumentError(
            f"axes {axes} for comm_type {comm_type!r}: expected {'two axes' if expected == 2 else 'one axis'}"
        )
    along = [groups[axis] for axis in axes]
    process_groups = [group.device_group for group in along if group.device_group is not None]
    if expected == 1:
        return ContextParallel(process_groups[0] if process_groups else None, list(along[0].ranks), stream, comm_type)
    if len(process_groups) < 2:
        raise GroupArgumentError(
            f"axes {axes} of {groups.topology} for comm_type 'a2a+p2p': one of them has a single rank; "
            "use comm_type 'a2a' or 'p2p' along the other"
        )
    inner, outer = axes
    ranks = [rank for start in groups[outer].ranks for rank in groups.topology.group(inner, rank=start)]
    return ContextParallel(process_groups, ranks, stream, comm_type)
