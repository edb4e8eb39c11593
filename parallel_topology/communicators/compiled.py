"""Collectives as custom ops, so that a compiler takes each as one step and need not see into it.

A custom op takes no group object, only a string that names one; so this module holds the one table of this package that
is global: key -> group, weakly. Keys are never used twice in a process: a graph compiled for one manager's group can
only ever reach that group, and raises when it is gone.

Every op is said to change one small tensor, `order`, that all groups of a manager share. Without it a compiler sees
operations that do not depend on each other and may put them in another order, and another one on each rank, for the
ranks' graphs differ; Inductor was seen to do so (torch 2.13).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from parallel_topology.communicators.reductions import name_of
from parallel_topology.errors import ClosedError

_groups: WeakValueDictionary[str, Any] = WeakValueDictionary()
_numbers = itertools.count()


def register(group: Any, label: str) -> str:
    """The key under which ops find `group` as long as it lives."""
    key = f"{label}#{next(_numbers)}"
    _groups[key] = group
    return key


def _found(key: str) -> Any:
    try:
        return _groups[key]
    except KeyError:
        raise ClosedError(f"compiled code uses the group {key}, which is gone: its manager was closed") from None


@torch.library.custom_op("parallel_topology::all_reduce", mutates_args={"order"})
def all_reduce(tensor: Tensor, order: Tensor, key: str, op: str) -> Tensor:
    return _found(key).all_reduce(tensor, op, inplace=False)


@torch.library.custom_op("parallel_topology::all_reduce_", mutates_args={"tensor", "order"})
def all_reduce_(tensor: Tensor, order: Tensor, key: str, op: str) -> None:
    _found(key).all_reduce(tensor, op)


@torch.library.custom_op("parallel_topology::broadcast_", mutates_args={"tensor", "order"})
def broadcast_(tensor: Tensor, order: Tensor, key: str, src: int) -> None:
    _found(key).broadcast(tensor, src)


@torch.library.custom_op("parallel_topology::all_gather", mutates_args={"order"})
def all_gather(tensor: Tensor, order: Tensor, key: str, size: int, dim: int) -> Tensor:
    return _found(key).all_gather(tensor, dim)


@torch.library.custom_op("parallel_topology::reduce_scatter", mutates_args={"order"})
def reduce_scatter(tensor: Tensor, order: Tensor, key: str, size: int, op: str, dim: int) -> Tensor:
    return _found(key).reduce_scatter(tensor, op, dim)


@torch.library.custom_op("parallel_topology::all_to_all", mutates_args={"order"})
def all_to_all(
    tensor: Tensor, order: Tensor, key: str, output_splits: Sequence[int], input_splits: Sequence[int]
) -> Tensor:
    return _found(key).all_to_all(tensor, list(output_splits), list(input_splits))


@torch.library.custom_op("parallel_topology::send", mutates_args={"order"})
def send(tensor: Tensor, order: Tensor, key: str, dst: int) -> None:
    _found(key).send(tensor, dst)


@torch.library.custom_op("parallel_topology::recv_", mutates_args={"tensor", "order"})
def recv_(tensor: Tensor, order: Tensor, key: str, src: int) -> None:
    _found(key).recv(tensor, src)


def reduced(tensor: Tensor, order: Tensor, key: str, op: Any, *, inplace: bool) -> Tensor:
    """The all-reduce op for either form."""
    if not inplace:
        return all_reduce(tensor, order, key, name_of(op))
    all_reduce_(tensor, order, key, name_of(op))
    return tensor


def scattered(tensor: Tensor, order: Tensor, key: str, size: int, op: Any, dim: int) -> Tensor:
    """The reduce-scatter op."""
    return reduce_scatter(tensor, order, key, size, name_of(op), dim)


@all_reduce.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(tensor: Tensor, order: Tensor, key: str, op: str) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@all_gather.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(tensor: Tensor, order: Tensor, key: str, size: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] *= size
    return tensor.new_empty(shape)


@reduce_scatter.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(tensor: Tensor, order: Tensor, key: str, size: int, op: str, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] //= size
    return tensor.new_empty(shape)


@all_to_all.register_fake  # pyright: ignore[reportUnknownMemberType]
def _(tensor: Tensor, order: Tensor, key: str, takes: Sequence[int], gives: Sequence[int]) -> Tensor:
    return tensor.new_empty((sum(takes), *tensor.shape[1:]))
