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

All take the tensor and the group; `dim` is the tensor's. The input is never written to. All are linear, so
derivatives of any order are those of the conjugates; the transforms of `torch.func` go through them (in torch 2.8
`vmap` does not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from parallel_topology.installed import imported

imported("torch", __name__)  # before it is looked for in vain, in other words than ours

import torch
from torch import Tensor

from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.group import ParallelGroup


def copy_to(tensor: Tensor, group: ParallelGroup) -> Tensor:
    """The tensor itself, into a region where each member computes its own part: gradients are added up."""
    return _apply("copy", tensor, group)


def reduce_from(tensor: Tensor, group: ParallelGroup) -> Tensor:
    """The sum over all members, out of a region where each computed its own part."""
    return _apply("reduce", tensor, group)


def scatter_to(tensor: Tensor, group: ParallelGroup, dim: int = -1) -> Tensor:
    """This member's part of what all hold: `[..., n]` to `[..., n / size]`.

    Raises:
        TopologyError: the group's size does not divide the length of `dim`.
    """
    return _apply("part", tensor, group, _dim("scatter_to", tensor, dim))


def gather_from(tensor: Tensor, group: ParallelGroup, dim: int = -1) -> Tensor:
    """All members' parts, for what all then compute alike: `[..., n]` to `[..., n * size]`."""
    return _apply("gather", tensor, group, _dim("gather_from", tensor, dim))


def reduce_scatter_to(tensor: Tensor, group: ParallelGroup, dim: int = 0) -> Tensor:
    """This member's part of the sum over all: `[n, ...]` to `[n / size, ...]`, as into a sequence-parallel region.

    Raises:
        GroupArgumentError: the group's size does not divide the length of `dim`.
    """
    return _apply("reduce_scatter", tensor, group, _dim("reduce_scatter_to", tensor, dim))


def all_gather_from(tensor: Tensor, group: ParallelGroup, dim: int = 0) -> Tensor:
    """All members' parts, for what each then computes its own part of: `[n, ...]` to `[n * size, ...]`."""
    return _apply("all_gather", tensor, group, _dim("all_gather_from", tensor, dim))


def all_to_all(tensor: Tensor, group: ParallelGroup, split_dim: int = 0, concat_dim: int = 0) -> Tensor:
    """Cut `split_dim` among the members, and join along `concat_dim` what they cut for this one.

    With the heads as one and the sequence as the other, this is the exchange around attention of DeepSpeed-Ulysses
    (https://arxiv.org/abs/2309.14509): `[seq / size, heads, hidden]` to `[seq, heads / size, hidden]` and back.

    Raises:
        GroupArgumentError: the group's size does not divide the length of `split_dim`.
    """
    return _apply("all_to_all", tensor, group, *(_dim("all_to_all", tensor, dim) for dim in (split_dim, concat_dim)))


def all_to_all_v(
    tensor: Tensor, group: ParallelGroup, output_splits: Sequence[int], input_splits: Sequence[int]
) -> Tensor:
    """As `ParallelGroup.all_to_all` by split sizes, as tokens go to their experts and back.

    Raises:
        GroupArgumentError: the splits do not fit the tensor or the group.
    """
    return _apply("all_to_all_v", tensor, group, list(output_splits), list(input_splits))


def _dim(name: str, tensor: Tensor, dim: int) -> int:
    """Counted from the front, where a dim that is mapped over does not move it."""
    if not isinstance(tensor, Tensor) or not hasattr(dim, "__index__") or not -tensor.dim() <= dim < tensor.dim():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupArgumentError(
            f"{name}: dim={dim!r} of {getattr(tensor, 'shape', tensor)}; expected one of a tensor's"
        )
    return dim % tensor.dim()


def _apply(kind: str, tensor: Tensor, group: ParallelGroup, *how: Any) -> Tensor:
    return tensor if group.size == 1 else _linear(kind, tensor, group, how)


def _linear(kind: str, tensor: Tensor, group: ParallelGroup, how: tuple[Any, ...]) -> Tensor:
    function = _Linear if torch.compiler.is_compiling() else _Transformed
    apply = cast("Callable[..., Tensor]", function.apply)  # pyright: ignore[reportUnknownMemberType]
    return apply(tensor, group, kind, how)


class _Linear(torch.autograd.Function):
    """One of the maps of `_MAPS`. All are linear; the gradient of each is its conjugate, and so on."""

    @staticmethod
    def forward(tensor: Tensor, group: ParallelGroup, kind: str, how: tuple[Any, ...]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _MAPS[kind](tensor, group, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.group, ctx.kind, ctx.how = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        conjugate = _CONJUGATES[ctx.kind]
        how = ctx.how[::-1] if conjugate == ctx.kind else ctx.how
        return _linear(conjugate, gradient, ctx.group, how), None, None, None


class _Transformed(_Linear):
    """With what compilers refuse to see (torch 2.13): forward mode, and being mapped over."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _linear(ctx.kind, tangent, ctx.group, ctx.how)

    @staticmethod
    def vmap(info: Any, in_dims: Any, tensor: Tensor, *rest: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is mapped over goes last, where it is in nobody's way: the dims of `how` are counted from the front."""
        group, kind, how = rest
        return _linear(kind, tensor.movedim(in_dims[0], -1), group, how), -1


def _part(tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:
    part = group.shard(tensor.shape[dim])
    return tensor.narrow(dim, part.start, len(part)).clone(memory_format=torch.contiguous_format)


def _swap(tensor: Tensor, group: ParallelGroup, split_dim: int, concat_dim: int) -> Tensor:
    cut = group.all_to_all(tensor.movedim(split_dim, 0))
    return torch.cat([part.movedim(0, split_dim) for part in cut.chunk(group.size)], concat_dim)


def _same(tensor: Tensor, group: ParallelGroup) -> Tensor:
    return tensor.view_as(tensor)


def _total(tensor: Tensor, group: ParallelGroup) -> Tensor:
    return group.all_reduce(tensor, inplace=False)


def _joined(tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:
    return group.all_gather(tensor, dim)


def _scattered(tensor: Tensor, group: ParallelGroup, dim: int) -> Tensor:
    return group.reduce_scatter(tensor, dim=dim)


def _exchanged(tensor: Tensor, group: ParallelGroup, takes: list[int], gives: list[int]) -> Tensor:
    return group.all_to_all(tensor, takes, gives)


_MAPS: dict[str, Callable[..., Tensor]] = {
    "copy": _same, "reduce": _total, "part": _part, "gather": _joined, "reduce_scatter": _scattered,
    "all_gather": _joined, "all_to_all": _swap, "all_to_all_v": _exchanged,
}  # fmt: skip
_CONJUGATES = {
    "copy": "reduce", "reduce": "copy", "part": "gather", "gather": "part", "reduce_scatter": "all_gather",
    "all_gather": "reduce_scatter", "all_to_all": "all_to_all", "all_to_all_v": "all_to_all_v",
}  # fmt: skip
