"""What members' tensors are reduced by: torch's operations, or their names."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallel_topology.errors import GroupArgumentError

SUM = dist.ReduceOp.SUM
REDUCTIONS: dict[str, Any] = {
    name.lower(): getattr(dist.ReduceOp, name)
    for name in ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR")
}
"""Name -> torch's operation."""
_PREMUL_SUM: Any = dist.ReduceOp.PREMUL_SUM
_BITWISE = ("band", "bor", "bxor")
_OF_COMPLEX = ("sum", "avg")


def name_of(op: Any) -> str:
    """The name of an operation given as torch's, wrapped in another of torch's, or by name.

    Raises:
        GroupArgumentError: it is none of them.
    """
    if isinstance(op, str) and op.lower() in REDUCTIONS:
        return op.lower()
    if isinstance(op, (dist.ReduceOp, dist.ReduceOp.RedOpType)):
        for name, known in REDUCTIONS.items():  # compilers trace this, and not the names; torch 2.8's only identity
            if op is known:
                return name
        for name, known in REDUCTIONS.items():  # one that is wrapped
            if op == known:
                return name
    raise GroupArgumentError(f"op={op!r}: expected one of {', '.join(map(repr, REDUCTIONS))}, or torch's ReduceOp")


def reduction_of(op: Any, tensor: Tensor) -> Any:
    """torch's operation for `op`, if it can be done on such a tensor.

    Raises:
        GroupArgumentError: it cannot, or `op` is none.
    """
    if isinstance(op, dist.ReduceOp) and op == _PREMUL_SUM and tensor.is_cuda:
        return op  # it holds its factor
    if isinstance(op, (dist.ReduceOp, dist.ReduceOp.RedOpType)) and op == _PREMUL_SUM:
        raise GroupArgumentError(
            f"PREMUL_SUM of a tensor on {tensor.device}: only NCCL has it, and it needs its factor; multiply the "
            "tensor first, and take the sum"
        )
    name = name_of(op)
    inexact = tensor.is_floating_point() or tensor.is_complex()
    if tensor.is_complex() and name not in _OF_COMPLEX:
        raise GroupArgumentError(
            f"{REDUCTIONS[name]} of a {tensor.dtype} tensor; expected {' or '.join(_OF_COMPLEX)}, or a real dtype"
        )
    if (name in _BITWISE and inexact) or (name == "avg" and not inexact):
        kind = "an integer" if inexact else "a floating-point"
        raise GroupArgumentError(f"{REDUCTIONS[name]} of a {tensor.dtype} tensor; expected {kind} dtype")
    return REDUCTIONS[name]
