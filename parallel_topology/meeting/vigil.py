"""Vigil: shortly before a rank's time is up in an operation, it says where it waits, so that nobody has to ask then.

Who fails looks who else was there, and has to give the others time to say so. Where a process is frozen or its host cut
off, all others wait until their timeouts: had each of them spoken before, there is nothing left to wait for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from parallel_topology.communicators.links import Call

LEAD = 0.5
"""Seconds before its timeout at which a rank says where it waits; half of the timeout, if that is less."""


class Vigil:
    """One rank's; its thread begins with the first operation, and sleeps until the first one that takes so long."""

    def __init__(self, say: Callable[[str, Call | None], object]) -> None:
        """`say` tells the others that this rank waits in an operation of a group, or, without one, no longer."""
        self._say = say
        self._under_way: dict[int, tuple[str, Call, timedelta, float]] = {}
        self._said: dict[str, float] = {}  # group -> when
        self._next = float("inf")  # when the thread looks; an operation that has to be spoken of before wakes it
        self._woken = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._over = False

    def begins(self, group: str, call: Call, timeout: timedelta, since: float) -> None:
        """This thread waits in an operation that began at a time of `time.monotonic`."""
        self._under_way[threading.get_ident()] = group, call, timeout, since
        if self._next > _due(timeout, since):
            self._wake()

    def is_over(self) -> None:
        """It does so no longer."""
        self._under_way.pop(threading.get_ident(), None)

    def take(self, group: str) -> float:
        """Seconds since it was said where this rank waits in a group, as its failure is about to be told; else 0."""
        said = self._said.pop(group, None)
        return 0.0 if said is None else time.monotonic() - said

    def end(self) -> None:
        """Nothing is said any more."""
        self._over = True
        self._woken.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(LEAD)

    def start(self) -> None:
        """Begin with the thread now, so that the first operation need not."""
        with self._starting:
            if self._thread is None and not self._over:
                self._thread = threading.Thread(target=self._run, name="parallel_topology vigil", daemon=True)
                self._thread.start()

    def _wake(self) -> None:
        self.start()
        self._woken.set()

    def _run(self) -> None:
        while not self._over:
            self._woken.clear()
            self._next = float("inf")  # whoever begins meanwhile wakes this
            self._next = self._look()
            self._woken.wait(min(max(self._next - time.monotonic(), 0.0), threading.TIMEOUT_MAX))

    def _look(self) -> float:
        """Speak of what is due; when it is to look next."""
        now = time.monotonic()
        soonest = float("inf")
        waiting = set[str]()
        for group, call, timeout, since in list(self._under_way.values()):
            due = _due(timeout, since)
            waiting.add(group)
            if group in self._said:
                soonest = min(soonest, now + 2 * LEAD)
            elif now >= due:
                self._said[group] = now
                self._say(group, call)
                if group not in self._said:  # it failed just now, and has said so itself
                    self._say(group, None)
            else:
                soonest = min(soonest, due)
        for group, said in list(self._said.items()):
            if group not in waiting and now > said + 2 * LEAD and self._said.pop(group, None) is not None:
                self._say(group, None)  # it went well at the last moment
            soonest = min(soonest, now + 2 * LEAD)
        return soonest


def _due(timeout: timedelta, since: float) -> float:
    seconds = timeout.total_seconds()
    return since + seconds - min(LEAD, seconds / 2)
