"""torch's DeviceMesh over a manager's groups, and the topology of a mesh that somebody else made.

A mesh lists its dimensions slowest first, a topology its axes fastest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch.distributed.device_mesh import DeviceMesh

from parallel_topology import torch_private
from parallel_topology.errors import GroupArgumentError, TopologyError
from parallel_topology.groups.manager import GroupManager
from parallel_topology.topology.topology import ParallelTopology

Dim: TypeAlias = str | tuple[str, ...]
"""What one dimension of a mesh runs along: an axis, or several together."""


def as_device_mesh(groups: GroupManager, axes: Iterable[Dim] | None = None) -> DeviceMesh:
    """The mesh of a manager's groups, each dimension's process group being the manager's own: none is created.

    With `axes=["pp", ("dp", "cp"), "tp"]` its dimensions are `pp`, `dp_cp` and `tp`, where `dp_cp` is the declared
    combination `groups["dp", "cp"]`. So a flattened dimension costs nothing; torch's own `mesh._flatten` would create
    a process group. Axes that are left out keep this rank's index: the mesh then has a part of the ranks.

    A group of one rank has no process group, so an axis of size 1 cannot be a dimension.

    Args:
        groups: made by `GroupManager.from_world`, for torch looks a mesh's groups up in its registry.
        axes: the dimensions, slowest first; without it the base axes of more than one rank.

    Raises:
        GroupArgumentError: `groups` is not from `from_world`, or an axis stands twice or has size 1.
        UnknownAxisError: an axis is not there, a combination was not declared, or axes are of different views.
        ClosedError: `groups` was closed.
    """
    topology = groups.topology
    if axes is None:
        axes = [axis for axis in reversed(topology.axes) if topology.size(axis) > 1]
    dims = [(dim,) if isinstance(dim, str) else tuple(dim) for dim in axes]
    _require_fit_for_mesh(groups, dims)
    process_groups: list[Any] = [groups[dim].device_group for dim in dims]
    if not all(map(torch_private.is_registered, process_groups)):
        raise GroupArgumentError(
            f"{groups!r} has groups that torch does not know by name, as a DeviceMesh must: make the manager by "
            "GroupManager.from_world, after torch.distributed.init_process_group"
        )
    torch_private.forget_meshes()
    ranks = [groups.rank]
    for dim in dims:
        ranks = [member for rank in ranks for member in topology.group(*dim, rank=rank)]
    from_group: Any = cast("Any", DeviceMesh).from_group  # its annotations are only partly known
    return from_group(
        process_groups if len(dims) > 1 else process_groups[0],
        groups.device.type,
        mesh=torch.tensor(ranks).reshape([groups[dim].size for dim in dims]),
        mesh_dim_names=tuple("_".join(dim) for dim in dims),
    )


def from_device_mesh(mesh: DeviceMesh) -> ParallelTopology:
    """The topology that a mesh describes: its names, sizes and ranks, the last dimension as the fastest axis.

    Raises:
        TopologyError: the mesh's dimensions have no names, or names that no axis can have.
    """
    names = mesh.mesh_dim_names
    if names is None:
        raise TopologyError(f"{mesh} has no names; an axis needs one: give mesh_dim_names=, as in ('dp', 'tp')")
    sizes: dict[str, Any] = dict(zip(names[::-1], mesh.shape[::-1], strict=True))
    try:
        return ParallelTopology(order="-".join(sizes), ranks=list(map(int, mesh.mesh.flatten())), **sizes)
    except TopologyError as error:
        raise TopologyError(f"{mesh} is no topology: {error}") from None


def require_same(mesh: DeviceMesh, topology: ParallelTopology) -> None:
    """Check that a mesh's dimensions are a topology's axes, with the same groups. Axes of size 1 may be missing.

    Raises:
        TopologyError: they are not; shows both, and the first axis that differs.
    """
    described = from_device_mesh(mesh)
    for axis in dict.fromkeys([*topology.axes, *described.axes]):
        ours, theirs = (_groups_along(axis, one) for one in (topology, described))
        if ours != theirs:
            raise TopologyError(
                f"{mesh} is {described}, but {topology} is required: along {axis!r} it has the groups "
                f"{_shown(theirs)}, expected {_shown(ours)}"
            )


def _require_fit_for_mesh(groups: GroupManager, dims: Sequence[tuple[str, ...]]) -> None:
    named = [axis for dim in dims for axis in dim]
    if not named:
        raise GroupArgumentError(f"no axis is left for a mesh of {groups!r}; expected at least one of several ranks")
    if repeated := [axis for axis in named if named.count(axis) > 1]:
        raise GroupArgumentError(f"axes={dims}: {repeated[0]!r} stands twice; expected each axis in one dimension")
    groups.topology.group_name(*named)  # of one view
    for dim in dims:
        if groups[dim].size == 1:
            raise GroupArgumentError(
                f"axes={dims}: {'-'.join(dim)!r} has size 1 in {groups.topology}, and a group of one rank has no "
                "process group: leave it out of the mesh (without axes=, such axes are)"
            )


def _groups_along(axis: str, topology: ParallelTopology) -> list[list[int]]:
    if axis not in topology.axes:
        return [[rank] for rank in sorted(topology.world)]
    return sorted(map(list, topology.groups(axis)))


def _shown(groups: list[list[int]]) -> str:
    return " ".join(map(str, groups[:4])) + (" ..." if len(groups) > 4 else "")
