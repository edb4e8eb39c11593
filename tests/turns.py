"""Turns: ranks whose operations on one store happen one at a time, in an order that is drawn.

What goes wrong where another rank's operations come between two of one's own is a matter of luck while threads run
freely. Here a seed is an order. Whoever is chosen goes on for some operations, few or many, so that orders are tried,
too, in which a rank stands still while the others get far.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.meeting import control
from parallel_topology.testing.threads import run_threads
from tests.waiting import FAR

ELSEWHERE = 0.01
"""Seconds after which a rank that has not come to the store is taken for one that waits for something else."""
BURSTS = (1, 1, 2, 3, 8, 30)


def run_in_turns(
    store: dist.Store, bodies: Sequence[Callable[[dist.Store], object]], seed: int, timeout: float = 60
) -> list[Any]:
    """What each body returns over a client of its own, or the error that it raises. Where the seed is odd the store
    cannot list its keys, as that of torch 2.8 cannot."""
    turns = _Turns(store, len(bodies), random.Random(seed))
    lists = seed % 2 == 0

    def body(number: int) -> object:
        try:
            return bodies[number](_Client(turns, number, lists))
        except Exception as error:
            return error
        finally:
            turns.leave()

    dealer = threading.Thread(target=turns.deal, daemon=True)
    dealer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control.Patience, "pause", lambda self, deadline: None)  # who looks again waits for its turn
        patch.setattr(control, "FAREWELL", FAR)  # turns take longer than operations
        try:
            return run_threads(["rank"] * len(bodies), body, timeout=timeout)
        finally:
            turns.end()
            dealer.join()


class _Turns:
    """Who may do its next operation."""

    def __init__(self, store: dist.Store, ranks: int, order: random.Random) -> None:
        self.store = store
        self._live = ranks
        self._order = order
        self._changed = threading.Condition()
        self._come: list[tuple[int, int]] = []  # (rank, count of operations), as a rank may have several threads
        self._count = 0
        self._turn: tuple[int, int] | None = None
        self._over = False

    def act(self, rank: int, operation: Callable[[], Any]) -> Any:
        with self._changed:
            self._count += 1
            mine = (rank, self._count)
            self._come.append(mine)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == mine or self._over)
            self._come.remove(mine)
            try:
                return operation()
            finally:
                self._turn = None
                self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._live -= 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def deal(self) -> None:
        """Give turns until it is over."""
        with self._changed:
            while not self._over:
                self._changed.wait_for(self._all_are_there, ELSEWHERE)
                if not self._come:
                    continue
                rank = self._order.choice(sorted({rank for rank, _ in self._come}))
                for _ in range(self._order.choice(BURSTS)):
                    self._changed.wait_for(lambda rank=rank: self._next(rank) is not None or self._over, ELSEWHERE)
                    if (turn := self._next(rank)) is None or self._over:
                        break
                    self._turn = turn
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._turn is None)

    def _all_are_there(self) -> bool:
        return self._over or len({rank for rank, _ in self._come}) >= max(self._live, 1)

    def _next(self, rank: int) -> tuple[int, int] | None:
        return min((one for one in self._come if one[0] == rank), default=None)


class _Client(dist.Store):
    """One rank's."""

    def __init__(self, turns: _Turns, rank: int, lists: bool) -> None:
        super().__init__()
        self._lists = lists
        self._turns = turns
        self._rank = rank

    def __getattribute__(self, name: str) -> Any:
        if name not in ("set", "add", "check", "compare_set", "delete_key"):
            return super().__getattribute__(name)
        turns, rank = self._turns, self._rank
        return lambda *arguments: turns.act(rank, lambda: getattr(turns.store, name)(*arguments))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._turns.act(self._rank, lambda: self._turns.store.get(key))

    def list_keys(self) -> list[str]:
        if not self._lists:
            raise NotImplementedError
        return self._turns.act(self._rank, lambda: torch_private.list_keys(self._turns.store))

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=60)) -> None:
        end = time.monotonic() + timeout.total_seconds()
        while not self.check(keys):
            if time.monotonic() > end:
                raise RuntimeError("wait timeout")
