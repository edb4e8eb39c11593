"""Assertions that all ranks of a group decide together: all raise or none does, and the error names who differs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup
from parallel_topology.testing.failures import AgreementError
from parallel_topology.topology.wording import shown_ranks


def parallel_assert(group: ParallelGroup, condition: object, message: str = "") -> None:
    """Assert that a condition holds on every member. All members call it; where it fails, all raise.

    A plain `assert` that fails on one rank leaves the others waiting in their next collective.

    Args:
        message: this rank's; shown for the ranks on which the condition does not hold.

    Raises:
        AgreementError: on every member, naming the ranks on which it does not hold.
    """
    __tracebackhide__ = True
    told: list[tuple[bool, str]] = group.all_gather_object((bool(condition), message))
    failed = {rank: text for rank, (held, text) in zip(group.ranks, told, strict=True) if not held}
    if failed:
        lines = [f"  rank {rank}: {text}" for rank, text in failed.items() if text]
        head = f"the condition does not hold on {shown_ranks(list(failed))} of {group.label} = {group.ranks}"
        raise AgreementError("\n".join([head, *lines]))


def assert_agree(
    group: ParallelGroup, value: Any, *, rtol: float = 0.0, atol: float = 0.0, what: str = "value"
) -> None:
    """Assert that every member holds the same value: a tensor, or anything that can be pickled and compared.

    Args:
        rtol: for tensors, how far a member's may be from the first member's, in relation to it.
        atol: the same in absolute terms.
        what: what the value is, for the message.

    Raises:
        AgreementError: on every member, naming the ranks that differ from the most.
    """
    __tracebackhide__ = True
    members: list[Any] = group.all_gather_object(
        value.detach().cpu() if isinstance(value, Tensor) else value, unsafe_pickle=True
    )  # by pickle what nothing else can: the ranks of a test trust each other
    kinds: defaultdict[int, list[int]] = defaultdict(list)  # place of the first holder -> all holders
    for place, held in enumerate(members):
        same = next((first for first in kinds if _equal(members[first], held, rtol, atol)), place)
        kinds[same].append(place)
    if len(kinds) == 1:
        return
    usual = max(kinds, key=lambda first: len(kinds[first]))
    lines = [
        f"  {shown_ranks([group.ranks[place] for place in places])}: {_shown(members[first], members[usual])}"
        for first, places in kinds.items()
    ]
    differ = [group.ranks[place] for first, places in kinds.items() if first != usual for place in places]
    head = f"{what} on {shown_ranks(sorted(differ))} differs from the others of {group.label} = {group.ranks}"
    raise AgreementError("\n".join([head, *lines]))


def _equal(one: Any, other: Any, rtol: float, atol: float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.allclose(other, one, rtol=rtol, atol=atol, equal_nan=True)
    return type(one) is type(other) and bool(one == other)


def _shown(value: Any, usual: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:200]
    head = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(usual, Tensor) and usual is not value and usual.shape == value.shape:
        difference = (value.double() - usual.double()).abs()
        wrong = f"{int((difference > 0).sum())} of {value.numel()} elements"
        return f"{head}, {wrong} differ, by up to {difference.max().item():.3g}"
    return f"{head} starting {[number.item() for number in value.flatten()[:4]]}"
