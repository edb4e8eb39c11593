"""A trainer and a rollout engine in the same processes, with different topologies: weights go from one to the other.

The trainer is torch's FSDP2 and tensor parallelism over `from_world`; the rollout engine has a manager over a store of
its own, as an inference engine would, and takes its shard of each weight. So reinforcement learning colocates them.

    torchrun --nproc-per-node 4 -m parallel_topology.examples.trainer_and_rollout tp2-dp2 tp4
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from parallel_topology import GroupManager, ParallelGroup, ParallelTopology

from .fsdp2_tp import HIDDEN, LAYERS, LEARNING_RATE, batch, parallelize, whole_model

Named = tuple[str, Tensor]


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

    def weights(self) -> Iterator[Named]:
        """Every weight by name, whole, one after the other: no rank ever holds the whole model."""
        for name, parameter in self.model.named_parameters():
            yield name, (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


class Rollout:
    """The same model for inference, tensor-parallel along a group of its own manager."""

    def __init__(self, tp: ParallelGroup) -> None:
        self.tp = tp
        self.shards: dict[str, Tensor] = {}

    def load(self, weights: Iterable[Named]) -> None:
        """Keep this rank's shard of each weight: rows of `up`, columns of `down`, the rest whole."""
        for name, weight in weights:
            dim = 0 if ".up." in name else 1 if name.endswith("down.weight") else None
            part = range(len(weight)) if dim is None else self.tp.shard(weight.shape[dim])
            self.shards[name] = weight.narrow(dim or 0, part.start, len(part)).clone()

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, hidden]` -> `[batch, hidden]`."""
        for layer in range(LAYERS):
            normed = F.layer_norm(x, (HIDDEN,), self._shard(layer, "norm.weight"), self._shard(layer, "norm.bias"))
            up = F.gelu(F.linear(normed, self._shard(layer, "up.weight"), self._shard(layer, "up.bias")))
            x = (
                x
                + self.tp.all_reduce(F.linear(up, self._shard(layer, "down.weight")))
                + self._shard(layer, "down.bias")
            )
        return x

    def _shard(self, layer: int, name: str) -> Tensor:
        return self.shards[f"{layer}.{name}"]


def run(training: GroupManager, serving: GroupManager, rounds: int) -> list[Tensor]:
    """Train, hand the weights over, infer, and again: what the rollout engine gave for the same input each round."""
    trainer, rollout = Trainer(training), Rollout(serving.tp)
    prompt, _ = batch(1000)
    outputs: list[Tensor] = []
    for number in range(rounds):
        trainer.step(number)
        rollout.load(trainer.weights())
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
