"""Model: the weights of a model, and the sizes of what flows through it, which is in no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.whole import require
from parallel_topology.weights.config import Config
from parallel_topology.weights.families import Family, family_of, read_config
from parallel_topology.weights.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Model:
    """What memory and traffic of a model come from. Elements are those of one token in one layer, whole.

    Attributes:
        weights: all of them.
        hidden: of the residual stream.
        vocab: logits.
        heads, kv_heads: attention heads; those of keys and values.
        queries, keys, values, attended: elements that attention has, and what it gives.
        latent: elements of keys and values as they are cached where they are compressed, whole on each rank of a tensor
            group (multi-head latent attention, https://arxiv.org/abs/2405.04434, section 2.1); None where they are not.
        inner: inside a feed-forward layer without experts.
        expert_inner, shared_inner: inside one expert, and inside those that every token passes; 0 where there are none.
        experts, experts_per_token: routed ones, in a layer that has them.
        sparse: the layers that have experts.
        windows: layer -> tokens that its attention looks back at, where these are not all.
        untrained: names of weights that no gradient moves.
        gated: the feed-forward layers have a gate.
        dropout: masks are kept for the backward pass.
    """

    weights: Weights
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    values: int
    attended: int
    latent: int | None = None
    inner: int = 0
    expert_inner: int = 0
    shared_inner: int = 0
    experts: int = 0
    experts_per_token: int = 0
    sparse: frozenset[int] = frozenset()
    windows: tuple[tuple[int, int], ...] = ()
    untrained: frozenset[str] = frozenset()
    gated: bool = True
    dropout: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], weights: Weights | None = None) -> Model:
        """A model from Hugging Face's config.json.

        Args:
            config: the file's fields.
            weights: what `Weights.from_config` makes of it with other arguments, such as a dtype or counts of layers;
                None for what it makes without.

        Raises:
            TopologyError: as for `Weights.from_config`.
        """
        weights = Weights.from_config(config) if weights is None else require_kind(weights, Weights, "weights")
        fields = read_config(config)
        family = family_of(fields)
        sparse = frozenset(family.sparse(fields))
        return cls(
            weights=weights,
            hidden=fields.size("hidden_size"),
            vocab=fields.size("vocab_size"),
            heads=fields.size("num_attention_heads"),
            **(_latent(fields) if family.latent else _grouped(fields)),
            **(_experts(fields, family) if sparse else {}),
            inner=fields.size("intermediate_size") if len(sparse) < weights.layers else 0,
            sparse=sparse,
            windows=tuple((layer, fields.size("sliding_window")) for layer in family.windowed(fields)),
            untrained=frozenset(f"model.layers.{{}}.{row.name}" for row in family.rows if not row.trained),
        )

    def stages_alike(self, stages: int) -> list[list[int]]:
        """The pipeline stages, of so many, that have as many layers of each kind: only the first and last stand alone.

        Raises:
            TopologyError: the layers do not divide over the stages.
        """
        if require(1, "stages", stages) not in self._alike:
            found: dict[object, list[int]] = {}
            windows = dict(self.windows)
            for stage in range(stages):
                own = self.weights.layers_on(stage, stages)
                layers = range(self.weights.layers)
                kinds = [sum(one in weight.layers(layers) for one in own) for weight in self.weights.weights
                         if not isinstance(weight.layer, bool)]  # fmt: skip
                looked = sorted(windows.get(layer, 0) for layer in own)
                key = stage == 0, stage == stages - 1, len(own), sum(layer in self.sparse for layer in own)
                found.setdefault((key, tuple(kinds), tuple(looked)), []).append(stage)
            self._alike[stages] = list(found.values())
        return self._alike[stages]

    @cached_property
    def _alike(self) -> dict[int, list[list[int]]]:
        return {}


def _grouped(config: Config) -> dict[str, Any]:
    heads, kv_heads = config.size("num_attention_heads"), config.size("num_key_value_heads")
    head_dim = config.size("head_dim")
    queries, keys = heads * head_dim, kv_heads * head_dim
    return {"kv_heads": kv_heads, "queries": queries, "keys": keys, "values": keys, "attended": queries}


def _latent(config: Config) -> dict[str, Any]:
    heads = config.size("num_attention_heads")
    queries, values = heads * config.size("qk_head_dim"), heads * config.size("v_head_dim")
    return {
        "kv_heads": heads, "queries": queries, "keys": queries, "values": values, "attended": values,
        "latent": config.value("kv_lora_rank+qk_rope_head_dim"),
    }  # fmt: skip


def _experts(config: Config, family: Family) -> dict[str, Any]:
    return {
        "experts": config.size("experts"),
        "experts_per_token": config.size("num_experts_per_tok"),
        "expert_inner": config.value(family.expert_inner),
        "shared_inner": config.value(family.shared_inner) if family.shared_inner else 0,
    }
