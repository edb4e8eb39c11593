"""Waiting for what comes by itself, a little later."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], bool], *, within: float = 20.0) -> bool:
    """Whether it holds before `within` seconds are over. Connections and threads end in their own time."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
