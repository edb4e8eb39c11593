"""Waiting for gloo's work so that Ctrl-C is obeyed: torch waits in C++, where Python's handlers cannot run.

A collective's wait can be taken up again after it was given up, so it is done in slices. That of a message cannot: gloo
closes the group's connections when it ends early, and nobody can ask whether it is over. There the connections are cut
when SIGINT arrives, as they would be at the timeout.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from parallel_topology.communicators.communicator import Work

_SLICE = timedelta(seconds=0.5)
_GRACE = 0.1
"""Seconds that a message has to arrive after SIGINT, before its connections are cut."""
_LATER = 0.25
"""Seconds after the deadline that gloo has to say itself that time is up."""


class Watch(Protocol):
    """Told of a group's collectives."""

    timeout: timedelta

    def begun(self) -> None: ...
    def ended(self) -> None: ...
    def look(self) -> None:
        """One takes long: end it, if it will never be over. Called more and more rarely."""


class InSlices:
    """A collective of gloo's under way."""

    __slots__ = ("_over", "_watch", "_work")

    def __init__(self, work: Work, watch: Watch) -> None:
        """`watch` is told when it is over, if somebody waits for it."""
        self._work = work
        self._watch = watch
        self._over = False
        watch.begun()

    def wait(self, timeout: timedelta | None = None) -> object:
        # gloo itself waits five times as long where there is no connection yet
        seconds = self._watch.timeout.total_seconds() + _LATER if timeout is None else timeout.total_seconds()
        return self._within(time.monotonic() + seconds)

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def _within(self, end: float) -> object:
        slices = 0
        while True:
            slices += 1
            left = min(_SLICE, timedelta(seconds=max(end - time.monotonic(), 0.001)))
            try:
                result = self._work.wait(left)
            except RuntimeError:
                if time.monotonic() >= end and not self._work.is_completed():
                    raise
            else:
                self._end()
                return result
            if self._work.is_completed():
                self._end()
                return self._work.wait()  # its own error, or it came just now
            if slices & (slices - 1) == 0:
                self._watch.look()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._watch.ended()


class Once:
    """A message of gloo's under way, for which can be waited again: gloo itself would wait for another one.

    A signal's handler may raise when gloo's wait has returned, before its result is anywhere in Python; so that is put
    where it belongs in one call of C.
    """

    __slots__ = ("_came", "work")

    def __init__(self, work: Any) -> None:
        self.work = work
        self._came: list[bool] = []

    def wait(self, timeout: timedelta) -> bool:
        """Whether it arrived, which else is an error."""
        if not self._came:
            self._came.extend(map(self.work.wait, (timeout,)))
        return self._came[0]

    def tell(self, then: Callable[[], object]) -> None:
        """gloo tells nobody, and needs nothing to be done."""

    def is_completed(self) -> bool:
        """Whether it was waited for, with whatever result."""
        return bool(self._came)


class Interrupts:
    """Lets SIGINT end the main thread's wait for a message; one for a manager.

    Python's C handler writes a signal's number to a descriptor, also while the main thread is in C++. A thread reads it
    there, and cuts the connections on which the main thread waits. It does so only where the program left Python's own
    handler, which raises KeyboardInterrupt: another one may mean to go on.
    """

    def __init__(self) -> None:
        self._cut: Callable[[], None] | None = None  # of the wait under way
        self._reader: threading.Thread | None = None
        self._to = -1
        self._before = -1
        self._closed = False

    def wait(self, work: Any, timeout: timedelta, cut: Callable[[], None]) -> bool:
        """Wait for a message; only the main thread's waits can be interrupted, as only it runs handlers."""
        if self._closed or threading.get_ident() != threading.main_thread().ident:
            return work.wait(timeout)
        if self._reader is None:
            self._start()
        self._cut = cut
        try:
            if not self._closed:
                self._before = signal.set_wakeup_fd(self._to, warn_on_full_buffer=False)
            return work.wait(timeout)
        finally:
            self._cut = None
            try:
                signal.set_wakeup_fd(self._before)  # pending handlers run after this call at the earliest
            finally:
                if self._closed:
                    self._stop()

    def close(self) -> None:
        """End the thread; a wait that is under way does so when it is over."""
        self._closed = True
        if self._cut is None:
            self._stop()
            if self._reader is not None and self._reader is not threading.current_thread():
                self._reader.join(_GRACE)

    def forked(self) -> None:
        """This is a child: its signals are not for the parent's thread."""
        if self._cut is not None:
            with suppress(ValueError):  # not the main thread
                signal.set_wakeup_fd(self._before)

    def _start(self) -> None:
        came, self._to = os.pipe()
        os.set_blocking(self._to, False)
        self._reader = threading.Thread(target=self._read, args=(came,), name="parallel_topology SIGINT", daemon=True)
        self._reader.start()

    def _stop(self) -> None:
        to, self._to = self._to, -1
        if to >= 0:
            os.close(to)

    def _read(self, came: int) -> None:
        with open(came, "rb", buffering=0) as signals:
            while numbers := signals.read(64):
                self._pass_on(numbers)
                if signal.SIGINT in numbers and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    cut = self._cut
                    time.sleep(_GRACE)
                    if cut is not None and self._cut is cut:
                        cut()

    def _pass_on(self, numbers: bytes) -> None:
        """To who else wants to know, such as asyncio."""
        if self._before >= 0:
            with suppress(OSError):
                os.write(self._before, numbers)
