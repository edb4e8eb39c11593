"""Training with torch's own parallelism (FSDP2, tensor-parallel plans, pipeline stages) over one manager's groups.

torchrun --nproc-per-node 4 -m parallel_topology.examples.fsdp2_tp tp2-dp2-pp1
torchrun --nproc-per-node 8 -m parallel_topology.examples.fsdp2_tp tp2-dp2-pp2
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.interop.device_mesh import as_device_mesh

HIDDEN, LAYERS, BATCH, MICRO_BATCHES = 16, 4, 16, 2
LEARNING_RATE = 0.02


class Block(nn.Module):
    """`[batch, hidden]`, shape kept."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.down = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def whole_model() -> nn.Sequential:
    """The same weights on every rank; float64, so that a comparison shows mistakes and not rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block() for _ in range(LAYERS))).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step: inputs and targets, `[batch, hidden]` each."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, HIDDEN, generator=generator, dtype=torch.float64)
    return x, x.roll(1, dims=-1).sin()


def reference(steps: int) -> list[float]:
    """The loss of each step, by one process."""
    model = whole_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    for step in range(steps):
        x, target = batch(step)
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train(groups: GroupManager, steps: int) -> list[float]:
    """The loss of each step on the global batch, on every rank. The topology has tp, dp and pp, of any sizes."""
    layers = groups.pp.stage_layers(LAYERS)
    model = nn.Sequential(*list(whole_model())[layers.start : layers.stop])
    if groups.world.size > 1:
        parallelize(model, groups)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, foreach=False)
    pipeline = None
    if groups.pp.size > 1:
        stage = PipelineStage(model, groups.pp.rank, groups.pp.size, groups.device, group=groups.pp.device_group)
        pipeline = ScheduleGPipe(stage, MICRO_BATCHES, loss_fn=F.mse_loss)
    losses: list[float] = []
    for step in range(steps):
        share = groups.dp.batch_share(BATCH)
        x, target = (tensor[share.start : share.stop] for tensor in batch(step))
        if pipeline is not None:
            loss = run_pipeline(pipeline, groups, x, target)
        else:
            loss = F.mse_loss(model(x), target)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # Only a last stage has a loss, of its share of the batch, and its tp ranks have the same one.
        losses.append(groups.world.all_reduce(loss.detach()).item() / (groups.dp.size * groups.tp.size))
    return losses


def parallelize(model: nn.Sequential, groups: GroupManager) -> None:
    """Shard this stage's blocks over tp and dp. An axis of one rank is not in the mesh, and needs nothing done."""
    mesh = as_device_mesh(groups)
    for block in model:
        if groups.tp.size > 1:
            parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if groups.dp.size > 1:
            fully_shard(block, mesh=mesh["dp"])
    if groups.dp.size > 1:
        fully_shard(model, mesh=mesh["dp"])


def run_pipeline(pipeline: Any, groups: GroupManager, x: Tensor, target: Tensor) -> Tensor:
    """One step forward and backward; the mean loss of the micro-batches on a last stage, else 0."""
    losses: list[Tensor] = []
    if groups.pp.is_first:
        pipeline.step(x)
    elif groups.pp.is_last:
        pipeline.step(target=target, losses=losses)
    else:
        pipeline.step()
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=x.dtype)


def main() -> None:
    topology = ParallelTopology.parse(sys.argv[1])
    dist.init_process_group("gloo")
    with GroupManager.from_world(topology) as groups:
        losses = train(groups, steps=20)
        if groups.world.is_first:
            for step, (loss, expected) in enumerate(zip(losses, reference(20), strict=True)):
                print(f"step {step:2}  loss {loss:.6f}  one process {expected:.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
