"""A world of threads: gloo groups over a HashStore connect the threads of one process as they would machines."""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from parallel_topology.errors import ParallelTopologyError
from parallel_topology.testing.failures import StuckRankError, has_left, raise_failures
from parallel_topology.testing.where import WAITING, others_alive, where

if TYPE_CHECKING:
    from parallel_topology.testing.diagnosis import Diagnosis

GRACE = 2.0
"""Seconds the others may go on after the first failure: their own error says more than that they were cut off."""
LOOK = 0.25
"""Seconds without news after which the ranks are looked at: do they wait for each other?"""
FAREWELL = 1.0
"""Seconds that ranks which were cut off may take to end."""


class RankInterrupt(BaseException):
    """Raised inside a rank's thread that outlived its deadline. Not an `Exception`: code under test lets it pass."""


def run_threads(
    labels: Sequence[str],
    fn: Callable[..., Any],
    *args: Any,
    timeout: float,
    diagnosis: Diagnosis | None = None,
    farewell: Callable[[int], None] | None = None,
) -> list[Any]:
    """Call `fn(position, *args)` in one thread per label; returns the results by position.

    A thread cannot be killed from outside. One that outlives the deadline is interrupted, which ends what runs in
    Python and, with `farewell`, what waits in a collective; what then still hangs is left behind, as a daemon.

    Args:
        timeout: seconds for the whole.
        diagnosis: asked now and then whether the ranks wait in vain, which ends them before the deadline.
        farewell: ends the communication of the rank at a position. A rank that returned does so when all have ended,
            one that failed at once, and for one that is cut off it is done from outside, so that it stops waiting.

    Raises:
        ExceptionGroup: of every failure, the first one first; a rank still running at the deadline is a
            `StuckRankError` with its stack and the group and operation it waits in.
    """
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    heard = weakref.ref(done)  # what a rank says after the end is dropped: its traceback may hold process groups

    def tell(position: int, result: Any, error: BaseException | None) -> None:
        if (queue := heard()) is not None:
            queue.put((position, result, error))

    released = threading.Event()
    if diagnosis is None:  # nobody would find who waits for a rank that has returned: they notice that it closed
        released.set()
    threads = [
        _Rank(
            label, partial(fn, position, *args), partial(tell, position), released, partial(farewell or _stay, position)
        )
        for position, label in enumerate(labels)
    ]
    results: list[Any] = [None] * len(labels)
    failures: dict[int, BaseException] = {}
    running = set(range(len(labels)))
    cause: ParallelTopologyError | None = None
    started = time.monotonic()
    deadline, why = started + timeout, f"{timeout:g} s after the start"
    try:
        for thread in threads:
            thread.start()
        while running:
            try:
                position, result, error = done.get(timeout=max(min(deadline - time.monotonic(), LOOK), 0.001))
            except Empty:
                if time.monotonic() >= deadline:
                    break
                over = set(range(len(labels))) - running
                if diagnosis and all(map(has_left, failures.values())) and diagnosis.suspect(over):
                    alive = others_alive([thread.ident for thread in threads])
                    # Again: a thread that may have called for a rank may have done so meanwhile, and ended.
                    if not alive and (cause := diagnosis.suspect(over)):
                        why = "the ranks wait for each other"
                        break
                continue
            running.discard(position)
            results[position] = result
            if error is not None:
                if not has_left(error) and time.monotonic() + GRACE < deadline:
                    deadline, why = time.monotonic() + GRACE, f"{GRACE:g} s after {labels[position]} failed"
                failures[position] = error
        stacks = {position: where(threads[position].ident) for position in sorted(running)}
        for position in sorted(running, key=lambda position: stacks[position].startswith(WAITING)):
            failures[position] = StuckRankError(f"still running at its end ({why}), {stacks[position]}")
    finally:
        del done
        released.set()
        _end([(position, threads[position]) for position in running], farewell)
    for position in set(range(len(labels))) - running:
        threads[position].join()
        if (error := threads[position].parting) is not None:
            failures.setdefault(position, error)
    raise_failures(labels, failures, cause)
    return results


class _Rank(threading.Thread):
    """One rank's thread, which can be interrupted while it runs what it was made for, and until it has left."""

    def __init__(
        self,
        label: str,
        call: Callable[[], Any],
        tell: Callable[[Any, BaseException | None], None],
        released: threading.Event,
        farewell: Callable[[], None],
    ) -> None:
        super().__init__(name=label, daemon=True)
        self.parting: BaseException | None = None
        """What failed after it had told how it ended."""
        self._call = call
        self._tell = tell
        self._released = released
        self._farewell = farewell
        self._turn = threading.Lock()
        self._interruptible = False
        self._over = False

    def run(self) -> None:
        try:
            try:
                if not self._enter():
                    return
                self._tell(self._call(), None)
                self._released.wait()
            except BaseException as error:  # it is raised again, in the caller's thread
                self._tell(None, error)
                if has_left(error):
                    self._released.wait()
            try:
                self._farewell()
            except Exception as error:
                self.parting = error
            self._leave()
        except RankInterrupt:  # it was on its way out
            self._leave()

    def interrupt(self) -> None:
        """Raise `RankInterrupt` where it runs, at most once; or keep it from beginning, where nobody would catch it.

        Up to Python 3.12 one flag tells all threads that such an exception waits for one of them, and only a thread
        that takes one clears it. A thread that waits in C never does; and while the flag is set, a thread under a
        debugger or coverage hangs in its next call (Python 3.11). So this thread takes one, too.
        """
        raise_in, error = ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.py_object(RankInterrupt)
        there, here = ctypes.c_ulong(self.ident or 0), ctypes.c_ulong(threading.get_ident())
        with self._turn:
            self._over = True
            if self._interruptible:
                try:
                    raise_in(there, error)
                    raise_in(here, error)
                    while True:
                        pass
                except RankInterrupt:
                    pass

    def _enter(self) -> bool:
        with self._turn:
            self._interruptible = not self._over
            return self._interruptible

    def _leave(self) -> None:
        with self._turn:
            self._interruptible = False


def _stay(position: int) -> None:
    """Where there is nothing to end."""


def _end(threads: Iterable[tuple[int, _Rank]], farewell: Callable[[int], None] | None) -> None:
    """Stop ranks that still run, as far as threads can be stopped.

    An exception raised in another thread may hit it anywhere, with a lock just taken. So those that end by themselves,
    as they no longer wait for others, are left to it.
    """
    started = {position: thread for position, thread in threads if thread.ident is not None}
    for position in started if farewell else ():
        if farewell is not None:
            with suppress(Exception):
                farewell(position)
    _join(started.values())
    for thread in started.values():
        thread.interrupt()
    _join(started.values())


def _join(threads: Iterable[threading.Thread]) -> None:
    deadline = time.monotonic() + FAREWELL / 2
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
