"""Who holds what, against brute force: a tensor of its elements' numbers, cut by NumPy rank by rank."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, RankError, TopologyError, UnknownAxisError
from parallel_topology.testing.strategies import topologies
from parallel_topology.topology.shares import stage_chunks, stage_layers
from parallel_topology.weights import Held, Weight, Weights
from tests.waiting import soon, times_slower

CONTRACT = Weights(
    [
        Weight("embed", "1000/tp 64", stage="first", pad_to=128),
        Weight("q", "64/tp 64", units=8, layer=True),
        Weight("up", "16/ep 128/etp 64", layer=True),
        Weight("norm", "64", layer=True, dtype="float32"),
        Weight("head", "1000/tp/cp 64", stage="last"),
    ],
    layers=4,
    dtype="bfloat16",
)
EXPERTS = ParallelTopology(tp=4, dp=2, pp=2, views={"expert": "etp1-ep8-pp2"})

# Brute force


def split(array: Any, dim: int, units: int, count: int, index: int, how: str) -> Any:
    """One of `count` parts of a dim that is made of so many units, by NumPy."""
    blocks = np.split(array, units, dim) if units else []
    if how == "repeat":
        return np.repeat(np.array(range(units)), count // units)[index], blocks
    sizes = [units // count] * count
    if how == "chunk":
        each = -(-units // count)
        sizes = [max(0, min(each, units - place * each)) for place in range(count)]
    if how == "tensor_split":
        sizes = [len(part) for part in np.array_split(np.arange(units), count)]
    start = sum(sizes[:index])
    return range(start, start + sizes[index]), blocks


def cut_by_hand(weight: Weight, topology: ParallelTopology, rank: int) -> Any:
    """The numbers of the elements that a rank holds, -1 where there is padding."""
    array = np.arange(prod(weight.shape)).reshape(weight.shape)
    view = {axis: topology.at(rank)[axis].rank for axis in topology.all_axes}
    for dim in range(len(weight.shape)):
        axes = weight.axes(dim)
        if dim == 0 and weight.pad_to:
            multiple = weight.pad_to * prod(topology.size(axis) for axis in axes)
            padding = -weight.shape[0] % multiple
            array = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=-1)
        width = weight.shape[dim] // weight.units[dim] if dim in weight.units else 1
        even = True
        for axis in axes:
            count, units = topology.size(axis), array.shape[dim] // width
            if count == 1:
                continue
            few = dim in weight.units and units < count and count % units == 0 if units else False
            how = "repeat" if few and even else "even" if units % count == 0 and even else str(weight.uneven)
            even = even and how in ("repeat", "even")
            held, blocks = split(array, dim, units, count, view[axis], how)
            chosen = [blocks[held]] if how == "repeat" else [blocks[unit] for unit in held]
            empty = np.take(array, [], dim)
            array = np.concatenate([empty, *chosen], dim)
    return array


@st.composite
def placed_weights(draw: st.DrawFn) -> tuple[ParallelTopology, Weight]:
    """A topology and a weight that divides over it, or is cut unevenly."""
    topology = draw(topologies(48))
    factorization = draw(st.sampled_from([topology, *(topology.view(name) for name in dict(topology.views))]))
    axes = draw(st.permutations([axis for axis in factorization.axes if axis not in ("pp", "pipe")]))
    axes = axes[: draw(st.integers(0, 4))]
    dims = draw(st.integers(1, 3))
    cut: dict[int, tuple[str, ...]] = {}
    for axis in axes:
        dim = draw(st.integers(0, dims - 1))
        cut[dim] = (*cut.get(dim, ()), axis)
    uneven: Any = draw(st.sampled_from(["error", "chunk", "tensor_split"]))
    units: dict[int, int] = {}
    shape: list[int] = []
    pad_to = draw(st.none() | st.integers(1, 4))
    for dim in range(dims):
        sizes = [topology.size(axis) for axis in cut.get(dim, ())]
        count = draw(st.integers(1, 3)) * (prod(sizes) if uneven == "error" else 1)
        if draw(st.booleans()) and not (dim == 0 and pad_to):
            if uneven == "error" and sizes and draw(st.booleans()):
                count = draw(st.sampled_from([1, sizes[0]]))  # fewer than parts
            elif uneven != "error":
                count = draw(st.integers(1, 9))
            units[dim] = count
        elif uneven != "error" or (dim == 0 and pad_to):
            count = draw(st.integers(1, 9))
        shape.append(count * (draw(st.integers(1, 3)) if dim in units else 1))
    return topology, Weight("w", shape, cut=cut, units=units, pad_to=pad_to, uneven=uneven)


@given(placed_weights())
def test_what_each_rank_holds_is_what_slicing_gives_it(drawn):
    topology, weight = drawn
    weights = Weights([weight], dtype="float32")
    whole = np.arange(prod(weight.shape)).reshape(weight.shape)
    holders: Counter[int] = Counter()
    for rank in topology.world:
        held, by_hand = weights.on(topology, rank)["w"], cut_by_hand(weight, topology, rank)
        assert held.shape == by_hand.shape
        assert held.nbytes == 4 * by_hand.size == weights.bytes_on(topology, rank)
        mine = whole[tuple(slice(part.start, part.stop) for part in held.ranges)].ravel().tolist()
        assert sorted(mine) == sorted(by_hand[by_hand >= 0].tolist())
        holders.update(mine)
    copies = weights.placed(topology, "w").copies
    assert holders == dict.fromkeys(range(whole.size), copies)


@given(placed_weights(), st.data())
def test_the_holders_of_a_range_are_the_ranks_that_hold_it(drawn, data):
    topology, weight = drawn
    weights = Weights([weight])
    ends = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in weight.shape]
    wanted = [range(*pair) for pair in ends]
    held = {rank: weights.on(topology, rank)["w"].ranges for rank in topology.world}
    seen: Counter[tuple[int, ...]] = Counter()
    for box, ranks in weights.placed(topology, "w").holders(wanted):
        seen.update(product(*box))
        inside = {
            rank
            for rank, ranges in held.items()
            if all(part.start <= one.start and one.stop <= part.stop for one, part in zip(box, ranges, strict=True))
        }
        assert [*ranks] == sorted(inside, key=topology.position)
        assert all(rank in ranks for rank in inside)
    assert seen == dict.fromkeys(product(*wanted), 1)


@given(topologies(32, max_views=0), st.integers(1, 3), st.data())
def test_weights_lie_on_the_stages_of_their_layers(topology, virtual, data):
    pipeline = "pipe" if "pipe" in topology.axes and "pp" not in topology.axes else "pp"
    stages = topology.size(pipeline)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=stages * virtual, max_size=stages * virtual))
    layers = max(1, sum(counts))
    counts = counts if sum(counts) else [1, *counts[1:]]
    some = data.draw(st.sets(st.integers(0, layers - 1)))
    named = [Weight(stage, "2", stage=stage) for stage in ("first", "last", "tied", "all")]
    weights = Weights(
        [*named, Weight("q", "2", layer=True), Weight("l.{}.e", "2", layer=some)],
        layers=layers,
        counts=counts,
        virtual=virtual,
    )
    found: dict[str, list[int]] = {name: [] for name in weights.names}
    for rank in topology.world:
        stage = topology.at(rank)[pipeline].rank
        chunks = stage_chunks(layers, stage, stages, virtual=virtual, counts=counts)
        own = [layer for chunk in chunks for layer in chunk]
        ends = {"all": True, "first": stage == 0, "last": stage == stages - 1, "tied": stage in (0, stages - 1)}
        expected = {name for name, there in ends.items() if there} | {f"q.{layer}" for layer in own}
        held = weights.on(topology, rank)
        assert set(held) == expected | {f"l.{layer}.e" for layer in own if layer in some}
        for name in held:
            found[name].append(rank)
    for name, ranks in found.items():
        ((_, holders),) = weights.placed(topology, name).holders()
        assert sorted(holders) == sorted(ranks)


# The contract's example


def test_the_cut_stands_in_the_shape_or_beside_it():
    embed = Weight("embed", shape=(1000, 64), cut={0: "tp"}, stage="first", pad_to=128)
    assert embed == CONTRACT.weights[0]
    assert (embed.shape, embed.cut, str(embed)) == ((1000, 64), {0: "tp"}, "1000/tp 64")
    assert eval(repr(embed), {"Weight": Weight}) == embed
    assert Weight("w", (8, 8), cut={-1: ("tp", "cp")}) == Weight("w", "8 8/tp/cp")
    assert str(Weight("scale", "")) == ""


@given(placed_weights())
def test_texts_and_reprs_are_read_back(drawn):
    _, weight = drawn
    assert eval(repr(weight), {"Weight": Weight}) == weight
    assert hash(eval(repr(weight), {"Weight": Weight})) == hash(weight)
    plain = Weight("w", str(weight))
    assert (str(plain), plain.shape, plain.cut) == (str(weight), weight.shape, weight.cut)


def test_one_rank_of_the_contracts_model():
    held = CONTRACT.on(EXPERTS, 3)
    assert list(held) == ["embed", "q.0", "q.1", "up.0", "up.1", "norm.0", "norm.1"]
    assert held["embed"] == Held((range(768, 1000), range(64)), (256, 64), 256 * 64 * 2)
    assert held["q.1"] == Held((range(48, 64), range(64)), (16, 64), 16 * 64 * 2)
    assert held["up.0"].ranges == (range(6, 8), range(128), range(64))
    assert held["norm.0"].nbytes == 256
    assert CONTRACT.on(EXPERTS, 15)["head"].ranges == (range(750, 1000), range(64))


def test_fewer_heads_than_ranks_are_held_equally_often():
    weights = Weights([Weight("k", "8/tp 4", units=2)])
    topology = ParallelTopology(tp=8, dp=2)
    assert [weights.on(topology, rank)["k"].ranges[0].start for rank in range(8)] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert [(box[0], list(ranks)) for box, ranks in weights.placed(topology, "k").holders([range(3, 6), range(4)])] == [
        (range(3, 4), [0, 1, 2, 3, 8, 9, 10, 11]),
        (range(4, 6), [4, 5, 6, 7, 12, 13, 14, 15]),
    ]


def test_holders_are_not_enumerated():
    weights = Weights([Weight("k", "8/tp 4", units=2, stage="tied")])
    large = ParallelTopology(tp=8, dp=1 << 60, pp=2)
    assert [ranks.size for _, ranks in weights.placed(large, "k").holders()] == [4 << 61] * 2
    assert weights.placed(large, "k").copies == 4 << 61


def test_sizes_of_parts_may_be_given():
    weights = Weights([Weight("w", "12/tp", units=6, uneven=(1, 2, 3))])
    held = [weights.on(ParallelTopology(tp=3), rank)["w"].ranges[0] for rank in range(3)]
    assert held == [range(2), range(2, 6), range(6, 12)]
    with pytest.raises(TopologyError, match=r"3 sizes were given for tp 2"):
        weights.on(ParallelTopology(tp=2), 0)


def test_experts_where_no_axis_is_theirs():
    weights = Weights([Weight("up", "16/ep 128/etp 64")])
    assert weights.on(ParallelTopology(tp=4), 1)["up"].ranges[:2] == (range(16), range(32, 64))
    assert weights.on(ParallelTopology(tp=2, ep=4, order="tp-ep"), 3)["up"].ranges[:2] == (range(4, 8), range(64, 128))
    view = ParallelTopology(tp=4, views={"expert": "ep4"})
    assert weights.on(view, 1)["up"].ranges[:2] == (range(4, 8), range(128))


# Bytes


@given(placed_weights(), st.sampled_from(["dp", "dp_shard", "x", "tp"]))
def test_shards_of_shards_add_up(drawn, axis):
    """What ZeRO cuts is all there: over the ranks along the axis, once."""
    topology, weight = drawn
    if axis not in topology.all_axes:
        return
    weights = Weights([weight], dtype="int8")
    whole = sum(weights.bytes_on(topology, rank) for rank in topology.world)
    sharded = sum(weights.bytes_on(topology, rank, sharded_over=axis) for rank in topology.world)
    assert sharded in (whole, whole // topology.size(axis))
    if len(topology.views) == 0 and not any(axis in weight.axes(dim) for dim in weight.cut):
        assert sharded == whole // topology.size(axis)


def test_zero_cuts_each_tensor_by_rows():
    weights = Weights([Weight("w", "5/tp 3"), Weight("e", "4/ep 2")], dtype="float32")
    topology = ParallelTopology(dp=4, views={"expert": "ep2-edp2"})
    rows = [weights.bytes_on(topology, rank, sharded_over=("dp", "edp")) for rank in range(4)]
    assert rows == [4 * (2 * 3 + 2), 4 * (2 * 3 + 2), 4 * (3 + 2), 4 * 2]
    assert weights.bytes_on(topology, 3, sharded_over="dp", dtype="float64") == 8 * 4
    with pytest.raises(UnknownAxisError, match="zero"):
        weights.bytes_on(topology, 0, sharded_over="zero")


def test_uneven_stages_weigh_what_they_hold():
    weights = Weights([Weight("w", "10", layer=True, dtype="int8")], layers=8, counts=[1, 2, 2, 3])
    assert [weights.bytes_on(ParallelTopology(pp=4), rank) for rank in range(4)] == [10, 20, 20, 30]
    assert weights.parameters == 80
    assert [len(stage_layers(8, stage, 4, counts=[1, 2, 2, 3])) for stage in range(4)] == [1, 2, 2, 3]


def test_one_rank_of_a_large_world_is_asked_in_no_time():
    """671B parameters on 16,384 ranks and on a thousand times as many: the same steps for each."""
    layer = [Weight(f"a{number}", "7168/tp 1536", layer=True, units=128) for number in range(12)]
    experts = [Weight(f"e{number}", "256/ep 2048/etp 7168", layer=range(3, 61)) for number in range(3)]
    weights = Weights([*layer, *experts], layers=61, first=4, last=1)

    def ask(replicas: int) -> None:
        topology = ParallelTopology(tp=8, dp=replicas, pp=16, views={"expert": "ep64-pp16"})
        for rank in range(0, topology.world_size, topology.world_size // 50):
            weights.on(topology, rank)

    with soon():
        assert times_slower(lambda: ask(128 * 1024), lambda: ask(128)) < 3


def test_weights_are_values():
    asked = Weights(CONTRACT.weights, layers=4)
    asked.on(EXPERTS, 0)
    for same in (copy.deepcopy(CONTRACT), pickle.loads(pickle.dumps(CONTRACT)), asked):
        assert same == CONTRACT
        assert hash(same) == hash(CONTRACT)
        assert same.on(EXPERTS, 5) == CONTRACT.on(EXPERTS, 5)
    assert Weights(CONTRACT.weights, layers=5) != CONTRACT


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shape": "10/7tp 4"}, "cannot read '10/7tp'"),
        ({"shape": "8/tp 8/tp"}, "axis 'tp' cuts 2 times"),
        ({"shape": "8/tp", "cut": {0: "tp"}}, "expected one"),
        ({"shape": (8,), "cut": {1: "tp"}}, r"expected dims of \[8\]"),
        ({"shape": (8, 0)}, "a dim=0"),
        ({"shape": 8}, "shape=8"),
        ({"shape": (8,), "cut": {0: 3}}, "a cut over 3"),
        ({"shape": "8/tp", "units": 3}, "divides dim 0"),
        ({"shape": "8/tp", "units": 0}, "units=0"),
        ({"shape": "8/tp", "units": 2, "pad_to": 4}, "pad_to= pads dim 0"),
        ({"shape": "8/tp", "uneven": "torch"}, "uneven='torch'"),
        ({"shape": "8/tp", "uneven": (3, 4)}, "make 7; expected 8 elements"),
        ({"shape": "8/tp 8/cp", "uneven": (3, 5)}, "expected one dim"),
        ({"shape": "8", "stage": "middle"}, "stage='middle'"),
        ({"shape": "8", "stage": "first", "layer": True}, "both layer="),
        ({"shape": "8", "layer": 3}, "layer=3"),
        ({"shape": "8", "dtype": "bf17"}, "dtype='bf17'"),
    ],
)
def test_a_weight_that_cannot_be(arguments, said):
    with pytest.raises(TopologyError, match=said) as caught:
        Weight("w", **arguments)
    assert "weight 'w'" in str(caught.value)


def test_what_does_not_divide_says_what_would():
    with pytest.raises(TopologyError) as caught:
        Weights([Weight("w", "64/tp 10/cp")]).on(ParallelTopology(tp=8, cp=3), 0)
    assert "weight 'w', dim 1 of [64, 10]: 10 elements over cp 3 leave 1 over" in str(caught.value)
    assert "expected 9 or 12, cp 2 or 5" in str(caught.value)
    with pytest.raises(TopologyError, match=r"8 units that are never split over tp 3 leave 2 over.* tp 2 or 4"):
        CONTRACT.on(ParallelTopology(tp=3, views={"expert": "etp1-ep3"}), 0)
    with pytest.raises(TopologyError, match=r"weight 'w'.*no axis 'nope'"):
        Weights([Weight("w", "8/nope")]).on(ParallelTopology(tp=2), 0)
    with pytest.raises(UnknownAxisError, match="common factorization"):
        Weights([Weight("w", "8/tp 8/ep")]).on(EXPERTS, 0)
    with pytest.raises(RankError):
        CONTRACT.on(EXPERTS, 16)


def test_weights_that_cannot_be():
    with pytest.raises(TopologyError, match=r"two weights have the name 'q\.0'"):
        Weights([Weight("q", "8", layer=True), Weight("q.0", "8")], layers=1)
    with pytest.raises(TopologyError, match="layers=0"):
        Weights([Weight("q", "8", layer=True)])
    with pytest.raises(TopologyError, match="layers=4"):
        Weights([Weight("q", "8", layer=[4])], layers=4)
    with pytest.raises(TopologyError, match="is no weight"):
        Weights(["q"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TopologyError, match="no weight is named 'k'"):
        CONTRACT.placed(EXPERTS, "k")
