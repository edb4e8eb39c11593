"""Values to bytes and back: the laws, what cannot be sent, and bytes that no encode() wrote."""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from enum import Enum, Flag, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from parallel_topology import GroupArgumentError, ParallelTopology, WireError
from parallel_topology.wire.structure import TensorSpec
from parallel_topology.wire.wire import _hold_ints, decode, decode_pickled, encode, encode_pickled
from tests.examples import examples
from tests.waiting import SOON

DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
PLAIN_DTYPES = [dtype for dtype in DTYPES if not str(dtype).startswith("torch.q")]  # quantized


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Rights(Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    first: Any
    second: Any = 0


@dataclass
class Plain:
    values: list[Any]
    colour: Colour = Colour.RED
    length: int = field(init=False)

    def __post_init__(self) -> None:
        if self.values and type(self.values[0]) is str and self.values[0] == "no":
            raise KeyError("a constructor that raises what it should not")
        self.length = len(self.values)


@dataclass(frozen=True, slots=True)
class Frozen:
    value: Any = None


@dataclass
class Initial:
    given: InitVar[int]


CLASSES = (Pair, Plain, Frozen, Colour, Level, Rights)


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True)
    number: int = 0


class Config(BaseModel):
    """A field of each kind that needs care."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    inner: Inner = Inner()
    colour: Colour = Colour.RED
    where: Path = Path("/a")
    when: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    raw: bytes = b"\xff"
    ratio: float = math.inf
    pairs: dict[int, tuple[int, ...]] = Field(default={1: (2, 3)}, alias="the-pairs")
    weight: torch.Tensor | None = None


class Anything(RootModel[list[Any]]):
    pass


class Choosy(BaseModel):
    number: int = 0

    @model_validator(mode="after")
    def _refuse(self) -> Choosy:
        if self.number == 1:
            raise KeyError("a validator that raises what it should not")
        return self


def same(one: Any, other: Any) -> bool:
    """Equal, with equal types all the way down, equal order of keys, and floats (but NaN) and tensors by their bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, (Plain, Frozen)):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(mine, its) for its in other) for mine in one)
    return bool(one == other)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Any bits, or for bool any truth."""
    size = math.prod(shape) * dtype.itemsize
    raw = torch.randint(
        0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8, generator=torch.manual_seed(seed)
    )
    return raw.view(dtype).reshape(shape)


floats = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])
ints = st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1])
texts = st.text(st.characters()) | st.sampled_from(["", "\ud800\udc00", "\x00", '"\\'])
tensors = st.builds(
    tensor_of,
    st.sampled_from([torch.bfloat16, torch.float32, torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 9),
)
hashables = st.deferred(  # not st.recursive(): hypothesis objects to the length of its repr
    lambda: (
        (st.none() | st.booleans() | ints | floats | texts | st.binary() | st.sampled_from([torch.half, torch.bool]))
        | (st.lists(hashables, max_size=2).map(tuple) | st.frozensets(hashables, max_size=2))
    )
)
arrays = st.builds(
    lambda dtype, shape: numpy.arange(math.prod(shape)).reshape(shape).astype(dtype),
    st.sampled_from(["<f4", ">i2", "?", "c16", "U3", "S2", "M8[s]", "f2", "u8"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)
leaves = (
    hashables
    | arrays
    | st.sampled_from([*Colour, *Level, *Rights, Rights(3), numpy.float32(0.1), numpy.datetime64("2026-01-02"), 1j])
    | tensors
    | st.lists(st.integers(0, 2**63 - 1)).map(torch.Size)
    | st.sampled_from([torch.device("cpu"), torch.device("cuda", 3), TensorSpec(torch.half, (2, 0), "cuda")])
    | st.builds(Inner, number=ints)
    | st.sets(hashables, max_size=4)
)
values = st.deferred(
    lambda: (
        (leaves | st.lists(values, max_size=4) | st.lists(values, max_size=4).map(tuple))
        | (st.dictionaries(texts, values, max_size=4) | st.dictionaries(hashables, values, max_size=4))
        | (st.dictionaries(hashables, values, max_size=4).map(OrderedDict) | st.builds(Pair, values, values))
        | (st.builds(Plain, st.lists(values, max_size=3), st.sampled_from(Colour)) | st.builds(Frozen, values))
    )
)


@settings(max_examples=examples(2))
@given(values)
def test_a_value_comes_back_equal_with_equal_types(value: Any) -> None:
    assert same(decode(encode(value), models=(Inner, *CLASSES)), value)


def test_ints_have_any_size() -> None:
    for value in (10**5000, -(10**5000)):  # more digits than Python would print
        assert decode(encode([value])) == [value]


@settings(deadline=None)
@given(values)
def test_equal_values_have_equal_bytes(value: Any) -> None:
    """What makes an encoded structure the key of a cache."""
    assert encode(value) == encode(value)


@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)], ids=str)
def test_a_tensor_of_any_dtype_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, shape)
    back = decode(encode(tensor))
    assert same(back, tensor)
    assert back.device.type == "cpu"
    assert same(decode(encode({"x": dtype})), {"x": dtype})


@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
def test_tensors_that_are_not_contiguous_are_sent_as_they_look(dtype: torch.dtype) -> None:
    tensor = tensor_of(dtype, (4, 6))
    bytes_of = tensor.view(torch.uint8).reshape(4, 6, -1)
    for view, plain in (
        (tensor.t(), bytes_of.transpose(0, 1)),
        (tensor[1::2, 1:4], bytes_of[1::2, 1:4]),
        (tensor[0, 0].expand(5), bytes_of[0, 0].expand(5, -1)),
    ):
        back = decode(encode(view))
        assert (back.dtype, back.shape) == (dtype, view.shape)
        assert bits(back) == bits(plain)


def test_lazy_conjugates_and_negatives_are_sent_as_they_look() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    assert torch.equal(decode(encode(numbers.conj())), torch.tensor([1 - 2j, 3 + 4j]))
    assert torch.equal(decode(encode(numbers.conj().imag)), torch.tensor([-2.0, 4.0]))


def test_a_parameter_arrives_as_a_tensor_without_gradient() -> None:
    back = decode(encode(torch.nn.Parameter(torch.ones(2))))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_received_tensors_can_be_written_to_and_share_nothing() -> None:
    data = encode([torch.zeros(2), torch.zeros(2), b"tail"])
    first, second, _ = decode(data)
    first += 1
    assert second.sum() == 0
    assert torch.equal(decode(data)[0], torch.zeros(2))


def test_a_default_device_does_not_reach_the_wire() -> None:
    with torch.device("meta"):
        back = decode(encode([torch.ones(2, device="cpu"), torch.ones(0, device="cpu")]))
    assert torch.equal(back[0], torch.ones(2))
    assert back[1].device.type == "cpu"


def test_a_message_can_be_bytes_or_a_part_of_a_larger_buffer() -> None:
    message = encode({"a": b"bc"})
    assert decode(bytes(message)) == decode(memoryview(b"xx" + message)[2:]) == {"a": b"bc"}


def test_bulk_is_not_inflated() -> None:
    assert len(encode([torch.zeros(1000), bytes(1000)])) < 5000 + 100


# pydantic models


def test_a_model_is_rebuilt_by_its_class() -> None:
    config = Config.model_validate({"inner": Inner(number=2**70), "the-pairs": {5: (6,)}})
    assert decode(encode([config]), models=(Config,)) == [config]
    assert decode(encode(ParallelTopology(tp=2, pp=2)), models=[ParallelTopology]) == ParallelTopology(tp=2, pp=2)
    assert decode(encode(Anything([1, (2,)])), models=(Anything,)) == Anything([1, (2,)])


def test_what_a_models_field_holds_besides_becomes_what_pydantic_makes_of_it() -> None:
    held = [Colour.RED, IntSubclass(3), OrderedDict(a=Path("/b")), Inner(number=4)]
    assert decode(encode(Anything(held)), models=(Anything,)) == Anything(["red", 3, {"a": "/b"}, {"number": 4}])


def test_a_models_tensors_go_as_tensors() -> None:
    back = decode(encode(Config(weight=torch.ones(2))), models=(Config,))
    assert torch.equal(back.weight, torch.ones(2))


def test_a_model_that_was_not_allowed_is_not_built() -> None:
    with pytest.raises(WireError) as caught:
        decode(encode({"a": Inner()}), models=(Config,))
    assert str(caught.value) == (
        f"a peer sent a '{__name__}.Inner', and the models that this call allows are {__name__}.Config: to allow it, "
        "give the class, as in models=(Inner,)"
    )


@pytest.mark.parametrize("fields", [b"[1]", b'[{"number":"x"}]', b'[{"number":1}]', b"[null]"])
def test_what_a_class_refuses_is_the_peers_fault(fields: bytes) -> None:
    header = b'{"":["model","%s.Choosy",%s]}' % (__name__.encode(), fields)
    with pytest.raises(WireError, match=r"what a peer sent as a .*Choosy makes none"):
        decode(with_length(header), models=(Choosy,))


def test_models_are_models_with_names_of_their_own() -> None:
    class Inner(BaseModel):
        pass

    Inner.__qualname__ = "Inner"
    with pytest.raises(GroupArgumentError, match=r"models has two classes named .*\.Inner"):
        decode(encode(1), models=(Inner, globals()["Inner"]))
    with pytest.raises(GroupArgumentError, match=r"models has 'Inner': expected classes that derive from"):
        decode(encode(1), models=("Inner",))  # pyright: ignore[reportArgumentType]


# What cannot be sent


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append({"a": value})
    return value


class IntSubclass(int):
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: 0, "value: a function cannot be sent: expected None, bool"),
        ({"a": [1, 2, 3, print]}, "value['a'][3]: a builtin_function_or_method cannot be sent"),
        ({"a": ({1: object()},)}, "value['a'][0][1]: a object cannot be sent"),
        ({(1, print): 2}, "value[0][1]: a builtin_function_or_method cannot be sent"),
        ([torch.Size([-1])], "value[0]: torch.Size([-1]) is the size of nothing, and cannot be sent"),
        ([defaultdict(int)], "value[0]: a collections.defaultdict cannot be sent"),
        ([1 << 2**16], "value[0]: an int of 65537 bits cannot be sent, expected at most 65536"),
        ([numpy.array([print])], "value[0]: a NumPy array or scalar of object cannot be sent: expected numbers"),
        ([Initial(1)], f"value[0]: a {__name__}.Initial cannot be sent: it has an InitVar, which it does not keep"),
        ({10**5000: print}, "value[a int]: a builtin_function_or_method cannot be sent"),
        ([1, IntSubclass(1)], f"value[1]: a {__name__}.IntSubclass cannot be sent"),
        ([bytearray()], "value[0]: a bytearray cannot be sent"),
        ([int], "value[0]: a type cannot be sent"),
        ([torch.ones(2).to_sparse()], "value[0]: a tensor that is torch.sparse_coo cannot be sent"),
        ([torch.ones(2, device="meta")], "value[0]: a tensor on the meta device cannot be sent"),
        ([torch.nn.Buffer(torch.ones(2)).as_subclass(type("Mine", (torch.Tensor,), {}))], "value[0]: a Mine cannot be"),
        (Anything([print]), "value[0]: a builtin_function_or_method cannot be dumped by pydantic"),
        (functools.reduce(lambda inner, _: [inner], range(101), []), "nested more than 100 deep"),
        (cycle(), "[0]['a'][0]['a']"),
        (cycle(), "nested more than 100 deep; does it contain itself?"),
    ],
)
def test_what_cannot_be_sent_is_named(value: Any, said: str) -> None:
    with pytest.raises(GroupArgumentError) as caught:
        encode(value)
    assert said in str(caught.value)


def test_pickle_is_offered_by_its_name_and_a_quantized_tensor_is_refused() -> None:
    with pytest.raises(GroupArgumentError, match="ask for pickle with unsafe_pickle=True"):
        encode(print)
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    with pytest.raises(GroupArgumentError, match="a tensor that is quantized cannot be sent"):
        encode(quantized)


def test_the_deepest_value_that_may_be_sent_comes_back() -> None:
    makes: list[Callable[[Any], Any]] = [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"": inner},
        lambda inner: {1: inner},
    ]
    for make in makes:
        value = functools.reduce(lambda inner, _, make=make: make(inner), range(99), make(1))
        assert decode(encode(value)) == value


# Bytes that no encode() wrote


def with_length(header: bytes, contents: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + contents


def refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data, models=(Inner, Choosy))


def tolerated(data: bytes) -> None:
    """A value or the one error; what is made is no larger than what came."""
    try:
        made = decode(data, models=(Inner, Choosy))
    except WireError:
        return
    assert tensor_bytes(made) <= len(data)


def tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes() if value.numel() else 0
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    return sum(map(tensor_bytes, inside)) if isinstance(inside, (list, tuple, set, frozenset)) else 0


@settings(max_examples=examples(2))
@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    tolerated(data)
    tolerated(with_length(data))


MESSAGE = bytes(
    encode(
        {
            "a": [1, -2.5, None, True, 2**80, "text \ud800"],
            1: (b"bytes", torch.arange(6.0).reshape(2, 3), torch.tensor([True, False]), torch.empty(0, 3)),
            "d": [torch.bfloat16, torch.Size([1, 2]), torch.device("cuda:1"), TensorSpec(torch.half, (2,), "cpu")],
            "s": [{1, 2}, frozenset({"x"}), Inner(number=3)],
        }
    )
)


def test_every_truncation() -> None:
    for length in range(len(MESSAGE)):
        refused(MESSAGE[:length])


@settings(max_examples=examples(3))
@given(st.lists(st.tuples(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(MESSAGE)
    for place, byte in flips:
        data[place] ^= byte
    tolerated(bytes(data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.sampled_from(["float32", "cuda:1", "0x1f", "bool", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["", "a"]), inner, max_size=2),
)
TAGS = ["int", "bytes", "tuple", "set", "frozenset", "dict", "tensor", "dtype", "size", "device", "spec", "model", "no"]


@settings(max_examples=examples(2))
@given(st.lists(st.tuples(st.sampled_from(TAGS), st.lists(json_values, max_size=3))), st.binary(max_size=40))
def test_tags_made_of_anything(tagged: list[tuple[str, list[Any]]], contents: bytes) -> None:
    tolerated(with_length(json.dumps([{"": [tag, *said]} for tag, said in tagged]).encode(), contents))


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"":[' * 100_000,
        b'{"":["tuple",[' * 100_000,
        b'{"":["tensor","float32",[4611686018427387904]]}',
        b'{"":["tensor","float32",[1000000000000]]}',
        b'{"":["tensor","float32",[0,4611686018427387904,4]]}',
        b'{"":["tensor","float32",[-1]]}',
        b'{"":["tensor","float32",[true]]}',
        b'{"":["tensor","float32",[1.0]]}',
        b'{"":["tensor","qint8",[0]]}',
        b'{"":["tensor","nn",[0]]}',
        b'{"":["dtype","Tensor"]}',
        b'{"":["bytes",1000000000000000000]}',
        b'{"":["bytes",-1]}',
        b'{"":["bytes",1' + b"0" * 5000 + b"]}",
        b'{"":["set",[[]]]}',
        b'{"":["set",[1,1]]}',
        b'{"":["dict",[1,1],[2,3]]}',
        b'{"":["dict",[1],[2,3]]}',
        b'{"":["dict",[[]],[1]]}',
        b'{"":["size",["a"]]}',
        b'{"":["device","abc"]}',
        b'{"":["device","cuda:999999999999"]}',
        b'{"":["int","x"]}',
        b'{"":["model","os.system",["ls"]]}',
        b'{"":["model","os.system",[]]}',
        b'{"":[["x"],1]}',
        b'{"":{}}',
        b'{"":""}',
        b'{"":null}',
        b"1 2",
        b"",
        b"\xff",
        b"1" * 5000,
    ],
    ids=lambda header: repr(header[:50]),
)
def test_what_a_peer_could_try(header: bytes) -> None:
    refused(with_length(header))


def test_what_a_peer_claims_is_not_allocated() -> None:
    """Each byte of the contents is used once, so a message cannot make more than it brings."""
    huge = b'{"":["bytes",1000000]}'
    refused(with_length(b"[" + b",".join([huge] * 1000) + b"]", bytes(1_000_000)))
    refused(with_length(b"1", b"left over"))


def test_a_dtype_that_is_not_here_is_named() -> None:
    with pytest.raises(WireError, match=r"a peer sent the dtype 'float2', which this torch, .*, does not have"):
        decode(with_length(b'{"":["dtype","float2"]}'))


def test_a_bool_is_true_or_false_whatever_its_byte() -> None:
    back = decode(with_length(b'{"":["tensor","bool",[3]]}', b"\x00\x01\xff"))
    assert bits(back) == [0, 1, 1]


# Pickle, when it is asked for


def test_pickle_takes_what_encode_does_not() -> None:
    assert decode_pickled(encode_pickled([Colour.RED, OrderedDict(a=1)])) == [Colour.RED, OrderedDict(a=1)]
    with pytest.raises(GroupArgumentError, match="a function cannot be pickled"):
        encode_pickled(lambda: 0)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code from a peer was run",))


def test_a_pickle_is_not_run_unless_asked_for_and_the_mistake_is_named() -> None:
    for value in (Bomb(), [1, 2], "x" * 100):
        with pytest.raises(WireError, match=r"look like a pickle: did every member pass unsafe_pickle=True\?"):
            decode(encode_pickled(value))
    stream = io.BytesIO()
    torch.save(torch.ones(1), stream)
    refused(stream.getvalue())
    refused(pickle.dumps(Bomb(), protocol=0))
    for data in (encode([1]), b"", b"\x80"):
        with pytest.raises(WireError, match=r"cannot be unpickled: .*; did every member pass unsafe_pickle=True\?"):
            decode_pickled(data)


def test_a_class_is_never_imported_for_a_peer() -> None:
    with pytest.raises(WireError, match=r"a peer sent a 'turtle\.Turtle', and .* allows are none"):
        decode(with_length(b'{"":["model","turtle.Turtle",[{}]]}'))
    assert "turtle" not in sys.modules


@pytest.mark.gpu
def test_a_device_tensor_is_sent_from_the_device_and_received_on_the_cpu() -> None:
    tensor = torch.arange(1_000_000.0, device="cuda").reshape(1000, 1000).t() * 2  # still being computed
    back = decode(encode([tensor, tensor.to(torch.float8_e4m3fn), tensor[:0]]))
    assert [one.device.type for one in back] == ["cpu"] * 3
    assert torch.equal(back[0], torch.arange(1_000_000.0).reshape(1000, 1000).t() * 2)
    assert same(back[1], tensor.to(torch.float8_e4m3fn).cpu())


def test_the_receiver_names_the_classes_and_each_is_of_its_kind() -> None:
    for value in (Pair(1), Plain([]), Colour.RED, Rights(3), Inner()):
        with pytest.raises(WireError, match=rf"give the class, as in models=\({type(value).__name__},\)"):
            decode(encode({"a": value}), models=tuple(one for one in (*CLASSES, Inner) if one is not type(value)))
    named = f"{__name__}.Pair".encode()
    with pytest.raises(WireError, match="Pair as if it were a dataclass; here it is a named"):
        decode(with_length(b'{"":["dataclass","%b",["first","second"],[1,2]]}' % named), models=CLASSES)
    with pytest.raises(WireError, match="its fields here are first, second"):
        decode(with_length(b'{"":["named","%b",["first"],[1]]}' % named), models=CLASSES)
    with pytest.raises(WireError, match=r"sent 'BLUE' as a .*Colour, which has no such member"):
        decode(with_length(b'{"":["enum","%b","BLUE"]}' % f"{__name__}.Colour".encode()), models=CLASSES)
    with pytest.raises(WireError, match="a constructor that raises what it should not"):
        decode(with_length(b'{"":["dataclass","%b",["values","colour","length"],[["no"],1,1]]}'
                           % f"{__name__}.Plain".encode()), models=CLASSES)  # fmt: skip


HEAVY: dict[str, tuple[bytes, int]] = {
    "empty lists": (b"[]", 400_000),
    "lists of one": (b"[0]", 300_000),
    "empty dicts": (b"{}", 300_000),
    "dicts of one": (b'{"a":0}', 200_000),
    "floats": (b"1.5", 400_000),
    "strings": ('"ā"'.encode(), 300_000),
    "empty tensors": (b'{"":["tensor","float32",[0]]}', 30_000),
    "empty arrays": (b'{"":["ndarray","<f4",[0]]}', 60_000),
    "empty sets": (b'{"":["set",[]]}', 100_000),
    "specs": (b'{"":["spec","int8",[],"cpu",false]}', 60_000),
    "devices": (b'{"":["device","cpu"]}', 60_000),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_message_takes_a_small_multiple_of_its_bytes(name: str) -> None:
    one, count = HEAVY[name]
    message = with_length(b"[" + b",".join([one] * count) + b"]")
    tracemalloc.start()
    begun = time.monotonic()
    try:
        made: Any = decode(message)
    except WireError:
        made = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(message) + 8 * 2**20
    assert time.monotonic() - begun < SOON
    if made is None:  # who has such a value can send it all the same
        value: Any = [json.loads(one)] * count if not one.startswith(b'{"":') else [decode(with_length(one))] * count
        longer = encode(value)
        assert len(longer) > len(message)
        assert len(decode(longer)) == count


def test_what_is_in_strings_costs_nothing() -> None:
    value = ['[{"a\\":[' * 200_000]
    message = encode(value)
    assert len(message) < 1.5 * len(json.dumps(value))
    assert decode(message) == value


@pytest.mark.parametrize(
    "keys",
    [
        [number * (2**61 - 1) for number in range(1, 200_000)],
        [(number * (2**61 - 1),) for number in range(20_000)],
    ],
    ids=["ints", "tuples"],
)
@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_keys_of_one_hash_do_not_take_time_by_their_square(keys: list[Any], kind: str) -> None:
    shown = [{"": ["tuple", list(key)]} if isinstance(key, tuple) else key for key in keys]
    said = [kind, shown, [0] * len(shown)] if kind == "dict" else [kind, shown]
    begun = time.monotonic()
    with pytest.raises(WireError, match=r"of which too many have one hash"):
        decode(with_length(json.dumps({"": said}).encode()))
    assert time.monotonic() - begun < SOON


def test_keys_that_only_look_alike_are_no_mass_of_collisions() -> None:
    for keys in ({number << 40 for number in range(20_000)}, {-1, -2, 1.0, 2**61}, {(one,) for one in range(9999)}):
        assert decode(encode(keys)) == keys


@settings(max_examples=examples(2))
@given(values, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_message_that_was_changed_gives_a_value_or_an_error_in_bounded_memory(value: Any, changes: Any) -> None:
    message = encode(value)
    for place, put in changes:
        start = int(place * len(message))
        message[start : start + len(put)] = put
    tracemalloc.start()
    try:
        decode(message, models=(Inner, *CLASSES))
    except WireError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * len(message) + 8 * 2**20


@given(
    st.lists(
        st.lists(
            st.integers(-(2**31), 2**31 - 1)
            | st.one_of(
                st.integers(), st.booleans(), st.none(), st.floats(), st.text(max_size=4), st.binary(max_size=4),
                st.sampled_from([Level.LOW, (), [], [1], (1,), {}, "", "i", b"i", array("b", b"iiii"), 1j]),
            ),
            max_size=5,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_lists_that_hold_ints_are_told_from_all_others(lists: list[list[Any]]):
    small = all(type(one) is int and -(2**31) <= one < 2**31 for values in lists for one in values)
    assert _hold_ints(lists) == small
