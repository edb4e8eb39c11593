"""Weights from Hugging Face's config.json: the parameters that authors state, and those that transformers creates.

pip install transformers && pytest -m peers tests/weights/test_families.py
"""

from __future__ import annotations

from typing import Any

import pytest

from parallel_topology import ParallelTopology, TopologyError
from parallel_topology.weights import Weight, Weights
from parallel_topology.weights.families import FAMILIES
from tests.weights import configurations as published

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
LLAMA = "https://arxiv.org/abs/2302.13971, table 2"
GPT_OSS = "https://arxiv.org/abs/2508.10925, table 1"
GEMMA_2 = "https://arxiv.org/abs/2408.00118, table 2"


@pytest.mark.parametrize(
    ("config", "billions", "without_embeddings", "source"),
    [
        (published.LLAMA_2_7B, "6.7", None, f"{LLAMA}: the same sizes"),
        (published.LLAMA_65B, "65.2", None, LLAMA),
        (published.LLAMA_3_1_405B, "405", None, "https://arxiv.org/abs/2407.21783"),
        (published.MISTRAL_7B, "7.3", None, "https://mistral.ai/news/announcing-mistral-7b"),
        (published.QWEN2_5_05B, "0.49", "0.36", "https://huggingface.co/Qwen/Qwen2.5-0.5B"),
        (published.QWEN2_5_7B, "7.61", "6.53", "https://huggingface.co/Qwen/Qwen2.5-7B"),
        (published.QWEN2_5_72B, "72.7", None, "https://huggingface.co/Qwen/Qwen2.5-72B"),
        (published.QWEN3_8B, "8.2", "6.95", "https://huggingface.co/Qwen/Qwen3-8B"),
        (published.QWEN3_32B, "32.8", "31.2", "https://huggingface.co/Qwen/Qwen3-32B"),
        (published.QWEN3_30B_A3B, "30.5", "29.9", "https://huggingface.co/Qwen/Qwen3-30B-A3B"),
        (published.QWEN3_235B_A22B, "235", "234", "https://huggingface.co/Qwen/Qwen3-235B-A22B"),
        (published.MIXTRAL_8X7B, "46.7", None, "https://mistral.ai/news/mixtral-of-experts"),
        (published.MIXTRAL_8X22B, "141", None, "https://mistral.ai/news/mixtral-8x22b"),
        (published.DEEPSEEK_V3, "671", None, "https://arxiv.org/abs/2412.19437"),
        (published.GPT_OSS_120B, "116.83", None, GPT_OSS),
        (published.GPT_OSS_20B, "20.91", None, GPT_OSS),
        (published.GEMMA_2_9B, None, "8.324201984", GEMMA_2),
        (published.GEMMA_2_27B, None, "26.047480320", GEMMA_2),
    ],
)
def test_parameters_are_those_that_the_authors_state(config, billions, without_embeddings, source):
    """To the last digit that is stated, rounded or cut off."""
    weights = Weights.from_config(config)
    embedded = sum(weight.elements for weight in weights.weights if weight.name in EMBEDDINGS)
    for stated, counted in ((billions, weights.parameters), (without_embeddings, weights.parameters - embedded)):
        if stated is not None:
            digits = len(stated.partition(".")[2])
            assert abs(counted - round(float(stated) * 1e9)) < 10 ** (9 - digits), source


# Against transformers

VARIED: list[dict[str, Any]] = [
    published.LLAMA_3_8B,
    {**published.LLAMA_3_8B, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 96},
    {**published.LLAMA_3_8B, "num_key_value_heads": None},
    published.MISTRAL_7B,
    published.QWEN2_5_05B,
    published.QWEN3_8B,
    {**published.QWEN3_8B, "attention_bias": True, "head_dim": None},
    published.GEMMA_7B,
    {**published.GEMMA_7B, "attention_bias": True},
    published.GEMMA_2_27B,
    published.GEMMA_3_4B,
    published.MIXTRAL_8X7B,
    published.QWEN3_30B_A3B,
    {**published.QWEN3_30B_A3B, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True},
    published.DEEPSEEK_V3,
    {**published.DEEPSEEK_V3, "attention_bias": True, "n_shared_experts": 2, "first_k_dense_replace": 0},
    {**published.DEEPSEEK_V3, "attention_bias": True, "q_lora_rank": None, "first_k_dense_replace": 9},
    published.GPT_OSS_20B,
]


def created(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], int]:
    """By transformers: its configuration in full, name -> shape, and the number of parameters; nothing is allocated."""
    import torch

    transformers: Any = pytest.importorskip("transformers")
    said = {name: value for name, value in given.items() if value is not None or name == "q_lora_rank"}
    config = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = sum(parameter.numel() for parameter in model.parameters())
    shapes |= {name: tuple(one.shape) for name, one in model.named_buffers() if name.endswith("correction_bias")}
    return config.to_dict(), shapes, found


def as_transformers(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The weights by transformers' names: gate and up of all experts are one parameter, and `.weight` is left out."""
    shapes = {name: weights.named(name).shape for name in weights.names}
    for name in [name for name in shapes if "experts.gate_proj.weight" in name and "shared" not in name]:
        experts, inner, hidden = shapes.pop(name)
        assert shapes.pop(name.replace("gate_proj", "up_proj")) == (experts, inner, hidden)
        shapes[name.replace("gate_proj.weight", "gate_up_proj")] = (experts, 2 * inner, hidden)
    return {name.replace("experts.down_proj.weight", "experts.down_proj") if ".experts" in name else name: shape
            for name, shape in shapes.items()}  # fmt: skip


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", VARIED, ids=lambda given: given["model_type"])
def test_names_and_shapes_are_those_of_transformers(given):
    few = {**given, "num_hidden_layers": 5}
    few |= {"layer_types": given["layer_types"][:5]} if "layer_types" in given else {}
    full, shapes, count = created(few)
    weights = Weights.from_config(few)
    assert as_transformers(weights) == shapes
    biases = sum(weight.elements * 5 for weight in weights.weights if weight.name.endswith("correction_bias"))
    dense = min(few.get("first_k_dense_replace", 0), 5)
    assert weights.parameters - biases * (5 - dense) // 5 == count
    assert Weights.from_config(full).weights == weights.weights


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(family):
    """All that may be left out is, here."""
    full, shapes, _ = created({"model_type": family, "num_hidden_layers": 2, "first_k_dense_replace": 1})
    left_out = {*FAMILIES[family].defaults, "head_dim"} - {"q_lora_rank"}
    needed = {name: value for name, value in full.items() if name not in left_out}
    if family == "qwen3_moe":
        needed["num_experts"] = needed.pop("num_local_experts")
    assert as_transformers(Weights.from_config(needed)) == shapes


# How they are cut


@pytest.mark.parametrize("text", ["tp4-dp2-pp2", "tp2-cp2-dp2/expert:etp1-ep4-edp2", "tp8-ep2"])
@pytest.mark.parametrize("config", VARIED, ids=lambda given: given["model_type"])
def test_every_family_divides(config, text):
    """All ranks together hold each element as often as the axes that do not cut it say."""
    topology = ParallelTopology.parse(text)
    few = {"num_hidden_layers": 4, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4}
    weights = Weights.from_config({**config, **few})
    expected = 0
    for name in weights.names:
        weight = weights.named(name)
        expected += weights.placed(topology, name).copies * weight.elements * (4 if weight.dtype == "float32" else 2)
    assert sum(weights.bytes_on(topology, rank) for rank in topology.world) == expected


def test_stages_and_padding_are_those_that_are_given():
    config = {**published.LLAMA_3_8B, "vocab_size": 32003}
    weights = Weights.from_config(config, pad_vocab_to=128, first=7, last=9, dtype="float32")
    topology = ParallelTopology(tp=2, pp=4)
    held = weights.on(topology, 0)
    assert held["model.embed_tokens.weight"].shape == (16128, 4096)
    assert sum("q_proj" in name for name in held) == 7
    assert weights.dtype == "float32"
    assert Weights.from_config({**config, "torch_dtype": "float16"}).dtype == "float16"
    assert Weights.from_config(config).on(topology, 0)["model.embed_tokens.weight"].shape == (16002, 4096)


def test_tied_embeddings_are_one_weight_on_both_ends():
    weights = Weights.from_config({**published.QWEN2_5_05B, "num_hidden_layers": 2})
    topology = ParallelTopology(pp=2)
    assert "lm_head.weight" not in weights.names
    assert all("model.embed_tokens.weight" in weights.on(topology, rank) for rank in topology.world)


def test_a_pair_of_gate_and_up_is_never_split():
    weights = Weights.from_config(published.GPT_OSS_20B)
    assert weights.named("model.layers.0.mlp.experts.gate_up_proj") == Weight(
        "model.layers.{}.mlp.experts.gate_up_proj", "32/ep 2880 5760/etp", units={2: 2880}, layer=True
    )


# Bad input


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': expected one of 'llama', 'mistral'"),
        ({"model_type": None}, "model_type=None: expected one of"),
        ({"model_type": "gemma3", "text_config": {}}, r"give config\['text_config'\]"),
        ({"hidden_size": None}, "model_type 'llama' has no 'hidden_size'"),
        ({"hidden_size": "4096"}, "hidden_size='4096'"),
        (
            {"hidden_size": 4097},
            "hidden_size 4097 is not a multiple of num_attention_heads 32, and there is no 'head_d",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_attention_heads": 32.0}, "num_attention_heads=32.0"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no'"),
        ({"torch_dtype": "fp16"}, "dtype='fp16'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected a causal language model"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantized .*'fp8'.*give dtype='bfloat16'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized .*'awq'.*expected quant_method fp8"),
        ({"quantization_config": "fp8"}, "quantized .*'fp8'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}},
            r"weight_block_size=128: expected rows and columns",
        ),
        ({"model_type": "mixtral"}, "has no 'num_local_experts'"),
        ({"model_type": "qwen3_moe"}, "has no 'num_experts'"),
        ({"model_type": "deepseek_v3"}, "has no 'first_k_dense_replace'"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "has no 'num_key_value_heads'"),
    ],
)
def test_a_configuration_that_cannot_be_read(changed, said):
    with pytest.raises(TopologyError, match=said):
        Weights.from_config({**published.LLAMA_3_8B, **changed})


def test_what_is_no_configuration():
    for given in ("config.json", None, [], 3):
        with pytest.raises(TopologyError, match=r"what json\.load gives"):
            Weights.from_config(given)  # pyright: ignore[reportArgumentType]


def test_quantized_weights_may_be_asked_for_as_they_were():
    quantized = {**published.DEEPSEEK_V3, "quantization_config": {"quant_method": "fp8"}}
    assert Weights.from_config(quantized, dtype="bfloat16") == Weights.from_config(published.DEEPSEEK_V3)
