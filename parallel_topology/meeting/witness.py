"""Witness: when an operation fails, ranks tell each other through the store where they were, and errors name them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch.distributed as dist

from parallel_topology.meeting.agreement import wait_for
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS

GRACE = 0.5
"""Seconds a failed rank waits for the others' reports: those that took part fail at about the same time."""


class Witness:
    """One manager's reports, in a store of its own."""

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._calls = 0

    def report(self, group: str, ranks: Sequence[int], operation: str) -> str:
        """Say that this rank failed in `operation` on `group`, and find out who else did.

        Returns:
            A sentence that names the ranks that reported, with their operation where it is another, and those that
            did not: dead, or somewhere else.
        """
        try:
            self._store.set(f"failed/{group}/{self._rank}", operation)
            deadline = time.monotonic() + GRACE
            where = {rank: self._said(f"failed/{group}/{rank}", deadline) for rank in ranks if rank != self._rank}
        except STORE_ERRORS:
            return "the store is gone too, so the others cannot be asked"
        silent = [rank for rank, said in where.items() if said is None]
        elsewhere = [f"rank {rank} was in {said}" for rank, said in where.items() if said not in (None, operation)]
        there = [rank for rank, said in where.items() if said == operation]
        parts = [f"{shown_ranks(there)} failed in it too"] if there else []
        parts += elsewhere
        parts += [f"{shown_ranks(silent)} did not report: dead, elsewhere or still waiting"] if silent else []
        return "; ".join(parts)

    def roll_call(self, ranks: Sequence[int], timeout: float) -> list[int]:
        """The ranks that did not answer within `timeout` seconds; each rank of `ranks` calls this as often.

        Raises:
            RuntimeError: the store is gone.
        """
        self._calls += 1
        self._store.set(f"present/{self._calls}/{self._rank}", "")
        deadline = time.monotonic() + timeout
        return [rank for rank in ranks if not wait_for(self._store, f"present/{self._calls}/{rank}", deadline)]

    def _said(self, key: str, deadline: float) -> str | None:
        return self._store.get(key).decode() if wait_for(self._store, key, deadline) else None
