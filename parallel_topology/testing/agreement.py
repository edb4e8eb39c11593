"""Assertions that all ranks of a group decide together: all raise or none does, and the error names who differs."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup
from parallel_topology.testing.failures import AgreementError


def parallel_assert(group: ParallelGroup, condition: object, message: str = "") -> None:
    """Assert that a condition holds on every member. All members call it; where it fails, all raise.

    A plain `assert` that fails on one rank leaves the others waiting in their next collective.

    Args:
        message: this rank's; shown for the ranks on which the condition does not hold.

    Raises:
        AgreementError: on every member, naming the ranks on which it does not hold.
    """
    __tracebackhide__ = True
    told: list[tuple[bool, str]] = gather_values(group, (bool(condition), message))
    failed = {rank: text for rank, (held, text) in zip(group.ranks, told, strict=True) if not held}
    if failed:
        lines = [f"  rank {rank}: {text}" for rank, text in failed.items() if text]
        raise AgreementError(
            "\n".join(
                [f"the condition does not hold on {_ranks(list(failed))} of {group.label} = {group.ranks}", *lines]
            )
        )


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
    members: list[Any] = gather_values(group, value.detach().cpu() if isinstance(value, Tensor) else value)
    kinds: defaultdict[int, list[int]] = defaultdict(list)  # place of the first holder -> all holders
    for place, held in enumerate(members):
        same = next((first for first in kinds if _equal(members[first], held, rtol, atol)), place)
        kinds[same].append(place)
    if len(kinds) == 1:
        return
    usual = max(kinds, key=lambda first: len(kinds[first]))
    lines = [
        f"  {_ranks([group.ranks[place] for place in places])}: {_shown(members[first], members[usual])}"
        for first, places in kinds.items()
    ]
    differ = [group.ranks[place] for first, places in kinds.items() if first != usual for place in places]
    raise AgreementError(
        "\n".join(
            [f"{what} on {_ranks(sorted(differ))} differs from the others of {group.label} = {group.ranks}", *lines]
        )
    )


def gather_values(group: ParallelGroup, value: Any) -> list[Any]:
    """Every member's value, in group order, over the CPU group."""
    mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = [int(size) for size in group.all_gather(torch.tensor([mine.numel()]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: mine.numel()] = mine
    parts = group.all_gather(padded).chunk(group.size)
    return [pickle.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


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


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
