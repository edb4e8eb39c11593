"""The pytest run that is under way, whose worker processes every call may use. Runs nest: pytester makes inner ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel_topology.testing.pool import WorkerPool


class Run:
    """One pytest run and its pool of workers, which is made when it is first wanted."""

    def __init__(self, make_pool: Callable[[], WorkerPool]) -> None:
        self._make_pool = make_pool
        self._pool: WorkerPool | None = None

    @property
    def pool(self) -> WorkerPool:
        if self._pool is None:
            self._pool = self._make_pool()
        return self._pool

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


RUNS: list[Run] = []
"""The innermost run last; empty outside pytest. Only the plugin changes it."""


def current_pool() -> WorkerPool | None:
    """The workers of the innermost run."""
    return RUNS[-1].pool if RUNS else None
