"""How a side keeps weights, against brute force: numbered elements, cut by NumPy and put together as the rules say."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, RankError, TopologyError, UnknownAxisError
from parallel_topology.weights import Fused, Interleaved, Padded, Sharded, Split, Storage, Transposed, Weight, Weights
from tests.weights.test_weights import cut_by_hand, placed_weights

NAMES = ("q", "k", "v")


@dataclass(frozen=True)
class Kept:
    """A storage, and how NumPy makes its tensors."""

    topology: ParallelTopology
    storage: Storage
    dim: int
    joined: Fused | Interleaved | None
    turned: bool
    split: bool
    turned_again: bool
    sharded_dim: int

    def whole(self, name: str) -> Any:
        """The elements of a logical tensor, each numbered as no other of the model."""
        names = self.storage.weights.names
        shape = self.storage.weights.named(name).shape
        before = sum(np.prod(self.storage.weights.named(one).shape) for one in names[: names.index(name)])
        return int(before) + np.arange(np.prod(shape)).reshape(shape)

    def by_hand(self, rank: int) -> dict[str, Any]:
        """The tensors of a rank; -1 is padding."""
        weights = self.storage.weights
        held = weights.on(self.topology, rank)
        layers = {name.partition(".")[2] for name in held}
        found: dict[str, Any] = {}
        for layer in layers:
            ending = f".{layer}" if layer else ""
            parts = [self._part(name + ending, rank) for name in NAMES]
            for name, array in self._together(parts).items():
                for index, one in self._apart(array, name + ending, rank).items():
                    found[name + index + ending] = self._shard(one, rank)
        return found

    def _shard(self, array: Any, rank: int) -> Any:
        if not self.over:
            return array
        group = [*self.topology.group(*self.over, rank=rank)]
        each = -(-array.shape[self.sharded_dim] // len(group))
        start = group.index(rank) * each
        return np.take(array, range(array.shape[self.sharded_dim])[start : start + each], self.sharded_dim)

    @property
    def over(self) -> tuple[str, ...]:
        if self.storage.sharded_over:
            return self.storage.sharded_over
        return next((tuple(rule.over) for rule in self.storage.rules if isinstance(rule, Sharded)), ())

    def _part(self, name: str, rank: int) -> Any:
        weight, whole = self.storage.weights.named(name), self.whole(name)
        numbers = cut_by_hand(weight, self.topology, rank)
        return np.where(numbers < 0, -1, numbers + whole.min())

    def _together(self, parts: list[Any]) -> dict[str, Any]:
        dim = self.dim
        if isinstance(self.joined, Fused):
            return {"all": np.concatenate(parts, dim)}
        if isinstance(self.joined, Interleaved):
            widths = [self.storage.weights.named(name).shape[dim] // self.joined.groups for name in self.by_layer]
            groups = parts[0].shape[dim] // widths[0]
            blocks = [np.split(part, groups, dim) if groups else [] for part in parts]
            empty = np.concatenate(parts, dim) if not groups else np.take(np.concatenate(parts, dim), [], dim)
            return {
                "all": np.concatenate([empty, *(block for group in zip(*blocks, strict=True) for block in group)], dim)
            }
        return dict(zip(NAMES, parts, strict=True))

    @property
    def by_layer(self) -> list[str]:
        return [next(one for one in self.storage.weights.names if one.partition(".")[0] == name) for name in NAMES]

    def _apart(self, array: Any, name: str, rank: int) -> dict[str, Any]:
        if self.turned:
            array = array.swapaxes(-1, -2)
        if not self.split:
            return {"": array}
        of = "q" + name[name.index(".") :] if "." in name else "q"
        placed = self.storage.weights.placed(self.topology, of if self.joined else name)
        start = placed.parts(self.topology.position(rank))[0].start
        tensors = {f"@{start + index}": one for index, one in enumerate(array)}
        if self.turned_again:
            tensors = {index: one.swapaxes(-1, -2) for index, one in tensors.items()}
        return tensors


@st.composite
def kept(draw: st.DrawFn) -> Kept:
    """Three weights that are cut alike, and how they are kept."""
    topology, weight = draw(placed_weights())
    stages = [axis for axis in ("pp", "pipe") if axis in topology.all_axes][:1]
    layers = draw(st.integers(0, 2)) * (topology.size(stages[0]) if stages else 1)
    try:
        topology.factorization(*stages, *(axis for axes in weight.cut.values() for axis in axes.split("/")))
    except UnknownAxisError:  # stages are not to be told apart where what cuts it is
        layers = 0
    if layers:
        weight = replace(weight, layer=draw(st.sampled_from([True, [layers - 1]])))
    dims = len(weight.shape)
    dim = draw(st.integers(0, dims - 1))
    how = draw(st.sampled_from(["fused", "interleaved", "alone"]))
    groups = weight.units.get(dim) or weight.shape[dim]
    if how == "interleaved" and not (dim == 0 and weight.pad_to):
        weight = replace(weight, units={**weight.units, dim: groups})
    elif how == "interleaved":
        how = "alone"
    three = [
        replace(weight, name=name, shape=[size * times if at == dim else size for at, size in enumerate(weight.shape)])
        for name, times in zip(NAMES, draw(st.tuples(*3 * [st.integers(1, 3)])), strict=True)
    ]
    rules: list[Any] = []
    joined: Any = None
    if how == "fused":
        joined = Fused("all", NAMES, dim - draw(st.sampled_from([0, dims])))
    elif how == "interleaved":
        joined = Interleaved("all", NAMES, groups, dim - draw(st.sampled_from([0, dims])))
    rules += [joined] if joined else []
    names = ["all"] if joined else NAMES
    turned = dims > 1 and draw(st.booleans())
    first = dims - 1 if turned and dims == 2 else 0  # the dim that runs along dim 0
    split = draw(st.booleans()) and not (joined and dim == first) and first == 0  # of dim 0, which has its own start
    again = split and dims > 2 and draw(st.booleans())
    rules += [Transposed(name) for name in names if turned]
    rules += [Split(name, name + "@{index}") for name in names if split]
    rules += [Transposed(name + "@{index}") for name in names if again]
    weights = Weights(three, layers=layers, dtype="int32")
    cutting = {axis for axes in weight.cut.values() for axis in axes.split("/")}
    free = [axis for axis in topology.axes if axis not in {*cutting, *stages}]
    over = draw(st.permutations(free))[: draw(st.integers(0, 2))] if cutting <= {*topology.axes} else []
    left = dims - split  # a split tensor of one dim has none
    if not over or not left or draw(st.booleans()):
        storage = Storage(weights, rules, sharded_over=over if left else ())
        return Kept(topology, storage, dim, joined, turned, split, again, sharded_dim=0)
    at = draw(st.integers(-left, left - 1))
    rules += [Sharded(name + "@{index}" * split, over, at) for name in names]
    return Kept(topology, Storage(weights, rules), dim, joined, turned, split, again, at)


def slices(box: Any) -> Any:
    return tuple(slice(one.start, one.stop, one.step) for one in box)


@given(kept(), st.data())
def test_what_a_rank_keeps_is_what_numpy_puts_together(drawn: Kept, data: st.DataObject):
    topology, storage = drawn.topology, drawn.storage
    for rank in data.draw(st.sets(st.sampled_from(topology.world), min_size=1, max_size=6)):
        expected = drawn.by_hand(rank)
        tensors = storage.tensors(topology, rank)
        assert {name: stored.shape for name, stored in tensors.items()} == {
            name: array.shape for name, array in expected.items()
        }
        if not drawn.joined and not drawn.turned and not drawn.split and drawn.sharded_dim == 0:
            predicted = storage.weights.bytes_on(topology, rank, sharded_over=drawn.over)
            assert sum(stored.nbytes for stored in tensors.values()) == predicted
        for name, array in expected.items():
            found = np.full(array.shape, -1)
            for place in storage.contents(topology, rank, name):
                assert place.tensor == name
                assert (found[slices(place.local)] == -1).all()
                place.view(found)[...] = drawn.whole(place.weight)[slices(place.ranges)]
            assert (found == array).all()


def boxes(draw: Any, shape: tuple[int, ...]) -> list[range]:
    ends = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return [range(*pair) for pair in ends]


@given(kept(), st.data())
def test_both_ways_are_inverse_and_cover_each_element_once(drawn: Kept, data: st.DataObject):
    topology, storage = drawn.topology, drawn.storage
    rank = data.draw(st.sampled_from(topology.world))
    tensors = drawn.by_hand(rank)
    mine = Counter(number for array in tensors.values() for number in array.ravel().tolist())
    for name in storage.weights.names:
        wanted, seen = boxes(data.draw, storage.weights.named(name).shape), Counter[int]()
        for place in storage.places(topology, rank, name, wanted):
            numbers = drawn.whole(name)[slices(place.ranges)]
            seen.update(numbers.ravel().tolist())
            assert (place.view(tensors[place.tensor]) == numbers).all()
            if all(one.step == 1 for one in place.local):
                assert place in storage.contents(topology, rank, place.tensor, place.local)
        assert seen == Counter(number for number in drawn.whole(name)[slices(wanted)].ravel().tolist() if mine[number])
    for tensor, array in tensors.items():
        wanted = boxes(data.draw, array.shape)
        numbers = array[slices(wanted)]
        found = [
            number
            for place in storage.contents(topology, rank, tensor, wanted)
            for number in drawn.whole(place.weight)[slices(place.ranges)].ravel().tolist()
        ]
        assert sorted(found) == sorted(numbers[numbers >= 0].tolist())
        for place in storage.contents(topology, rank, tensor, wanted):
            assert storage.places(topology, rank, place.weight, place.ranges) == [place]


@given(kept(), st.data())
def test_holders_are_those_who_keep_all_of_a_box(drawn: Kept, data: st.DataObject):
    topology, storage = drawn.topology, drawn.storage
    name = data.draw(st.sampled_from(storage.weights.names))
    wanted = boxes(data.draw, storage.weights.named(name).shape)
    keeping = {
        rank: {index for place in storage.places(topology, rank, name) for index in product(*place.ranges)}
        for rank in topology.world
    }
    seen: Counter[tuple[int, ...]] = Counter()
    for box, ranks in storage.holders(topology, name, wanted):
        seen.update(product(*box))
        assert [*ranks] == [rank for rank in topology.world if keeping[rank] >= {*product(*box)}]
    assert seen == dict.fromkeys(product(*wanted), 1)


# Where the arrangements come from

MODEL = Weights(
    [
        Weight("embed", "1000/tp 8", stage="first", pad_to=128),
        Weight("q", "32/tp 8", units=8, layer=True),
        Weight("k", "8/tp 8", units=2, layer=True),
        Weight("v", "8/tp 8", units=2, layer=True),
        Weight("gate", "4/ep 12/etp 8", layer=True),
        Weight("up", "4/ep 12/etp 8", layer=True),
        Weight("down", "4/ep 8 12/etp", layer=True),
    ],
    layers=2,
)
VLLM = [Fused("qkv", ["q", "k", "v"]), Fused("w13", ["gate", "up"], dim=1)]
MEGATRON = [Interleaved("linear_qkv", ["q", "k", "v"], groups=2)]
GPT_OSS = [Interleaved("gate_up", ["gate", "up"], groups=12, dim=1), Transposed("gate_up"), Transposed("down")]


def rows(storage: Storage, topology: ParallelTopology, rank: int, tensor: str) -> list[tuple[str, range, range]]:
    """Weight, its rows and the tensor's, in the tensor's order."""
    found = storage.contents(topology, rank, tensor)
    return sorted(((one.weight, one.ranges[0], one.local[0]) for one in found), key=lambda one: one[2].start)


def test_query_heads_and_replicated_kv_heads_one_after_the_other():
    topology = ParallelTopology(tp=4)
    assert rows(Storage(MODEL, VLLM), topology, 3, "qkv.1") == [
        ("q.1", range(24, 32), range(8)),
        ("k.1", range(4, 8), range(8, 12)),
        ("v.1", range(4, 8), range(12, 16)),
    ]


def test_query_heads_of_a_group_its_key_its_value():
    assert rows(Storage(MODEL, MEGATRON), ParallelTopology(tp=1), 0, "linear_qkv.0") == [
        ("q.0", range(16), range(16)),
        ("k.0", range(4), range(16, 20)),
        ("v.0", range(4), range(20, 24)),
        ("q.0", range(16, 32), range(24, 40)),
        ("k.0", range(4, 8), range(40, 44)),
        ("v.0", range(4, 8), range(44, 48)),
    ]
    assert rows(Storage(MODEL, MEGATRON), ParallelTopology(tp=2), 1, "linear_qkv.0") == [
        ("q.0", range(16, 32), range(16)),
        ("k.0", range(4, 8), range(16, 20)),
        ("v.0", range(4, 8), range(20, 24)),
    ]


def test_fewer_groups_than_ranks_are_cut_where_the_cut_falls():
    """Megatron's own example: `q1 q2 k1 v1` over two ranks, one has the queries, the other key and value."""
    heads = [Weight(name, f"{4 * count} 8", units=count) for name, count in (("q", 4), ("k", 2), ("v", 2))]
    rules = [Interleaved("linear_qkv", ["q", "k", "v"], groups=2), Sharded("linear_qkv", "tp")]
    storage, topology = Storage(Weights(heads), rules), ParallelTopology(tp=4, dp=2)
    assert rows(storage, topology, 2, "linear_qkv") == [("q", range(8, 16), range(8))]
    assert rows(storage, topology, 3, "linear_qkv") == [
        ("k", range(4, 8), range(4)),
        ("v", range(4, 8), range(4, 8)),
    ]
    assert [(box[0], [*ranks]) for box, ranks in storage.holders(topology, "k")] == [
        (range(4), [1, 5]),
        (range(4, 8), [3, 7]),
    ]


def test_shards_of_one_tensor_that_ranks_cut_elsewhere():
    """Ranks that hold the same key have queries of other lengths before it, so the chunks begin elsewhere."""
    q, k = Weight("q", "3/tp 2", uneven="chunk"), Weight("k", "4/tp 2", units=1, uneven="chunk")
    storage = Storage(Weights([q, k]), [Fused("qk", ["q", "k"]), Sharded("qk", "dp")])
    topology = ParallelTopology(tp=2, dp=2)
    assert [rows(storage, topology, rank, "qk")[-1][1] for rank in range(4)] == [
        *(range(1), range(2), range(1, 4), range(2, 4))
    ]
    assert [(box[0], [*ranks]) for box, ranks in storage.holders(topology, "k")] == [
        (range(1), [0, 1]),
        (range(1, 2), [1, 2]),
        (range(2, 4), [2, 3]),
    ]


def test_one_column_in_turn_is_a_step():
    topology = ParallelTopology.parse("ep2-etp2")
    storage = Storage(MODEL, GPT_OSS)
    assert storage.tensors(topology, 3)["gate_up.0"].shape == (2, 8, 12)
    (up,) = storage.places(topology, 3, "up.0", [range(3, 4), range(4, 8), range(8)])
    assert (up.local, up.dims) == ((range(1, 2), range(8), range(1, 4, 2)), (0, 2, 1))


def test_an_expert_has_tensors_of_its_own():
    rules = [*VLLM, Split("w13", "layers.{}.experts.{index}.w13"), Split("down", "experts.{index}.w2")]
    storage, topology = Storage(MODEL, rules), ParallelTopology.parse("ep2-etp2")
    assert [name for name in storage.tensors(topology, 3) if "experts" in name and "0" in name] == [
        *("layers.0.experts.2.w13", "layers.0.experts.3.w13"),
        *("experts.2.w2.0", "experts.3.w2.0"),
    ]
    assert storage.contents(topology, 3, "experts.0.w2.0") == []
    (down,) = storage.places(topology, 3, "down.1", [range(3, 4), range(2), range(7)])
    assert (down.tensor, down.local, down.dims) == ("experts.3.w2.1", (range(2), range(1)), (1, 2))


def test_each_side_pads_as_it_does():
    topology = ParallelTopology(tp=2)
    for rule, length in (
        (None, 512),
        (Padded("embed", to=200), 600),
        (Padded("embed", whole_to=300), 600),
        (Padded("embed", whole_to=6), 501),
        (Padded("embed"), 500),
    ):
        storage = Storage(MODEL, [rule] if rule else [])
        assert storage.tensors(topology, 0)["embed"].shape == (length, 8)
        (place,) = storage.places(topology, 1, "embed")
        assert (place.ranges[0], len(place.local[0])) == (range(length, 1000), 1000 - length)


def test_a_rank_of_another_stage_keeps_nothing_of_a_weight():
    topology, storage = ParallelTopology.parse("pp2"), Storage(MODEL, VLLM)
    assert storage.places(topology, 0, "q.1") == storage.contents(topology, 0, "qkv.1") == []
    assert [*storage.tensors(topology, 1)] == ["qkv.1", "w13.1", "down.1"]


def test_a_scalar_has_a_place():
    storage = Storage(Weights([Weight("scale", "", dtype="float32")]))
    (place,) = storage.places(ParallelTopology(tp=2), 1, "scale")
    array = np.zeros(())
    place.view(array)[...] = 3
    assert (array, place.ranges, storage.tensors(ParallelTopology(tp=2), 0)["scale"].nbytes) == (3, (), 4)


# As a value


def test_equal_storages_are_equal_and_travel():
    storage = Storage(MODEL, VLLM)
    assert storage == Storage(MODEL, [Fused("qkv", ("q", "k", "v")), Fused("w13", ["gate", "up"], 1)])
    assert storage != Storage(MODEL, MEGATRON)
    assert len({storage, Storage(MODEL, VLLM)}) == 1
    storage.tensors(ParallelTopology(tp=2), 0)
    for twin in (pickle.loads(pickle.dumps(storage)), copy.deepcopy(storage)):
        assert twin == storage
        assert twin.tensors(ParallelTopology(tp=2), 1) == storage.tensors(ParallelTopology(tp=2), 1)


# What cannot be

OTHERS = Weights(
    [
        Weight("a", "8/tp 4", layer=True),
        Weight("wide", "8/tp 6", layer=True),
        Weight("flat", "8/tp", layer=True),
        Weight("across", "8 4/tp", layer=True),
        Weight("over_cp", "8/cp 4", layer=True),
        Weight("exact", "8/tp 4", layer=True, dtype="float32"),
        Weight("some", "8/tp 4", layer=[0]),
        Weight("once", "8/tp 4"),
        Weight("last", "8/tp 4", stage="last"),
        Weight("heads", "4 8/tp", layer=True, units={1: 2}),
        Weight("odd", "4 8/tp", layer=True),
    ],
    layers=2,
)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (lambda: [Fused("x", ["a", "wide"])], "'a' and 'wide' differ in dim 1, 8/tp 4 and 8/tp 6"),
        (lambda: [Fused("x", ["a", "flat"])], "'a' and 'flat' differ in the number of dims, 8/tp 4 and 8/tp"),
        (lambda: [Fused("x", ["a", "across"])], "'a' and 'across' differ in the cut of dim 0, 8/tp 4 and 8 4/tp"),
        (lambda: [Fused("x", ["a", "over_cp"])], "'a' and 'over_cp' differ in the cut of dim 0, 8/tp 4 and 8/cp 4"),
        (lambda: [Fused("x", ["a", "exact"])], "'a' and 'exact' differ in dtype, bfloat16 and float32"),
        (lambda: [Fused("x", ["a", "some"])], "differ in where they are, layers (0, 1) and layers (0,)"),
        (lambda: [Fused("x", ["a", "once"])], "differ in where they are, layers (0, 1) and stage 'all'"),
        (lambda: [Fused("x", ["once", "last"])], "differ in where they are, stage 'all' and stage 'last'"),
        (lambda: [Fused("x", ["heads", "odd"])], "differ in how dim 1 is divided, in units, padding or uneven parts"),
        (lambda: [Interleaved("x", ["a", "exact"], groups=2)], "differ in dtype"),
        (lambda: [Interleaved("x", ["a"], groups=3)], "dim 0 of 'a', 8/tp 4, is no multiple of groups=3"),
        (lambda: [Interleaved("x", ["a"], groups=0)], "groups=0: expected a whole number of at least 1"),
        (lambda: [Fused("y", ["a"]), Interleaved("x", ["y"], 2, dim=5)], "dim=5: expected one of the 2 of 'y', 8/tp 4"),
        (lambda: [Fused("x", ["a", "nosuch"])], "there is no 'nosuch' here; expected one of 'a', 'wide'"),
        (lambda: [Fused("x", ["a"]), Transposed("a")], "there is no 'a' here"),
        (lambda: [Fused("x", ["a", "a"])], "part 'a' is named twice"),
        (lambda: [Fused("x", "a")], "parts='a': expected names"),
        (lambda: [Fused("", ["a"])], "expected the name"),
        (lambda: [Fused("wide", ["a"])], "there is a tensor 'wide' already"),
        (lambda: [Fused("once.{}", ["a"]), Fused("once.1", ["once"])], "two tensors have the name 'once.1'"),
        (lambda: [Split("a", "e.{index}"), Fused("e.1.1", ["once"])], "two tensors have the name 'e.1.1'"),
        (lambda: [Split("a", "expert")], "expected {index} once in the name"),
        (lambda: [Split("a", "e.{index}"), Split("e.{index}", "f.{index}")], "'e.{index}' is split already"),
        (lambda: [Fused("x", ["once"]), Split("a", "{index}"), Fused("y", ["{index}"])], "expected {index} once"),
        (lambda: [Fused("x", ["a", "wide"], dim=1), Fused("y", ["x", "a"])], "there is no 'a'"),
        (lambda: [Fused("x", ["a", "wide"], dim=1), Interleaved("y", ["x"], 2, dim=1)], "run several weights"),
        (lambda: [Transposed("flat")], "8/tp has 1 dims; expected at least 2"),
        (lambda: [Padded("a", to=2, whole_to=2)], "both pad_to= and pad_whole_to= were given"),
        (lambda: [Padded("a", whole_to=0)], "pad_whole_to=0: expected a whole number"),
        (lambda: [Sharded("a", "tp")], "8/tp 4 is cut over 'tp' already; expected another axis"),
        (lambda: [Sharded("a", "dp", dim=2)], "dim=2: expected one of the 2 of 'a', 8/tp 4"),
        (lambda: [Sharded("a", ["d p"])], "over ['d p']: expected an axis, or several"),
        (lambda: [Sharded("a", ["dp", "dp"])], "expected each axis once"),
        (lambda: [Sharded("nosuch", "dp")], "there is no 'nosuch' here"),
        (lambda: [Sharded("a", "dp"), Sharded("a", "cp")], "is sharded twice"),
        (
            lambda: [Sharded("a", "dp"), Fused("x", ["a"])],
            "over=('dp',), dim=0): there is no 'a' here",
        ),
        (lambda: [Padded("nosuch", to=4)], "there is no 'nosuch' here"),
        (lambda: [Padded("a", to=0)], "pad_to=0: expected a whole number"),
        (lambda: ["fused"], "'fused' is no rule: expected a list of them"),
        (lambda: [5], "5 is no rule"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(rules: Any, said: str):
    with pytest.raises(TopologyError) as caught:
        Storage(OTHERS, rules())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            lambda one, on: one.places(on, 0, "nosuch"),
            "no weight is named 'nosuch': there are 13, such as 'embed', 'q.0'",
        ),
        (lambda one, on: one.places(on, 0, "qkv.0"), "no weight is named 'qkv.0'"),
        (lambda one, on: one.places(on, 0, "q.0", [range(3)]), "1 ranges for weight 'q.0' of [32, 8]"),
        (lambda one, on: one.places(on, 0, "q.0", [range(3), range(0, 8, 2)]), "expected a range of step 1"),
        (lambda one, on: one.contents(on, 0, "q.0"), "no tensor is named 'q.0': there are 'embed', 'qkv.{}', 'w13.{}'"),
        (lambda one, on: one.contents(on, 0, "qkv.2"), "no tensor is named 'qkv.2'"),
        (lambda one, on: one.contents(on, 0, "qkv.0", [slice(3), 4]), "expected a range of step 1"),
    ],
)
def test_questions_that_have_no_answer(asked: Any, said: str):
    with pytest.raises(TopologyError) as caught:
        asked(Storage(MODEL, [*VLLM, Split("down", "e.{index}.down")]), ParallelTopology(tp=2))
    assert said in str(caught.value)


def test_a_cut_through_the_groups_is_refused():
    topology = ParallelTopology(tp=4)
    with pytest.raises(TopologyError, match=r"16 of dim 0 of 'q', .*no whole groups of 16; .* units=2"):
        Storage(MODEL, MEGATRON).tensors(topology, 1)
    uneven = [Weight("q", "8/tp", units=4, uneven=[1, 3]), Weight("k", "4/tp", units=4, uneven=[3, 1])]
    with pytest.raises(TopologyError, match=r"a rank has groups 0..1 of 'q' and 0..3 of 'k'; expected the same"):
        Storage(Weights(uneven), [Interleaved("x", ["q", "k"], groups=4)]).places(ParallelTopology(tp=2), 0, "q")


def test_axes_of_shards_have_to_be_there():
    topology = ParallelTopology(tp=2, dp=2, views={"expert": "ep2-edp2"})
    with pytest.raises(UnknownAxisError, match="zero"):
        Storage(MODEL, sharded_over="zero").tensors(topology, 0)
    weights = Weights([Weight("up", "4/ep 2"), Weight("norm", "4")])
    with pytest.raises(UnknownAxisError, match=r"'up' is sharded over dp, but no factorization .* 4/ep 2"):
        Storage(weights, [Sharded("up", "dp")]).places(topology, 0, "up")
    storage = Storage(weights, [Sharded("norm", ())], sharded_over=("dp", "edp"))
    assert [storage.tensors(topology, 0)[name].shape for name in ("up", "norm")] == [(1, 2), (4,)]
    with pytest.raises(TopologyError, match="sharded_over: over 'd p'"):
        Storage(weights, sharded_over="d p")


def test_a_rank_outside_the_world():
    with pytest.raises(RankError):
        Storage(MODEL).places(ParallelTopology(tp=2), 2, "embed")
