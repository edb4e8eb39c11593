"""A world of processes: workers forked from a server that has imported torch, so that each starts in milliseconds."""

from __future__ import annotations

import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from parallel_topology.errors import CollectiveError, GroupTimeoutError, ParallelTopologyError
from parallel_topology.testing.failures import (
    OUTPUT,
    DeadRankError,
    RanksUsageError,
    StuckRankError,
    raise_failures,
)
from parallel_topology.testing.pool import START, Worker, WorkerPool
from parallel_topology.testing.where import WAITING
from parallel_topology.testing.workers import STACK, Job

if TYPE_CHECKING:
    from parallel_topology.testing.diagnosis import Diagnosis

GRACE = 5.0
"""Seconds the others may go on after the first failure, unless told otherwise."""
LOOK = 0.5
"""Seconds without news after which the ranks are looked at: do they wait for each other?"""
ANSWER = 2.0
"""Seconds that stuck workers may take to say where they are."""
FAREWELL = 10.0
"""Seconds that ranks which have ended may take to close."""
SHOWN = 20_000
"""Characters of a dead rank's output that are shown, the last ones."""

_NOISE = re.compile(
    r'^(  File ".*/(_pytest|pluggy|multiprocessing|parallel_topology/testing)/|  File "<string>"|Extension m).*\n'
    r'|^Thread .*\n(  File ".*/((parallel_topology/testing|multiprocessing)/.*|threading\.py)", .*\n)*\n', re.M
)  # fmt: skip
"""What faulthandler says of the frames of runners, below those of the test, and of the thread that listens."""

OnMessage = Callable[[int, Any], None]


def run_processes(
    labels: Sequence[str],
    fn: Callable[..., Any],
    *args: Any,
    timeout: float,
    on_message: OnMessage | None = None,
    pool: WorkerPool | None = None,
    needs: str | None = None,
    diagnosis: Diagnosis | None = None,
    grace: float | None = None,
    relay: bool = False,
) -> list[Any]:
    """Call `fn(position, *args)` in one process per label; returns the results by position.

    Args:
        fn: importable in a fresh process; with its arguments and results it travels by pickle.
        timeout: seconds for the whole, once all processes have begun: a worker may have to collect a file first.
        on_message: if given, `fn(position, seat, *args)` is called instead, and what is passed to the `Seat`, called as
            a function, comes here with the position.
        pool: where the workers come from; without it they are new.
        needs: if given, what each worker prepares before a fork of it does this.
        diagnosis: asked now and then whether the ranks wait in vain.
        grace: seconds the others may go on after the first failure; `GRACE` if not given.
        relay: whether what ranks print is passed on to standard output.

    Raises:
        ExceptionGroup: of every failure, the first one first. A process that died is a `DeadRankError` with its
            signal or exit status, one still running at the deadline is killed and a `StuckRankError` with its stack
            and the group and operation it waits in. What a dead rank printed is in its notes.
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
        world = _World(labels, workers, folder, on_message, diagnosis, GRACE if grace is None else grace, relay)
        try:
            surroundings = (os.getcwd(), dict(os.environ), list(sys.path))
            for position, worker in enumerate(workers):
                worker.send(Job(position, body, world.output(position), on_message is not None, needs, *surroundings))
            return world.collect(timeout)
        finally:
            for worker in workers:
                if worker in world.clean:
                    pool.give_back(worker)
                else:
                    worker.kill()


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
        relay: bool,
    ) -> None:
        self.labels = labels
        self.workers = workers
        self.clean: set[Worker] = set()
        self._folder = folder
        self._on_message = on_message
        self._diagnosis = diagnosis
        self._grace = grace
        self._relays = relay
        self._begun: set[int] = set()
        self._dead: set[int] = set()
        self._relayed = [0] * len(labels)  # bytes of their output
        self._failures: dict[int, tuple[float, BaseException]] = {}  # with when they happened
        self._results: list[Any] = [None] * len(labels)
        self._ended: set[int] = set()
        self._left: set[int] = set()  # those of these that a skip ended
        self._stacks: dict[int, tuple[bool, str]] = {}  # whether other threads live there, and where the rank stands
        self._busy: dict[Connection, tuple[int, Worker]] = {
            worker.pipe: (position, worker) for position, worker in enumerate(workers)
        }

    def output(self, position: int) -> str:
        return str(Path(self._folder, f"output-{position}"))

    def collect(self, timeout: float) -> list[Any]:
        deadline, why = self._await_start(timeout)
        cause: ParallelTopologyError | None = None
        first: int | None = None
        while self._running() and time.monotonic() < deadline:
            if not self._hear(min(deadline - time.monotonic(), LOOK)) and first is None and (cause := self._suspect()):
                why = "the ranks wait for each other"
                break
            failed = {position: when for position, (when, _) in self._failures.items() if position not in self._left}
            if failed and first is None:
                first = min(failed, key=lambda position: failed[position])
                if time.monotonic() + self._grace < deadline:
                    deadline, why = (
                        time.monotonic() + self._grace,
                        f"{self._grace:g} s after {self.labels[first]} failed",
                    )
        self._name_stuck(why)
        self._release()
        self._relay(to_the_end=True)
        failures = self._in_order()
        if failures and cause is None and self._diagnosis is not None:
            cause = self._diagnosis.mismatch()
        for position in self._dead & failures.keys():
            printed, stack = (_text(path) for path in (self.output(position), self.output(position) + STACK))
            if text := (printed[-SHOWN:] + _NOISE.sub("", stack)).strip():
                failures[position][1].add_note(f"{OUTPUT}{self.labels[position]}:\n{text}")
        raise_failures(self.labels, {position: error for position, (_, error) in failures.items()}, cause)
        return self._results

    def _await_start(self, timeout: float) -> tuple[float, str]:
        """The deadline, and its reason: the ranks' time begins when all have begun."""
        asked = time.monotonic()
        while not self._begun | self._ended >= set(range(len(self.workers))):
            if time.monotonic() >= asked + START:
                return asked + START, f"{START:g} s after it was asked to start"
            self._hear(asked + START - time.monotonic())
        return time.monotonic() + timeout, f"{timeout:g} s after the start"

    def _in_order(self) -> dict[int, tuple[float, BaseException]]:
        """The first failure first. A death comes before the errors of those that waited for it: who shares memory with
        a process may hear of its end before whoever watches its pipe does."""
        heard = [
            when for when, error in self._failures.values() if isinstance(error, (CollectiveError, GroupTimeoutError))
        ]

        def key(failure: tuple[int, tuple[float, BaseException]]) -> tuple[float, bool]:
            when, error = failure[1]
            is_death = isinstance(error, DeadRankError)
            return min([when, *heard]) if is_death else when, not is_death

        return dict(sorted(self._failures.items(), key=key))

    def _name_stuck(self, why: str) -> None:
        """Those that still run: first who is seen to wait for nobody, then who gives no answer."""
        self._ask(self._running())
        stuck: list[tuple[int, int, str]] = []
        for position in self._running():
            if position in self._stacks:
                stack = self._stacks[position][1]
                stuck.append((2 if stack.startswith(WAITING) else 0, position, stack))
            else:
                stuck.append((1, position, f"it gave no answer{self._last(position)}"))
        for _, position, stands in sorted(stuck):
            error = StuckRankError(f"still running at its end ({why}) and killed, {stands}")
            self._failures[position] = time.monotonic(), error

    def _running(self) -> dict[int, Worker]:
        """Those that have not ended."""
        return {position: worker for position, worker in self._busy.values() if position not in self._ended}

    def _hear(self, seconds: float) -> bool:
        """Take what has come, or comes within so many seconds; whether anything did."""
        ready = wait(list(self._busy), timeout=max(seconds, 0.001))
        for pipe in ready:
            self._take(cast("Connection", pipe))
        self._relay()
        return bool(ready)

    def _relay(self, *, to_the_end: bool = False) -> None:
        """Pass on what ranks have printed, a line at a time, each with its rank; of the dead their error has it all."""
        for position, label in enumerate(self.labels if self._relays else ()):
            printed = Path(self.output(position))
            if position in self._dead or not printed.exists() or printed.stat().st_size == self._relayed[position]:
                continue
            with printed.open("rb") as file:
                file.seek(self._relayed[position])
                text = file.read()
            text = text if to_the_end else text[: text.rfind(b"\n") + 1]
            self._relayed[position] += len(text)
            for line in text.decode(errors="replace").splitlines():
                sys.stdout.write(f"{label.partition(' of ')[0]}: {line}\n")
        sys.stdout.flush()

    def _take(self, pipe: Connection) -> None:
        position, worker = self._busy[pipe]
        value: Any = None
        try:
            kind, value = worker.receive()
        except (EOFError, OSError):
            kind = "died"
        if kind == "begun":
            self._begun.add(position)
        elif kind == "message" and self._on_message is not None:
            self._on_message(position, value)
        elif kind == "where":
            self._stacks[position] = value
        elif kind == "ended":
            self._ended.add(position)
            when, self._results[position], error, left = value
            if left:
                self._left.add(position)
            if error is not None:
                self._failures[position] = when, error
        elif kind == "died":
            del self._busy[pipe]
            self._dead.add(position)
            if position not in self._ended:
                death = DeadRankError(worker.cause_of_death(value) + self._last(position))
                self._failures[position] = time.monotonic(), death
            self._ended.add(position)
        elif kind == "idle":
            del self._busy[pipe]
            if not value:
                self.clean.add(worker)

    def _suspect(self) -> ParallelTopologyError | None:
        """That ranks wait in vain, unless threads live that may still call for them, or it is not known whether."""
        if self._diagnosis is None or self._diagnosis.suspect(self._ended) is None:
            return None
        self._ask(self._running())
        if not self._running().keys() <= self._stacks.keys() or any(others for others, _ in self._stacks.values()):
            return None
        return self._diagnosis.suspect(self._ended)  # again: such a thread may have called meanwhile, and ended

    def _ask(self, workers: Mapping[int, Worker]) -> None:
        """Where these stand; those that do not answer are left out."""
        for position, worker in workers.items():
            self._stacks.pop(position, None)
            worker.send("where")
        deadline = time.monotonic() + ANSWER
        while time.monotonic() < deadline and not (workers.keys() & self._running().keys()) <= self._stacks.keys():
            self._hear(deadline - time.monotonic())

    def _release(self) -> None:
        """Let those go that have ended; who does not, or still runs, is killed by whoever took the workers."""
        for position, worker in self._busy.values():
            if position in self._ended:
                worker.send("release")
        deadline = time.monotonic() + FAREWELL
        while time.monotonic() < deadline and any(position in self._ended for position, _ in self._busy.values()):
            self._hear(deadline - time.monotonic())

    def _last(self, position: int) -> str:
        return self._diagnosis.last(position) if self._diagnosis is not None else ""


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace") if Path(path).exists() else ""
