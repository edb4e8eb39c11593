"""How a live module keeps its weights, read off its parameters: plain ones, DTensors, and Megatron-core's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parallel_topology import torch_private
from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.weights.placed import expert_axis
from parallel_topology.weights.rules import INDEX, Fused, Rule, Split
from parallel_topology.weights.storage import Storage
from parallel_topology.weights.weight import Weight
from parallel_topology.weights.weights import Weights

Axes: TypeAlias = Mapping[str, str | Sequence[str]]

EXPERTS = (
    re.compile(r"(?P<before>.*\.local_experts\.)(?P<number>[0-9]+)(?P<behind>\..*)"),
    re.compile(r"(?P<before>.*\.experts\.linear_fc[12]\.(?:weight|bias))(?P<number>[0-9]+)(?P<behind>)"),
)
"""What Megatron calls what one of a rank's experts has, in SequentialMLP and TEGroupedMLP.

(megatron/core/transformer/moe/experts.py, 0.16.1)
"""


def storage_of(module: torch.nn.Module, topology: ParallelTopology, *, axes: Axes | None = None) -> Storage:
    """How a module keeps its weights; `storage.weights` are these, each parameter one in no layer, on every stage.

    So it is asked for a module that is on every rank, or on those of one pipeline stage; on all these the answer is the
    same. `storage.tensors(topology, rank)` are then the names, local shapes and dtypes of the parameters there.

    - DTensor: the placements say the cuts, one after the other (FSDP2's over tensor parallelism, too).
    - Megatron-core: `tensor_model_parallel` and `partition_dim` are a cut over `tp`; with a `partition_stride` of
      several blocks each block is a weight, `fc1.weight[0]`. What its experts have is one weight, with all of them as
      dim 0, cut over `ep` and `etp`, kept in a tensor each: `local_experts.5.` is expert 5 of all, where Megatron
      counts those of the rank.
    - Any other parameter is whole on every rank.

    Args:
        axes: dim of a DeviceMesh -> axis, or several together, slowest first, where it has another name.

    Raises:
        TopologyError: a mesh is not of this topology, or a parameter is kept in a way that is none of these.
    """
    weights: list[Weight] = []
    rules: list[Rule] = []
    experts: dict[str, dict[int, torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        expert = _one_expert(name, parameter)
        if expert is not None:
            experts.setdefault(expert[0], {})[expert[1]] = parameter
        elif isinstance(parameter, DTensor):
            weights.append(_of_dtensor(name, parameter, topology, axes or {}))
        elif getattr(parameter, "tensor_model_parallel", False):
            blocks, together = _of_megatron(name, parameter, topology)
            weights += blocks
            rules += together
        else:
            weights.append(Weight(name, parameter.shape, dtype=parameter.dtype))
    for name, numbered in experts.items():
        blocks, together = _of_experts(name, numbered, topology)
        weights += blocks
        rules += together
    return Storage(Weights(weights), rules)


def _of_dtensor(name: str, parameter: DTensor, topology: ParallelTopology, axes: Axes) -> Weight:
    mesh = parameter.device_mesh
    order = torch_private.shard_order(parameter.placements, mesh.shape)
    if order is None:
        raise TopologyError(
            f"parameter {name!r} is a DTensor with {parameter.placements} on {mesh}: expected Replicate, Shard, or "
            "FSDP2's shards of shards"
        )
    cut: dict[int, tuple[str, ...]] = {}
    for dim, along in order.items():
        several = [_axes_of(name, mesh, at, topology, axes) for at in along]
        cut[dim] = tuple(axis for one in several for axis in one)
        parts = [topology.size(*one) for one in several]
        if any(len(one) > 1 for one in several) and parameter.shape[dim] % prod(parts):
            raise TopologyError(
                f"parameter {name!r}: dim {dim} of {list(parameter.shape)} does not divide over {'/'.join(cut[dim])}, "
                f"of {prod(parts)} ranks; expected it to, where one dim of a mesh is several axes"
            )
    return Weight(name, parameter.shape, cut=cut, uneven="chunk", dtype=parameter.dtype)


def _axes_of(name: str, mesh: DeviceMesh, at: int, topology: ParallelTopology, axes: Axes) -> tuple[str, ...]:
    """The axes that a dim of a mesh runs along, which has the same ranks in the same order."""
    names = mesh.mesh_dim_names
    if names is None:
        raise TopologyError(f"parameter {name!r}: {mesh} has no names; an axis needs one: give mesh_dim_names=")
    given = axes.get(names[at], names[at])
    found = (given,) if isinstance(given, str) else tuple(given)
    here = mesh.get_coordinate()
    if here is None:
        raise TopologyError(f"parameter {name!r}: this rank is not in {mesh}; expected it to be one of its ranks")
    row = list(map(int, mesh.mesh[(*here[:at], slice(None), *here[at + 1 :])]))
    try:
        group = [*topology.group(*found, rank=row[here[at]])]
    except UnknownAxisError as error:
        raise UnknownAxisError(f"parameter {name!r}: {error}; axes= says which axis a dim of {mesh} is") from None
    if row != group:
        raise TopologyError(
            f"parameter {name!r}: along {names[at]!r} of {mesh} stand {shown_ranks(row)}, and along "
            f"{'/'.join(found)} of {topology} {shown_ranks(group)}; expected the same"
        )
    return found


def _of_megatron(name: str, parameter: Any, topology: ParallelTopology) -> tuple[list[Weight], list[Rule]]:
    """A parameter that is cut over tp."""
    dim = int(parameter.partition_dim)
    shape = [size * topology.size("tp") if at == dim else size for at, size in enumerate(parameter.shape)]
    return _in_blocks(name, shape, {dim: "tp"}, dim, parameter)


def _of_experts(name: str, numbered: Mapping[int, Any], topology: ParallelTopology) -> tuple[list[Weight], list[Rule]]:
    """What all experts have: theirs on this rank times those that hold others."""
    one, whole = next(iter(numbered.values())), name.replace(INDEX, "*")
    shape = [len(numbered) * (topology.size("ep") if "ep" in topology.all_axes else 1), *one.shape]
    if not getattr(one, "tensor_model_parallel", False):
        return [Weight(whole, shape, cut={0: "ep"}, dtype=one.dtype)], [Split(whole, name)]
    dim, axis = int(one.partition_dim) + 1, expert_axis(topology, "etp")
    shape[dim] *= topology.size(axis) if axis else 1
    weights, rules = _in_blocks(whole, shape, {0: "ep", dim: "etp"}, dim, one)
    return weights, [*rules, Split(whole, name)]


def _in_blocks(
    name: str, shape: list[int], cut: Mapping[int, str], dim: int, parameter: Any
) -> tuple[list[Weight], list[Rule]]:
    """A weight, or the blocks along a dim that are cut each by itself: Megatron's gate and up, say."""
    blocks = int(parameter.partition_stride)
    if blocks == 1:
        return [Weight(name, shape, cut=cut, dtype=parameter.dtype)], []
    each = [size // blocks if at == dim else size for at, size in enumerate(shape)]
    names = [f"{name}[{block}]" for block in range(blocks)]
    return [Weight(one, each, cut=cut, dtype=parameter.dtype) for one in names], [Fused(name, names, dim)]


def _one_expert(name: str, parameter: Any) -> tuple[str, int] | None:
    """If this is what one of Megatron's experts has: the name with `{index}` for its number, and the number."""
    if not hasattr(parameter, "allreduce"):
        return None
    for pattern in EXPERTS:
        if found := pattern.fullmatch(name):
            return f"{found['before']}{INDEX}{found['behind']}", int(found["number"])
    if not parameter.allreduce:
        raise TopologyError(
            f"parameter {name!r} has experts of several ranks (allreduce=False), but not one in each tensor: expected "
            "SequentialMLP or TEGroupedMLP"
        )
    return None
