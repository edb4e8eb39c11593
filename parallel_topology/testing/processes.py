"""A world of processes: workers forked from a server that has imported torch, so that each starts in milliseconds."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from parallel_topology.errors import ParallelTopologyError
from parallel_topology.testing.failures import OUTPUT, DeadRankError, RanksUsageError, StuckRankError, raise_failures
from parallel_topology.testing.pool import Worker, WorkerPool
from parallel_topology.testing.workers import Job

if TYPE_CHECKING:
    from parallel_topology.testing.diagnosis import Diagnosis

GRACE = 5.0
"""Seconds the others may go on after the first failure, unless told otherwise."""
LOOK = 0.5
"""Seconds without news after which the ranks are looked at: do they wait for each other?"""
ANSWER = 2.0
"""Seconds that stuck workers may take to say where they are."""
SHOWN = 20_000
"""Characters of a failed rank's output that are shown, the last ones."""

OnMessage = Callable[[int, Any], None]


def run_processes(
    labels: Sequence[str],
    fn: Callable[..., Any],
    *args: Any,
    timeout: float,
    on_message: OnMessage | None = None,
    pool: WorkerPool | None = None,
    diagnosis: Diagnosis | None = None,
    grace: float | None = None,
) -> list[Any]:
    """Call `fn(position, *args)` in one process per label; returns the results by position.

    Args:
        fn: importable in a fresh process; with its arguments and results it travels by pickle.
        timeout: seconds for the whole, once the processes have started.
        on_message: if given, `fn(position, send, *args)` is called instead, and what a worker passes to `send` comes
            here with its position.
        pool: where the workers come from; without it they are new.
        diagnosis: asked now and then whether the ranks wait in vain.
        grace: seconds the others may go on after the first failure; `GRACE` if not given.

    Raises:
        ExceptionGroup: of every failure, the first one first. A process that died is a `DeadRankError` with its
            signal or exit status, one still running at the deadline is killed and a `StuckRankError` with its stack
            and the group and operation it waits in. What a failed rank printed is in its notes.
        DeadRankError: the processes did not start.
        RanksUsageError: the function or its arguments cannot be pickled.
    """
    try:
        body = pickle.dumps((fn, args))
    except Exception as error:
        raise RanksUsageError(
            f"what the ranks are to call cannot travel to other processes ({type(error).__name__}: {error}): expected "
            "a function at the top level of a module, and arguments that can be pickled; threads take any"
        ) from error
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-output-"))
        pool = pool or stack.enter_context(WorkerPool())
        workers = pool.take(len(labels))
        world = _World(labels, workers, folder, on_message, diagnosis, GRACE if grace is None else grace)
        try:
            for position, worker in enumerate(workers):
                worker.send(_job(position, pool, body, world.output(position), talks=on_message is not None))
            return world.collect(time.monotonic() + timeout, timeout)
        finally:
            for worker in workers:
                if worker in world.clean:
                    pool.give_back(worker)
                else:
                    worker.kill()


def _job(position: int, pool: WorkerPool, body: bytes, output: str, *, talks: bool) -> Job:
    return Job(
        position=position,
        setup=pool.setup,
        body=body,
        output=output,
        talks=talks,
        directory=os.getcwd(),
        environment=dict(os.environ),
        import_path=list(sys.path),
    )


class _World:
    """The workers of one call."""

    def __init__(
        self,
        labels: Sequence[str],
        workers: list[Worker],
        folder: str,
        on_message: OnMessage | None,
        diagnosis: Diagnosis | None,
        grace: float,
    ) -> None:
        self.labels = labels
        self.workers = workers
        self.clean: set[Worker] = set()
        self._folder = folder
        self._on_message = on_message
        self._diagnosis = diagnosis
        self._grace = grace
        self._failures: dict[int, BaseException] = {}
        self._results: list[Any] = [None] * len(labels)
        self._returned: set[int] = set()
        self._told: set[int] = set()  # positions that returned or raised; their workers tidy up
        self._running: dict[Connection, tuple[int, Worker]] = {
            worker.pipe: (position, worker) for position, worker in enumerate(workers)
        }

    def output(self, position: int) -> str:
        return str(Path(self._folder, f"output-{position}"))

    def collect(self, deadline: float, timeout: float) -> list[Any]:
        why = f"{timeout:g} s after the start"
        cause: ParallelTopologyError | None = None
        ending = False
        while self._running and time.monotonic() < deadline:
            for ready in wait(list(self._running), timeout=max(min(deadline - time.monotonic(), LOOK), 0.001)):
                self._hear(cast("Connection", ready))
                break
            else:
                if cause := self._suspect():
                    why = "the ranks wait for each other"
                    break
            if self._failures and not ending:
                ending = True
                if time.monotonic() + self._grace < deadline:
                    first = self.labels[next(iter(self._failures))]
                    deadline, why = time.monotonic() + self._grace, f"{self._grace:g} s after {first} failed"
        self._cut_off(why)
        if self._failures and cause is None and self._diagnosis is not None:
            cause = self._diagnosis.mismatch()
        for position, failure in self._failures.items():
            printed = Path(self.output(position))
            if printed.exists() and (text := printed.read_text(errors="replace")[-SHOWN:].strip()):
                failure.add_note(f"{OUTPUT}{self.labels[position]}:\n{text}")
        raise_failures(self.labels, self._failures, cause)
        return self._results

    def _hear(self, pipe: Connection) -> None:
        position, worker = self._running[pipe]
        try:
            kind, value = worker.receive()
        except (EOFError, OSError):
            del self._running[pipe]
            kind, value = "error", DeadRankError(worker.cause_of_death() + self._last(position))
        if kind == "message" and self._on_message is not None:
            self._on_message(position, value)
        elif kind == "error":
            self._failures.setdefault(position, value)
            self._told.add(position)
        elif kind == "result":
            self._results[position] = value
            self._returned.add(position)
            self._told.add(position)
        elif kind == "idle":
            del self._running[pipe]
            if not value:
                self.clean.add(worker)

    def _suspect(self) -> ParallelTopologyError | None:
        if self._diagnosis is None or self._failures:
            return None
        return self._diagnosis.suspect(self._returned)

    def _last(self, position: int) -> str:
        return self._diagnosis.last(position) if self._diagnosis is not None else ""

    def _cut_off(self, why: str) -> None:
        """Ask those that still run where they are; they are killed by whoever took them."""
        stuck = {pipe: worker for pipe, worker in self._running.items() if worker[0] not in self._told}
        stacks: dict[int, str] = {}
        for _, worker in stuck.values():
            worker.send(None)
        deadline = time.monotonic() + ANSWER
        waiting = dict(stuck)
        while waiting and time.monotonic() < deadline:
            for ready in wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.001)):
                position, worker = waiting[cast("Connection", ready)]
                try:
                    kind, value = worker.receive()
                except (EOFError, OSError):
                    kind, value = "where", f"until {worker.cause_of_death()}"
                if kind == "where":
                    stacks[position] = value
                    del waiting[cast("Connection", ready)]
        for position, _ in sorted(stuck.values(), key=lambda worker: worker[0]):
            stack = stacks.get(position, f"it gave no answer{self._last(position)}")
            self._failures[position] = StuckRankError(f"still running at its end ({why}) and killed, {stack}")
