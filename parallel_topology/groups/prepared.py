"""Prepared: what is asked of the tensors that a caller gives, and where results go, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators.reductions import SUM, reduction_of
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.bound import BoundGroup, nothing
from parallel_topology.groups.tensors import overlap, values, write
from parallel_topology.topology.whole import whole as whole_number

ReduceOp = dist.ReduceOp.RedOpType | dist.ReduceOp | str
"""A member of `torch.distributed.ReduceOp`, or its name: sum, avg, product, min, max, band, bor, bxor."""


class Prepared(BoundGroup):
    """Checks of arguments, and memory for results."""

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

    def _alone(
        self, operation: str, tensor: Tensor, op: ReduceOp = SUM, *, out: Tensor | None = None, async_op: bool = False
    ) -> Any:
        """What a group of one rank returns at once."""
        self._admit(operation, tensor)
        if op is not SUM:
            self._reduction(operation, tensor, op)
        if out is not None:
            self._require_out(operation, out, tensor, tensor.shape)
            tensor = out.copy_(tensor)
        return self._done(operation, tensor, async_op)

    def _dimmed(self, operation: str, tensor: Tensor) -> Tensor:
        """The tensor, with one dim if it has none."""
        self._admit(operation, tensor)
        return tensor if tensor.dim() else tensor.reshape(1)

    def _moved(
        self, operation: str, front: Tensor, rows: int, dim: int, out: Tensor | None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Memory for `rows` of what `front` has, and what makes the result of it: the first dim back where it was."""
        if dim == 0 and out is None:
            return _fresh(front, rows)
        rest = front.shape[1:]
        shaped: Callable[[Tensor], Tensor] | None = None if dim == 0 else lambda output: output.movedim(0, dim)
        return self._result(operation, front, rows, (*rest[:dim], rows, *rest[dim:]), shaped, out)

    def _gathered(
        self, operation: str, whole: Tensor, dim: int, out: Tensor | None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Memory for what all members have, and what makes the result of it: joined along `dim`."""
        if dim == 0 and out is None:
            return _fresh(whole, self.size * whole.shape[0])
        shape, size = whole.shape, self.size
        parts = (size, *shape)  # also when they are empty
        shaped: Callable[[Tensor], Tensor] | None = None
        if dim:
            shaped = lambda output: torch.cat(output.view(parts).unbind(), dim)  # noqa: E731
        joined = (*shape[:dim], size * shape[dim], *shape[dim + 1 :])
        return self._result(operation, whole, size * shape[0], joined, shaped, out)

    def _result(
        self, operation: str, whole: Tensor, rows: int, shape: tuple[int, ...],
        shaped: Callable[[Tensor], Tensor] | None, out: Tensor | None,
    ) -> tuple[Tensor, Callable[[], Tensor]]:  # fmt: skip
        if out is not None:
            plain = self._require_out(operation, out, whole, shape)
            if shaped is None and plain.is_contiguous() and values(plain) is plain and not overlap(plain, whole):
                return plain, lambda: out
        output = whole.new_empty((rows, *whole.shape[1:]))

        def finish() -> Tensor:
            result = output if shaped is None else shaped(output).contiguous()
            if out is None:
                return result
            write(result, out)
            return out

        return output, finish

    def _require_out(self, operation: str, out: Tensor, like: Tensor, shape: Sequence[int]) -> Tensor:
        """`out` without a gradient, if it can take the result."""
        self._admit(operation, out)
        plain = self._plain(operation, out, inplace=True)
        if list(plain.shape) != list(shape) or plain.dtype != like.dtype or plain.device != like.device:
            raise GroupArgumentError(
                f"{operation} on {self.label}: out={shown(out)}; expected {like.dtype} {list(shape)} on {like.device}"
            )
        return plain

    def _require_no_out(self, operation: str, out: Tensor | None) -> None:
        if out is not None:
            raise GroupArgumentError(f"{operation} on {self.label}: out= with a list of tensors; expected one tensor")

    def _reduction(self, operation: str, tensor: Tensor, op: ReduceOp) -> Any:
        """torch's operation, if such a tensor can be reduced by it."""
        if op is SUM:
            return op
        try:
            return reduction_of(op, tensor)
        except GroupArgumentError as error:
            raise GroupArgumentError(f"{operation} on {self.label}: {error}") from None

    def _sizes_of_all(self, operation: str, front: Tensor, sizes: Sequence[int] | None) -> list[int]:
        """The members' lengths: as given, or as they tell each other."""
        if sizes is None:
            self._require_carried(operation, front)  # or the others would be left alone after this
            told = torch.empty(self.size, dtype=torch.int64, device="cpu")
            mine = torch.tensor([front.shape[0]], dtype=torch.int64, device="cpu")
            self._issue("all_gather", mine, nothing, False, output=told)
            sizes = [int(length) for length in told]
        return self._sizes(operation, sizes, {self.rank: front.shape[0]})

    def _dim(self, operation: str, tensor: Tensor, dim: int) -> int:
        self._admit(operation, tensor)
        along = whole_number(dim)
        if along is None or not -tensor.dim() <= along < tensor.dim():
            raise GroupArgumentError(
                f"{operation} on {self.label}: dim={dim!r} of a tensor of shape {list(tensor.shape)}"
                + ("" if tensor.dim() else "; expected at least one dim")
            )
        return along % tensor.dim()

    def _require_even(self, operation: str, tensor: Tensor, dim: int, advice: str) -> None:
        if tensor.shape[dim] % self.size:
            raise GroupArgumentError(
                f"{operation} on {self.label}: dim {dim} of {list(tensor.shape)} does not divide by {self.size}{advice}"
            )

    def _sizes(
        self, operation: str, sizes: Sequence[int], known: dict[int, int], *, whole: int | None = None,
        name: str = "sizes",
    ) -> list[int]:  # fmt: skip
        """Lengths that the caller gave, one for each member, if they fit."""
        try:
            found = list(map(index, sizes))
        except TypeError:
            raise self._not_sizes(operation, name, sizes, f"; expected {self.size} whole numbers") from None
        if len(found) != self.size or min(found) < 0:
            raise self._not_sizes(operation, name, found, f"; expected {self.size} lengths, one for each member")
        if whole is not None and sum(found) != whole:
            raise self._not_sizes(operation, name, found, f" make {sum(found)}, but the tensor is {whole} long")
        for member, size in known.items():
            if found[member] != size:
                raise self._not_sizes(operation, name, found, f", but this member, {member}, has {size}")
        return found

    def _not_sizes(self, operation: str, name: str, sizes: object, what: str) -> GroupArgumentError:
        return GroupArgumentError(f"{operation} on {self.label}: {name}={sizes}{what}")

    def _require_parts(self, tensor: Tensor, output: Tensor, dim: int) -> None:
        expected = list(output.shape)
        expected[dim] *= self.size
        if list(tensor.shape) != expected or tensor.dtype != output.dtype or tensor.device != output.device:
            raise GroupArgumentError(
                f"scatter on {self.label}: tensor is {shown(tensor)} and output {shown(output)}; "
                f"expected a {output.dtype} tensor {expected} on {output.device}"
            )


def _fresh(like: Tensor, rows: int) -> tuple[Tensor, Callable[[], Tensor]]:
    """New memory that is the result."""
    output = like.new_empty((rows, *like.shape[1:]))
    return output, lambda: output


def shown(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
