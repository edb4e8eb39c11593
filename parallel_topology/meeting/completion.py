"""Completion: ranks count themselves when they have built their groups, and when they need the store no more."""

from __future__ import annotations

from contextlib import suppress

import torch.distributed as dist

from parallel_topology.errors import CreationError
from parallel_topology.meeting.control import read, wait_for
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.torch_errors import STORE_ERRORS

BUILT, DONE = "built", "done"
YES = "yes"
_LONGEST = 2000
"""Characters of a reason that others are told."""


def complete(store: dist.Store, step: str, ranks: int, deadline: Deadline, *, wait: bool) -> None:
    """Count this rank in a step. Four operations at most, however many ranks there are.

    Args:
        wait: until all have been counted.

    Raises:
        Overtaken: they were not in time.
        CreationError: one gave up.
    """
    if store.add(step, 1) == ranks:
        store.set(_all(step), YES)
    if not wait:
        return
    if not wait_for(store, [_all(step)], deadline):
        raise Overtaken
    said = (read(store, _all(step)) or b"").decode(errors="replace")
    if said != YES:
        raise CreationError(said[:_LONGEST])


def give_up(store: dist.Store, why: str) -> None:
    """Tell those that wait that this rank will not be counted."""
    with suppress(*STORE_ERRORS):
        for step in (BUILT, DONE):
            store.compare_set(_all(step), "", why[:_LONGEST])


def _all(step: str) -> str:
    return f"all {step}"


KEYS = (BUILT, _all(BUILT), DONE, _all(DONE))
"""All that stand in the store; they go with the agreement's."""
