"""Weights as quantized checkpoints have them: what is published of these, and whose scales go with whose elements."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from parallel_topology import Hosts, ParallelTopology, TopologyError
from parallel_topology.weights import Model, Serving, Training, Weights, memory_on, traffic_on
from tests.weights import configurations as published

MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
DEEPSEEK = Weights.from_config({**published.DEEPSEEK_V3, "quantization_config": FP8})
ALONE = ParallelTopology(tp=1)


@pytest.mark.parametrize(("config", "gib"), [(published.GPT_OSS_120B, 60.8), (published.GPT_OSS_20B, 12.8)])
def test_checkpoints_are_as_large_as_their_authors_state(config: dict[str, Any], gib: float):
    """https://arxiv.org/abs/2508.10925, table 1."""
    found = Weights.from_config({**config, "quantization_config": MXFP4}).bytes_on(ALONE, 0) / 2**30
    assert abs(found - gib) < 0.1


def test_tensors_of_gpt_oss():
    """Shapes in its safetensors files: experts, out, blocks along in, bytes of a block."""
    held = Weights.from_config({**published.GPT_OSS_20B, "quantization_config": MXFP4}).on(ALONE, 0)
    experts = "model.layers.3.mlp.experts."
    found = {name.removeprefix(experts): one.shape for name, one in held.items() if name.startswith(experts)}
    assert found == {
        "gate_up_proj_blocks": (32, 5760, 90, 16),
        "gate_up_proj_scales": (32, 5760, 90),
        "gate_up_proj_bias": (32, 5760),
        "down_proj_blocks": (32, 2880, 90, 16),
        "down_proj_scales": (32, 2880, 90),
        "down_proj_bias": (32, 2880),
    }
    assert held["model.layers.3.self_attn.q_proj.weight"].nbytes == 2 * 4096 * 2880


def test_tensors_of_deepseek():
    whole, stored = Weights.from_config(published.DEEPSEEK_V3), {}
    for name, one in DEEPSEEK.on(ALONE, 0).items():
        stored[name] = one.shape, one.nbytes // prod(one.shape)
    layer = "model.layers.9."
    assert stored[f"{layer}self_attn.kv_a_proj_with_mqa.weight_scale_inv"] == (
        (5, 56),
        4,
    )  # 576 rows are not whole blocks
    assert stored[f"{layer}mlp.experts.down_proj.weight_scale_inv"] == ((256, 56, 16), 4)
    for name, one in whole.on(ALONE, 0).items():
        shape, wide = stored.pop(name)
        assert shape == one.shape
        small = "_proj" in name
        assert wide == (1 if small else one.nbytes // prod(one.shape))
        if small:
            blocks = [*shape[:-2], *(-(-size // 128) for size in shape[-2:])]
            assert stored.pop(f"{name}_scale_inv") == (tuple(blocks), 4)
    assert stored == {}


@pytest.mark.parametrize("spec", ["tp8-dp4-pp2/expert:etp1-ep32-pp2", "tp4-dp2/expert:etp2-ep4", "tp16"])
def test_scales_lie_with_their_elements(spec: str):
    topology = ParallelTopology.parse(spec)
    for rank in topology.world[:: max(1, topology.world_size // 8)]:
        held = DEEPSEEK.on(topology, rank)
        scales = {name for name in held if name.endswith("_scale_inv")}
        assert len(scales) > 100
        for name in scales:
            of_elements, of_scales = held[name.removesuffix("_scale_inv")].ranges, held[name].ranges
            for dim, (elements, blocks) in enumerate(zip(of_elements, of_scales, strict=True)):
                wide = 128 if dim >= len(of_elements) - 2 else 1
                assert blocks == range(elements.start // wide, -(-elements.stop // wide))


def test_half_of_the_memory_to_serve_and_none_to_train():
    config = {**published.DEEPSEEK_V3, "quantization_config": FP8}
    model = Model.from_config(config)
    wide = Model.from_config(config, Weights.from_config(config, dtype="bfloat16"))
    one, two = (memory_on(each, ParallelTopology(tp=8), 0, Serving()) for each in (model, wide))
    assert one.weights < 0.51 * two.weights
    assert one.cache == two.cache
    assert memory_on(wide, ParallelTopology(tp=8), 0, Training()).total
    with pytest.raises(TopologyError, match=r"of float8_e4m3fn is not trained so: .*dtype='bfloat16'"):
        memory_on(model, ParallelTopology(tp=8), 0, Training())
    with pytest.raises(TopologyError, match="is not trained so"):
        traffic_on(model, ParallelTopology(tp=8), Hosts.parse("1x8"), Training())


def test_blocks_that_do_not_divide():
    with pytest.raises(TopologyError, match="100 is no multiple of the 32 elements of a block"):
        Weights.from_config({**published.GPT_OSS_20B, "intermediate_size": 100, "quantization_config": MXFP4})
