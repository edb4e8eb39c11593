"""Collectives: what a group does with tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from parallel_topology.communicators import compiled
from parallel_topology.communicators.handle import Handle
from parallel_topology.communicators.reductions import SUM
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.bound import copying_back, nothing
from parallel_topology.groups.lists import Lists, Tensors
from parallel_topology.groups.prepared import ReduceOp, shown
from parallel_topology.groups.tensors import overlap, values


class Collectives(Lists):
    """The collectives on tensors.

    What they return is new, or was given: a tensor that an operation is in place on, or `out`, which takes the result
    and has its shape, dtype and device.
    """

    @overload
    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def all_reduce(
        self, tensor: Tensor, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    @overload
    def all_reduce(
        self, tensor: Tensors, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[False] = ...
    ) -> list[Tensor]: ...
    @overload
    def all_reduce(
        self, tensor: Tensors, op: ReduceOp = ..., *, inplace: bool = ..., async_op: Literal[True]
    ) -> Handle[list[Tensor]]: ...
    def all_reduce(self, tensor: Any, op: ReduceOp = SUM, *, inplace: bool = True, async_op: bool = False) -> Any:
        """Reduce over all members; returns `tensor`, or without `inplace` a new one.

        A list of tensors of one dtype is reduced as one, and a list is returned.
        """
        if inplace is not True:
            self._flag("all_reduce", "inplace", inplace)
        if type(tensor) in (list, tuple):
            if torch.compiler.is_compiling():
                return self._done("all_reduce", [self.all_reduce(one, op, inplace=inplace) for one in tensor], async_op)
            return self._all_reduce_list(tensor, op, inplace, async_op)
        if self._is_alone("all_reduce"):
            return self._alone("all_reduce", tensor, op, async_op=async_op)
        self._admit("all_reduce", tensor)
        plain = self._plain("all_reduce", tensor, inplace=inplace)
        if torch.compiler.is_compiling():
            result = compiled.reduced(plain, self.links.order, self.key, op, inplace=inplace)
            return self._done("all_reduce", tensor if inplace else result, async_op)
        if op is not SUM:
            op = self._reduction("all_reduce", plain, op)
        whole = values(plain)
        if inplace:
            return self._issue("all_reduce", whole, copying_back(whole, plain, tensor), async_op, op=op)
        whole = whole.clone() if whole is plain else whole
        return self._issue("all_reduce", whole, lambda: whole, async_op, op=op)

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
            return self._alone("reduce", tensor, op, async_op=async_op)
        self._admit("reduce", tensor)
        plain = self._plain("reduce", tensor, inplace=True)
        op = self._reduction("reduce", plain, op)
        whole = values(plain)
        if to == self.rank:
            return self._issue("reduce", whole, copying_back(whole, plain, tensor), async_op, dst=to, op=op)
        whole = whole.clone() if whole is plain else whole
        return self._issue("reduce", whole, nothing, async_op, dst=to, op=op)

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
            return self._alone("broadcast", tensor, async_op=async_op)
        self._admit("broadcast", tensor)
        plain = self._plain("broadcast", tensor, inplace=True)
        if torch.compiler.is_compiling():
            compiled.broadcast_(plain, self.links.order, self.key, source)
            return self._done("broadcast", tensor, async_op)
        whole = values(plain)
        finish = (lambda: tensor) if source == self.rank else copying_back(whole, plain, tensor)
        return self._issue("broadcast", whole, finish, async_op, src=source)

    @overload
    def all_gather(
        self, tensor: Tensor, dim: int = ..., *, out: Tensor | None = ..., async_op: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def all_gather(
        self, tensor: Tensor, dim: int = ..., *, out: Tensor | None = ..., async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    @overload
    def all_gather(self, tensor: Tensors, dim: int = ..., *, async_op: Literal[False] = ...) -> list[Tensor]: ...
    @overload
    def all_gather(self, tensor: Tensors, dim: int = ..., *, async_op: Literal[True]) -> Handle[list[Tensor]]: ...
    def all_gather(self, tensor: Any, dim: int = 0, *, out: Tensor | None = None, async_op: bool = False) -> Any:
        """The members' tensors, of equal shapes, joined along `dim` in group order. 0-dim tensors become `[size]`.

        Of a list of tensors each is gathered, all of them as one; a list is returned.
        """
        if type(tensor) in (list, tuple):
            if torch.compiler.is_compiling():
                return self._done("all_gather", [self.all_gather(one, dim) for one in tensor], async_op)
            return self._all_gather_list(tensor, dim, out, async_op)
        whole = self._dimmed("all_gather", tensor)
        if type(dim) is not int or dim:
            dim = self._dim("all_gather", whole, dim)
        if self._is_alone("all_gather"):
            return self._alone("all_gather", whole, out=out, async_op=async_op)
        plain = self._plain("all_gather", whole)
        if torch.compiler.is_compiling():
            gathered = compiled.all_gather(plain, self.links.order, self.key, self.size, dim)
            return self._done("all_gather", gathered if out is None else out.copy_(gathered), async_op)
        whole = values(plain)
        output, finish = self._gathered("all_gather", whole, dim, out)
        return self._issue("all_gather", whole, finish, async_op, output=output)

    @overload
    def all_gather_v(
        self, tensor: Tensor, sizes: Sequence[int] | None = ..., dim: int = ..., *, out: Tensor | None = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def all_gather_v(
        self, tensor: Tensor, sizes: Sequence[int] | None = ..., dim: int = ..., *, out: Tensor | None = ...,
        async_op: Literal[True],
    ) -> Handle[Tensor]: ...  # fmt: skip
    @overload
    def all_gather_v(
        self, tensor: Tensors, sizes: Sequence[int] | None = ..., dim: int = ..., *, async_op: Literal[False] = ...
    ) -> list[Tensor]: ...
    @overload
    def all_gather_v(
        self, tensor: Tensors, sizes: Sequence[int] | None = ..., dim: int = ..., *, async_op: Literal[True]
    ) -> Handle[list[Tensor]]: ...
    def all_gather_v(
        self, tensor: Any, sizes: Sequence[int] | None = None, dim: int = 0, *, out: Tensor | None = None,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        """The members' tensors, of any lengths along `dim` and otherwise of equal shapes, joined along it.

        Of a list of tensors, all as long along `dim`, each is gathered, all of them as one; a list is returned.

        Args:
            sizes: every member's length along `dim`; without them the members first tell each other, over the CPU.
        """
        if type(tensor) in (list, tuple):
            return self._all_gather_v_list(tensor, sizes, dim, out, async_op)
        dim = self._dim("all_gather_v", tensor, dim)
        if sizes is not None:
            sizes = self._sizes("all_gather_v", sizes, {self.rank: tensor.shape[dim]})
        if self._is_alone("all_gather_v"):
            return self._alone("all_gather_v", tensor, out=out, async_op=async_op)
        front = values(self._plain("all_gather_v", tensor).movedim(dim, 0))
        sizes = self._sizes_of_all("all_gather_v", front, sizes)
        output, finish = self._moved("all_gather_v", front, sum(sizes), dim, out)
        return self._issue("all_gather_v", front, finish, async_op, output=output, sizes=sizes)

    @overload
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = ..., dim: int = ..., *, out: Tensor | None = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = ..., dim: int = ..., *, out: Tensor | None = ..., async_op: Literal[True]
    ) -> Handle[Tensor]: ...
    def reduce_scatter(
        self, tensor: Tensor, op: ReduceOp = SUM, dim: int = 0, *, out: Tensor | None = None, async_op: bool = False
    ) -> Tensor | Handle[Tensor]:
        """Reduce over all members, and keep this one's part along `dim`, whose length the group's size divides."""
        dim = self._dim("reduce_scatter", tensor, dim)
        self._require_even("reduce_scatter", tensor, dim, "; reduce_scatter_v takes uneven parts")
        if self._is_alone("reduce_scatter"):
            return self._alone("reduce_scatter", tensor, op, out=out, async_op=async_op)
        plain = self._plain("reduce_scatter", tensor)
        if torch.compiler.is_compiling():
            part = compiled.scattered(plain, self.links.order, self.key, self.size, op, dim)
            return self._done("reduce_scatter", part if out is None else out.copy_(part), async_op)
        op = self._reduction("reduce_scatter", plain, op)
        front = values(plain.movedim(dim, 0))
        output, finish = self._moved("reduce_scatter", front, front.shape[0] // self.size, dim, out)
        return self._issue("reduce_scatter", front, finish, async_op, output=output, op=op)

    @overload
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = ..., dim: int = ..., *, out: Tensor | None = ...,
        async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = ..., dim: int = ..., *, out: Tensor | None = ...,
        async_op: Literal[True],
    ) -> Handle[Tensor]: ...  # fmt: skip
    def reduce_scatter_v(
        self, tensor: Tensor, sizes: Sequence[int], op: ReduceOp = SUM, dim: int = 0, *, out: Tensor | None = None,
        async_op: bool = False,
    ) -> Tensor | Handle[Tensor]:  # fmt: skip
        """Reduce over all members, and keep this one's part: `sizes[rank]` long along `dim`.

        Args:
            sizes: the lengths of all members' parts; their sum is the tensor's length along `dim`.
        """
        dim = self._dim("reduce_scatter_v", tensor, dim)
        sizes = self._sizes("reduce_scatter_v", sizes, {}, whole=tensor.shape[dim])
        if self._is_alone("reduce_scatter_v"):
            return self._alone("reduce_scatter_v", tensor, op, out=out, async_op=async_op)
        plain = self._plain("reduce_scatter_v", tensor)
        op = self._reduction("reduce_scatter_v", plain, op)
        front = values(plain.movedim(dim, 0))
        output, finish = self._moved("reduce_scatter_v", front, sizes[self.rank], dim, out)
        return self._issue("reduce_scatter_v", front, finish, async_op, output=output, sizes=sizes, op=op)

    @overload
    def gather(
        self, tensor: Tensor, dst: int | None = ..., dim: int = ..., *, dst_rank: int | None = ...,
        out: Tensor | None = ..., async_op: Literal[False] = ...,
    ) -> Tensor | None: ...  # fmt: skip
    @overload
    def gather(
        self, tensor: Tensor, dst: int | None = ..., dim: int = ..., *, dst_rank: int | None = ...,
        out: Tensor | None = ..., async_op: Literal[True],
    ) -> Handle[Tensor | None]: ...  # fmt: skip
    def gather(
        self, tensor: Tensor, dst: int | None = None, dim: int = 0, *, dst_rank: int | None = None,
        out: Tensor | None = None, async_op: bool = False,
    ) -> Tensor | Handle[Tensor | None] | None:  # fmt: skip
        """On the destination the members' tensors joined along `dim`, as of `all_gather`; None on the others.

        Args:
            dst: the destination's position in the group; 0 unless either is given.
            dst_rank: or its global rank.
            out: on the destination, takes the result.
        """
        to = self._peer("dst", dst, dst_rank, 0)
        whole = self._dimmed("gather", tensor)
        dim = self._dim("gather", whole, dim)
        if out is not None and to != self.rank:
            raise GroupArgumentError(f"gather on {self.label}: out={shown(out)} on a member that gets no result")
        if self._is_alone("gather"):
            return self._alone("gather", whole, out=out, async_op=async_op)
        whole = values(self._plain("gather", whole))
        if to != self.rank:
            return self._issue("gather", whole, nothing, async_op, output=None, dst=to)
        output, finish = self._gathered("gather", whole, dim, out)
        return self._issue("gather", whole, finish, async_op, output=output, dst=to)

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
            raise GroupArgumentError(f"scatter on {self.label}: tensor={shown(tensor)} on {where}")
        if tensor is not None:
            self._admit("scatter", tensor)
            self._require_parts(tensor, output, dim)
        if self._is_alone("scatter"):
            return self._done("scatter", output.copy_(tensor) if tensor is not None else output, async_op)
        front = None if tensor is None else values(self._plain("scatter", tensor).movedim(dim, 0))
        part = self._plain("scatter", output, inplace=True).movedim(dim, 0)
        whole = values(part)
        if front is not None and overlap(front, whole):
            whole = whole.clone()
        return self._issue("scatter", whole, copying_back(whole, part, output), async_op, source=front, src=source)

    @overload
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = ..., input_splits: Sequence[int] | None = ..., *,
        out: Tensor | None = ..., async_op: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = ..., input_splits: Sequence[int] | None = ..., *,
        out: Tensor | None = ..., async_op: Literal[True],
    ) -> Handle[Tensor]: ...  # fmt: skip
    def all_to_all(
        self, tensor: Tensor, output_splits: Sequence[int] | None = None, input_splits: Sequence[int] | None = None, *,
        out: Tensor | None = None, async_op: bool = False,
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
        else:
            input_splits = self._sizes("all_to_all", input_splits, {}, whole=tensor.shape[0], name="input_splits")
            mine = {self.rank: input_splits[self.rank]}
            output_splits = self._sizes("all_to_all", output_splits, mine, name="output_splits")
        if self._is_alone("all_to_all"):
            return self._alone("all_to_all", tensor, out=out, async_op=async_op)
        plain = self._plain("all_to_all", tensor)
        if torch.compiler.is_compiling():
            came = compiled.all_to_all(plain, self.links.order, self.key, output_splits, input_splits)
            return self._done("all_to_all", came if out is None else out.copy_(came), async_op)
        whole = values(plain)
        output, finish = self._moved("all_to_all", whole, sum(output_splits), 0, out)
        splits = {"output_splits": output_splits, "input_splits": input_splits}
        return self._issue("all_to_all", whole, finish, async_op, output=output, **splits)
