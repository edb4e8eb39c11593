"""What others do to get weights from one layout to another, beside a refit: the same tensors, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.refit.sides import Side
from parallel_topology.weights import Weight, Weights
from parallel_topology.weights.place import Box

TRAINING, SERVING = ParallelTopology(tp=2, dp=2), ParallelTopology(tp=4)


def square(megabytes: int, cut: str = "{}/tp {}") -> Weights:
    """Eight matrices of float32, of so many MB together."""
    side = 16 * round((megabytes * 2**20 / 8 / 4) ** 0.5 / 16)
    return Weights([Weight("w", cut.format(side, side), layer=True)], layers=8, dtype="float32")


def beside(groups: GroupManager, megabytes: int, rounds: int, folder: str) -> dict[str, list[float]]:
    """Carry each out, compare what came, and return the seconds of each round. In a process of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=groups.rank, world_size=4)
    weights, columns = square(megabytes), square(megabytes, "{} {}/tp")
    across = RefitPlan(weights, TRAINING, SERVING)
    turned = RefitPlan(weights, SERVING, SERVING, target_as=columns)
    whole = {name: torch.randn(weights.named(name).shape, generator=_seeded()) for name in weights.names}
    ways = {
        "refit, tp2-dp2 to tp4": _ours(groups, across, whole),
        "DCP, saved and loaded": _dcp(groups, whole, Path(folder)),
        "refit, rows to columns": _ours(groups, turned, whole),
        "DTensor redistribute": _redistribute(groups, whole),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            groups.world.barrier()
            begun = time.perf_counter()
            way()
            groups.world.barrier()
            found[name].append(time.perf_counter() - begun)
    dist.destroy_process_group()
    return found


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _held(side: Side, rank: int, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    held = side.weights.on(side.topology, rank)
    return {name: _part(whole[name], one.ranges).contiguous() for name, one in held.items()}


def _part(whole: torch.Tensor, box: Box) -> torch.Tensor:
    return whole[tuple(slice(part.start, part.stop) for part in box)]


def _ours(groups: GroupManager, plan: RefitPlan, whole: dict[str, torch.Tensor]) -> Callable[[], None]:
    have, expected = (_held(side, groups.rank, whole) for side in (plan.source, plan.target))
    into = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}

    def go() -> None:
        refit(plan, groups.world, have, into)

    go()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in into.items())
    return go


def _dcp(groups: GroupManager, whole: dict[str, torch.Tensor], folder: Path) -> Callable[[], None]:
    training = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("dp", "tp"))
    serving = DeviceMesh("cpu", torch.arange(4), mesh_dim_names=("tp",))
    rows = len(next(iter(whole.values())))
    here, there = groups.rank % 2 * rows // 2, groups.rank * rows // 4
    saved = {
        name: DTensor.from_local(one[here : here + rows // 2].contiguous(), training, [Replicate(), Shard(0)])
        for name, one in whole.items()
    }
    loaded = {
        name: DTensor.from_local(torch.zeros(rows // 4, rows), serving, [Shard(0)]) for name in whole
    }  # fmt: skip

    def go() -> None:
        dcp.save(saved, checkpoint_id=folder / "checkpoint")
        dcp.load(loaded, checkpoint_id=folder / "checkpoint")

    go()
    assert all(torch.equal(one.to_local(), whole[name][there : there + rows // 4]) for name, one in loaded.items())
    return go


def _redistribute(groups: GroupManager, whole: dict[str, torch.Tensor]) -> Callable[[], None]:
    mesh = DeviceMesh("cpu", torch.arange(4), mesh_dim_names=("tp",))
    rows = len(next(iter(whole.values())))
    start = groups.rank * rows // 4
    given = {
        name: DTensor.from_local(one[start : start + rows // 4].contiguous(), mesh, [Shard(0)])
        for name, one in whole.items()
    }

    def go() -> dict[str, torch.Tensor]:
        return {name: one.redistribute(mesh, [Shard(1)]).to_local() for name, one in given.items()}

    assert all(torch.equal(one, whole[name][:, start : start + rows // 4]) for name, one in go().items())
    return lambda: void(go())


def void(_: object) -> None:
    """Only the time counts."""


# Megatron's planner (megatron-core 0.19.2, core/resharding/planner.py), which needs no groups


def rosters(plan: RefitPlan) -> tuple[Any, Any]:
    """What Megatron's ranks would have gathered of each other."""
    planner: Any = import_module("megatron.core.resharding.planner")
    both: dict[int, tuple[list[Any], list[Any]]] = {rank: ([], []) for rank in range(plan.span)}
    for number, side in enumerate((plan.source, plan.target)):
        for rank in side.world:
            both[rank][number].extend(_metadata(side, rank))
    return planner.index_metadata_rosters([both[rank] for rank in range(plan.span)])


def _metadata(side: Side, rank: int) -> list[Any]:
    utils: Any = import_module("megatron.core.resharding.utils")
    view = side.topology.at(rank)
    found: list[Any] = []
    for name, held in side.weights.on(side.topology, rank).items():
        cut = next(iter(side.weights.named(name).cut), None)
        found.append(
            utils.ParameterMetadata(
                name, tuple(map(len, held.ranges)), torch.bfloat16, 2, is_tp=cut is not None, partition_dim=cut or 0,
                owner_rank=rank, tensor_parallel_group_ranks=[*view.tp.ranks],
                data_parallel_group_ranks=[*view.dp.ranks], pipeline_parallel_group_ranks=[*view.pp.ranks],
                resolved_name=name,
            )
        )  # fmt: skip
    return found


def megatrons_boxes(plan: RefitPlan, made: Any, rank: int) -> list[tuple[str, Box, int]]:
    """(weight, box, source) of what a rank receives in Megatron's plan, in logical tensors."""
    held = plan.target.weights.on(plan.target.topology, rank)
    found: list[tuple[str, Box, int]] = []
    for move in made.recv_ops:
        box = tuple(
            range(own.start + part.indices(len(own))[0], own.start + part.indices(len(own))[1])
            for own, part in zip(held[move.param_name].ranges, move.my_slice, strict=True)
        )
        found.append((move.param_name, box, move.peer_rank))
    return found
