"""Plain values to bytes and back, without pickle: what a peer sends can be wrong, but it cannot run.

A message is the header's length (8 bytes, little-endian), the header, and the contents of bytes and tensors, one after
the other as the header mentions them. The header is JSON. What JSON has stands for itself: None, bool, int up to 64
bits, float, str, list, and dict with str keys. Everything else is `{"": [tag, ...]}`; a dict that has the key `""` is
tagged too. So the standard library's scanner, in C, does most of the work in both directions.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterable
from math import prod
from types import NoneType
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python
from torch import Tensor

from parallel_topology.errors import GroupArgumentError, WireError
from parallel_topology.groups.structure import MAX_DEPTH, Path, TensorSpec, require_plain, shown

_FLAT = frozenset({NoneType, bool, float, str})
_SMALL = 2**63
_NUMBERED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))

_SENDABLE = (
    "None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, a torch tensor, dtype, device or size, or "
    "a pydantic model"
)


def encode(value: Any) -> bytearray:
    """A value as bytes, from which `decode` makes an equal one of equal types.

    Of a tensor its dtype, shape and contents are sent, of a pydantic model what `model_dump(round_trip=True)` gives.
    Subclasses of the plain types are refused rather than turned into what they derive from.

    Returns:
        A `bytearray`, for `torch.frombuffer` takes it without a copy.

    Raises:
        GroupArgumentError: something in `value` cannot be sent; the message says where.
    """
    writer = _Writer()
    header = _JSON.encode(writer.item(value, None)).encode("utf-8", "surrogatepass")
    place = 8 + len(header)
    message = bytearray(place + sum(map(len, writer.contents)))
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


def decode(data: bytes | bytearray | memoryview, *, models: Iterable[type[BaseModel]] = ()) -> Any:
    """The value that a peer encoded. Tensors are on the CPU and share no memory with `data`.

    Args:
        models: the pydantic models that may be built. A peer only names a class; none is ever imported for it.

    Raises:
        WireError: `data` is no message of `encode`, or holds a model that is not among `models`.
        GroupArgumentError: `models` are not models, or two have one name.
    """
    view = memoryview(data)
    end = 8 + int.from_bytes(view[:8], "little")
    if end > len(view):
        raise WireError(f"{len(view)} bytes from a peer end before the message does{_hint(view)}")
    reader = _Reader(view[end:], _by_name(models))
    try:
        text = str(view[8:end], "utf-8", "surrogatepass")
        value = json.JSONDecoder(object_hook=reader.build, parse_constant=float).decode(text)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise WireError(f"{len(view)} bytes from a peer are no value: {error}{_hint(view)}") from error
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
        raise GroupArgumentError(f"a {_name(type(value))} cannot be pickled: {error}") from error


def decode_pickled(data: bytes | bytearray | memoryview) -> Any:
    """The value that a peer pickled. UNSAFE: the bytes choose what code runs here, with all rights of this process.

    Only for bytes from a peer, over a network, that may run anything on this machine anyway.

    Raises:
        WireError: the bytes are no pickle, or its objects cannot be made here.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        raise WireError(
            f"{len(data)} bytes from a peer cannot be unpickled: {error}; did every member pass unsafe_pickle=True?"
        ) from error


class _Writer:
    """Makes what JSON can say of a value, and collects the contents that follow the header."""

    def __init__(self) -> None:
        self.contents: list[bytes | Tensor] = []
        self._open: set[int] = set()
        self._in_model = False

    def item(self, value: Any, path: Path) -> Any:
        kind: type = type(value)
        if kind in _FLAT:
            return value
        if kind is int:
            return value if -_SMALL <= value < _SMALL else _tagged("int", hex(value))
        if kind in (list, dict, tuple, set, frozenset) or isinstance(value, BaseModel):
            return self._nested(kind, value, path)
        if kind is bytes:
            self.contents.append(value)
            return _tagged("bytes", len(value))
        if isinstance(value, Tensor):
            require_plain(value, path)
            self.contents.append(_contents(value))
            return _tagged("tensor", _named(value.dtype), list(value.shape))
        if kind is torch.dtype:
            return _tagged("dtype", _named(value))
        if kind is torch.Size:
            return _tagged("size", list(value))
        if kind is torch.device:
            return _tagged("device", str(value))
        if kind is TensorSpec:
            return _tagged("spec", _named(value.dtype), list(value.shape), value.device)
        return self._other(value, path)

    def _nested(self, kind: type, value: Any, path: Path) -> Any:
        if id(value) in self._open:
            raise GroupArgumentError(f"{shown(path)}: contains itself; expected a value without cycles")
        if len(self._open) == MAX_DEPTH:
            raise GroupArgumentError(f"{shown(path)}: nested more than {MAX_DEPTH} deep")
        self._open.add(id(value))
        if kind is dict:
            plain = self._dict(value, path)
        elif kind is list:
            plain = self._list(value, path)
        elif isinstance(value, BaseModel):
            plain = self._model(value, path)
        else:
            plain = _tagged(kind.__name__, self._list(list(value), path))
        self._open.remove(id(value))
        return plain

    def _list(self, items: list[Any], path: Path) -> list[Any]:
        if _all_flat(items):
            return items
        return [item if type(item) in _FLAT else self.item(item, (path, at)) for at, item in enumerate(items)]

    def _dict(self, value: dict[Any, Any], path: Path) -> dict[str, Any]:
        if "" in value or not set(map(type, value)) <= {str}:
            values = (value if type(value) in _FLAT else self.item(value, (path, key)) for key, value in value.items())
            return _tagged("dict", self._list(list(value), path), list(values))
        if _all_flat(value.values()):
            return value
        return {key: item if type(item) in _FLAT else self.item(item, (path, key)) for key, item in value.items()}

    def _model(self, value: BaseModel, path: Path) -> dict[str, Any]:
        outside, self._in_model = self._in_model, True
        try:
            fields = value.model_dump(round_trip=True, by_alias=True)
        except PydanticSerializationError as error:
            raise GroupArgumentError(f"{shown(path)}: a {_name(type(value))} cannot be dumped: {error}") from error
        plain = _tagged("model", _name(type(value)), self.item(fields, path))
        self._in_model = outside
        return plain

    def _other(self, value: Any, path: Path) -> Any:
        """What a model's fields may be besides: a path, an enum, a date, which its class makes anew of JSON."""
        if self._in_model:
            try:
                return self.item(to_jsonable_python(value), path)
            except PydanticSerializationError:
                pass
        raise GroupArgumentError(
            f"{shown(path)}: a {_name(type(value))} cannot be sent: expected {_SENDABLE}; or, where every member may run "
            "any code on every other, ask for pickle with unsafe_pickle=True"
        )


class _Reader:
    """Makes values of what JSON says of them, and of the contents that follow the header.

    Each content is taken once, so that a message makes no more than it brings.
    """

    def __init__(self, contents: memoryview, models: dict[str, type[BaseModel]]) -> None:
        self._contents = contents
        self._place = 0
        self._models = models

    def build(self, found: dict[str, Any]) -> Any:
        """What an object of the header stands for; those inside it have been built."""
        if "" not in found:
            return found
        match found[""]:
            case ["tuple", list(items)]:
                return tuple(items)
            case ["dict", list(keys), list(values)]:
                return self._unique(dict(zip(keys, values, strict=True)), keys)
            case ["set", list(items)]:
                return self._unique(set(items), items)
            case ["frozenset", list(items)]:
                return self._unique(frozenset(items), items)
            case ["int", str(digits)]:
                return int(digits, 16)
            case ["bytes", int(size)]:
                return bytes(self._take(size))
            case ["tensor", str(dtype), list(shape)]:
                return self._tensor(_dtype(dtype), _shape(shape))
            case ["dtype", str(dtype)]:
                return _dtype(dtype)
            case ["size", list(shape)]:
                return torch.Size(shape)
            case ["device", str(device)]:
                return torch.device(device)
            case ["spec", str(dtype), list(shape), str(device)]:
                return TensorSpec(_dtype(dtype), _shape(shape), device)
            case ["model", str(name), fields]:
                return self._model(name, fields)
            case _:
                raise WireError("a peer's message has a tag that is not known here")

    def require_end(self) -> None:
        if left := len(self._contents) - self._place:
            raise WireError(f"a peer's message is followed by {left} bytes that nothing refers to")

    def _take(self, size: int) -> memoryview:
        start = self._place
        if not 0 <= size <= len(self._contents) - start:
            raise WireError(f"a peer's message ends before the {size} bytes of a value in it")
        self._place += size
        return self._contents[start : self._place]

    def _tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        size = prod(shape) * dtype.itemsize
        # frombuffer takes no empty buffer; a bytearray may be written to, and is freed with its tensor
        taken = bytearray(self._take(size))
        flat = torch.frombuffer(taken, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8, device="cpu")
        if dtype == torch.bool:
            flat = flat != 0  # torch expects a bool's byte to be 0 or 1
        return flat.view(dtype).reshape(shape)

    def _model(self, name: str, fields: Any) -> BaseModel:
        if name not in self._models:
            allowed = ", ".join(self._models) or "none"
            raise WireError(
                f"a peer sent a {name!r}; the models that this call allows are {allowed}: to allow one, give the class, "
                f"as in models=({name.rpartition('.')[2]},)"
            )
        try:
            return self._models[name].model_validate(fields)
        except Exception as error:  # validators are the user's, and raise anything
            raise WireError(f"what a peer sent as a {name} makes none: {error}") from error

    def _unique(self, made: Any, items: list[Any]) -> Any:
        if len(made) != len(items):
            raise WireError(f"a peer sent a {type(made).__name__} in which {len(items) - len(made)} keys repeat")
        return made


def _all_flat(items: Collection[Any]) -> bool:
    """Whether JSON says all of them as they are, found without a look at each from Python."""
    kinds = set(map(type, items))
    return kinds <= _FLAT or (kinds == {int} and min(items) >= -_SMALL and max(items) < _SMALL)


def _contents(tensor: Tensor) -> Tensor:
    """A tensor's bytes, still on its device, as one row."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    number = _NUMBERED.get(tensor.itemsize)
    # As numbers, because torch does not copy all dtypes (uint4) and warns of others (complex32).
    return (tensor.view(number) if number else tensor).reshape(-1).view(torch.uint8)


def _tagged(tag: str, *said: object) -> dict[str, Any]:
    return {"": [tag, *said]}


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise WireError(f"a peer sent the dtype {name!r:.80}, which this torch, {torch.__version__}, does not have")
    return _DTYPES[name]


def _shape(dims: list[Any]) -> tuple[int, ...]:
    """Dims of which torch can make a shape: their product, with 0 taken as 1, fits in 63 bits."""
    numel = 1
    for dim in dims:
        if type(dim) is not int or dim < 0 or (numel := numel * max(dim, 1)) >= _SMALL:
            raise WireError(f"a peer sent a shape that no tensor can have: {dims!r:.80}")
    return tuple(dims)


def _by_name(models: Iterable[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    named: dict[str, type[BaseModel]] = {}
    for model in models:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(f"models has {model!r}: expected classes that derive from pydantic.BaseModel")
        if named.setdefault(_name(model), model) is not model:
            raise GroupArgumentError(f"models has two classes named {_name(model)}; expected different names")
    return named


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _hint(view: memoryview) -> str:
    pickled = len(view) > 1 and view[0] == 0x80 and view[1] <= pickle.HIGHEST_PROTOCOL
    return "; they look like a pickle: did every member pass unsafe_pickle=True?" if pickled else ""
