"""Waiting for what comes by itself, a little later; and telling what came soon from what a deadline ended.

A machine that is busy, or slow, may stand still for seconds. So no bound here is near what a right program takes: what
comes soon is given a deadline far away, and has to come long before it; and what waits for its own deadline may be late
by more than machines ever are. What is compared with something else is measured in turns with it. Promises that are
closer are kept by tests that are marked `slow`, which run alone.
"""

from __future__ import annotations

import statistics
import time
import timeit
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


def times_slower(call: Callable[[], object], than: Callable[[], object], *, rounds: int = 15, number: int = 1) -> float:
    """How many times the processor time of another call this one takes, with `number` calls a round.

    The median over rounds of one beside the other, as machines slow down and recover.
    """
    timers = [timeit.Timer(one, timer=time.thread_time) for one in (call, than)]
    pairs = [[timer.timeit(number) for timer in timers] for _ in range(rounds)]
    return statistics.median(mine / other for mine, other in pairs)


@contextmanager
def soon(seconds: float = SOON) -> Generator[None]:
    """What is inside takes no longer: by default, it waits for no deadline that is `FAR`."""
    begun = time.monotonic()
    yield
    took = time.monotonic() - begun
    assert took < seconds, f"it took {took:.2f} s, expected less than {seconds:g} s"
