"""A trainer and a rollout engine in the same processes, with different topologies: weights go from one to the other.

The trainer is torch's FSDP2 and tensor parallelism over `from_world`; the rollout engine has a manager over a store of
its own, as an inference engine would, and stores weights in its own way. A plan, made once, says what goes from whom to
whom after each step. So reinforcement learning colocates them.

    torchrun --nproc-per-node 4 -m parallel_topology.examples.trainer_and_rollout tp2-dp2 tp4
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Storage, Transposed, Weight, Weights

from .fsdp2_tp import HIDDEN, LAYERS, LEARNING_RATE, batch, parallelize, whole_model


def weights(fsdp: bool) -> Weights:
    """The weights of the model, cut over tp; under FSDP2 each part once more along dim 0, over dp, as `torch.chunk`."""
    rows, others = ("/tp/dp", "/dp") if fsdp else ("/tp", "")
    return Weights(
        [
            Weight("{}.norm.weight", f"{HIDDEN}{others}", layer=True, uneven="chunk"),
            Weight("{}.norm.bias", f"{HIDDEN}{others}", layer=True, uneven="chunk"),
            Weight("{}.up.weight", f"{4 * HIDDEN}{rows} {HIDDEN}", layer=True, uneven="chunk"),
            Weight("{}.up.bias", f"{4 * HIDDEN}{rows}", layer=True, uneven="chunk"),
            Weight("{}.down.weight", f"{HIDDEN}{others} {4 * HIDDEN}/tp", layer=True, uneven="chunk"),
            Weight("{}.down.bias", f"{HIDDEN}{others}", layer=True, uneven="chunk"),
        ],
        layers=LAYERS,
        dtype="float64",
    )


class Trainer:
    """The model of `fsdp2_tp`, sharded over the tp and dp of `groups`."""

    def __init__(self, groups: GroupManager) -> None:
        self.groups = groups
        self.model = whole_model()
        parallelize(self.model, groups)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, foreach=False)

    def step(self, number: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        share = self.groups.dp.batch_share(len(batch(number)[0]))
        x, target = (tensor[share.start : share.stop] for tensor in batch(number))
        F.mse_loss(self.model(x), target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Rollout:
    """The same model for inference, tensor-parallel along a group of its own manager; `down` is stored transposed."""

    def __init__(self, groups: GroupManager) -> None:
        self.tp = groups.tp
        self.storage = Storage(weights(fsdp=False), [Transposed("{}.down.weight")])
        stored = self.storage.tensors(groups.topology, groups.rank)
        self.shards = {name: torch.empty(one.shape, dtype=torch.float64) for name, one in stored.items()}

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, hidden]` -> `[batch, hidden]`."""
        for layer in range(LAYERS):
            normed = F.layer_norm(x, (HIDDEN,), self._shard(layer, "norm.weight"), self._shard(layer, "norm.bias"))
            up = F.gelu(F.linear(normed, self._shard(layer, "up.weight"), self._shard(layer, "up.bias")))
            x = x + self.tp.all_reduce(up @ self._shard(layer, "down.weight")) + self._shard(layer, "down.bias")
        return x

    def _shard(self, layer: int, name: str) -> Tensor:
        return self.shards[f"{layer}.{name}"]


def run(training: GroupManager, serving: GroupManager, rounds: int) -> list[Tensor]:
    """Train, hand the weights over, infer, and again: what the rollout engine gave for the same input each round."""
    trainer, rollout = Trainer(training), Rollout(serving)
    here = weights(fsdp=training.dp.size > 1)
    plan = RefitPlan(here, training.topology, serving.topology, target_as=rollout.storage)
    prompt, _ = batch(1000)
    outputs: list[Tensor] = []
    for number in range(rounds):
        trainer.step(number)
        refit(plan, training.world, dict(trainer.model.named_parameters()), rollout.shards, version=number)
        outputs.append(rollout.forward(prompt))
    return outputs


def reference(rounds: int) -> list[Tensor]:
    """The same by one process with one model."""
    model: nn.Module = whole_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    prompt, _ = batch(1000)
    outputs: list[Tensor] = []
    for number in range(rounds):
        x, target = batch(number)
        F.mse_loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        outputs.append(model(prompt).detach())
    return outputs


def main() -> None:
    training, serving = map(ParallelTopology.parse, sys.argv[1:3])
    dist.init_process_group("gloo")
    with (
        GroupManager.from_world(training, name="trainer") as trainer,
        GroupManager.from_env(serving, name="rollout") as rollout,
    ):
        for number, (ours, expected) in enumerate(zip(run(trainer, rollout, 5), reference(5), strict=True)):
            if trainer.world.is_first:
                print(f"round {number}: differs from one process by at most {(ours - expected).abs().max():.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
