"""A trainer and a rollout engine in the same processes, with different topologies: weights go from one to the other.

The trainer is torch's FSDP2 and tensor parallelism over `from_world`; the rollout engine has a manager over a store of
its own, as an inference engine would, and stores weights in its own way. A plan, made once, says what goes from whom to
whom after each step. So reinforcement learning colocates them.

    torchrun --nproc-per-node 4 -m parallel_topology.examples.trainer_and_rollout tp2-dp2 tp4
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.interop.device_mesh import as_device_mesh
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Fused, Storage, Transposed, Weight, Weights

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, LAYERS = 16, 32, 4, 2, 4, 2
"""The model's sizes; `WIDTH` of a head. The trainer's tp has to divide the key heads, the rollout engine's need not."""
BATCH, LENGTH, LEARNING_RATE = 8, 5, 0.02
PLAN: dict[str, ParallelStyle] = {
    **{name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")},
    **{name: RowwiseParallel() for name in ("o", "down")},
}


class Block(nn.Module):
    """`[batch, length, hidden]`, shape kept. On a tp rank it has some of the heads, and of the inner columns."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        sizes = {"q": HEADS * WIDTH, "k": KV_HEADS * WIDTH, "v": KV_HEADS * WIDTH, "gate": INNER, "up": INNER}
        for name, size in sizes.items():
            setattr(self, name, nn.Linear(HIDDEN, size, bias=False))
        self.o, self.down = nn.Linear(HEADS * WIDTH, HIDDEN, bias=False), nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.o(attended(*(self.get_submodule(name)(normed) for name in "qkv")))
        normed = self.norm2(x)
        gate, up = (self.get_submodule(name)(normed) for name in ("gate", "up"))
        return x + self.down(F.silu(gate) * up)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the heads that are here, `[batch, length, heads * width]` each."""
    q, k, v = (one.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)


def whole_model() -> nn.Sequential:
    """The same weights on every rank; float64, so that a comparison shows mistakes and not rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block() for _ in range(LAYERS))).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step: inputs and targets, `[batch, length, hidden]` each."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator, dtype=torch.float64)
    return x, x.roll(1, dims=-1).sin()


def weights(fsdp: bool) -> Weights:
    """The weights of the model, cut over tp; under FSDP2 each part once more along dim 0, over dp, as `torch.chunk`.

    A rollout rank has whole heads; where there are more ranks than key heads, several have the same one.
    """
    rows, others = ("/tp/dp", "/dp") if fsdp else ("/tp", "")
    how: dict[str, Any] = {"layer": True, "uneven": "chunk"} if fsdp else {"layer": True}
    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    return Weights(
        [
            *(Weight(f"{{}}.{name}.weight", f"{HIDDEN}{others}", **how) for name in ("norm1", "norm2")),
            *(
                Weight(f"{{}}.{name}.weight", f"{count * WIDTH}{rows} {HIDDEN}", **how, units=None if fsdp else count)
                for name, count in heads.items()
            ),
            *(Weight(f"{{}}.{name}.weight", f"{INNER}{rows} {HIDDEN}", **how) for name in ("gate", "up")),
            Weight("{}.o.weight", f"{HIDDEN}{others} {HEADS * WIDTH}/tp", **how),
            Weight("{}.down.weight", f"{HIDDEN}{others} {INNER}/tp", **how),
        ],
        layers=LAYERS,
        dtype="float64",
    )


class Trainer:
    """The model, sharded over the tp and dp of `groups`."""

    def __init__(self, groups: GroupManager) -> None:
        self.groups = groups
        self.model = whole_model()
        mesh = as_device_mesh(groups)
        for block in self.model:
            if groups.tp.size > 1:
                parallelize_module(block, mesh["tp"], PLAN)
            if groups.dp.size > 1:
                fully_shard(block, mesh=mesh["dp"])
        if groups.dp.size > 1:
            fully_shard(self.model, mesh=mesh["dp"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, foreach=False)

    def step(self, number: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        share = self.groups.dp.batch_share(BATCH)
        x, target = (tensor[share.start : share.stop] for tensor in batch(number))
        F.mse_loss(self.model(x), target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Rollout:
    """The same model for inference, tensor-parallel along a group of its own manager: qkv and gate_up are one tensor
    each, as vLLM keeps them, and `down` is transposed."""

    def __init__(self, groups: GroupManager) -> None:
        self.tp = groups.tp
        qkv, gate_up = ([f"{{}}.{name}.weight" for name in names] for names in (("q", "k", "v"), ("gate", "up")))
        rules = [Fused("{}.qkv", qkv), Fused("{}.gate_up", gate_up), Transposed("{}.down.weight")]
        self.storage = Storage(weights(fsdp=False), rules)
        stored = self.storage.tensors(groups.topology, groups.rank)
        self.shards = {name: torch.empty(one.shape, dtype=torch.float64) for name, one in stored.items()}

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, hidden]` -> the same."""
        for layer in range(LAYERS):
            qkv, gate_up, norm1, norm2, o, down = (
                self.shards[f"{layer}.{name}"]
                for name in ("qkv", "gate_up", "norm1.weight", "norm2.weight", "o.weight", "down.weight")
            )
            queries = o.shape[1]
            keys = (len(qkv) - queries) // 2
            q, k, v = F.linear(F.rms_norm(x, (HIDDEN,), norm1), qkv).split([queries, keys, keys], dim=-1)
            x = x + self.tp.all_reduce(F.linear(attended(q, k, v), o))
            gate, up = F.linear(F.rms_norm(x, (HIDDEN,), norm2), gate_up).chunk(2, dim=-1)
            x = x + self.tp.all_reduce((F.silu(gate) * up) @ down)
        return x


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
