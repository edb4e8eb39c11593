"""Families of models, as tables: a row is a weight, with fields of Hugging Face's config.json in place of sizes.

Names are those of the modules in transformers 5, which are the checkpoint's for all but experts. These are a dim, and
each projection is a weight: `experts.gate_proj.weight` of [experts, inner, hidden] is what a checkpoint has as
`experts.0.gate_proj.weight`, ... (Mixtral's as `block_sparse_moe.experts.0.w1.weight`; up is w3 and down w2), and
transformers as the first half of dim 1 of `experts.gate_up_proj`. Layers that only predict further tokens, as in
DeepSeek-V3 (`num_nextn_predict_layers`), are left out, as transformers does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted
from parallel_topology.topology.wording import listed
from parallel_topology.weights.config import Config
from parallel_topology.weights.weight import Stage, Weight

Kind = Literal["all", "dense", "sparse"]
"""Which layers have it: `sparse` are those with experts."""


@dataclass(frozen=True, slots=True)
class Row:
    """A weight of a family.

    Attributes:
        name: in a layer what follows its number, else the whole name.
        shape: as for `Weight`, with sums of products of fields in place of sizes.
        units: the fields that are heads, say: of the cut dim, or dim -> fields.
        when: fields that all have to say something, or with `not` in front nothing.
        kind: the layers that have it.
        dtype: where it is not the model's.
        trained: whether it is a parameter; else the training loop moves it.
    """

    name: str
    shape: str
    units: str | Mapping[int, str] | None = None
    when: Sequence[str] = ()
    kind: Kind = "all"
    dtype: str | None = None
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`.

    Attributes:
        rows: the weights of a layer.
        sparse: the layers that have experts.
        defaults: what transformers takes where a configuration says nothing, for fields that published ones leave out.
        renamed: fields by another name -> by that of the rows.
        windowed: the layers whose attention looks back at `sliding_window` tokens only.
        latent: keys and values are compressed.
        expert_inner, shared_inner: the fields that say what is inside one expert, and inside the shared ones.
    """

    rows: tuple[Row, ...]
    sparse: Callable[[Config], Iterable[int]] = lambda config: ()
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    windowed: Callable[[Config], Iterable[int]] = lambda config: ()
    latent: bool = False
    expert_inner: str = "moe_intermediate_size"
    shared_inner: str = ""


_QUERIES, _KEYS = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_ATTENTION = (
    Row("self_attn.q_proj.weight", f"{_QUERIES}/tp hidden_size", "num_attention_heads"),
    Row("self_attn.k_proj.weight", f"{_KEYS}/tp hidden_size", "num_key_value_heads"),
    Row("self_attn.v_proj.weight", f"{_KEYS}/tp hidden_size", "num_key_value_heads"),
    Row("self_attn.o_proj.weight", f"hidden_size {_QUERIES}/tp", "num_attention_heads"),
)
_QKV_BIAS = (
    Row("self_attn.q_proj.bias", f"{_QUERIES}/tp", "num_attention_heads", when=("qkv_bias",)),
    Row("self_attn.k_proj.bias", f"{_KEYS}/tp", "num_key_value_heads", when=("qkv_bias",)),
    Row("self_attn.v_proj.bias", f"{_KEYS}/tp", "num_key_value_heads", when=("qkv_bias",)),
)
_OUTPUT_BIAS = (Row("self_attn.o_proj.bias", "hidden_size", when=("attention_bias",)),)
_HEAD_NORMS = (Row("self_attn.q_norm.weight", "head_dim"), Row("self_attn.k_norm.weight", "head_dim"))
_KEY_ROWS = "num_attention_heads*qk_nope_head_dim+num_attention_heads*v_head_dim"
_LATENT_ATTENTION = (
    Row("self_attn.q_proj.weight", "num_attention_heads*qk_head_dim/tp hidden_size", "num_attention_heads",
        when=("not q_lora_rank",)),
    Row("self_attn.q_a_proj.weight", "q_lora_rank hidden_size", when=("q_lora_rank",)),
    Row("self_attn.q_a_layernorm.weight", "q_lora_rank", when=("q_lora_rank",)),
    Row("self_attn.q_b_proj.weight", "num_attention_heads*qk_head_dim/tp q_lora_rank", "num_attention_heads",
        when=("q_lora_rank",)),
    Row("self_attn.kv_a_proj_with_mqa.weight", "kv_lora_rank+qk_rope_head_dim hidden_size"),
    Row("self_attn.kv_a_layernorm.weight", "kv_lora_rank"),
    Row("self_attn.kv_b_proj.weight", f"{_KEY_ROWS}/tp kv_lora_rank", "num_attention_heads"),
    Row("self_attn.o_proj.weight", "hidden_size num_attention_heads*v_head_dim/tp", "num_attention_heads"),
    Row("self_attn.q_a_proj.bias", "q_lora_rank", when=("q_lora_rank", "attention_bias")),
    Row("self_attn.kv_a_proj_with_mqa.bias", "kv_lora_rank+qk_rope_head_dim", when=("attention_bias",)),
    Row("self_attn.o_proj.bias", "hidden_size", when=("attention_bias",)),
)  # fmt: skip


def _gated(where: str, inner: str, kind: Kind = "all") -> tuple[Row, ...]:
    """A feed-forward layer with a gate, cut along what is inside."""
    return (
        Row(f"{where}.gate_proj.weight", f"{inner}/tp hidden_size", kind=kind),
        Row(f"{where}.up_proj.weight", f"{inner}/tp hidden_size", kind=kind),
        Row(f"{where}.down_proj.weight", f"hidden_size {inner}/tp", kind=kind),
    )


def _experts(inner: str) -> tuple[Row, ...]:
    return (
        Row("mlp.gate.weight", "experts hidden_size", kind="sparse"),
        Row("mlp.experts.gate_proj.weight", f"experts/ep {inner}/etp hidden_size", kind="sparse"),
        Row("mlp.experts.up_proj.weight", f"experts/ep {inner}/etp hidden_size", kind="sparse"),
        Row("mlp.experts.down_proj.weight", f"experts/ep hidden_size {inner}/etp", kind="sparse"),
    )


_MLP = _gated("mlp", "intermediate_size")
_MLP_BIAS = (
    Row("mlp.gate_proj.bias", "intermediate_size/tp", when=("mlp_bias",)),
    Row("mlp.up_proj.bias", "intermediate_size/tp", when=("mlp_bias",)),
    Row("mlp.down_proj.bias", "hidden_size", when=("mlp_bias",)),
)
_GPT_OSS_EXPERTS = (  # gate and up alternate along the last dim: a pair is never split
    Row("mlp.router.weight", "experts hidden_size"),
    Row("mlp.router.bias", "experts"),
    Row("mlp.experts.gate_up_proj", "experts/ep hidden_size 2*intermediate_size/etp", {2: "intermediate_size"}),
    Row("mlp.experts.gate_up_proj_bias", "experts/ep 2*intermediate_size/etp", {1: "intermediate_size"}),
    Row("mlp.experts.down_proj", "experts/ep intermediate_size/etp hidden_size"),
    Row("mlp.experts.down_proj_bias", "experts/ep hidden_size"),
)
_NORMS = (Row("input_layernorm.weight", "hidden_size"), Row("post_attention_layernorm.weight", "hidden_size"))
_GEMMA_NORMS = (
    *_NORMS,
    Row("pre_feedforward_layernorm.weight", "hidden_size"),
    Row("post_feedforward_layernorm.weight", "hidden_size"),
)

_PLAIN = {"tie_word_embeddings": False, "attention_bias": False, "qkv_bias": "attention_bias"}
_GEMMA = {**_PLAIN, "tie_word_embeddings": True}


def _every_layer(config: Config) -> range:
    return range(config.size("num_hidden_layers"))


def _after_dense(config: Config) -> range:
    layers = config.size("num_hidden_layers")
    return range(min(config.size("first_k_dense_replace", least=0), layers), layers)


def _every_few(config: Config) -> list[int]:
    step, dense = config.size("decoder_sparse_step"), config.numbers("mlp_only_layers")
    return [layer for layer in _every_layer(config) if (layer + 1) % step == 0 and layer not in dense]


def _windowed(every: int = 0, switch: str = "", after: str = "") -> Callable[[Config], Iterable[int]]:
    """The layers with a window: as `layer_types` says, or else from `after` on all but each `every`th."""

    def layers(config: Config) -> Iterable[int]:
        kinds, count = config.texts("layer_types"), config.size("num_hidden_layers")
        if kinds and len(kinds) != count:
            raise TopologyError(f"layer_types has {len(kinds)} words for num_hidden_layers {count}: expected as many")
        if not config.says("sliding_window") or (switch and not config.says(switch)):
            return ()
        if kinds:
            return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
        begin = config.size(after, least=0) if after else 0
        return [layer for layer in _every_layer(config) if layer >= begin and (not every or (layer + 1) % every)]

    return layers


_QWEN_WINDOWS = _windowed(switch="use_sliding_window", after="max_window_layers")

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        (*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_MLP, *_MLP_BIAS, *_NORMS),
        defaults={**_PLAIN, "mlp_bias": False, "num_key_value_heads": "num_attention_heads"},
    ),
    "mistral": Family((*_ATTENTION, *_MLP, *_NORMS), defaults=_PLAIN, windowed=_windowed()),
    "qwen2": Family(
        (*_ATTENTION, *_QKV_BIAS, *_MLP, *_NORMS),
        defaults={**_PLAIN, "qkv_bias": True},
        windowed=_QWEN_WINDOWS,
    ),
    "qwen3": Family(
        (*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_HEAD_NORMS, *_MLP, *_NORMS),
        defaults={**_PLAIN, "head_dim": 128},
        windowed=_QWEN_WINDOWS,
    ),
    "gemma": Family((*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_MLP, *_NORMS), defaults={**_GEMMA, "head_dim": 256}),
    "gemma2": Family(
        (*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_MLP, *_GEMMA_NORMS),
        defaults={**_GEMMA, "head_dim": 256},
        windowed=_windowed(2),
    ),
    "gemma3_text": Family(
        (*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_HEAD_NORMS, *_MLP, *_GEMMA_NORMS),
        defaults={
            **_GEMMA, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
        },
        windowed=_windowed(6),
    ),
    "mixtral": Family(
        (*_ATTENTION, *_experts("intermediate_size"), *_NORMS),
        _every_layer,
        {**_PLAIN, "experts": "num_local_experts"},
        windowed=_windowed(), expert_inner="intermediate_size",
    ),
    "qwen3_moe": Family(
        (
            *(*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_HEAD_NORMS),
            *(*_gated("mlp", "intermediate_size", "dense"), *_experts("moe_intermediate_size"), *_NORMS),
        ),
        _every_few,
        {**_PLAIN, "experts": "num_experts", "decoder_sparse_step": 1},
        {"num_local_experts": "num_experts"},  # published ones say num_experts, transformers 5 writes the other
        _QWEN_WINDOWS,
    ),
    "deepseek_v3": Family(
        (
            *(*_LATENT_ATTENTION, *_gated("mlp", "intermediate_size", "dense"), *_experts("moe_intermediate_size")),
            Row("mlp.gate.e_score_correction_bias", "experts", kind="sparse", dtype="float32", trained=False),
            *_gated("mlp.shared_experts", "n_shared_experts*moe_intermediate_size", "sparse"),
            *_NORMS,
        ),
        _after_dense,
        {
            **_PLAIN, "experts": "n_routed_experts", "q_lora_rank": False,
            "qk_head_dim": "qk_nope_head_dim+qk_rope_head_dim",
        },
        latent=True, shared_inner="n_shared_experts*moe_intermediate_size",
    ),
    "gpt_oss": Family(
        (
            Row("self_attn.sinks", "num_attention_heads/tp"),
            *(*_ATTENTION, *_QKV_BIAS, *_OUTPUT_BIAS, *_GPT_OSS_EXPERTS, *_NORMS),
        ),
        _every_layer,
        {**_PLAIN, "attention_bias": True, "head_dim": 64, "experts": "num_local_experts"},
        windowed=_windowed(2), expert_inner="intermediate_size",
    ),
}  # fmt: skip


def read_config(given: object) -> Config:
    """The configuration of a family that is known, whose weights are all said by it.

    Raises:
        TopologyError: the family is not known, or the model is more than a causal language model.
    """
    if not isinstance(given, Mapping):
        raise TopologyError(f"config={quoted(given)}: expected what json.load gives of a config.json, a dictionary")
    fields = cast("Mapping[str, Any]", given)
    kind = fields.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        text = "; of a model that is more than text, give config['text_config']" if "text_config" in fields else ""
        raise TopologyError(f"model_type={quoted(kind)}: expected one of {listed(FAMILIES)}{text}")
    architectures = fields.get("architectures") or ()
    if other := [name for name in architectures if not str(name).endswith("ForCausalLM")]:
        raise TopologyError(
            f"architectures={quoted(other)}: expected a causal language model, as in 'LlamaForCausalLM'"
        )
    renamed = {new: fields[old] for old, new in family.renamed.items() if fields.get(old) is not None}
    return Config({**renamed, **fields}, family.defaults)


def family_of(config: Config) -> Family:
    return FAMILIES[config.fields["model_type"]]


def read_weights(config: Config, pad_vocab_to: int) -> list[Weight]:
    """The weights of a model, in the order in which its forward pass meets them.

    Raises:
        TopologyError: a field that is needed is not there, or is no size.
    """
    family = family_of(config)
    layers = range(config.size("num_hidden_layers"))
    sparse = set(family.sparse(config))
    having: dict[Kind, bool | list[int]] = {
        "all": True,
        "sparse": [layer for layer in layers if layer in sparse],
        "dense": [layer for layer in layers if layer not in sparse],
    }
    if any(row.units == "num_key_value_heads" for row in family.rows):
        _check_heads(config)
    tied = config.says("tie_word_embeddings")
    vocabulary = Row("", "vocab_size/tp hidden_size")
    found = [_weight(config, vocabulary, "model.embed_tokens.weight", "tied" if tied else "first", pad_vocab_to)]
    rows = (row for row in family.rows if having[row.kind] and all(_holds(config, field) for field in row.when))
    found += [_in_layers(config, row, having[row.kind]) for row in rows]
    found.append(_weight(config, Row("", "hidden_size"), "model.norm.weight", "last"))
    if not tied:
        found.append(_weight(config, vocabulary, "lm_head.weight", "last", pad_vocab_to))
    return found


def stored_dtype(config: Config) -> object:
    """The dtype of weights that are not quantized as the configuration says it; bfloat16 where it does not."""
    return config.fields.get("dtype") or config.fields.get("torch_dtype") or "bfloat16"


def _holds(config: Config, condition: str) -> bool:
    return config.says(condition.removeprefix("not ")) != condition.startswith("not ")


def _check_heads(config: Config) -> None:
    heads, kv_heads = config.size("num_attention_heads"), config.size("num_key_value_heads")
    if heads % kv_heads:
        raise TopologyError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")


def _in_layers(config: Config, row: Row, layers: bool | list[int]) -> Weight:
    units: int | dict[int, int] | None = None
    if isinstance(row.units, str):
        units = config.value(row.units)
    elif row.units is not None:
        units = {dim: config.value(fields) for dim, fields in row.units.items()}
    return Weight(f"model.layers.{{}}.{row.name}", _shape(config, row), layer=layers, units=units, dtype=row.dtype)


def _weight(config: Config, row: Row, name: str, stage: Stage, pad_to: int | None = None) -> Weight:
    return Weight(name, _shape(config, row), stage=stage, pad_to=pad_to)


def _shape(config: Config, row: Row) -> str:
    dims = (dim.partition("/") for dim in row.shape.split())
    return " ".join(f"{config.value(fields)}{slash}{axes}" for fields, slash, axes in dims)
