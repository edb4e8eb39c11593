"""A layer of Megatron-core, tensor-parallel over one manager's groups; Megatron's own globals stay untouched.

torchrun --nproc-per-node 4 -m parallel_topology.examples.megatron_layer tp2-cp1-dp2-pp1
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # pyright: ignore[reportMissingImports]
from megatron.core.transformer.spec_utils import build_module  # pyright: ignore[reportMissingImports]
from megatron.core.transformer.transformer_config import TransformerConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.nn import functional as F

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.interop.megatron import process_group_collection

HIDDEN, HEADS, SEQ, BATCH = 32, 4, 6, 2


class CoreAttention(nn.Module):
    """torch's attention in the place of Megatron's, whose buffers are on a GPU: `[seq, batch, heads / tp, size]`."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3).flatten(-2)


def recipe(tp: int) -> tuple[Any, Any]:
    """What Megatron builds a layer from: its spec and its config."""
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        tensor_model_parallel_size=tp,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float64,
    )
    spec = get_gpt_layer_local_spec(normalization="LayerNorm")
    spec.submodules.self_attention.submodules.core_attention = CoreAttention
    return spec, config


def layer(groups: GroupManager) -> nn.Module:
    """This rank's part of a layer whose full weights are the same under every topology."""
    spec, config = recipe(groups.tp.size)
    torch.manual_seed(0)
    return build_module(spec, config=config, layer_number=1, pg_collection=process_group_collection(groups)).double()


def run(groups: GroupManager) -> tuple[Tensor, Tensor]:
    """Forward and backward: the layer's output and the gradient of its input, `[seq, batch, hidden]` each."""
    x = torch.randn(SEQ, BATCH, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    output, _ = layer(groups)(x, attention_mask=None)
    output.square().sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def main() -> None:
    topology = ParallelTopology.parse(sys.argv[1])
    dist.init_process_group("gloo")
    with (
        GroupManager.from_world(topology) as groups,
        GroupManager(ParallelTopology.parse("tp1-cp1-dp1-pp1"), rank=0) as one,
    ):
        for what, ours, expected in zip(("output", "gradient"), run(groups), run(one), strict=True):
            print(f"rank {groups.rank}  {what}: differs from one rank's by at most {(ours - expected).abs().max():.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
