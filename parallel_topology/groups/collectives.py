"""Collectives: what a group does with tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators import compiled
from parallel_topology.communicators.handle import Handle
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.bound import BoundGroup, copying_back, nothing

SUM = dist.ReduceOp.SUM
ReduceOp = dist.ReduceOp.RedOpType | dist.ReduceOp
"""A member of `torch.distributed.ReduceOp`."""

_BITWISE = (dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR)


class Collectives(BoundGroup):
    """The collectives on tensors."""

    @overload
    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = SUM, *, inplace: bool = True, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Reduce over all members; returns `tensor`, or without `inplace` a new one."""
        if self._is_alone("all_reduce"):
            return _done(tensor, async_op)
        plain = self._plain("all_reduce", tensor, inplace=inplace)
        if torch.compiler.is_compiling():
            result = compiled.reduced(plain, self.links.order, self.key, op, inplace=inplace)
            return _done(tensor if inplace else result, async_op)
        if op is not SUM:
            self._require_reducible("all_reduce", tensor, op)
        whole = plain.contiguous() if inplace else plain.clone(memory_format=torch.contiguous_format)
        finish = copying_back(whole, plain, tensor) if inplace else lambda: whole
        return self._issue("all_reduce", whole, finish, async_op, op=op)

    @overload
    def reduce(
        self, tensor: Tensor, dst: int | None = ..., op: ReduceOp = ..., *, dst_rank: int | None = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor | None: ...  # fmt: skip
    @overload
    def reduce(
        self, tensor: Tensor, dst: int | None = ..., op: ReduceOp = ..., *, dst_rank: int | None = ...,
        async_op: Literal[True],
    ) -> Handle[Tensor | None]: ...  # fmt: skip
    def reduce(
        self, tensor: Tensor, dst: int | None = None, op: ReduceOp = SUM, *, dst_rank: int | None = None,
        async_op: bool = False,
    ) -> Tensor | Handle[Tensor | None] | None:  # fmt: skip
        """Reduce over all members onto one: its tensor is overwritten and returned; the others' stay as they are.

        Args:
            dst: the destination's position in the group; 0 unless either is given.
            dst_rank: or its global rank.
        """
        to = self._peer("dst", dst, dst_rank, 0)
        if self._is_alone("reduce"):
            return _done(tensor, async_op)
        self._require_reducible("reduce", tensor, op)
        is_here = to == self.rank
        plain = self._plain("reduce", tensor, inplace=True)
        whole = plain.contiguous() if is_here else plain.clone(memory_format=torch.contiguous_format)
        finish = copying_back(whole, plain, tensor) if is_here else nothing
        return self._issue("reduce", whole, finish, async_op, dst=to, op=op)

    @overload
    def broadcast(
        self, tensor: Tensor, src: int | None = ..., *, src_rank: int | None = ..., async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def broadcast(
        self, tensor: Tensor, src: int | None = ..., *, src_rank: int | None = ..., async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def broadcast(
        self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Copy the source's tensor into everybody's, in place; returns `tensor`.

        Args:
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        if self._is_alone("broadcast"):
            return _done(tensor, async_op)
        plain = self._plain("broadcast", tensor, inplace=True)
        if torch.compiler.is_compiling():
            compiled.broadcast_(plain, self.links.order, self.key, source)
            return _done(tensor, async_op)
        whole = plain.contiguous()
        return self._issue("broadcast", whole, copying_back(whole, plain, tensor), async_op, src=source)

    @overload
    def all_gather(self, tensor: Tensor, dim: int = ..., *, async_op: Literal[False] = ...) -> Tensor: ...
    @overload
    def all_gather(self, tensor: Tensor, dim: int = ..., *, async_op: Literal[True]) -> Handle[Tensor]: ...
    def all_gather(self, tensor: Tensor, dim: int = 0, *, async_op: bool = False) -> Tensor | Handle[Tensor]:
        """The members' tensors, of equal shapes, joined along `dim` in group order. 0-dim tensors become `[size]`."""
        whole = tensor if tensor.dim() else tensor.reshape(1)
        if dim:
            dim = self._dim("all_gather", whole, dim)
        if self._is_alone("all_gather"):
            return _done(whole, async_op)
        whole = self._plain("all_gather", whole)
        if torch.compiler.is_compiling():
            return _done(compiled.all_gather(whole, self.links.order, self.key, self.size, dim), async_op)
        whole = whole.contiguous()
        gathered = whole.new_empty((self.size * whole.shape[0], *whole.shape[1:]))
        finish = (lambda: gathered) if dim == 0 else lambda: torch.cat(self._split(gathered), dim)
        return self._issue("all_gather", whole, finish, async_op, output=gathered)

    @overload
    def all_gather_v(
        self, tensor: Tensor, sizes: Sequence[int] | None = ..., dim: int = ..., *, async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def all_gather_v(
        self, tensor: Tensor, sizes: Sequence[int] | None = ..., dim: int = ..., *, async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def all_gather_v(
        self, tensor: Tensor, sizes: Sequence[int] | None = None, dim: int = 0, *, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """The members' tensors, of any lengths along `dim` and otherwise of equal shapes, joined along it.

        Args:
            sizes: every member's length along `dim`; without them the members first tell each other, over the CPU.
        """
        dim = self._dim("all_gather_v", tensor, dim)
        if self._is_alone("all_gather_v"):
            self._require_sizes("all_gather_v", sizes, {self.rank: tensor.shape[dim]})
            return _done(tensor, async_op)
        front = self._plain("all_gather_v", tensor).movedim(dim, 0).contiguous()
        sizes = self._lengths(front.shape[0]) if sizes is None else sizes
        self._require_sizes("all_gather_v", sizes, {self.rank: front.shape[0]})
        output = front.new_empty((sum(sizes), *front.shape[1:]))
        return self._issue("all_gather_v", front, _moved(output, dim), async_op, output=output, sizes=list(sizes))

    @overload
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = ..., dim: int = ..., *, async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = ..., dim: int = ..., *, async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = SUM, dim: int = 0, *, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Reduce over all members, and keep this one's part along `dim`, whose length the group's size divides."""
        dim = self._dim("reduce_scatter", tensor, dim)
        self._require_even("reduce_scatter", tensor, dim, "; reduce_scatter_v takes uneven parts")
        self._require_reducible("reduce_scatter", tensor, op)
        if self._is_alone("reduce_scatter"):
            return _done(tensor, async_op)
        tensor = self._plain("reduce_scatter", tensor)
        if torch.compiler.is_compiling():
            return _done(compiled.scattered(tensor, self.links.order, self.key, self.size, op, dim), async_op)
        front = tensor.movedim(dim, 0).contiguous()
        output = front.new_empty((front.shape[0] // self.size, *front.shape[1:]))
        return self._issue("reduce_scatter", front, _moved(output, dim), async_op, output=output, op=op)

    @overload
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = ..., dim: int = ..., *,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = ..., dim: int = ..., *, async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = SUM, dim: int = 0, *, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Reduce over all members, and keep this one's part: `sizes[rank]` long along `dim`.

        Args:
            sizes: the lengths of all members' parts; their sum is the tensor's length along `dim`.
        """
        dim = self._dim("reduce_scatter_v", tensor, dim)
        self._require_sizes("reduce_scatter_v", sizes, {}, whole=tensor.shape[dim])
        self._require_reducible("reduce_scatter_v", tensor, op)
        if self._is_alone("reduce_scatter_v"):
            return _done(tensor, async_op)
        front = self._plain("reduce_scatter_v", tensor).movedim(dim, 0).contiguous()
        output = front.new_empty((sizes[self.rank], *front.shape[1:]))
        finish = _moved(output, dim)
        return self._issue("reduce_scatter_v", front, finish, async_op, output=output, sizes=list(sizes), op=op)

    @overload
    def gather(
        self, tensor: Tensor, dst: int | None = ..., dim: int = ..., *, dst_rank: int | None = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor | None: ...  # fmt: skip
    @overload
    def gather(
        self, tensor: Tensor, dst: int | None = ..., dim: int = ..., *, dst_rank: int | None = ...,
        async_op: Literal[True],
    ) -> Handle[Tensor | None]: ...  # fmt: skip
    def gather(
        self, tensor: Tensor, dst: int | None = None, dim: int = 0, *, dst_rank: int | None = None,
        async_op: bool = False,
    ) -> Tensor | Handle[Tensor | None] | None:  # fmt: skip
        """On the destination the members' tensors joined along `dim`, as of `all_gather`; None on the others.

        Args:
            dst: the destination's position in the group; 0 unless either is given.
            dst_rank: or its global rank.
        """
        to = self._peer("dst", dst, dst_rank, 0)
        whole = tensor if tensor.dim() else tensor.reshape(1)
        dim = self._dim("gather", whole, dim)
        if self._is_alone("gather"):
            return _done(whole, async_op)
        whole = self._plain("gather", whole).contiguous()
        if to != self.rank:
            return self._issue("gather", whole, nothing, async_op, output=None, dst=to)
        gathered = whole.new_empty((self.size * whole.shape[0], *whole.shape[1:]))
        finish = (lambda: gathered) if dim == 0 else lambda: torch.cat(self._split(gathered), dim)
        return self._issue("gather", whole, finish, async_op, output=gathered, dst=to)

    @overload
    def scatter(
        self, output: Tensor, tensor: Tensor | None = ..., src: int | None = ..., dim: int = ..., *,
        src_rank: int | None = ..., async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def scatter(
        self, output: Tensor, tensor: Tensor | None = ..., src: int | None = ..., dim: int = ..., *,
        src_rank: int | None = ..., async_op: Literal[True],
    ) -> Handle[Tensor]: ...  # fmt: skip
    def scatter(
        self, output: Tensor, tensor: Tensor | None = None, src: int | None = None, dim: int = 0, *,
        src_rank: int | None = None, async_op: bool = False,
    ) -> Tensor | Handle[Tensor]:  # fmt: skip
        """Divide the source's tensor along `dim` in equal parts, one into each member's `output`, which is returned.

        Args:
            output: takes this member's part.
            tensor: on the source, what is divided: `output`'s shape with `dim` as many times as long.
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        dim = self._dim("scatter", output, dim)
        if (tensor is not None) != (source == self.rank):
            where = "the source" if source == self.rank else "a member that is not the source"
            raise GroupArgumentError(f"scatter on {self.label}: tensor={_shown(tensor)} on {where}")
        if tensor is not None:
            self._require_parts(tensor, output, dim)
        if self._is_alone("scatter"):
            return _done(output.copy_(tensor) if tensor is not None else output, async_op)
        front = None if tensor is None else self._plain("scatter", tensor).movedim(dim, 0).contiguous()
        part = self._plain("scatter", output, inplace=True).movedim(dim, 0)
        whole = part.contiguous()
        return self._issue("scatter", whole, copying_back(whole, part, output), async_op, source=front, src=source)

    @overload
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = ..., input_splits: Sequence[int] | None = ..., *,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = ..., input_splits: Sequence[int] | None = ..., *,
        async_op: Literal[True],
    ) -> Handle[Tensor]: ...  # fmt: skip
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = None, input_splits: Sequence[int] | None = None, *,
        async_op: bool = False,
    ) -> Tensor | Handle[Tensor]:  # fmt: skip
        """Send every member its rows of `tensor`, and return the rows that all sent to this one, in group order.

        Args:
            output_splits: rows that come from each member; without splits all parts are of equal length.
            input_splits: rows that go to each member; their sum is the tensor's length.
        """
        self._dim("all_to_all", tensor, 0)
        if (output_splits is None) != (input_splits is None):
            raise GroupArgumentError(
                f"all_to_all on {self.label}: output_splits={output_splits}, input_splits={input_splits}; "
                "expected both or neither"
            )
        if output_splits is None or input_splits is None:
            self._require_even("all_to_all", tensor, 0, "; give output_splits and input_splits for uneven parts")
            output_splits = input_splits = [tensor.shape[0] // self.size] * self.size
        self._require_sizes("all_to_all", input_splits, {}, whole=tensor.shape[0], name="input_splits")
        mine = {self.rank: input_splits[self.rank]}
        self._require_sizes("all_to_all", output_splits, mine, name="output_splits")
        if self._is_alone("all_to_all"):
            return _done(tensor, async_op)
        tensor = self._plain("all_to_all", tensor)
        if torch.compiler.is_compiling():
            return _done(compiled.all_to_all(tensor, self.links.order, self.key, output_splits, input_splits), async_op)
        whole = tensor.contiguous()
        output = whole.new_empty((sum(output_splits), *whole.shape[1:]))
        splits = {"output_splits": list(output_splits), "input_splits": list(input_splits)}
        return self._issue("all_to_all", whole, lambda: output, async_op, output=output, **splits)

    def _plain(self, operation: str, tensor: Tensor, *, inplace: bool = False) -> Tensor:
        """The same memory without a gradient: no operation here has one, and to cut it silently would be a trap."""
        if not tensor.requires_grad:
            return tensor
        if torch.is_grad_enabled() and not (inplace and tensor.is_leaf):
            raise GroupArgumentError(
                f"{operation} on {self.label}: the tensor requires a gradient, which this would cut; use the forms of "
                "parallel_topology.functional, or torch.no_grad(), or detach the tensor"
            )
        return tensor.detach()

    def _split(self, gathered: Tensor) -> tuple[Tensor, ...]:
        """A part for each member, also when they are empty."""
        rows = gathered.shape[0] // self.size
        return tuple(gathered.narrow(0, member * rows, rows) for member in range(self.size))

    def _lengths(self, mine: int) -> list[int]:
        told = torch.empty(self.size, dtype=torch.int64, device="cpu")
        self._issue("all_gather", torch.tensor([mine], device="cpu"), nothing, False, output=told)
        return [int(length) for length in told]

    def _dim(self, operation: str, tensor: Tensor, dim: int) -> int:
        if not -tensor.dim() <= dim < tensor.dim():
            raise GroupArgumentError(
                f"{operation} on {self.label}: dim={dim} of a tensor of shape {list(tensor.shape)}"
                + ("" if tensor.dim() else "; expected at least one dim")
            )
        return dim % tensor.dim()

    def _require_even(self, operation: str, tensor: Tensor, dim: int, advice: str) -> None:
        if tensor.shape[dim] % self.size:
            raise GroupArgumentError(
                f"{operation} on {self.label}: dim {dim} of {list(tensor.shape)} does not divide by {self.size}{advice}"
            )

    def _require_sizes(
        self, operation: str, sizes: Sequence[int] | None, known: dict[int, int], *, whole: int | None = None,
        name: str = "sizes",
    ) -> None:  # fmt: skip
        if sizes is None:
            return
        given = f"{operation} on {self.label}: {name}={list(sizes)}"
        if len(sizes) != self.size or any(size < 0 for size in sizes):
            raise GroupArgumentError(f"{given}; expected {self.size} lengths, one for each member")
        if whole is not None and sum(sizes) != whole:
            raise GroupArgumentError(f"{given} make {sum(sizes)}, but the tensor is {whole} long")
        for member, size in known.items():
            if sizes[member] != size:
                raise GroupArgumentError(f"{given}, but this member, {member}, has {size}")

    def _require_parts(self, tensor: Tensor, output: Tensor, dim: int) -> None:
        expected = list(output.shape)
        expected[dim] *= self.size
        if list(tensor.shape) != expected or tensor.dtype != output.dtype or tensor.device != output.device:
            raise GroupArgumentError(
                f"scatter on {self.label}: tensor is {_shown(tensor)} and output {_shown(output)}; "
                f"expected a {output.dtype} tensor {expected} on {output.device}"
            )

    def _require_reducible(self, operation: str, tensor: Tensor, op: ReduceOp) -> None:
        inexact = tensor.is_floating_point() or tensor.is_complex()
        if (op in _BITWISE and inexact) or (op == dist.ReduceOp.AVG and not inexact):
            kind = "an integer" if inexact else "a floating-point"
            raise GroupArgumentError(
                f"{operation} on {self.label}: {op} of a {tensor.dtype} tensor; expected {kind} dtype"
            )


def _done(result: Any, async_op: bool) -> Any:
    return Handle.of(result) if async_op else result  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _moved(front: Tensor, dim: int) -> Callable[[], Tensor]:
    """What puts the first dim back where it was."""
    return lambda: front if dim == 0 else front.movedim(0, dim).contiguous()


def _shown(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
