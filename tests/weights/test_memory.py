"""Bytes of each rank: published figures, the formulas that are cited, and every rank of small worlds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.weights import Weight, Weights
from parallel_topology.weights.activations import Tokens, end_bytes, in_flight, layer_bytes
from parallel_topology.weights.fit import loads, most
from parallel_topology.weights.memory import Memory, Serving, Training, memory_on
from parallel_topology.weights.model import Model
from tests.waiting import soon, times_slower
from tests.weights import configurations as published
from tests.weights.test_families import VARIED

LARGE = ParallelTopology.parse("tp8-dp128-pp16/expert:etp1-ep64-edp16-pp16")
"""16,384 ranks."""


def gpt(hidden: int = 16, heads: int = 4, vocab: int = 32, **more: Any) -> Model:
    """The transformer of Korthikanti et al., without weights unless they are given."""
    elements = {"queries": hidden, "keys": hidden, "values": hidden, "attended": hidden, "inner": 4 * hidden}
    weights = more.pop("weights", Weights([], layers=4))
    sizes: Any = {"hidden": hidden, "vocab": vocab, "heads": heads, "kv_heads": heads, **elements, **more}
    return Model(weights=weights, gated=False, dropout=True, **sizes)


# Published figures


def layered(names: dict[str, tuple[str, Any]]) -> Weights:
    """Weights of one byte an element, a model of 8 layers over the stages [1, 2, 2, 3]."""
    listed = [Weight(name, shape, layer=layers) for name, (shape, layers) in names.items()]
    ends = [
        Weight("embedding", "32 16", stage="first"),
        Weight("output", "32 16", stage="last"),
        Weight("final norm", "2 16", stage="last"),
    ]
    return Weights([*listed, *ends], layers=8, dtype="int8", counts=[1, 2, 2, 3])


ATTENTION = {"qkv": ("48 16", True), "projection": ("16 16", True), "norms": ("4 16", True)}


def test_uneven_stages_as_megatron_bridge_counts_them():
    """https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/5077: an average says 6,792 of the first, and 4,744."""
    topology = ParallelTopology(pp=4)
    dense = layered({**ATTENTION, "up": ("64 16", True), "down": ("16 64", True)})
    assert [dense.bytes_on(topology, rank) for rank in range(4)] == [3648, 6272, 6272, 9952]
    sparse = [1, 4, 6, 7]
    plain = [0, 2, 3, 5]
    mixed = layered({**ATTENTION, "up": ("64 16", plain), "down": ("16 64", plain)})
    experts = layered({"e.up": ("2/ep 32 16", sparse), "e.down": ("2/ep 16 32", sparse)})
    assert mixed.bytes_on(topology, 3) == 5856 == max(mixed.bytes_on(topology, rank) for rank in range(4))
    assert experts.bytes_on(topology, 3) - 512 - 32 == 4096


@pytest.mark.parametrize(
    ("config", "kilobytes"),
    [(published.DEEPSEEK_V3, 70.272), (published.QWEN2_5_72B, 327.680), (published.LLAMA_3_1_405B, 516.096)],
)
def test_the_cache_of_a_token_is_as_published(config, kilobytes):
    """https://arxiv.org/abs/2505.09343, table 1, in units of 1,000 bytes."""
    model = Model.from_config(config)
    one = memory_on(model, ParallelTopology(tp=1), 0, Serving(batch=1, context=1))
    assert one.cache == round(1000 * kilobytes)


def test_bytes_of_a_parameter():
    """18 with float32 gradients, or 6 + 12/dp (Megatron's training/theoretical_memory_usage.py)."""
    model = Model.from_config(published.LLAMA_2_7B)
    count = model.weights.parameters
    whole = memory_on(model, ParallelTopology(dp=8), 0, Training())
    assert whole.weights + whole.gradients + whole.optimizer == 18 * count
    divided = memory_on(model, ParallelTopology(dp=8), 0, Training(zero=1))
    assert divided.weights + divided.gradients + divided.optimizer == 6 * count + 12 * count // 8
    thrice = memory_on(model, ParallelTopology(dp=8), 0, Training(zero=3, gradients="bfloat16"))
    assert thrice.weights + thrice.gradients + thrice.optimizer == 16 * count // 8
    layer = memory_on(model, ParallelTopology(dp=8), 0, Training(zero=3)).gathered
    assert layer == 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) * 2


@pytest.mark.parametrize(
    ("layout", "batch", "steps", "peak"),
    [("dp8", 2, 128, 69.1), ("tp2-dp4", 4, 32, 55.7), ("dp4-pp2", 2, 256, 49.8), ("tp8", 4, 32, 28.8)],
)
def test_llama_2_7b_on_8_gpus_is_just_below_what_was_measured(layout: str, batch: int, steps: int, peak: float):
    """Peaks of torch.cuda.max_memory_allocated, GiB: https://github.com/NVIDIA/Megatron-LM/pull/482, its README.

    The context is not said; 2,048 is the one that explains all four. What we do not count: Megatron of 2023 copied
    queries, keys and values, kept the gate unfused and had dropout: 0.16 GiB of 0.65 GiB a layer, by its own table.
    """
    model, topology = Model.from_config(published.LLAMA_2_7B), ParallelTopology.parse(layout)
    use = Training(batch=batch, context=2048, micro_batches=steps, zero=1, sequence_parallel=False)
    found = memory_on(model, topology, 0, replace(use, communicator_bytes=0)).total / 2**30
    assert 0.87 * peak < found < peak


# The formulas


@given(
    st.integers(1, 64), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 4), st.data()
)
def test_activations_are_those_of_the_paper(s: int, b: int, t: int, heads: int, wide: int, data: st.DataObject):
    a, h = heads, 8 * heads * wide
    model = gpt(hidden=h, heads=heads)
    for together in (False, True):
        tokens = Tokens(s * b, s, t, sequence_parallel=together)
        whole = layer_bytes(model, tokens, sparse=False, recompute="none")
        if t == 1:
            assert whole == s * b * (34 * h + 5 * a * s)  # section 4.1
        if together:
            assert whole * t == s * b * (34 * h + 5 * a * s)  # section 4.2.2
            assert layer_bytes(model, tokens, sparse=False, recompute="scores") * t == 34 * s * b * h  # section 5
            assert end_bytes(model, tokens) * t == 4 * s * b * (h + 32)  # section 4.3
        else:
            assert whole * t == s * b * (10 * h * t + 24 * h + 5 * a * s)  # section 4.2.1
        assert layer_bytes(model, tokens, sparse=False, recompute="full") == 2 * s * b * h  # table 2


def test_activations_as_megatron_bridge_counts_them():
    """In the tests of the pull request above: 9,568, of which 96 are token ids and their dropout."""
    use = Training(batch=2, context=8)
    assert memory_on(gpt(), ParallelTopology(tp=2, cp=2), 0, use).activations == 9568 - 96


@given(st.integers(1, 12), st.integers(1, 5))
def test_micro_batches_in_flight(stages: int, virtual: int):
    interleaved = Fraction(stages - 1, virtual) if virtual > 1 else 0
    assert in_flight(0, stages, virtual, None) == stages + interleaved  # section 4.2.3
    kept = [in_flight(stage, stages, virtual, None) for stage in range(stages)]
    assert kept == sorted(kept, reverse=True)
    assert in_flight(0, stages, virtual, 1) <= 1


def test_heads_fewer_than_ranks_are_cached_by_several():
    model = Model.from_config(published.LLAMA_3_8B)  # 8 heads of 128
    each = [memory_on(model, ParallelTopology(tp=tp), 0, Serving(context=1)).cache for tp in (1, 8, 16)]
    assert each == [2 * 8 * 128 * 2 * 32, 2 * 128 * 2 * 32, 2 * 128 * 2 * 32]
    latent = Model.from_config(published.DEEPSEEK_V3)
    assert len({memory_on(latent, ParallelTopology(tp=tp), 0, Serving()).cache for tp in (1, 8)}) == 1
    with pytest.raises(TopologyError, match="kv_heads 8 for tp 3 can be neither divided nor"):
        memory_on(model, ParallelTopology(tp=3), 0, Serving())


@pytest.mark.parametrize(
    ("config", "all_tokens", "windowed"),
    [
        (published.MISTRAL_7B, 0, 32),
        (published.GPT_OSS_20B, 12, 12),
        (published.GEMMA_2_9B, 21, 21),
        (published.GEMMA_3_4B, 5, 29),
        (published.QWEN3_8B, 36, 0),
        ({**published.QWEN3_8B, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 28}, 28, 8),
    ],
)
def test_layers_with_a_window_cache_no_more(config, all_tokens, windowed):
    model, context = Model.from_config(config), 100_000
    cached = memory_on(model, ParallelTopology(tp=1), 0, Serving(batch=3, context=context, cache="int8")).cache
    window = config["sliding_window"] if windowed else 0
    assert cached == 3 * 2 * model.keys * (all_tokens * context + windowed * window)


@pytest.mark.parametrize("given", VARIED, ids=lambda given: given["model_type"])
def test_widths_are_those_of_the_weights(given: dict[str, Any]):
    model = Model.from_config(given)
    shapes = {one.name.removeprefix("model.layers.{}.").removesuffix(".weight"): one.shape for one in
              model.weights.weights if not one.name.endswith("bias")}  # fmt: skip
    assert shapes["self_attn.o_proj"] == (model.hidden, model.attended)
    assert shapes["model.embed_tokens"] == (model.vocab, model.hidden)
    if model.latent is not None:
        assert shapes["self_attn.kv_a_proj_with_mqa"][0] == model.latent
        assert shapes["self_attn.kv_b_proj"][0] == model.keys * 2 // 3 + model.values
    else:
        projections = [shapes[f"self_attn.{name}_proj"][0] for name in "qkv"]
        assert projections == [model.queries, model.keys, model.values]
    assert shapes.get("mlp.gate_proj", (0,))[0] == model.inner
    experts = shapes.get("mlp.experts.up_proj", shapes.get("mlp.experts.down_proj", (0, 0)))
    assert experts[:2] == (model.experts, model.expert_inner)
    assert shapes.get("mlp.shared_experts.up_proj", (0,))[0] == model.shared_inner
    assert bool(model.sparse) == bool(model.experts_per_token)


# Every rank


@st.composite
def uneven_models(draw: st.DrawFn) -> tuple[Model, ParallelTopology]:
    """A model whose parts differ along every axis, and a topology."""
    tp, dp, pp = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(0, 3), min_size=pp, max_size=pp).filter(any))
    split = draw(st.lists(st.integers(0, 5), min_size=tp, max_size=tp).filter(any))
    weights = Weights(
        [
            Weight("embed", f"{draw(st.integers(1, 9))}/tp 2", uneven="tensor_split", stage="first"),
            Weight("rows", f"{draw(st.integers(1, 9))}/tp", uneven="chunk", layer=True),
            Weight("given", f"{sum(split)}/tp 3", uneven=split, layer=True),
            Weight("experts", f"{draw(st.integers(1, 9))}/ep 2", uneven="chunk", layer=True),
            Weight("norm", "5", stage="last", dtype="float32"),
        ],
        layers=sum(counts),
        counts=counts,
    )
    views = {"expert": f"ep{tp * dp}-pp{pp}"} if draw(st.booleans()) else {}
    return gpt(weights=weights), ParallelTopology(tp=tp, dp=dp, pp=pp, views=views)


USES = [Training(zero=zero, micro_batches=2) for zero in range(4)] + [Training(recompute="full"), Serving(batch=2)]


@given(uneven_models(), st.sampled_from(USES))
def test_the_heaviest_rank_is_found_without_asking_all(drawn: tuple[Model, ParallelTopology], use: Any):
    model, topology = drawn
    if isinstance(use, Serving) and 4 % topology.tp:
        return
    all_of = [memory_on(model, topology, rank, use) for rank in topology.world]
    found = loads(model, topology, use)
    assert found[0].memory.total == max(memory.total for memory in all_of) == most(model, topology, use)
    assert min(load.lightest for load in found) == min(memory.total for memory in all_of)
    assert sorted(stage for load in found for stage in load.stages) == [*range(topology.pp)]
    for load in found:
        assert all_of[load.rank] == load.memory
        assert topology.at(load.rank).pp.rank == load.stages[0]
        of_stage = [all_of[rank].total for rank in topology.world if topology.at(rank).pp.rank in load.stages]
        assert (max(of_stage), min(of_stage)) == (load.memory.total, load.lightest)


@given(uneven_models(), st.integers(0, 3))
def test_what_is_kept_is_what_bytes_on_says(drawn: tuple[Model, ParallelTopology], zero: int):
    model, topology = drawn
    weights, over = model.weights, "dp"
    for rank in topology.world:
        found = memory_on(model, topology, rank, Training(zero=zero, over=("dp",)))
        states = 2 * weights.bytes_on(topology, rank, dtype="float32", sharded_over=over if zero else ())
        trained = replace(model, weights=Weights([one for one in weights.weights if one.dtype is None],
                                                 layers=weights.layers, counts=weights.counts)).weights  # fmt: skip
        states += trained.bytes_on(topology, rank, dtype="float32", sharded_over=over if zero else ())
        assert found.optimizer == states
        assert found.weights == weights.bytes_on(topology, rank, sharded_over=over if zero == 3 else ())
        gradients = weights.bytes_on(topology, rank, dtype="float32", sharded_over=over if zero > 1 else ())
        assert found.gradients == gradients


def test_experts_and_all_else_are_divided_over_ranks_of_their_own():
    """Also where neither is cut: an expert's data-parallel ranks have other tensor-parallel parts of the rest."""
    weights = Weights([Weight("norm", "8"), Weight("experts", "4/ep 2"), Weight("inner", "4/ep 2/etp")])
    model = gpt(weights=weights)
    topology = ParallelTopology.parse("tp2-dp2/expert:etp1-ep1-edp4")
    kept = [memory_on(model, topology, rank, Training(zero=3)).weights for rank in topology.world]
    assert kept == [(8 // 2 + 8 // 4 + 8 // 4) * 2] * 4
    alone = ParallelTopology.parse("tp2/expert:etp1-ep1-edp2")
    assert memory_on(model, alone, 0, Training(zero=3)).weights == (8 + 8 // 2 + 8 // 2) * 2


def test_a_large_world_is_asked_in_no_time():
    """671B parameters on 16,384 ranks; one rank's question costs the same on a thousand times as many."""
    model = Model.from_config(published.DEEPSEEK_V3, Weights.from_config(published.DEEPSEEK_V3, first=4, last=1))
    larger = ParallelTopology.parse("tp8-dp131072-pp16/expert:etp1-ep64-edp16384-pp16")
    with soon():
        found = loads(model, larger, Training(zero=1))
    assert found[0].stages == (1,)

    def ask(topology: ParallelTopology) -> None:
        for rank in range(0, topology.world_size, topology.world_size // 5):
            memory_on(model, topology, rank, Training(zero=1))

    assert times_slower(lambda: ask(larger), lambda: ask(LARGE)) < 3


def test_why_a_stage_is_the_heaviest():
    model = Model.from_config(published.LLAMA_3_8B, Weights.from_config(published.LLAMA_3_8B, counts=[7, 8, 8, 9]))
    found = loads(model, ParallelTopology(pp=4), Serving())
    assert [load.stages for load in found] == [(3,), (0,), (1, 2)]
    assert found[0].why == "9 layers where others have 7, lm_head.weight"
    even = Model.from_config(published.LLAMA_3_8B)
    trained = loads(even, ParallelTopology(pp=4), Training())
    assert trained[0].stages == (0,)
    assert trained[0].why == "model.embed_tokens.weight, activations of 4 micro-batches"
    assert loads(even, ParallelTopology(tp=2), Serving())[0].why == ""


def test_what_no_gradient_moves_has_no_states():
    model = Model.from_config({**published.DEEPSEEK_V3, "num_hidden_layers": 4})
    memory = memory_on(model, ParallelTopology(tp=1), 0, Training())
    assert memory.gradients == 4 * (model.weights.parameters - 256)


def test_parts_of_memory():
    memory = Memory(weights=2, cache=3)
    assert (memory.parts, memory.total) == ({"weights": 2, "cache": 3}, 5)
    groups = ParallelTopology(tp=2, dp=2, pp=1)
    assert memory_on(gpt(), groups, 0, Serving(communicator_bytes=7)).communicators == 21  # the world, tp and dp


# Bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "batch=0"),
        ({"context": 1.5}, "context=1.5"),
        ({"zero": 4}, "zero=4: expected 0, 1, 2 or 3"),
        ({"zero": True}, "zero=True"),
        ({"micro_batches": 0}, "micro_batches=0"),
        ({"optimizer": "adamw"}, "optimizer='adamw': expected one of 'adam'"),
        ({"recompute": "all"}, "recompute='all': expected one of 'none', 'scores', 'full'"),
        ({"gradients": "fp32"}, "dtype='fp32'"),
        ({"communicator_bytes": -1}, "communicator_bytes=-1"),
    ],
)
def test_a_use_that_cannot_be(given: dict[str, Any], said: str):
    with pytest.raises(TopologyError, match=said):
        Training(**given)


def test_axes_that_are_not_there():
    with pytest.raises(UnknownAxisError, match=r"over: .* has no axis 'zero'"):
        memory_on(gpt(), ParallelTopology(tp=2), 0, Training(zero=1, over=("zero",)))
    with pytest.raises(TopologyError, match="dtype='kv'"):
        Serving(cache="kv")
