"""Plain values to bytes and back, without pickle: what a peer sends can be wrong, but it cannot run.

A message is the header's length (8 bytes, little-endian), the header, and the contents of bytes and tensors, one after
the other as the header mentions them. The header is JSON, with as many spaces behind it as `weight` asks for. What JSON
has stands for itself: None, bool, int, float, str, list, and dict with str keys. Everything else is `{"": [tag, ...]}`;
a dict that has the key `""` is tagged too, and so are ints that need not be short. So pydantic's reader and writer, and
the standard library's where there are tags, do most of the work.
"""

from __future__ import annotations

import json
import marshal
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from enum import Enum
from itertools import chain
from math import prod
from operator import countOf
from types import NoneType
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python
from torch import Tensor

from parallel_topology.errors import GroupArgumentError, WireError
from parallel_topology.wire import arrays
from parallel_topology.wire.classes import (
    Class,
    Parts,
    allowed,
    built,
    by_name,
    key_of,
    member_of,
    name_of_class,
    parts_of,
)
from parallel_topology.wire.structure import (
    MAX_DEPTH,
    Path,
    TensorSpec,
    contents_of,
    dtype_of,
    name_of,
    shape_of,
    shown,
    size_of,
    spec_of,
    tensor_of,
    too_deep,
)
from parallel_topology.wire.weight import lacking, require_weight

_FLAT = frozenset({NoneType, bool, float, str})
_INT = frozenset[type]({int})
_STR = frozenset[type]({str})
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})
_TAG = b'{"":'
_LEAST, _MOST = -(2**63), 2**63 - 1
_DIGITS = 4300
"""Of the longest number that is read: by the standard library unless told otherwise, and by pydantic."""
_AS_ZEROS = bytes(48 if 48 <= code < 58 else 32 for code in range(256))
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))

MAX_INT_BITS = 2**16
"""The largest int that can be sent has as many bits."""
MAX_COLLISIONS = 64
"""Keys with one hash that a set or dict may have: each is compared with all of these."""

_SENDABLE = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, set, frozenset, a torch tensor, "
    "dtype, device or size, a NumPy array or scalar, a named tuple, a dataclass, an enum's member or a pydantic model"
)


def encode(value: Any) -> bytearray:
    """A value as bytes, from which `decode` makes an equal one of equal types.

    Of a tensor or array its dtype, shape and contents are sent, of a pydantic model what `model_dump(round_trip=True)`
    gives, of a dataclass its fields.
    Subclasses of the plain types are refused rather than turned into what they derive from. What is found at two places
    is sent, and arrives, twice. Every NaN arrives as the usual one.

    Returns:
        A `bytearray`, for `torch.frombuffer` takes it without a copy.

    Raises:
        GroupArgumentError: something in `value` cannot be sent; the message says where.
    """
    writer, header = _written(value)
    bulk = sum(map(len, writer.contents))
    header += b" " * lacking(header, 8 + len(header) + bulk)
    place = 8 + len(header)
    message = bytearray(place + bulk)
    message[:8] = len(header).to_bytes(8, "little")
    message[8:place] = header
    for content in writer.contents:
        if isinstance(content, Tensor):
            if len(content):  # frombuffer takes no empty buffer
                torch.frombuffer(message, dtype=torch.uint8, count=len(content), offset=place).copy_(content)
        else:
            message[place : place + len(content)] = content
        place += len(content)
    return message


def decode(data: bytes | bytearray | memoryview, *, models: Iterable[Class] | None = (), in_parts: bool = False) -> Any:
    """The value that a peer encoded. Tensors are on the CPU and share no memory with `data`.

    What comes takes at most `weight.FACTOR` times the memory that `data` has, besides what the classes of `models` make
    of it.

    Args:
        models: the pydantic models, dataclasses, named tuples and enums that may be built; a peer only names a class,
            and none is ever imported for it. With `in_parts` None allows all names.
        in_parts: leave `Parts` for `unflatten` to build in place of instances of these, enums apart.

    Raises:
        WireError: `data` is no message of `encode`, or holds a class that is not among `models`.
        GroupArgumentError: `models` are no such classes, or two have one name.
    """
    view = memoryview(data).cast("B")
    end = 8 + int.from_bytes(view[:8], "little")
    if end > len(view):
        raise WireError(f"{len(view)} bytes from a peer end before the message does{_hint(view)}")
    header = bytes(view[8:end])
    require_weight(header, len(view))
    named = None if models is None else by_name(models)
    if end == len(view) and _TAG not in header:
        with suppress(ValueError):  # a surrogate, nested too deep, or no JSON: the other reader says it
            return from_json(header)
    reader = _Reader(view[end:], named, in_parts)
    try:
        value = _read(header, reader.build)
    except WireError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise WireError(f"{len(view)} bytes from a peer are no value: {error!s:.200}{_hint(view)}") from error
    reader.require_end()
    return value


def encode_pickled(value: Any) -> bytes:
    """Any value that pickle takes, for members that *trust each other with everything*: see `decode_pickled`.

    Raises:
        GroupArgumentError: pickle refuses the value.
    """
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle and the objects themselves raise anything
        raise GroupArgumentError(f"a {name_of_class(value.__class__)} cannot be pickled: {error}") from error


def decode_pickled(data: bytes | bytearray | memoryview) -> Any:
    """The value that a peer pickled. UNSAFE: the bytes choose what code runs here, with all rights of this process.

    Only for bytes from a peer, over a network, that may run anything on this machine anyway.

    Raises:
        WireError: the bytes are no pickle, or its objects cannot be made here.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        said = f"{error!s:.200}; did every member pass unsafe_pickle=True?"
        raise WireError(f"{len(data)} bytes from a peer cannot be unpickled: {said}") from error


class _Writer:
    """Makes what JSON can say of a value, and collects the contents that follow the header."""

    def __init__(self, *, exact: bool = False) -> None:
        """With `exact` all ints of more than 64 bits are tagged; else those in lists of ints may not be."""
        self.contents: list[bytes | Tensor] = []
        self._exact = exact
        self._in_model = False

    def item(self, value: Any, path: Path = None, depth: int = 0) -> Any:
        kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind in _FLAT:
            return value
        if kind is int:
            return value if _LEAST <= value <= _MOST else _large(value, path)
        if kind not in _CONTAINERS:
            return self._leaf(value, path) or self._parts(value, path, depth) or self._made(value, path, depth)
        if depth >= MAX_DEPTH:
            raise too_deep(path)
        if kind is dict:
            return self._dict(value, path, depth + 1)
        items = self._items(value, path, depth + 1)
        return items if kind is list else {"": [kind.__name__, items]}

    def _items(self, items: Collection[Any], path: Path, depth: int) -> Collection[Any]:
        if _stand_for_themselves(items, depth, exact=self._exact):
            return items if type(items) in (list, tuple) else list(items)
        item = self.item
        return [one if type(one) in _FLAT else item(one, (path, place), depth) for place, one in enumerate(items)]

    def _dict(self, value: dict[Any, Any], path: Path, depth: int) -> dict[str, Any]:
        item = self.item
        if set(map(type, value)) <= _STR and "" not in value:
            if _stand_for_themselves(value.values(), depth, exact=self._exact):
                return value
            return {key: one if type(one) in _FLAT else item(one, (path, key), depth) for key, one in value.items()}
        keys = self._items(value, path, depth)
        return {"": ["dict", keys, [item(one, (path, key), depth) for key, one in value.items()]]}

    def _leaf(self, value: Any, path: Path) -> dict[str, Any] | None:
        """What can be sent and is neither JSON's nor a container, else None."""
        kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind is bytes:
            self.contents.append(value)
            return _tagged("bytes", len(value))
        if isinstance(value, Tensor):
            self.contents.append(contents_of(value, path))
            return _tagged("tensor", name_of(value.dtype), list(value.shape))
        if kind is torch.dtype:
            return _tagged("dtype", name_of(value))
        if kind is complex:
            return _tagged("complex", value.real, value.imag)
        if kind is torch.Size:
            if any(not 0 <= dim < 2**63 for dim in value):
                raise GroupArgumentError(f"{shown(path)}: {value} is the size of nothing, and cannot be sent")
            return _tagged("size", list(value))
        if kind is torch.device:
            return _tagged("device", str(value))
        if kind is TensorSpec:
            return _tagged("spec", name_of(value.dtype), list(value.shape), value.device, value.cut)
        if isinstance(value, Enum) and not self._in_model:
            key = key_of(value)
            return _tagged("enum" if type(key) is str else "flag", name_of_class(kind), key)
        return self._array(value, path)

    def _array(self, value: Any, path: Path) -> dict[str, Any] | None:
        try:
            found = arrays.parts_of(value)
        except ValueError as error:
            raise GroupArgumentError(f"{shown(path)}: {error}") from error
        if found is None:
            return None
        tag, dtype, shape, contents = found
        self.contents.append(contents)
        return _tagged(tag, dtype, shape)

    def _parts(self, value: Any, path: Path, depth: int) -> Any:
        """What a container that is not plain is made of, else None; in a model pydantic sees to these."""
        if self._in_model:
            return None
        if depth >= MAX_DEPTH:
            raise too_deep(path)
        kind: Any = value.__class__
        if kind is OrderedDict:
            keys = self._items(value, path, depth + 1)
            return {"": ["ordered", keys, [self.item(one, (path, key), depth + 1) for key, one in value.items()]]}
        try:
            parts: Parts | None = value if kind is Parts else parts_of(value)
        except ValueError as error:
            raise GroupArgumentError(f"{shown(path)}: a {name_of_class(kind)} cannot be sent: {error}") from error
        if parts is None:
            return None
        if parts.kind == "model":
            return _tagged("model", parts.name, [self.item(parts.values[0], path, depth + 1)])
        values = [self.item(one, (path, key), depth + 1) for key, one in zip(parts.keys, parts.values, strict=True)]
        return _tagged(parts.kind, parts.name, list(parts.keys), values)

    def _made(self, value: Any, path: Path, depth: int) -> Any:
        """A model's dump, and what its fields may be besides (a path, an enum, a date), which its class makes anew."""
        is_model = isinstance(value, BaseModel)
        name = name_of_class(value.__class__)
        if not is_model and not self._in_model:
            raise GroupArgumentError(
                f"{shown(path)}: a {name} cannot be sent: expected {_SENDABLE}; or, where every member may run any "
                "code on every other, ask for pickle with unsafe_pickle=True"
            )
        if depth >= MAX_DEPTH:
            raise too_deep(path)
        try:
            plain = value.model_dump(round_trip=True, by_alias=True) if is_model else to_jsonable_python(value)
        except ValueError as error:
            raise GroupArgumentError(f"{shown(path)}: a {name} cannot be dumped by pydantic: {error}") from error
        if not is_model:
            return self.item(plain, path, depth + 1)
        outside, self._in_model = self._in_model, True
        plain = self.item(plain, path, depth + 1)
        self._in_model = outside
        return _tagged("model", name, [plain])  # in a list, for a root model's dump can be anything


class _Reader:
    """Makes values of what JSON says of them, and of the contents that follow the header.

    Each content is taken once, so that a message makes no more than it brings.
    """

    def __init__(self, contents: memoryview, models: dict[str, Class] | None, in_parts: bool) -> None:
        self._contents = contents
        self._models = models
        self._in_parts = in_parts

    def build(self, found: dict[str, Any]) -> Any:
        """What an object of the header stands for; those inside it have been built."""
        if "" not in found:
            return found
        tag, *said = found[""]
        if tag not in _MAKERS:
            raise WireError(f"a peer sent a {tag!r:.80}, which is not known here")
        kinds, make = _MAKERS[tag]
        if tuple(map(type, said)) != kinds:
            raise WireError(f"a peer sent a {tag} made of {[kind.__name__ for kind in map(type, said)]!r:.80}")
        return make(self, said)

    def require_end(self) -> None:
        if left := len(self._contents):
            raise WireError(f"a peer's message is followed by {left} bytes that nothing refers to")

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self._contents):
            raise WireError(f"a peer's message ends before the {size} bytes of a value in it")
        taken, self._contents = self._contents[:size], self._contents[size:]
        return taken

    def tensor(self, dtype: str, dims: list[Any]) -> Tensor:
        shape, kind = shape_of(dims), dtype_of(dtype)
        return tensor_of(self.take(prod(shape) * kind.itemsize), kind, shape)

    def array(self, tag: str, dtype: str, dims: list[Any]) -> Any:
        shape = shape_of(dims)
        itemsize = arrays.itemsize_of(dtype)
        return arrays.made_of(tag, dtype, shape, bytearray(self.take(prod(shape) * itemsize)))

    def instance(self, kind: str, name: str, keys: list[Any], values: list[Any]) -> Any:
        parts = Parts(kind, name, tuple(keys), tuple(values))
        if self._models is not None:
            if not self._in_parts:
                return built(parts, self._models)
            allowed(name, self._models, kind)
        return parts

    def member(self, name: str, key: str | int) -> Any:
        return None if self._models is None else member_of(name, key, self._models)


def _stand_for_themselves(items: Collection[Any], depth: int, *, exact: bool) -> bool:
    """Whether JSON has all of these: what is flat, ints, or lists of either kind.

    All of it in C, which spares a look at each from here.
    """
    if depth < MAX_DEPTH and countOf(map(type, items), list) == len(items):
        if not exact and _hold_ints(items):
            return True  # most of what is large, in a third of the time of making a list and a set
        items = list(chain.from_iterable(items))
    kinds = set(map(type, items))
    return kinds <= _FLAT or (kinds <= _INT and (not exact or (min(items) >= _LEAST and max(items) <= _MOST)))


def _hold_ints(lists: Collection[list[Any]]) -> bool:
    """Whether these lists hold nothing but ints of 32 bits; it need not be found if they do.

    marshal looks at exact types, and writes of a list, and of such an int, a letter and four bytes: so if every fifth
    byte is one of these letters, nothing else is there.
    """
    try:
        letters = marshal.dumps([*lists], 2)[::5]  # later versions refer back to what was written before
    except ValueError:
        return False
    return not letters.strip(b"[i") and letters.count(b"[") == len(lists) + 1  # else there are lists in these


def _written(value: Any) -> tuple[_Writer, bytes]:
    """The header, and what follows it. pydantic writes JSON four times as fast as the standard library, but no
    surrogates; and numbers of more digits than are read again are only looked for in headers that have room for one."""
    writer = _Writer()
    with suppress(PydanticSerializationError):
        header = to_json(writer.item(value), inf_nan_mode="constants")
        if len(header) <= _DIGITS or b"0" * (_DIGITS + 1) not in header.translate(_AS_ZEROS):
            return writer, header
    writer = _Writer(exact=True)
    return writer, _JSON.encode(writer.item(value)).encode("utf-8", "surrogatepass")


def _read(header: bytes, build: Callable[[dict[str, Any]], Any]) -> Any:
    """What a header says, with what is tagged in it built: for that pydantic's reader, which is faster, has no hook."""
    text = header.decode("utf-8", "surrogatepass")
    return json.JSONDecoder(object_hook=build, parse_constant=float).decode(text)


def _large(value: int, path: Path) -> dict[str, Any]:
    if value.bit_length() > MAX_INT_BITS:
        raise GroupArgumentError(
            f"{shown(path)}: an int of {value.bit_length()} bits cannot be sent, expected at most {MAX_INT_BITS}"
        )
    return _tagged("int", hex(value))


def _tagged(tag: str, *said: object) -> dict[str, Any]:
    return {"": [tag, *said]}


def _integer(text: str) -> int:
    if len(text) > MAX_INT_BITS // 4 + 3:
        raise WireError(f"a peer sent an int of {len(text)} digits")
    return int(text, 16)


def _unique(kind: Callable[[Any], Any], keys: list[Any], items: Any) -> Any:
    """A set or dict, of keys that are no mass of collisions, which would take time by the square of their number."""
    hashes = list(map(hash, keys))
    if len(keys) - len(set(hashes)) > MAX_COLLISIONS and max(Counter(hashes).values()) > MAX_COLLISIONS:
        raise WireError(f"a peer sent a {kind.__name__} of {len(keys)} keys, of which too many have one hash")
    made = kind(items)
    if len(made) != len(keys):
        raise WireError(f"a peer sent a {kind.__name__} in which {len(keys) - len(made)} keys repeat")
    return made


def _mapping(kind: Callable[[Any], Any], said: list[Any]) -> Any:
    return _unique(kind, said[0], zip(said[0], said[1], strict=True))


_MAKERS: dict[str, tuple[tuple[type, ...], Callable[[_Reader, list[Any]], Any]]] = {
    "int": ((str,), lambda _, said: _integer(said[0])),
    "complex": ((float, float), lambda _, said: complex(said[0], said[1])),
    "bytes": ((int,), lambda reader, said: bytes(reader.take(said[0]))),
    "tuple": ((list,), lambda _, said: tuple(said[0])),
    "set": ((list,), lambda _, said: _unique(set, said[0], said[0])),
    "frozenset": ((list,), lambda _, said: _unique(frozenset, said[0], said[0])),
    "dict": ((list, list), lambda _, said: _mapping(dict, said)),
    "ordered": ((list, list), lambda _, said: _mapping(OrderedDict, said)),
    "tensor": ((str, list), lambda reader, said: reader.tensor(said[0], said[1])),
    "ndarray": ((str, list), lambda reader, said: reader.array("ndarray", said[0], said[1])),
    "scalar": ((str, list), lambda reader, said: reader.array("scalar", said[0], said[1])),
    "dtype": ((str,), lambda _, said: dtype_of(said[0])),
    "size": ((list,), lambda _, said: size_of(said[0])),
    "device": ((str,), lambda _, said: torch.device(said[0])),
    "spec": ((str, list, str, bool), lambda _, said: spec_of(*said)),
    "enum": ((str, str), lambda reader, said: reader.member(said[0], said[1])),
    "flag": ((str, int), lambda reader, said: reader.member(said[0], said[1])),
    "named": ((str, list, list), lambda reader, said: reader.instance("named", *said)),
    "dataclass": ((str, list, list), lambda reader, said: reader.instance("dataclass", *said)),
    "model": ((str, list), lambda reader, said: reader.instance("model", said[0], [], said[1])),
}
"""Tag -> what is said with it, and what that makes."""


def _hint(view: memoryview) -> str:
    pickled = len(view) > 1 and view[0] == 0x80 and view[1] <= pickle.HIGHEST_PROTOCOL
    return "; they look like a pickle: did every member pass unsafe_pickle=True?" if pickled else ""
