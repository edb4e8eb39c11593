"""Descriptions of calls, which members compare, and what is said when they do not match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from parallel_topology.errors import MismatchError
from parallel_topology.topology.wording import shown_ranks

UNEVEN = ("all_gather_v", "reduce_scatter_v", "all_to_all")
"""Operations in which the members' tensors may differ in length."""


def described(operation: str, tensor: Tensor, arguments: Mapping[str, Any], communicator: str) -> str:
    """`all_reduce float32[2] by torch on cpu op SUM`: what must be equal on all members."""
    if operation == "broadcast_message":  # whose length only the source knows
        return f"broadcast of an object by {communicator} src {arguments['src']}"
    shape: list[int] = list(tensor.shape)
    if operation in UNEVEN:
        shape[0] = -1
    said = f"{operation} {str(tensor.dtype).removeprefix('torch.')}{shape} by {communicator} on {tensor.device.type}"
    for name in ("src", "dst", "sizes"):
        if name in arguments:
            said += f" {name} {arguments[name]}"
    return f"{said} op {str(arguments['op']).rpartition('.')[2]}" if "op" in arguments else said


def require_equal(label: str, ranks: Sequence[int], said: Mapping[int, str]) -> None:
    """Check that the ranks which said what they call all say the same.

    Raises:
        MismatchError: they do not; names who differs.
    """
    holders: dict[str, list[int]] = {}
    for rank, text in said.items():
        holders.setdefault(text, []).append(rank)
    if len(holders) == 1:
        return
    usual = max(holders, key=lambda text: len(holders[text]))
    odd = next(rank for rank, text in said.items() if text != usual)
    lines = [f"  {shown_ranks(held)}: {text}" for text, held in holders.items()]
    raise MismatchError(f"the calls on {label} = {ranks} do not match: rank {odd} differs\n" + "\n".join(lines))
