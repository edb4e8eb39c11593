"""Collectives with gradients: what the layers of tensor-, sequence- and expert-parallel models are made of.

They come in conjugate pairs, each the other's gradient (`f` and `g` of Megatron-LM, https://arxiv.org/abs/1909.08053,
section 3; the sequence-parallel pair of https://arxiv.org/abs/2205.05198, section 4.2.2):

| forward | backward |
|---|---|
| `copy_to`: nothing | all-reduce |
| `reduce_from`: all-reduce | nothing |
| `scatter_to`: this member's part | all-gather |
| `gather_from`: all-gather | this member's part |
| `reduce_scatter_to`: reduce-scatter | all-gather |
| `all_gather_from`: all-gather | reduce-scatter |
| `all_to_all`, `all_to_all_v` | all-to-all, the other way |

Whether a gradient is summed or cut is a choice about what comes after: `gather_from` is right where all members go on
to compute the same from the whole (each has the whole gradient already), `all_gather_from` where each goes on with its
own part of the work (the gradients of all have to be added).

All take the tensor and the group; `dim` is the tensor's. The input is never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup


def copy_to(tensor: Tensor, group: ParallelGroup) -> Tensor:
    """The tensor itself, into a region where each member computes its own part: gradients are added up."""
    return _apply(_Copy, tensor, group)


def reduce_from(tensor: Tensor, group: ParallelGroup) -> Tensor:
    """The sum over all members, out of a region where each computed its own part."""
    return _apply(_Reduce, tensor, group)


def scatter_to(tensor: Tensor, group: ParallelGroup, dim: int = -1) -> Tensor:
    """This member's part of what all hold: `[..., n]` to `[..., n / size]`.

    Raises:
        TopologyError: the group's size does not divide the length of `dim`.
    """
    return _apply(_Scatter, tensor, group, dim)


def gather_from(tensor: Tensor, group: ParallelGroup, dim: int = -1) -> Tensor:
    """All members' parts, for what all then compute alike: `[..., n]` to `[..., n * size]`."""
    return _apply(_Gather, tensor, group, dim)


def reduce_scatter_to(tensor: Tensor, group: ParallelGroup, dim: int = 0) -> Tensor:
    """This member's part of the sum over all: `[n, ...]` to `[n / size, ...]`, as into a sequence-parallel region.

    Raises:
        GroupArgumentError: the group's size does not divide the length of `dim`.
    """
    return _apply(_ReduceScatter, tensor, group, dim)


def all_gather_from(tensor: Tensor, group: ParallelGroup, dim: int = 0) -> Tensor:
    """All members' parts, for what each then computes its own part of: `[n, ...]` to `[n * size, ...]`."""
    return _apply(_AllGather, tensor, group, dim)


def all_to_all(tensor: Tensor, group: ParallelGroup, split_dim: int = 0, concat_dim: int = 0) -> Tensor:
    """Cut `split_dim` among the members, and join along `concat_dim` what they cut for this one.

    With the heads as one and the sequence as the other, this is the exchange around attention of DeepSpeed-Ulysses
    (https://arxiv.org/abs/2309.14509): `[seq / size, heads, hidden]` to `[seq, heads / size, hidden]` and back.

    Raises:
        GroupArgumentError: the group's size does not divide the length of `split_dim`.
    """
    return _apply(_AllToAll, tensor, group, split_dim, concat_dim)


def all_to_all_v(
    tensor: Tensor, group: ParallelGroup, output_splits: Sequence[int], input_splits: Sequence[int]
) -> Tensor:
    """As `ParallelGroup.all_to_all` by split sizes, as tokens go to their experts and back.

    Raises:
        GroupArgumentError: the splits do not fit the tensor or the group.
    """
    return _apply(_AllToAllV, tensor, group, list(output_splits), list(input_splits))


def _apply(function: type[torch.autograd.Function], tensor: Tensor, group: ParallelGroup, *how: Any) -> Tensor:
    apply = cast("Callable[..., Tensor]", function.apply)  # pyright: ignore[reportUnknownMemberType]
    return tensor if group.size == 1 else apply(tensor, group, *how)


def _part(tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:
    part = group.shard(tensor.shape[dim])
    return tensor.narrow(dim, part.start, len(part)).clone(memory_format=torch.contiguous_format)


def _swap(tensor: Tensor, group: ParallelGroup, split_dim: int, concat_dim: int) -> Tensor:
    cut = group.all_to_all(tensor.movedim(split_dim, 0))
    return torch.cat([part.movedim(0, split_dim) for part in cut.chunk(group.size)], concat_dim)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.group.all_reduce(gradient, inplace=False), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return group.all_reduce(tensor, inplace=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group, ctx.dim = group, dim
        return _part(tensor, group, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.group.all_gather(gradient, ctx.dim), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group, ctx.dim = group, dim
        return group.all_gather(tensor, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _part(gradient, ctx.group, ctx.dim), None, None


class _ReduceScatter(_Scatter):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group, ctx.dim = group, dim
        return group.reduce_scatter(tensor, dim=dim)


class _AllGather(_Gather):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.reduce_scatter(gradient, dim=ctx.dim), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ParallelGroup, split_dim: int, concat_dim: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group, ctx.dims = group, (concat_dim, split_dim)
        return _swap(tensor, group, split_dim, concat_dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _swap(gradient, ctx.group, *ctx.dims), None, None, None


class _AllToAllV(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: ParallelGroup, output_splits: list[int], input_splits: list[int]
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group, ctx.splits = group, (input_splits, output_splits)
        return group.all_to_all(tensor, output_splits, input_splits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.group.all_to_all(gradient, *ctx.splits), None, None, None
