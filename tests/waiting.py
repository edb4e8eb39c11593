"""Waiting for what comes by itself, a little later; and telling what came soon from what a deadline ended.

A machine that is busy, or slow, may stand still for seconds. So no bound here is near what a right program takes: what
comes soon is given a deadline far away, and has to come long before it; and what waits for its own deadline may be late
by more than machines ever are. Promises that are closer are kept by tests that are marked `slow`, which run alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

FAR = 60.0
"""Seconds of a deadline that nobody is to wait for."""
SOON = FAR / 2
"""Seconds in which everything comes that does not wait for such a deadline."""
LATE = 8.0
"""Seconds after its own deadline in which whoever waits for that has noticed."""


def eventually(holds: Callable[[], bool], *, within: float = SOON) -> bool:
    """Whether it holds before `within` seconds are over. Connections and threads end in their own time."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def soon(seconds: float = SOON) -> Generator[None]:
    """What is inside takes no longer: by default, it waits for no deadline that is `FAR`."""
    begun = time.monotonic()
    yield
    took = time.monotonic() - begun
    assert took < seconds, f"it took {took:.2f} s, expected less than {seconds:g} s"
