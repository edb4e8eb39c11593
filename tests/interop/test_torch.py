"""Everything of torch's that takes a process group or a mesh, over one manager's: the results are one process's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.examples import fsdp2_tp, trainer_and_rollout  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.interop.device_mesh import as_device_mesh
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Weight, Weights
from tests.interop.world import registered, run_in_world

Use = Callable[[GroupManager, Path], tuple[Any, Any]]
USES: dict[str, Use] = {}


def use(fn: Use) -> Use:
    """A function that gives, on every rank, what was found and what one process finds."""
    USES[fn.__name__.strip("_")] = fn
    return fn


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(8, 8, dtype=torch.float64)


def gradients(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def share_of(groups: GroupManager, x: torch.Tensor) -> torch.Tensor:
    share = groups.dp.batch_share(len(x))
    return x[share.start : share.stop]


X = torch.arange(64, dtype=torch.float64).reshape(8, 8).sin()


@use
def _ddp(groups: GroupManager, _: Path) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(linear(), process_group=groups.dp.device_group)
    return gradients(model, share_of(groups, X)), gradients(linear(), X)


@use
def _ddp_by_mesh(groups: GroupManager, _: Path) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(linear(), device_mesh=as_device_mesh(groups, ["dp"]))
    return gradients(model, share_of(groups, X)), gradients(linear(), X)


@use
def _fsdp2(groups: GroupManager, _: Path) -> Any:
    from torch.distributed.fsdp import fully_shard

    model: Any = fully_shard(linear(), mesh=as_device_mesh(groups)["dp"])
    found: Any = gradients(model, share_of(groups, X))
    assert all(gradient.to_local().numel() * 2 == gradient.numel() for gradient in found)
    return [gradient.full_tensor() for gradient in found], gradients(linear(), X)


@use
def _tensor_parallel(groups: GroupManager, _: Path) -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(linear(), torch.nn.ReLU(), linear())

    split: Any = parallelize_module(
        model(), as_device_mesh(groups)["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    assert split[0].weight.to_local().shape == (4, 8)
    return split(X).detach(), model()(X).detach()


@use
def _dtensor(groups: GroupManager, _: Path) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = as_device_mesh(groups)
    left, right = (distribute_tensor(X, mesh, [Shard(0), Shard(dim)]) for dim in (1, 0))
    product: Any = left @ right
    return product.full_tensor(), X @ X


@use
def _checkpoint(groups: GroupManager, folder: Path) -> Any:
    """Saved from one layout and loaded into another."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    world = groups.world.device_group
    saved = {"x": distribute_tensor(X, as_device_mesh(groups), [Shard(0), Shard(1)])}
    dcp.save(saved, checkpoint_id=folder / "checkpoint", process_group=world)
    loaded: Any = {"x": distribute_tensor(torch.zeros_like(X), as_device_mesh(groups), [Shard(1), Replicate()])}
    dcp.load(loaded, checkpoint_id=folder / "checkpoint", process_group=world)
    return loaded["x"].full_tensor(), X


@use
def _zero(groups: GroupManager, _: Path) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, whole = linear(), linear()
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.Adam, process_group=groups.dp.device_group, lr=0.1
    )
    for one, step in ((model, optimizer), (whole, torch.optim.Adam(whole.parameters(), lr=0.1))):
        gradients(one, X)
        step.step()
    return [parameter.detach() for parameter in model.parameters()], [one.detach() for one in whole.parameters()]


@use
def _pipeline_and_tensor_parallel(_groups: GroupManager, _: Path) -> Any:
    with GroupManager.from_world(ParallelTopology.parse("tp2-dp1-pp2"), timeout=60, name="pipeline") as groups:
        return fsdp2_tp.train(groups, steps=2), fsdp2_tp.reference(2)


@use
def _fsdp2_and_tensor_parallel(_groups: GroupManager, _: Path) -> Any:
    with GroupManager.from_world(ParallelTopology.parse("tp2-dp2-pp1"), timeout=60, name="sharded") as groups:
        return fsdp2_tp.train(groups, steps=2), fsdp2_tp.reference(2)


@use
def _trainer_and_rollout(groups: GroupManager, folder: Path) -> Any:
    with GroupManager.connect(
        f"file://{folder}/rollout", ParallelTopology(tp=4), rank=groups.rank, timeout=60
    ) as rollout:
        return trainer_and_rollout.run(groups, rollout, rounds=2), trainer_and_rollout.reference(2)


@use
def _compiled(groups: GroupManager, _: Path) -> Any:
    import torch.distributed._functional_collectives as functional

    tp: Any = groups.tp.device_group
    mesh = as_device_mesh(groups)["tp"]
    mine = X + groups.rank

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x: torch.Tensor) -> torch.Tensor:
        total = functional.all_reduce(x, "sum", tp) * 2
        return total + functional.all_gather_tensor(x, 0, (mesh, 0))[:8]

    first = X + groups.tp.first_rank
    return step(mine), 2 * (2 * first + 1) + first


def _refitted(groups: GroupManager, whole: torch.Tensor, target: dict[int, str]) -> torch.Tensor:
    """This rank's part of a tensor that is cut by rows over tp, once it is cut so."""
    here, there = (Weights([Weight("w", whole.shape, cut=cut)], dtype="float64") for cut in ({0: "tp"}, target))
    plan = RefitPlan(here, groups.topology, groups.topology, target_as=there)
    into = {"w": torch.empty(there.on(groups.topology, groups.rank)["w"].shape, dtype=torch.float64)}
    refit(plan, groups.world, {"w": groups.tp.shard_of(whole, dim=0).contiguous()}, into)
    return into["w"]


@use
def _refit_as_dtensor_redistributes(groups: GroupManager, _: Path) -> Any:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    before = distribute_tensor(X, as_device_mesh(groups, ["dp", "tp"]), [Replicate(), Shard(0)])
    wanted: list[tuple[list[Any], dict[int, str]]] = [
        ([Replicate(), Replicate()], {}),
        ([Replicate(), Shard(1)], {1: "tp"}),
        ([Shard(0), Shard(1)], {0: "dp", 1: "tp"}),
        ([Shard(1), Replicate()], {1: "dp"}),
        ([Shard(0), Shard(0)], {0: "dp/tp"}),
    ]
    for placements, cut in wanted:
        theirs.append(before.redistribute(placements=placements).to_local())
        ours.append(_refitted(groups, X, cut))
    return ours, theirs


@use
def _refit_as_a_checkpoint_is_loaded(groups: GroupManager, folder: Path) -> Any:
    """Saved in one layout and loaded in another, by torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, world = as_device_mesh(groups, ["dp", "tp"]), groups.world.device_group
    saved = {"w": distribute_tensor(X, mesh, [Replicate(), Shard(0)])}
    dcp.save(saved, checkpoint_id=folder / "refit", process_group=world)
    loaded = {"w": distribute_tensor(torch.zeros_like(X), mesh, [Shard(1), Shard(0)])}
    dcp.load(loaded, checkpoint_id=folder / "refit", process_group=world)
    return _refitted(groups, X, {0: "tp", 1: "dp"}), loaded["w"].to_local()


def _all(groups: GroupManager, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in USES.items():
        before = registered()
        try:
            got, expected = one(groups, Path(folder))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
            found[name] = registered() - before
        except Exception as error:
            found[name] = repr(error)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of all uses, in one job: importing all of this costs each process seconds."""
    return run_in_world("tp2-dp2", _all, str(tmp_path_factory.mktemp("uses")), timeout=100)


@pytest.mark.parametrize("name", USES)
def test_gives_one_processs_result_and_creates_no_process_group(name: str, results: list[dict[str, Any]]):
    assert [result[name] for result in results] == [0] * 4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("text", ["tp2-dp2-pp2", "tp4-dp1-pp2", "tp1-dp4-pp2", "pp2-dp2-tp2"])
def test_fsdp2_tp_and_pp_give_the_references_loss_curve(text: str):
    expected = fsdp2_tp.reference(20)
    assert expected[-1] < 0.7 * expected[0]
    for losses in run_in_world(text, fsdp2_tp.train, 20, timeout=250):
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
