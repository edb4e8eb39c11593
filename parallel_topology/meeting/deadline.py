"""Deadline: one instant by which everything has to be done, and how a caller overtakes what cannot be interrupted."""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TypeVar

from parallel_topology.errors import GroupArgumentError
from parallel_topology.topology.whole import quoted

T = TypeVar("T")
LONGEST = 1e9
"""The most seconds that anything here may wait, 31 years: what waits for longer overflows somewhere below."""
LOOK = 0.25
"""Seconds after which a waiting thread runs Python again: exceptions raised into it from outside arrive then."""


def seconds_of(name: str, timeout: object) -> float:
    """A timeout in seconds, given so or as a `timedelta`.

    Raises:
        GroupArgumentError: it is not a time above 0, or more than `LONGEST`.
    """
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST:
        raise GroupArgumentError(
            f"{name}={quoted(timeout)}: expected a number of seconds above 0 and up to {LONGEST:,.0f}, or a timedelta"
        )
    return float(seconds)


class Deadline:
    """An instant, made once where the user's timeout is first known and handed to everything that waits after it.

    Attributes:
        seconds: the timeout it was made of, for messages.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until it; 0 when it has passed."""
        return max(self._end - time.monotonic(), 0.0)

    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._end

    def expire(self) -> None:
        """Let it be now: whoever waited for what runs until it has given up."""
        self._end = min(self._end, time.monotonic())

    def timedelta(self, at_most: float = 1e8) -> timedelta:
        """What is left, as torch takes it: never 0, which some of its backends take for no limit."""
        return timedelta(seconds=min(max(self.left(), 0.001), at_most))


LAST = 1.0
"""Seconds that a thread has to end in once it has said what came of it, or once the interpreter ends."""


class Overtaken(Exception):  # noqa: N818 (it never leaves the package)
    """What was called is still running after its deadline."""


def overtake(act: Callable[[], T], deadline: Deadline, *, grace: float = 0.0) -> T:
    """What `act` returns or raises; waited for until the deadline and, as it may be about to say why, `grace` seconds.

    It runs on a thread of its own, because no call of torch's can be interrupted, by Ctrl-C or otherwise, and some
    never end. A thread that is left behind is a daemon; what it returns or raises in the end is dropped. When the
    interpreter ends, all deadlines have passed, and it waits for such threads, for `LAST` seconds.

    Raises:
        Overtaken: it was still running.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.put((context.run(act), None))
        except BaseException as error:  # it is raised again, in the caller's thread
            done.put((None, error))

    thread = _Called(run, deadline)
    thread.start()
    over: float | None = None
    while True:
        left = deadline.left()
        if left <= 0:
            over = time.monotonic() if over is None else over
            left = over + grace - time.monotonic()
            if left <= 0 and done.empty():
                raise Overtaken
        try:
            result, error = done.get(timeout=max(min(left, LOOK), 0.001))
        except Empty:
            continue
        # It still lets go of what it held: an interpreter that ends meanwhile would end it within torch, and abort.
        thread.join(LAST)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback would hold this frame, and this frame it
        return result  # pyright: ignore[reportReturnType] (there is one where there is no error)


class _Called(threading.Thread):
    """What `overtake` calls something on."""

    def __init__(self, run: Callable[[], None], deadline: Deadline) -> None:
        super().__init__(target=run, name="parallel_topology", daemon=True)
        self.deadline = deadline


@atexit.register
def _end_those_that_still_run() -> None:
    """A thread that comes back from torch while the interpreter ends is ended there and then, up to Python 3.13, which
    C++ answers with SIGABRT: "terminate called without an active exception"."""
    last = Deadline(LAST)
    while not last.passed():
        called = [thread for thread in threading.enumerate() if isinstance(thread, _Called)]
        if not called:
            return
        for thread in called:
            thread.deadline.expire()
        begun = [thread for thread in called if thread.is_alive()]
        if begun:
            begun[0].join(min(last.left(), LOOK))
        else:  # who starts it waits until it runs, and it cannot be joined before
            time.sleep(0.001)
