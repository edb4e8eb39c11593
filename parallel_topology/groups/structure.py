"""A value with tensors inside, as a structure (plain: encoded, small) and the tensors (sent as they are)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from parallel_topology.errors import GroupArgumentError

MAX_DEPTH = 100
"""Containers inside containers that a value may have: far less than Python's own recursion allows."""

Path: TypeAlias = "tuple[Path, object] | None"
"""The keys and indices that lead to a value, innermost first: a pair is cheap to make for each container."""


@dataclass(frozen=True)
class TensorSpec:
    """What a receiver must know to allocate a tensor; it stands in a structure where the tensor was.

    Attributes:
        device: the type of the sender's device, such as `"cuda"`.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str


def flatten_tensors(value: Any) -> tuple[Any, list[Tensor]]:
    """Take the tensors out of nested dicts, lists and tuples.

    A tensor that occurs twice is taken out, and sent, twice.

    Returns:
        The structure, equal to `value` but for a `TensorSpec` in place of each tensor, and the tensors in the order
        of their places. `encode(structure)` is equal for values of equal types, keys, shapes and plain leaves, so it
        can be the key of a cache.

    Raises:
        GroupArgumentError: a tensor that cannot be sent, a `TensorSpec` in `value`, or a value nested too deep.
    """
    tensors: list[Tensor] = []

    def take(leaf: Any, path: Path) -> Any:
        if isinstance(leaf, TensorSpec):
            raise GroupArgumentError(
                f"{shown(path)}: a TensorSpec in the value itself; expected only tensors to be one"
            )
        if not isinstance(leaf, Tensor):
            return leaf
        require_plain(leaf, path)
        tensors.append(leaf)
        return TensorSpec(leaf.dtype, tuple(leaf.shape), leaf.device.type)

    return _with_leaves(value, take), tensors


def tensor_specs(structure: Any) -> list[TensorSpec]:
    """What to allocate for a structure, in the order of the tensors.

    A structure from a peer may ask for any size: who allocates decides how much to believe.
    """
    specs: list[TensorSpec] = []

    def note(leaf: Any, path: Path) -> None:
        if isinstance(leaf, TensorSpec):
            specs.append(leaf)

    _with_leaves(structure, note)
    return specs


def unflatten(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """The value, from its structure and its tensors: what `flatten_tensors` took apart.

    Raises:
        GroupArgumentError: not as many tensors as the structure has places, or one of another shape or dtype.
    """
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

    return _with_leaves(structure, put)


def require_plain(tensor: Tensor, path: Path) -> None:
    """Check that a tensor is its dtype, shape and bytes, and nothing else.

    Raises:
        GroupArgumentError: it is sparse, quantized, nested, on the meta device, or of a class of its own.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        said = f"a {type(tensor).__qualname__}"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
        said = "a tensor on the meta device" if tensor.is_meta else f"a tensor that is {kind}"
    else:
        return
    raise GroupArgumentError(f"{shown(path)}: {said} cannot be sent: expected a dense torch.Tensor that holds data")


def shown(path: Path) -> str:
    """`value['a'][3]`"""
    steps = ""
    while path is not None:
        path, step = path
        steps = f"[{step!r:.80}]{steps}"
    return f"value{steps}"


def _with_leaves(value: Any, leaf: Callable[[Any, Path], Any], path: Path = None, depth: int = 0) -> Any:
    """`value` with `leaf(leaf, path)` in place of each leaf."""
    kind = type(value)
    if kind not in (list, tuple, dict):
        return leaf(value, path)
    if depth == MAX_DEPTH:
        raise GroupArgumentError(f"{shown(path)}: nested more than {MAX_DEPTH} deep; does it contain itself?")
    if kind is dict:
        return {key: _with_leaves(inner, leaf, (path, key), depth + 1) for key, inner in value.items()}
    return kind(_with_leaves(inner, leaf, (path, index), depth + 1) for index, inner in enumerate(value))
