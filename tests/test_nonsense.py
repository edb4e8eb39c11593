"""Whatever is given in place of what is meant, the error is ours: for every argument of the pure half's doors."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch

from parallel_topology import Hosts, ParallelTopology, ParallelTopologyError
from parallel_topology.ray import Place, RayActors, RayEngine, rank_order
from parallel_topology.refit import RefitPlan
from parallel_topology.render.html import html
from parallel_topology.render.svg import svg
from parallel_topology.render.text import show
from parallel_topology.topology import shares
from parallel_topology.weights import (
    Fused,
    Interleaved,
    Model,
    Padded,
    Serving,
    Sharded,
    Split,
    Storage,
    Training,
    Transposed,
    Weight,
    Weights,
    loads,
    memory_on,
    traffic_on,
)
from parallel_topology.weights.checks import ModelSizes, check
from parallel_topology.weights.search import search
from tests.weights import configurations

TOPOLOGY, OTHER, HOSTS = ParallelTopology(tp=2, dp=2, pp=2), ParallelTopology(tp=4), Hosts.parse("2x4")
WEIGHTS = Weights(
    [Weight("w", "8/tp 4"), Weight("q", "8/tp 4", layer=True), Weight("k", "8/tp 4", layer=True)], layers=4
)
STORAGE, MODEL = Storage(WEIGHTS), Model.from_config(configurations.LLAMA_2_7B)
PLAN = RefitPlan(WEIGHTS, TOPOLOGY, OTHER)
VIEW = TOPOLOGY.at(0)


class Actor:
    """As a handle of Ray's: what it can do has a `remote`. Nothing that can be called comes so far as to be called."""

    class join:  # noqa: N801
        remote = staticmethod(lambda *_: "no reference")


ACTORS = RayActors((Actor(),), (Place("a", "10.0.0.9"),))
ENGINE = RayEngine(ACTORS, ParallelTopology(tp=1))

CALLS: dict[str, Callable[..., Any]] = {
    "ParallelTopology": partial(ParallelTopology, tp=2, pp=2, order="tp-pp", first_rank=0, world_size=4, views={}),
    "ParallelTopology ranks": partial(ParallelTopology, tp=2, ranks=[3, 1]),
    "parse": partial(ParallelTopology.parse, "tp2"),
    "view": partial(TOPOLOGY.view, "expert"),
    "filling": partial(TOPOLOGY.filling, 16, axis="dp"),
    "reordered_for": partial(TOPOLOGY.reordered_for, HOSTS),
    "subtopology": partial(TOPOLOGY.subtopology, "tp", pp=0, dp=0),
    "diff": partial(TOPOLOGY.diff, OTHER),
    "plan": partial(TOPOLOGY.plan, groups=[("tp", "dp")], isolated={"x": ("tp",)}, separate=("tp",)),
    "coordinate": partial(TOPOLOGY.coordinate, 0),
    "rank": partial(TOPOLOGY.rank, tp=0, dp=0, pp=0),
    "at": partial(TOPOLOGY.at, 0),
    "of a rank": partial(VIEW.__getitem__, "tp"),
    "shard_of": partial(VIEW.tp.shard_of, torch.ones(4, 4), 0, uneven="error"),
    "position": partial(TOPOLOGY.position, 0),
    "of_rank": partial(TOPOLOGY.plan().of_rank, 0),
    "groups": partial(TOPOLOGY.groups, "tp"),
    "group": partial(TOPOLOGY.group, "tp", rank=0),
    "group_name": partial(TOPOLOGY.group_name, "tp"),
    "size": partial(TOPOLOGY.size, "tp"),
    "factorization": partial(TOPOLOGY.factorization, "tp"),
    "stage_layers": partial(shares.stage_layers, 8, 0, 2),
    "stage_chunks": partial(shares.stage_chunks, 8, 0, 2, virtual=2),
    "batch_share": partial(shares.batch_share, 8, 0, 2),
    "micro_batches": partial(shares.micro_batches, 8, 2, 2),
    "shard": partial(shares.shard, 8, 0, 2),
    "Hosts": partial(Hosts, [0, 4, 8], None),
    "Hosts.uniform": partial(Hosts.uniform, count=2, ranks_per_host=4, first_rank=0),
    "Hosts.uneven": partial(Hosts.uneven, [4, 2], first_rank=0),
    "Hosts.listed": partial(Hosts.listed, [[0, 1], [2, 3]]),
    "Hosts.parse": partial(Hosts.parse, "2x4"),
    "ranks_of": partial(HOSTS.ranks_of, 0),
    "host_of": partial(HOSTS.host_of, 0),
    "hosts_of": partial(HOSTS.hosts_of, [0, 1]),
    "local_rank_of": partial(HOSTS.local_rank_of, 0),
    "spans": partial(HOSTS.spans, TOPOLOGY, "tp"),
    "require": partial(HOSTS.require, TOPOLOGY),
    "idle": partial(HOSTS.idle, TOPOLOGY),
    "Weight": partial(
        Weight, "w", "8/tp 4", cut=None, layer=False, stage="all", units=None, pad_to=None, uneven="error"
    ),
    "Weight padded": partial(Weight, "w", "8/tp 4", pad_whole_to=8, dtype="int8"),
    "Weights": partial(Weights, [Weight("a", "4/tp 4")], layers=4, dtype="int8", counts=[1, 3], virtual=1),
    "Weights ends": partial(Weights, [Weight("a", "4/tp 4")], layers=4, first=1, last=1),
    "Weights.from_config": partial(Weights.from_config, configurations.LLAMA_2_7B, dtype="int8", pad_vocab_to=8),
    "Weights.on": partial(WEIGHTS.on, TOPOLOGY, 0),
    "Weights.bytes_on": partial(WEIGHTS.bytes_on, TOPOLOGY, 0, sharded_over=("dp",), dtype="int8"),
    "Weights.placed": partial(WEIGHTS.placed, TOPOLOGY, "w"),
    "Weights.named": partial(WEIGHTS.named, "w"),
    "Weights.stage_of": partial(WEIGHTS.stage_of, 0, 2),
    "Weights.layers_on": partial(WEIGHTS.layers_on, 0, 2),
    "Fused": partial(Fused, "f", ["q", "k"]),
    "Interleaved": partial(Interleaved, "f", ["q", "k"], 4),
    "Split": partial(Split, "q", "q.{}"),
    "Transposed": partial(Transposed, "q"),
    "Padded": partial(Padded, "q", 128),
    "Sharded": partial(Sharded, "q", ("dp",), 0),
    "Storage": partial(Storage, WEIGHTS, [Fused("f", ["q", "k"])], sharded_over=("dp",)),
    "Storage.tensors": partial(STORAGE.tensors, TOPOLOGY, 0),
    "Storage.places": partial(STORAGE.places, TOPOLOGY, 0, "w", None),
    "Storage.contents": partial(STORAGE.contents, TOPOLOGY, 0, "w", None),
    "Storage.holders": partial(STORAGE.holders, TOPOLOGY, "w", None),
    "Model.from_config": partial(Model.from_config, configurations.LLAMA_2_7B, None),
    "Training": partial(Training, batch=1, context=16, micro_batches=1, optimizer="adam", gradients="int8", zero=1),
    "Training over": partial(Training, over=("dp",), recompute="full", sequence_parallel=True, communicator_bytes=0),
    "Serving": partial(Serving, batch=1, context=16, cache="int8", communicator_bytes=0),
    "memory_on": partial(memory_on, MODEL, TOPOLOGY, 0, Training()),
    "traffic_on": partial(traffic_on, MODEL, TOPOLOGY, HOSTS, Training()),
    "loads": partial(loads, MODEL, TOPOLOGY, Serving()),
    "search": partial(search, MODEL, 1, Serving(), memory=1, hosts=HOSTS, sequences=1),
    "check": partial(check, TOPOLOGY, ModelSizes(heads=8), HOSTS),
    "ModelSizes": partial(ModelSizes, heads=8, kv_heads=8, layers=8, vocab=8),
    "RefitPlan": partial(RefitPlan, WEIGHTS, TOPOLOGY, OTHER, source_as=None, target_as=None, hosts=HOSTS, without=()),
    "moves": partial(PLAN.moves, 0),
    "bytes_sent": partial(PLAN.bytes_sent, 0),
    "bytes_received": partial(PLAN.bytes_received, 0),
    "bytes_kept": partial(PLAN.bytes_kept, 0),
    "bytes_into": partial(PLAN.bytes_into, 0),
    "lower_bound_on": partial(PLAN.lower_bound_on, 0),
    "lower_bound_into": partial(PLAN.lower_bound_into, 0),
    "left_without": partial(PLAN.left_without, [0]),
    "explain": partial(PLAN.explain, "w"),
    "Place": partial(Place, "a", "10.0.0.9", ("1",), "b"),
    "rank_order": partial(rank_order, [Place("a", "10.0.0.9")], first_node="a"),
    "RayActors.find": partial(RayActors.find, [Actor()], first_node="a", timeout=1),
    "part of RayActors": partial(ACTORS.__getitem__, slice(0, 1)),
    "RayEngine": partial(RayEngine, ACTORS, ParallelTopology(tp=1), name="engine", timeout=1),
    "admit": partial(ENGINE.admit, "join", timeout=1),
    "call": partial(ENGINE.call, "join", timeout=1),
    "gather": partial(ENGINE.gather, ["no reference"], timeout=1),
    "show": partial(show, TOPOLOGY),
    "svg": partial(svg, TOPOLOGY),
    "html": partial(html, TOPOLOGY),
}
NONSENSE: list[Callable[[], Any]] = [
    *(partial(lambda value: value, value) for value in (None, True, -1, 0, 1, 3.5, float("nan"), 10**30, -(10**30))),
    *(partial(lambda value: value, value) for value in ("", "x", "tp", "tp2", "tp-pp", "8/tp 4", "0:tp", b"x", "\0")),
    *(list, dict, set, tuple, object, lambda: "e" * 5000, lambda: [1], lambda: ["a"], lambda: [None], lambda: [[1]]),
    *(lambda: (1, 2), lambda: {"a": 1}, lambda: {1: "tp"}, lambda: {0: "tp"}, lambda: {"a": None}, lambda: int),
    *(lambda: len, lambda: range(3), lambda: Fraction(1, 2), lambda: TOPOLOGY, lambda: HOSTS, lambda: WEIGHTS),
    *(lambda: iter([1]), lambda: ["tp"], lambda: [("tp",)], lambda: {0: {}}, lambda: MODEL, lambda: STORAGE),
]


@pytest.mark.parametrize("name", CALLS)
def test_errors_are_ours(name: str):
    call = CALLS[name]
    places = [*range(len(call.args)), *call.keywords]  # type: ignore[attr-defined]
    for place in places:
        for make in NONSENSE:
            given, named = list(call.args), dict(call.keywords)  # type: ignore[attr-defined]
            if isinstance(place, int):
                given[place] = make()
            else:
                named[place] = make()
            try:
                found = call.func(*given, **named)  # type: ignore[attr-defined]
                if hasattr(found, "__next__"):
                    next(found, None)
                repr(found)
            except ParallelTopologyError:
                pass
            except Exception as error:
                raise AssertionError(f"{name}, {place}={make()!r}: {error!r}") from error
