"""A Hugging Face model, tensor-parallel by its own plan and data-parallel by FSDP2, over one manager's groups.

The weights are random and the config is tiny: nothing is downloaded.

    torchrun --nproc-per-node 4 -m parallel_topology.examples.huggingface_tp tp2-dp2
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]
from transformers.distributed.tensor_parallel import apply_tensor_parallelism  # pyright: ignore[reportMissingImports]

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.interop.device_mesh import as_device_mesh

BATCH, SEQ = 4, 8


def whole_model() -> Any:
    """The same weights on every rank; float64, so that a comparison shows mistakes and not rounding."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double()


def batch() -> Tensor:
    """Tokens `[batch, seq]`."""
    return torch.randint(64, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))


def expanded_plan(model: Any) -> dict[str, str]:
    """The model's plan, which stands for all layers by a `*`, for each module and its parameters."""
    plan: dict[str, str] = {}
    for name, module in model.named_modules():
        style = model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if style is not None:
            plan |= {f"{name}.{parameter}": style for parameter, _ in module.named_parameters(recurse=False)}
            plan[name] = style
    return plan


def parallel_model(groups: GroupManager) -> nn.Module:
    """This rank's part of the model. The topology has the axes tp and dp; one of them may have size 1."""
    model, mesh = whole_model(), as_device_mesh(groups)
    if groups.tp.size > 1:
        apply_tensor_parallelism(model, mesh["tp"], expanded_plan(model))
    if groups.dp.size > 1:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    return model


def losses(model: nn.Module, tokens: Tensor, groups: GroupManager | None = None) -> list[float]:
    """The loss before and after two steps of gradient descent, on the whole batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    if groups is not None:
        share = groups.dp.batch_share(len(tokens))
        tokens = tokens[share.start : share.stop]
    found: list[float] = []
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        found.append(mean.item() if groups is None else groups.dp.all_reduce(mean).item() / groups.dp.size)
    return found


def main() -> None:
    topology = ParallelTopology.parse(sys.argv[1])
    dist.init_process_group("gloo")
    with GroupManager.from_world(topology) as groups:
        found = losses(parallel_model(groups), batch(), groups)
        if groups.world.is_first:
            print("loss      ", found)
            print("one rank's", losses(whole_model(), batch()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
