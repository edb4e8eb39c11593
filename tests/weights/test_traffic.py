"""Bytes of a step: every message of small worlds, one by one, and the sums that papers state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology, TopologyError
from parallel_topology.weights import Model, Serving, Training, Weights, traffic_on
from tests.waiting import times_slower
from tests.weights import configurations as published

DENSE = Model.from_config(
    {**published.LLAMA_3_8B, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": 24,
     "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
)  # fmt: skip
SPARSE = Model.from_config(
    {**published.DEEPSEEK_V3, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": 24,
     "num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 8, "n_routed_experts": 8,
     "num_experts_per_tok": 3, "first_k_dense_replace": 1, "q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4,
     "qk_rope_head_dim": 2, "v_head_dim": 4}
)  # fmt: skip


class Wire:
    """Counts each message between two ranks."""

    def __init__(self, topology: ParallelTopology, hosts: Hosts) -> None:
        self.topology, self.hosts = topology, hosts
        self.sent: Counter[tuple[str, str, bool]] = Counter()

    def send(self, axes: str, phase: str, source: int, target: int, nbytes: Fraction) -> None:
        self.sent[axes, phase, self.hosts.host_of(source) != self.hosts.host_of(target)] += nbytes  # pyright: ignore

    def ring(self, axes: str, phase: str, group: Sequence[int], whole: Any, rounds: int = 1) -> None:
        """One chunk after the other around the group, each host entered once: twice for an all-reduce."""
        members = sorted(group, key=self.hosts.host_of)
        for place, source in enumerate(members):
            for _ in range(rounds * (len(members) - 1)):
                self.send(axes, phase, source, members[(place + 1) % len(members)], Fraction(whole) / len(members))

    def groups(self, stage: int, *axes: str) -> Iterable[Sequence[int]]:
        """The groups whose ranks are on a stage."""
        if all(axis in self.topology.all_axes for axis in axes):
            yield from (
                group for group in self.topology.groups(*axes) if self.topology.at(group[0]).pp.rank == stage
            )  # fmt: skip


def counted(model: Model, topology: ParallelTopology, hosts: Hosts, use: Training) -> dict[Any, Fraction]:
    """Every message of every rank of a step, layer by layer and micro-batch by micro-batch."""
    wire = Wire(topology, hosts)
    stages, tp, cp = topology.pp, topology.tp, topology.cp
    batches = use.micro_batches or stages
    tokens = use.batch * -(-use.context // cp)
    hidden = 2 * tokens * model.hidden
    views = "ep" in topology.all_axes
    ep, etp = (topology.ep, topology.etp) if views else (1, tp)
    rounds = ["forward", *(["again"] if use.recompute == "full" else []), "backward"]
    own = {stage: model.weights.layers_on(stage, stages) for stage in range(stages)}
    for _ in range(batches):
        for way in rounds:
            phase = "forward" if way == "forward" else "backward"
            extra = 1 if way == "backward" and use.sequence_parallel else 0
            for stage in range(stages):
                for layer in own[stage]:
                    is_sparse = layer in model.sparse
                    blocks = 1 + (not is_sparse) + (is_sparse and model.shared_inner > 0)
                    for group in wire.groups(stage, "tp"):
                        wire.ring("tp", phase, group, hidden, rounds=blocks * (2 + extra))
                        if is_sparse and ep > 1 and not use.sequence_parallel:
                            wire.ring("tp", phase, group, hidden)
                    for group in wire.groups(stage, "cp"):
                        heads = max(1, model.kv_heads // tp)
                        each = 2 * tokens * heads * (model.keys + model.values) // model.kv_heads
                        wire.ring("cp", phase, group, each * cp, rounds=2 if way == "backward" else 1)
                    if not is_sparse:
                        continue
                    copies = model.experts_per_token if ep > 1 else 1
                    for group in wire.groups(stage, "ep") if ep > 1 else ():
                        for source in group:
                            for target in group:
                                if source != target:  # there and back
                                    wire.send("ep", phase, source, target, Fraction(2 * hidden * copies, tp * ep))
                    for group in wire.groups(stage, "etp" if views else "tp"):
                        wire.ring("etp" if views else "tp", phase, group, Fraction(hidden * copies, tp) * etp, rounds=2)
        for group in wire.groups(0, "tp"):
            wire.ring("tp", "forward", group, hidden, rounds=1 if use.sequence_parallel else 2)
            if use.sequence_parallel:
                wire.ring("tp", "backward", group, hidden)
        for group in wire.groups(stages - 1, "tp"):
            if use.sequence_parallel:
                wire.ring("tp", "forward", group, hidden)
            wire.ring("tp", "backward", group, hidden, rounds=2)
            for _ in range(3):
                wire.ring("tp", "forward", group, 4 * tokens, rounds=2)
        part = Fraction(hidden, tp) if use.sequence_parallel else Fraction(hidden)
        for group in topology.groups("pp"):
            for chunk in range(model.weights.virtual):
                for stage in range(stages):
                    if stages > 1 and (stage < stages - 1 or chunk < model.weights.virtual - 1):
                        wire.send("pp", "forward", group[stage], group[(stage + 1) % stages], part)
                        wire.send("pp", "backward", group[(stage + 1) % stages], group[stage], part)
    count_weights(wire, model, use, batches)
    return {key: Fraction(nbytes) for key, nbytes in wire.sent.items() if nbytes}


def count_weights(wire: Wire, model: Model, use: Training, batches: int) -> None:
    """Ranks that hold the same part and differ in their tokens find each other by what they hold."""
    topology = wire.topology
    over = {"dp", "cp", "edp"} if use.over is None else set(use.over)
    over = over if use.zero else set[str]()
    alike: dict[Any, list[int]] = {}
    for rank in topology.world:
        for name, held in model.weights.on(topology, rank).items():
            alike.setdefault((name, held.ranges), []).append(rank)
    for (name, ranges), ranks in alike.items():
        weight = model.weights.named(name)
        view = "experts." in name and "shared" not in name and "ep" in topology.all_axes
        ends = [{rank for rank in ranks if topology.at(rank).pp.rank == stage} for stage in range(topology.pp)]
        nbytes = prod(map(len, ranges))
        weights, gradients = nbytes * (4 if weight.dtype == "float32" else 2), 4 * nbytes
        for here in filter(None, ends):
            axes = ["edp"] if view else ["cp", "dp"]
            axes = [axis for axis in axes if axis in topology.all_axes and topology.size(axis) > 1]
            divided, rest = [axis for axis in axes if axis in over], [axis for axis in axes if axis not in over]
            parts = topology.size(*divided) if divided else 1
            often = batches if use.zero > 1 else 1
            trained = gradients if "correction_bias" not in name else 0
            for along in filter(None, (divided, rest)):
                label = topology.group_name(*along)
                for group in {tuple(topology.group(*along, rank=rank)) for rank in here}:
                    if along == rest:
                        wire.ring(label, "gradients", group, Fraction(trained, parts), rounds=2 * often)
                        continue
                    wire.ring(label, "gradients", group, trained, rounds=often)
                    wire.ring(label, "parameters", group, weights, rounds=2 * batches if use.zero == 3 else 1)
            if use.sequence_parallel and not view and topology.tp > 1:
                for rank in sorted(here):
                    group = list(topology.group("tp", rank=rank))
                    if rank == group[0] and set(group) <= here and "correction_bias" not in name:
                        wire.ring("tp", "gradients", group, gradients, rounds=2)
        if weight.stage == "tied" and topology.pp > 1:
            for rank in ends[0]:
                group = topology.group("pp", rank=rank)
                wire.ring("pp", "gradients", [group[0], group[-1]], gradients, rounds=2)


@st.composite
def hosts_of(draw: st.DrawFn, ranks: int) -> Hosts:
    kind = draw(st.sampled_from(["uniform", "uneven", "listed"]))
    if kind == "uniform":
        size = draw(st.integers(1, ranks))
        return Hosts.uniform(count=-(-ranks // size), ranks_per_host=size)
    cuts = sorted(draw(st.sets(st.integers(1, ranks), max_size=3)) | {0, ranks})
    order = draw(st.permutations(range(ranks))) if kind == "listed" else range(ranks)
    return Hosts.listed([order[start:stop] for start, stop in pairwise(cuts)])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Model, ParallelTopology, Hosts, Training]:
    tp, cp, dp, pp = (draw(st.sampled_from(sizes)) for sizes in ([1, 2, 4], [1, 2], [1, 2, 3], [1, 2, 4]))
    order = "-".join(draw(st.permutations(["tp", "cp", "dp", "pp"])))
    model, views = DENSE, dict[str, str]()
    if draw(st.booleans()):
        model = SPARSE
        inner = [axis for axis in order.split("-") if axis != "pp"]
        etp = draw(st.sampled_from([1, 2] if tp % 2 == 0 else [1]))
        ep = draw(st.sampled_from([one for one in (1, 2, 4) if tp * cp * dp % (one * etp) == 0]))
        if draw(st.booleans()):
            views = {"expert": f"etp{etp}-ep{ep}-edp-pp{pp}~{'-'.join([*inner, 'pp'])}"}
    try:
        topology = ParallelTopology(tp=tp, cp=cp, dp=dp, pp=pp, order=order, views=views)
    except TopologyError:  # the view cuts the ranks unevenly
        topology = ParallelTopology(tp=tp, cp=cp, dp=dp, pp=pp, order=order)
    if draw(st.booleans()):
        topology = topology.model_copy(update={"ranks": draw(st.permutations(range(topology.world_size)))})
    virtual = draw(st.sampled_from([1, 4 // pp])) if pp > 1 else 1
    model = replace(model, weights=Weights(model.weights.weights, layers=4, virtual=virtual))
    named = tuple(axis for axis in ("dp", "edp") if axis in topology.all_axes)
    over = draw(st.sampled_from([None, ("dp",), named]))
    use = Training(
        batch=draw(st.integers(1, 2)), context=12, micro_batches=draw(st.sampled_from([None, 1, 3])),
        zero=draw(st.integers(0, 3)), over=over, sequence_parallel=draw(st.booleans()),
        recompute=draw(st.sampled_from(["scores", "full"])),
    )  # fmt: skip
    return model, topology, draw(hosts_of(topology.world_size)), use


@given(worlds())
def test_every_message_is_counted(drawn: tuple[Model, ParallelTopology, Hosts, Training]):
    found = traffic_on(*drawn[:3], drawn[3])
    expected = counted(*drawn)
    sums = {(one.axes, one.phase, across): nbytes for one in found.sent
            for across, nbytes in ((False, one.inside), (True, one.across)) if nbytes}  # fmt: skip
    assert sums == expected
    assert found.inside + found.across == sum(expected.values())


# What papers state


def sent_by(model: Model, topology: ParallelTopology, use: Training | Serving, *phases: str) -> Fraction:
    """Bytes that one rank sends, the mean of all."""
    found = traffic_on(model, topology, Hosts.uniform(count=1, ranks_per_host=topology.world_size), use)
    return sum((one.inside for one in found.sent if one.phase in phases), Fraction()) / topology.world_size


@pytest.mark.parametrize(("zero", "models"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zero_sends_as_its_paper_says(zero: int, models: int):
    """https://arxiv.org/abs/1910.02054, section 7: 2 times the model of N ranks, under ZeRO 3 it is 3 times."""
    use = Training(zero=zero, micro_batches=1, gradients="bfloat16")
    for ranks in (2, 8, 64):
        nbytes = sent_by(DENSE, ParallelTopology(dp=ranks), use, "gradients", "parameters")
        assert nbytes == models * 2 * DENSE.weights.parameters * Fraction(ranks - 1, ranks)


def test_tensor_parallelism_sends_as_its_paper_says():
    """Per layer and micro-batch 8 bsh (t-1)/t elements: https://arxiv.org/abs/2104.04473, section 3.2."""
    four, eight = (replace(DENSE, weights=Weights([], layers=layers)) for layers in (4, 8))
    use = Training(batch=3, context=16, micro_batches=1, sequence_parallel=False)
    for t in (2, 4):
        more = (sent_by(model, ParallelTopology(tp=t), use, "forward", "backward") for model in (eight, four))
        assert next(more) - next(more) == 4 * 8 * 3 * 16 * DENSE.hidden * Fraction(t - 1, t) * 2  # bytes of bfloat16
    again = replace(use, sequence_parallel=True)
    gathered = sent_by(four, ParallelTopology(tp=2), again, "forward")
    assert gathered == sent_by(four, ParallelTopology(tp=2), use, "forward")  # as an all-gather and a reduce-scatter


def test_stages_send_as_their_paper_says():
    """b s h elements a micro-batch, with v chunks v times: https://arxiv.org/abs/2104.04473, sections 2.2 and 3.2."""
    sent = Training(batch=3, context=16, micro_batches=5)
    for virtual in (1, 2):
        model = replace(DENSE, weights=Weights([], layers=4, virtual=virtual))
        found = sent_by(model, ParallelTopology(pp=2), sent, "forward") * 2
        assert found == (2 * virtual - 1) * 5 * 3 * 16 * DENSE.hidden * 2


def test_serving_sends_what_is_computed_once():
    use = Serving(batch=6)
    assert traffic_on(DENSE, ParallelTopology(dp=4), Hosts.parse("2x2"), use).sent == ()
    found = traffic_on(DENSE, ParallelTopology(tp=2, pp=2), Hosts.parse("2x2"), use)
    hidden, logits = 6 * DENSE.hidden * 2, 6 * DENSE.vocab * 2
    assert found.along("tp") == (4 * 4 * hidden + 2 * hidden + logits, 0)  # layers, embedding, logits
    assert found.along("pp") == (0, 2 * hidden)
    assert (found.inside, found.across) == (found.along("tp")[0], 2 * hidden)
    with pytest.raises(TopologyError, match="dcp divides the tokens of a sequence; expected an axis of size 1"):
        traffic_on(DENSE, ParallelTopology(dcp=2, order="dcp"), Hosts.parse("1x2"), use)


def test_tokens_that_leave_their_host():
    """Of 8 ranks of experts on 2 hosts, 4 of 7 others are on the other one."""
    topology = ParallelTopology.parse("dp8-pp1/expert:etp1-ep8-pp1")
    model = replace(SPARSE, weights=Weights([], layers=4))
    inside, across = traffic_on(model, topology, Hosts.parse("2x4"), Training(micro_batches=1)).along("ep")
    assert across * 3 == inside * 4
    assert inside + across == 3 * 2 * 2 * 8 * Fraction(7, 8) * 4096 * 3 * SPARSE.hidden * 2  # layers, ways, passes, ...


def test_a_large_world_costs_no_more():
    model = Model.from_config(published.DEEPSEEK_V3)
    use = Training(zero=1, micro_batches=64)

    def ask(dp: int) -> None:
        topology = ParallelTopology.parse(f"tp8-dp{dp}-pp16/expert:etp1-ep64-edp{dp // 8}-pp16")
        found = traffic_on(model, topology, Hosts.uniform(count=topology.world_size // 8, ranks_per_host=8), use)
        assert found.along("tp")[1] == 0

    assert times_slower(lambda: ask(2**20), lambda: ask(2**7)) < 3


def test_hosts_have_to_hold_all_ranks():
    with pytest.raises(TopologyError, match="rank 3 is on no host"):
        traffic_on(DENSE, ParallelTopology(tp=4), Hosts.parse("1x2"), Serving())
