"""Refits that are carried out, in threads and in processes: bitwise what slicing the whole tensors gives."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import GroupArgumentError, GroupManager, GroupTimeoutError, Hosts, ParallelTopology, RefitError
from parallel_topology.refit import RefitPlan, neighbours, refit, start_refit, transfer
from parallel_topology.refit.neighbours import Neighbours
from parallel_topology.refit.patterns import Patterns
from parallel_topology.refit.sides import Side
from parallel_topology.testing import run_ranks
from parallel_topology.testing.threads import run_threads
from parallel_topology.weights import Fused, Interleaved, Padded, Split, Storage, Transposed, Weight, Weights
from tests.examples import examples
from tests.refit.drawing import refits

Tensors = dict[str, torch.Tensor]


def whole(weights: Weights, seed: int = 0) -> Tensors:
    """Every logical tensor, of random bits: NaNs with payloads, infinities and denormals too."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name in weights.names:
        weight = weights.named(name)
        dtype = getattr(torch, weight.dtype or weights.dtype)
        bits = torch.randint(0, 256, (weight.elements * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        found[name] = bits.view(dtype).view(weight.shape)
    return found


def stored(side: Side, rank: int, values: Tensors | None) -> Tensors:
    """A rank's tensors, of these logical tensors; or of ones, where nothing has been written."""
    tensors = {
        name: torch.ones(one.shape, dtype=getattr(torch, one.dtype)) for name, one in side.tensors_on(rank).items()
    }
    for name in side.weights.names if values and rank in side.topology.world else ():
        for place in side.storage.places(side.topology, rank, name):
            own = (values or {})[name][tuple(slice(part.start, part.stop) for part in place.ranges)]
            place.view(tensors[place.tensor]).copy_(own)
    return tensors


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


def carry_out(groups: GroupManager, plan: RefitPlan, staging_bytes: int = 4096) -> None:
    """Refit, and compare."""
    rank = groups.rank
    values = whole(plan.source.weights)
    have, into = stored(plan.source, rank, values), stored(plan.target, rank, None)
    before = {name: tensor.clone() for name, tensor in have.items()}

    said: list[tuple[int, int]] = []
    done = refit(
        plan,
        groups.world,
        have,
        into,
        staging_bytes,
        version=3,
        progress=lambda *bytes_of: said.append(bytes_of),
    )
    wanted = {name: value.to(getattr(torch, _dtype(plan.target.weights, name))) for name, value in values.items()}
    expected = stored(plan.target, rank, wanted)
    for name, tensor in into.items():
        if plan.source.weights.dtype == plan.target.weights.dtype:
            assert same_bits(tensor, expected[name]), name
        else:  # which NaN becomes which is the processor's choice
            assert torch.allclose(tensor, expected[name], rtol=0, atol=0, equal_nan=True), name
    assert all(same_bits(have[name], before[name]) for name in have)
    own = plan.moves(rank) if rank in plan.ranks else []
    assert done.version == 3
    assert done.received == sum(plan.nbytes(move) for move in own if move.target == rank != move.source)
    assert done.kept == sum(plan.nbytes(move) for move in own if move.target == rank == move.source)
    assert done.staged <= staging_bytes
    assert not own or said[-1][0] == said[-1][1]


def _dtype(weights: Weights, name: str) -> str:
    return weights.named(name).dtype or weights.dtype


def everyone(plan: RefitPlan) -> ParallelTopology:
    return ParallelTopology(dp=len(plan.ranks), ranks=tuple(plan.ranks))


@settings(max_examples=25)
@given(refits(6), st.booleans(), st.integers(1, 3))
def test_what_arrives_is_what_slicing_gives(drawn, with_hosts, per_host):
    here, there, source, target = drawn
    ranks = sorted({*source.world, *target.world})
    hosts = Hosts.listed(ranks[start : start + per_host] for start in range(0, len(ranks), per_host))
    plan = RefitPlan(here, source, target, target_as=there, hosts=hosts if with_hosts else None)
    plan.verify()
    run_ranks(everyone(plan), carry_out, plan)


MODEL = Weights(
    [
        Weight("embed", "1000/tp 16", stage="first"),
        Weight("q", "64/tp 16", units=8, layer=True),
        Weight("k", "32/tp 16", units=4, layer=True),
        Weight("v", "32/tp 16", units=4, layer=True),
        Weight("o", "16 64/tp", layer=True),
        Weight("norm", "16", layer=True, dtype="float32"),
        Weight("gate", "8/ep 24/etp 16", layer=True),
        Weight("up", "8/ep 24/etp 16", layer=True),
        Weight("down", "8/ep 16 24/etp", layer=True),
        Weight("head", "1000/tp 16", stage="last"),
    ],
    layers=4,
)
MEGATRON = Storage(
    MODEL,
    [
        Interleaved("linear_qkv", ["q", "k", "v"], groups=4),
        Fused("fc1", ["gate", "up"], dim=1),
        Split("fc1", "layers.{}.experts.{index}.fc1"),
        Split("down", "layers.{}.experts.{index}.fc2"),
        Padded("embed", to=128),
        Padded("head", to=128),
    ],
)
VLLM = Storage(
    MODEL,
    [
        Fused("qkv_proj", ["q", "k", "v"]),
        Fused("w13", ["gate", "up"], dim=1),
        Transposed("down"),
        Padded("embed", whole_to=64),
        Padded("head", whole_to=64),
    ],
)
LAYOUTS = [
    ("tp2-pp2", "tp4"),
    ("tp4", "tp2-dp2"),
    ("tp2-dp2-pp2/expert:etp1-ep4-pp2", "tp8"),
    ("tp8", "tp2-dp2-pp2/expert:etp1-ep4-pp2"),
    ("tp2-dp2", "tp4@first4"),
    ("pp4", "tp2-dp3"),
]


def layout(text: str) -> ParallelTopology:
    sizes, _, first = text.partition("@first")
    parsed = ParallelTopology.parse(sizes)
    return parsed.model_copy(update={"first_rank": int(first)}) if first else parsed


@pytest.mark.parametrize(("source", "target"), LAYOUTS)
@pytest.mark.parametrize("storages", [(MEGATRON, VLLM), (VLLM, MEGATRON), (MODEL, VLLM)], ids=["mv", "vm", "pv"])
def test_each_side_stores_them_in_its_own_way(source: str, target: str, storages: Any):
    here, there = storages
    if here is MEGATRON:
        source = source.replace("tp8", "tp4-dp2")  # its groups of heads cannot be split
    if there is MEGATRON:
        target = target.replace("tp8", "tp4-dp2")
    plan = RefitPlan(MODEL, layout(source), layout(target), source_as=here, target_as=there)
    run_ranks(everyone(plan), carry_out, plan, 1 << 20 if here is MODEL else 4096)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize(("source", "target"), [("tp2-pp2", "tp4"), ("tp4", "tp2-dp2")])
def test_quantized_weights_go_beside_their_scales(source: str, target: str, dtype: str):
    """A scale for each block of 32 x 16 elements: both are moved as the bits that they are."""
    quantized = Weights(
        [
            Weight("up", "256/tp 64", dtype=dtype, layer=True),
            Weight("up_scale_inv", "8/tp 4", dtype="float32", layer=True),
            Weight("down", "64 256/tp", dtype=dtype, layer=True),
            Weight("down_scale_inv", "4 8/tp", dtype="float32", layer=True),
        ],
        layers=4,
    )
    kept = Storage(quantized, [Transposed("down"), Transposed("down_scale_inv")])
    plan = RefitPlan(quantized, layout(source), layout(target), target_as=kept)
    run_ranks(4, carry_out, plan, check_calls=True)


@st.composite
def kept_somehow(draw: st.DrawFn) -> tuple[ParallelTopology, Storage]:
    """A layout of MODEL, and how it is kept: fused, interleaved, transposed, split, padded."""
    sizes = draw(
        st.sampled_from(
            ["tp2-pp2", "tp4", "tp2-dp2", "pp4-dp2", "dp3", "tp4-dp2", "tp2-dp2-pp2/expert:etp1-ep4-pp2", "tp1"]
        )
    )
    parsed = ParallelTopology.parse(sizes)
    count = parsed.world_size
    ranks = draw(
        st.one_of(st.integers(0, 3).map(lambda first: range(first, first + count)), st.permutations(range(count)))
    )
    rules: list[Any] = draw(
        st.sampled_from(
            [[], [Fused("qkv", ["q", "k", "v"])], [Interleaved("qkv", ["q", "k", "v"], groups=4)], [Transposed("q")]]
        )
    )
    rules = rules + draw(
        st.sampled_from(
            [
                [],
                [Fused("w13", ["gate", "up"], dim=1)],
                [Fused("w13", ["up", "gate"], dim=1), Split("w13", "{}.{index}.w13")],
                [Transposed("gate"), Split("up", "{}.{index}.up")],
            ]
        )
    )
    rules = rules + draw(
        st.sampled_from([[], [Transposed("down")], [Split("down", "{}.{index}.down")], [Transposed("o")]])
    )
    rules = rules + draw(st.sampled_from([[], [Padded("embed", to=128)], [Padded("head", whole_to=64)]]))
    return parsed.model_copy(update={"ranks": tuple(ranks)}), Storage(MODEL, rules)


@settings(max_examples=examples(1 / 6))  # each of them moves a model
@given(kept_somehow(), kept_somehow(), st.sampled_from([1024, 4096, 2**20]))
def test_whatever_way_both_sides_keep_them(here: Any, there: Any, staging_bytes: int):
    plan = RefitPlan(MODEL, here[0], there[0], source_as=here[1], target_as=there[1])
    plan.verify()
    assert plan.bytes_moved == plan.lower_bound
    run_ranks(everyone(plan), carry_out, plan, staging_bytes)


@pytest.mark.parametrize("place", ["threads", "processes"])
@pytest.mark.parametrize("hosts", [None, "2x2"])
def test_in_either_world(place: Literal["threads", "processes"], hosts: str | None, rank_workers: Any):
    source, target = ParallelTopology(tp=2, pp=2), ParallelTopology(dp=4)
    where = hosts and Hosts.parse(hosts)
    plan = RefitPlan(MODEL, source, target, source_as=MEGATRON, target_as=VLLM, hosts=where or None)
    pool = rank_workers if place == "processes" else None
    run_ranks(everyone(plan), carry_out, plan, world=place, pool=pool)


GLOO = {"world": {"communicators": ["torch"]}}


@pytest.mark.parametrize("options", [{}, GLOO], ids=["shared memory", "gloo"])
def test_buffers_are_read_in_place_where_ranks_share_a_host(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """What neighbours read is not sent, and the other way is not forgotten."""
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)
    read: list[int] = []
    wait_lent = Neighbours.wait_lent
    monkeypatch.setattr(
        Neighbours, "wait_lent", lambda self, source, number: read.append(source) or wait_lent(self, source, number)
    )
    run_ranks(4, carry_out, plan, options=options)
    assert {*read} == (set() if options else {0, 1, 2, 3})


@pytest.mark.parametrize("options", [{}, GLOO], ids=["shared memory", "gloo"])
def test_bytes_that_changed_on_their_way_are_told_to_all_where_calls_are_checked(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    run_ranks(4, carry_out, PLAN, check_calls=True, options=options)
    digests = iter([1])
    right = transfer.digest_of
    monkeypatch.setattr(transfer, "digest_of", lambda whole: right(whole) ^ next(digests, 0))

    def act(groups: GroupManager) -> str:
        have, into = stored(PLAN.source, groups.rank, whole(MODEL)), stored(PLAN.target, groups.rank, None)
        with pytest.raises(RefitError, match="half written") as raised:
            refit(PLAN, groups.world, have, into)
        return str(raised.value)

    [said] = {*run_ranks(4, act, check_calls=True, options=options)}
    assert re.search(r"rank \d: what rank \d sent of '[\w.]+' \[.*\] came as other bytes", said), said


def test_a_rank_that_cannot_open_its_neighbours_buffers_is_sent_messages(monkeypatch: pytest.MonkeyPatch):
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)
    found = neighbours.opened
    monkeypatch.setattr(
        neighbours, "opened", lambda offer, *of: None if int(offer.split("/")[1]) % 2 else found(offer, *of)
    )
    run_ranks(4, carry_out, plan)


def test_a_plan_is_worked_out_once(monkeypatch: pytest.MonkeyPatch):
    """The second refit of a plan asks neither who gives what to whom nor which tensors there are."""
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)
    run_ranks(4, carry_out, plan)
    asked: list[str] = []
    for of, name in ((RefitPlan, "moves"), (Patterns, "met"), (Storage, "tensors")):
        monkeypatch.setattr(of, name, lambda *_, name=name: asked.append(name))
    run_ranks(4, again, plan)
    assert not asked


def again(groups: GroupManager, plan: RefitPlan) -> None:
    have, into = stored(plan.source, groups.rank, whole(MODEL, 1)), stored(plan.target, groups.rank, None)
    have = {name: torch.stack([tensor, tensor], dim=-1)[..., 1] for name, tensor in have.items()}  # of other strides
    refit(plan, groups.world, have, into, 4096)
    expected = stored(plan.target, groups.rank, whole(MODEL, 1))
    assert all(same_bits(tensor, expected[name]) for name, tensor in into.items())


def test_tensors_may_come_one_after_the_other():
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)

    def one_by_one(groups: GroupManager) -> None:
        have = stored(plan.source, groups.rank, whole(MODEL))
        into = stored(plan.target, groups.rank, None)
        alive: set[str] = set()
        most = 0

        def coming() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal most
            for name in plan.order:
                if name in have:
                    alive.add(name)
                    tensor = have[name].clone()
                    weakref.finalize(tensor.untyped_storage(), alive.discard, name)
                    yield name, tensor
                    del tensor
                    most = max(most, len(alive))

        refit(plan, groups.world, coming(), into)
        expected = stored(plan.target, groups.rank, whole(MODEL))
        assert all(same_bits(tensor, expected[name]) for name, tensor in into.items())
        assert most < len(have) * 2 / 3  # none holds a second model

    run_ranks(4, one_by_one)


def test_ranks_of_neither_side_may_be_in_the_group_and_nothing_stays_in_the_store():
    plan = RefitPlan(MODEL, layout("tp2"), layout("tp2@first3"))
    store = dist.HashStore()

    def body(rank: int) -> None:
        with GroupManager(ParallelTopology(dp=5), rank=rank, store=store, timeout=30) as groups:
            for _ in range(4):
                have, into = stored(plan.source, rank, whole(MODEL)), stored(plan.target, rank, None)
                refit(plan, groups.world, have if rank < 2 else {}, into if rank > 2 else {})
            groups.world.barrier()

    run_threads(["rank"] * 5, body, timeout=60)
    assert store.num_keys() == 0


def test_a_refit_runs_beside_other_groups():
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)

    def body(groups: GroupManager) -> None:
        have, into = stored(plan.source, groups.rank, whole(MODEL)), stored(plan.target, groups.rank, None)
        go_on = threading.Event()

        def coming() -> Iterator[tuple[str, torch.Tensor]]:
            for number, name in enumerate(name for name in plan.order if name in have):
                if number == 1:
                    assert go_on.wait(60)
                yield name, have[name]

        with torch.inference_mode():
            into = {name: tensor.clone() for name, tensor in into.items()}
            refitting = start_refit(plan, groups["weights"], coming(), into, version=7)
        assert groups.world.all_reduce(torch.ones(1)) == 4
        assert not refitting.is_done()
        with pytest.raises(
            GroupTimeoutError, match=r"refit to version 7 is not done after 0\.01 s: [\d,]+ of [\d,]+ bytes"
        ):
            refitting.wait(0.01)
        go_on.set()
        done = refitting.wait(60)
        assert refitting.is_done()
        assert refitting.wait() is done
        assert refitting.progress == (done.sent + done.received + done.kept,) * 2
        expected = stored(plan.target, groups.rank, whole(MODEL))
        assert all(same_bits(tensor, expected[name]) for name, tensor in into.items())

    run_ranks(ParallelTopology(tp=4), body, isolated={"weights": ("tp",)})


def test_what_is_wrong_is_said_where_a_refit_is_started_or_waited_for():
    def body(groups: GroupManager) -> None:
        with pytest.raises(GroupArgumentError, match="staging_bytes=8"):
            start_refit(PLAN, groups.world, {}, {}, 8)
        refitting = start_refit(PLAN, groups.world, {}, {})
        for _ in range(2):
            with pytest.raises(RefitError, match="rank 0: the target tensors lack"):
                refitting.wait()

    run_ranks(4, body)


def test_an_unchanged_layout_sends_nothing():
    plan = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp2-pp2"))

    def same(groups: GroupManager) -> None:
        have = stored(plan.source, groups.rank, whole(MODEL))
        done = refit(plan, groups.world, have, stored(plan.target, groups.rank, None))
        assert (done.sent, done.received, done.staged) == (0, 0, 0)
        assert done.kept == plan.bytes_kept(groups.rank) > 0

    run_ranks(4, same)


# What is refused, on all ranks, before anything is written

PLAN = RefitPlan(MODEL, layout("tp2-pp2"), layout("tp4"), target_as=VLLM)


def spoiled(change: Callable[[dict[str, Any]], object]) -> Callable[[GroupManager], str]:
    """What a rank is told where one changes what it gives."""

    def act(groups: GroupManager) -> str:
        have, into = stored(PLAN.source, groups.rank, whole(MODEL)), stored(PLAN.target, groups.rank, None)
        given: dict[str, Any] = {"plan": PLAN, "have": have, "into": into, "staging_bytes": 4096, "version": 1}
        if groups.rank == 2:
            change(given)
        before = {name: tensor.clone() for name, tensor in into.items()}
        with pytest.raises(RefitError) as raised:
            refit(given.pop("plan"), groups.world, **given)
        assert all(same_bits(into[name], one) for name, one in before.items() if name in into and not one.is_meta)
        return str(raised.value)

    return act


BFLOAT = torch.bfloat16
Given = dict[str, Any]
CHANGES: dict[str, Callable[[Given], object]] = {
    "not have the same plan: ": lambda given: given.update(plan=RefitPlan(MODEL, *map(layout, ("tp2-pp2", "tp4")))),
    r"not have the same version: 1 on ranks \[0, 1, 3\]; 2 on ranks \[2\]": lambda given: given.update(version=2),
    "not have the same staging_bytes: 4096 on ranks": lambda given: given.update(staging_bytes=8192),
    r"rank 2: the target tensors lack 'w13.3' \(1 of": lambda given: given["into"].pop("w13.3"),
    "rank 2: the source tensors lack ": lambda given: given["have"].clear(),
    r"target tensor 'o.1' is \[16, 17\] float32, expected \[16, 16\] bfloat16": lambda given: given["into"].update(
        {"o.1": torch.zeros(16, 17)}
    ),
    r"'o.1' is \[16, 16\] float32, expected \[16, 16\] bfloat16": lambda given: given["into"].update(
        {"o.1": torch.zeros(16, 16)}
    ),
    "is on meta, and the group is on cpu": lambda given: given["into"].update(
        {"o.1": torch.zeros(16, 16, dtype=BFLOAT, device="meta")}
    ),
    "share memory: target 'o.2' and source 'o.2'": lambda given: given["into"].update(
        {"o.2": given["have"]["o.2"][:, :16]}
    ),
}


@pytest.mark.parametrize("says", CHANGES)
def test_what_cannot_be_done_is_refused_everywhere(says: str):
    texts = run_ranks(4, spoiled(CHANGES[says]))
    assert len({*texts}) == 1
    assert re.search(says, texts[0])
    assert texts[0].endswith("nothing was written")


def test_a_source_that_fails_is_told_to_all():
    def act(groups: GroupManager) -> str:
        have = stored(PLAN.source, groups.rank, whole(MODEL))

        def coming() -> Iterator[tuple[str, torch.Tensor]]:
            yield from list(have.items())[:3]
            if groups.rank == 1:
                raise OSError("the disk is gone")
            yield from list(have.items())[3:]

        with pytest.raises(RefitError, match="half written") as raised:
            refit(PLAN, groups.world, coming(), stored(PLAN.target, groups.rank, None))
        return str(raised.value)

    texts = run_ranks(4, act)
    assert len({*texts}) == 1
    assert "rank 1: OSError: the disk is gone" in texts[0]


def test_a_group_that_lacks_ranks_is_refused():
    def act(groups: GroupManager) -> None:
        with pytest.raises(RefitError, match=r"lacks ranks \[2, 3\] of RefitPlan"):
            refit(PLAN, groups.world, {}, {})
        with pytest.raises(GroupArgumentError, match="staging_bytes=8: expected a whole number of at least 1,024"):
            refit(PLAN, groups.world, {}, {}, staging_bytes=8)

    run_ranks(2, act)
