"""A value with tensors inside, as a structure (plain: encoded, small) and the tensors (sent as they are)."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from parallel_topology.errors import GroupArgumentError, WireError
from parallel_topology.wire.classes import Class, Parts, built, by_name, name_of_class, parts_of

MAX_DEPTH = 100
"""Containers inside containers that a value may have: far less than Python's own recursion allows."""

Path: TypeAlias = "tuple[Path, object] | None"
"""The keys and indices that lead to a value, innermost first: a pair is cheap to make for each container."""

_CONTAINERS = (list, tuple, dict, OrderedDict)
_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _DTYPES.values()}


@dataclass(frozen=True)
class TensorSpec:
    """What a receiver must know to allocate a tensor; it stands in a structure where the tensor was.

    Attributes:
        device: the type of the sender's device, such as `"cuda"`.
        cut: whether each member of a group sends its own slice of it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str
    cut: bool = False


def flatten_tensors(value: Any, cut: Callable[[Tensor, Path], bool] | None = None) -> tuple[Any, list[Tensor]]:
    """Take the tensors out of nested dicts, lists, tuples, named tuples and dataclasses.

    A tensor that occurs twice is taken out, and sent, twice.

    Args:
        cut: which of them are `TensorSpec.cut`, by tensor and place.

    Returns:
        The structure, equal to `value` but for a `TensorSpec` in place of each tensor and `Parts` in place of named
        tuples and dataclasses, and the tensors in the order of their places. `encode(structure)` is equal for values of
        equal types, keys, shapes and plain leaves, so it can be the key of a cache.

    Raises:
        GroupArgumentError: a tensor that cannot be sent, a `TensorSpec` in `value`, or a value nested too deep.
    """
    tensors: list[Tensor] = []

    def take(leaf: Any, path: Path) -> Any:
        if isinstance(leaf, TensorSpec):
            raise GroupArgumentError(f"{shown(path)}: a TensorSpec, which is only to stand for a tensor")
        if not isinstance(leaf, Tensor):
            return leaf
        _require_plain(leaf, path)
        tensors.append(leaf)
        return TensorSpec(leaf.dtype, tuple(leaf.shape), leaf.device.type, cut is not None and cut(leaf, path))

    return _with_leaves(value, take), tensors


def tensor_specs(structure: Any) -> list[TensorSpec]:
    """What to allocate for a structure, in the order of the tensors.

    A structure from a peer may ask for any size: who allocates decides how much to believe.
    """
    return [spec for spec, _ in places(structure)]


def places(structure: Any) -> list[tuple[TensorSpec, Path]]:
    """The specs of a structure, and where they stand in it."""
    found: list[tuple[TensorSpec, Path]] = []

    def note(leaf: Any, path: Path) -> None:
        if isinstance(leaf, TensorSpec):
            found.append((leaf, path))

    _with_leaves(structure, note)
    return found


def unflatten(structure: Any, tensors: Sequence[Tensor], classes: Iterable[Class] = ()) -> Any:
    """The value, from its structure and its tensors: what `flatten_tensors` took apart.

    Args:
        classes: those that may be built.

    Raises:
        GroupArgumentError: not as many tensors as the structure has places, or one of another shape or dtype.
        WireError: the structure has a class that is not among `classes`, or that refuses what is in it.
    """
    named = by_name(classes)
    if len(specs := tensor_specs(structure)) != len(tensors):
        raise GroupArgumentError(f"{len(tensors)} tensors for a structure with {len(specs)} places")
    left: Iterator[Tensor] = iter(tensors)

    def put(leaf: Any, path: Path) -> Any:
        if not isinstance(leaf, TensorSpec):
            return leaf
        tensor = next(left)
        if tensor.dtype != leaf.dtype or tuple(tensor.shape) != leaf.shape:
            raise GroupArgumentError(
                f"{shown(path)}: got {tensor.dtype} of shape {tuple(tensor.shape)}, expected {leaf.dtype} of shape "
                f"{leaf.shape}"
            )
        return tensor

    return _with_leaves(structure, put, lambda parts: built(parts, named))


def contents_of(tensor: Tensor, path: Path) -> Tensor:
    """A tensor's bytes as one row, still on its device.

    Raises:
        GroupArgumentError: the tensor is more than dtype, shape and bytes.
    """
    _require_plain(tensor, path)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    # As numbers, because torch does not copy all dtypes (uint4) and warns of others (complex32).
    number = _NUMBERS.get(tensor.itemsize)
    return (tensor.view(number) if number else tensor).contiguous().reshape(-1).view(torch.uint8)


def flat_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, as bytes."""
    # A contiguous tensor may have any strides in dims of length 1, which view(dtype) refuses; as one dim it has none.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def tensor_of(contents: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor with a copy of these bytes, on the CPU.

    Raises:
        WireError: the dtype is a quantized one, for which bytes are not all.
    """
    if name_of(dtype).startswith("q"):
        raise WireError(f"a peer sent a tensor of {dtype}; expected one that is not quantized")
    if not contents:
        return torch.empty(0, dtype=torch.uint8, device="cpu").view(dtype).reshape(shape)
    flat = torch.frombuffer(bytearray(contents), dtype=torch.uint8)  # a bytearray is memory that may be written to
    if dtype == torch.bool:
        flat = flat != 0  # torch relies on a bool's byte being 0 or 1
    return flat.view(dtype).reshape(shape)


def bytes_of(tensor: Tensor) -> bytearray:
    """The bytes that a uint8 tensor on the CPU holds; torch itself gives them only by way of NumPy."""
    copy = bytearray(tensor.numel())
    if copy:  # frombuffer takes no empty buffer
        torch.frombuffer(copy, dtype=torch.uint8).copy_(tensor)
    return copy


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16`"""
    return _NAMES[dtype]


def dtype_of(name: str) -> torch.dtype:
    """The dtype that a peer named.

    Raises:
        WireError: this torch does not have it.
    """
    if name not in _DTYPES:
        raise WireError(f"a peer sent the dtype {name!r:.80}, which this torch, {torch.__version__}, does not have")
    return _DTYPES[name]


def shape_of(dims: list[Any]) -> tuple[int, ...]:
    """The shape that a peer sent.

    Raises:
        WireError: torch could make no tensor of it, because the product of the dims exceeds 63 bits.
    """
    strides = 1
    for dim in dims:
        if type(dim) is not int or dim < 0 or (strides := strides * max(dim, 1)) >= 2**63:
            raise WireError(f"a peer sent a shape that no tensor can have: {dims!r:.80}")
    return tuple(dims)


def size_of(dims: list[Any]) -> torch.Size:
    """The torch.Size that a peer sent.

    Raises:
        WireError: a dim is no number of 63 bits.
    """
    if any(type(dim) is not int or not 0 <= dim < 2**63 for dim in dims):
        raise WireError(f"a peer sent a size that nothing can have: {dims!r:.80}")
    return torch.Size(dims)


def spec_of(dtype: str, dims: list[Any], device: str, cut: bool) -> TensorSpec:
    """The spec that a peer sent.

    Raises:
        WireError: as `dtype_of` and `shape_of`.
        RuntimeError: torch knows no such device.
    """
    return TensorSpec(dtype_of(dtype), shape_of(dims), torch.device(device).type, cut)


def digest_of(tensor: Tensor) -> int:
    """A number that differs, as good as always, where tensors of one shape and dtype do. Of their bytes, on the CPU.

    Sums of rows and of columns, because they are as fast as memory, and a checksum of these.
    """
    flat = contents_of(tensor, None)
    whole = len(flat) // 512 * 512
    words = flat[:whole].view(torch.int64).view(-1, 64)
    sums = torch.cat([words.sum(0), words.sum(1)]).view(torch.uint8)
    return zlib.crc32(bytes_of(flat[whole:].cpu()), zlib.crc32(bytes_of(sums.cpu())))


def keys_of(path: Path) -> list[object]:
    """The keys and indices that lead to a value, outermost first."""
    keys: list[object] = []
    while path is not None:
        path, key = path
        keys.append(key)
    return keys[::-1]


def too_deep(path: Path) -> GroupArgumentError:
    """The error to raise for a container inside `MAX_DEPTH` others."""
    return GroupArgumentError(f"{shown(path):.120}...: nested more than {MAX_DEPTH} deep; does it contain itself?")


def shown(path: Path) -> str:
    """`value['a'][3]`"""
    steps = ""
    while path is not None:
        path, step = path
        try:
            steps = f"[{step!r:.80}]{steps}"
        except Exception:  # a key's own repr, or that of an int of thousands of digits
            steps = f"[a {type(step).__name__}]{steps}"
    return f"value{steps}"


def _with_leaves(
    value: Any, leaf: Callable[[Any, Path], Any], made: Callable[[Parts], Any] = lambda parts: parts, path: Path = None,
    depth: int = 0,
) -> Any:  # fmt: skip
    """`value` with `leaf(leaf, path)` in place of each leaf, and `made(parts)` of each instance of a class."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    parts = None if kind in _CONTAINERS else value if kind is Parts else _parts(value, path)
    if parts is None and kind not in _CONTAINERS:
        return leaf(value, path)
    if depth >= MAX_DEPTH:
        raise too_deep(path)
    if parts is not None:
        keyed = zip(parts.keys or range(len(parts.values)), parts.values, strict=True)
        values = tuple([_with_leaves(inner, leaf, made, (path, key), depth + 1) for key, inner in keyed])
        return made(Parts(parts.kind, parts.name, parts.keys, values))
    if kind in (dict, OrderedDict):
        items = [(key, _with_leaves(inner, leaf, made, (path, key), depth + 1)) for key, inner in value.items()]
        return kind(items)  # pyright: ignore[reportUnknownVariableType]
    inside = [_with_leaves(inner, leaf, made, (path, index), depth + 1) for index, inner in enumerate(value)]
    return inside if kind is list else tuple(inside)


def _parts(value: Any, path: Path) -> Parts | None:
    if type(value) is TensorSpec:
        return None
    try:
        return parts_of(value)
    except ValueError as error:
        raise GroupArgumentError(
            f"{shown(path)}: a {name_of_class(value.__class__)} cannot be sent: {error}"
        ) from error


def _require_plain(tensor: Tensor, path: Path) -> None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        said = f"a {type(tensor).__qualname__}"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
        said = "a tensor on the meta device" if tensor.is_meta else f"a tensor that is {kind}"
    else:
        return
    raise GroupArgumentError(f"{shown(path)}: {said} cannot be sent: expected a dense torch.Tensor that holds data")
