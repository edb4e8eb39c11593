"""Turns: calls made in one order, by a thread of their own where the caller must not wait for those before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from parallel_topology.communicators.communicator import Work, wait_for


class Turns:
    """One queue of calls. The thread lives as long as there is something in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._queue: deque[_Turn] = deque()
        self._thread: threading.Thread | None = None

    def take(self, call: Callable[[], Work | None], *, here: bool) -> Work | None:
        """Make a call after all those before it: at once and in this thread if it may wait `here` and none are left."""
        with self._lock:
            # Whoever runs was there before; a call that is made here lets later ones queue up behind it.
            is_next = here and self._thread is None and self._running.acquire(blocking=False)
            if not is_next:
                turn = _Turn(call)
                self._queue.append(turn)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="parallel_topology calls", daemon=True)
                    self._thread.start()
                return turn
        try:
            return call()
        finally:
            self._running.release()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                turn = self._queue.popleft()
            with self._running:
                turn.run()


class _Turn:
    """A call that is waiting for its turn, and then the work that it began."""

    def __init__(self, call: Callable[[], Work | None]) -> None:
        self._call: Callable[[], Work | None] | None = call
        self._made = threading.Event()
        self._work: Work | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        call, self._call = self._call, None
        try:
            self._work = call() if call is not None else None
        except Exception as error:
            self._error = error.with_traceback(None)  # whose frames hold process groups
        del call
        self._made.set()

    def wait(self, timeout: timedelta | None = None) -> object:
        if not self._made.wait(None if timeout is None else timeout.total_seconds()):
            raise RuntimeError(
                "timed out before its turn was over: the members have not all come to it, or to a call before it"
            )
        if self._error is not None:
            raise self._error
        wait_for(self._work, timeout)
        return True

    def is_completed(self) -> bool:
        return self._made.is_set() and (self._error is not None or self._work is None or self._work.is_completed())
