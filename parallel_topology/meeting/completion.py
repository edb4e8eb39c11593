"""Completion: ranks count themselves when they have built their groups, and when they need the store no more."""

from __future__ import annotations

import torch.distributed as dist

from parallel_topology.meeting.control import delete, wait_for
from parallel_topology.meeting.deadline import Deadline, Overtaken

BUILT, DONE = "built", "done"


def complete(store: dist.Store, step: str, ranks: int, deadline: Deadline, *, wait: bool) -> None:
    """Count this rank in a step. Three operations at most, however many ranks there are.

    Args:
        wait: until all have been counted.

    Raises:
        Overtaken: they were not in time.
    """
    if store.add(step, 1) == ranks:
        store.set(f"all {step}", "")
    if wait and not wait_for(store, [f"all {step}"], deadline):
        raise Overtaken


def clear(store: dist.Store, keys: str) -> None:
    """Take away what was counted; the last one to leave does. `keys` stands before those of a manager in `store`."""
    delete(store, *(f"{keys}/{key}" for step in (BUILT, DONE) for key in (step, f"all {step}")))
