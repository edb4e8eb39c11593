"""Lists: collectives on several tensors as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.packed import Packed, cut
from parallel_topology.groups.prepared import Prepared, ReduceOp, shown
from parallel_topology.groups.tensors import values, write

Tensors = Sequence[Tensor]


class Lists(Prepared):
    """What the collectives do with lists of tensors: one call of the communicator for all of them."""

    def _all_reduce_list(self, tensors: Tensors, op: ReduceOp, inplace: bool, async_op: bool) -> Any:
        """Of tensors laid end to end."""
        for tensor in tensors:
            self._admit("all_reduce", tensor)
        plain = [self._plain("all_reduce", tensor, inplace=inplace) for tensor in tensors]
        for one in plain[1:]:
            if (one.dtype, one.device) != (plain[0].dtype, plain[0].device):
                raise GroupArgumentError(
                    f"all_reduce on {self.label}: a list of {shown(plain[0])} and {shown(one)}; expected one dtype "
                    "and device"
                )
        if self._is_alone("all_reduce") or not plain:
            return self._done("all_reduce", list(tensors), async_op)
        flat = torch.cat([values(one).view(-1) for one in plain])
        op = self._reduction("all_reduce", flat, op)

        def finish() -> list[Tensor]:
            parts = cut(flat, [one.numel() for one in plain])
            shaped = [part.view(one.shape) for part, one in zip(parts, plain, strict=True)]
            if not inplace:
                return shaped
            for part, tensor in zip(shaped, tensors, strict=True):
                write(part, tensor)
            return list(tensors)

        return self._issue("all_reduce", flat, finish, async_op, op=op)

    def _all_gather_list(self, tensors: Tensors, dim: int, out: Tensor | None, async_op: bool) -> Any:
        """Of tensors that together are one row of bytes."""
        self._require_no_out("all_gather", out)
        given = [self._dimmed("all_gather", tensor) for tensor in tensors]
        dims = [self._dim("all_gather", one, dim) for one in given]
        if self._is_alone("all_gather") or not given:
            return self._done("all_gather", given, async_op)
        packed = self._packed("all_gather", [self._plain("all_gather", one).unsqueeze(0) for one in given])
        gathered = packed.whole.new_empty((self.size, packed.whole.shape[1]))

        def finish() -> list[Tensor]:
            return [torch.cat(part.unbind(), dim) for part, dim in zip(packed.apart(gathered), dims, strict=True)]

        return self._issue("all_gather", packed.whole, finish, async_op, output=gathered)

    def _all_gather_v_list(
        self, tensors: Tensors, sizes: Sequence[int] | None, dim: int, out: Tensor | None, async_op: bool
    ) -> Any:
        """Of tensors that are a row of bytes for each index along `dim`."""
        self._require_no_out("all_gather_v", out)
        dims = [self._dim("all_gather_v", tensor, dim) for tensor in tensors]
        lengths = [tensor.shape[along] for tensor, along in zip(tensors, dims, strict=True)]
        if len(set(lengths)) > 1:
            raise GroupArgumentError(
                f"all_gather_v on {self.label}: tensors with lengths {lengths} along dim {dim}; expected one length"
            )
        if self._is_alone("all_gather_v") or not lengths:
            return self._done("all_gather_v", list(tensors), async_op)
        plain = [self._plain("all_gather_v", tensor) for tensor in tensors]
        fronts = [one.movedim(along, 0) for one, along in zip(plain, dims, strict=True)]
        packed = self._packed("all_gather_v", fronts)
        sizes = self._sizes_of_all("all_gather_v", packed.whole, sizes)
        gathered = packed.whole.new_empty((sum(sizes), packed.whole.shape[1]))

        def finish() -> list[Tensor]:
            parts = zip(packed.apart(gathered), dims, strict=True)
            return [part.movedim(0, along).contiguous() for part, along in parts]

        return self._issue("all_gather_v", packed.whole, finish, async_op, output=gathered, sizes=sizes)

    def _packed(self, operation: str, rows: Tensors) -> Packed:
        if len(devices := {str(one.device) for one in rows}) > 1:
            raise GroupArgumentError(
                f"{operation} on {self.label}: tensors on {' and '.join(sorted(devices))}; expected one device"
            )
        return Packed([values(one) for one in rows])
