"""Life: what state a manager is in, for all threads of its process, and in forked children of it."""

from __future__ import annotations

import threading
from typing import Literal

from parallel_topology.communicators.forked import this_process

State = Literal["open", "closing", "closed", "poisoned"]


class Life:
    """open -> closing -> closed, or poisoned: no longer to be used, but not all of it has ended yet.

    `abort()` may overtake a `close()` that hangs in another thread, and whoever comes again finishes what was left.

    Attributes:
        state: as above; only this process's.
        process: which made the manager; a forked child has no part in it.
    """

    def __init__(self) -> None:
        self.state: State = "open"
        self.process = this_process.id
        self._lock = threading.Lock()

    @property
    def is_ours(self) -> bool:
        """Whether this process made it; asked before anything is locked, as a child inherits locks that are held."""
        return self.process == this_process.id

    @property
    def is_open(self) -> bool:
        """Whether it may be used."""
        return self.state == "open" and self.process == this_process.id

    def begin_to_end(self, *, overtaking: bool) -> bool:
        """Whether the caller is to end it: not if that is done, or if another thread is at it and not overtaken."""
        if not self.is_ours:
            return False
        with self._lock:
            if self.state == "closed" or (self.state == "closing" and not overtaking):
                return False
            self.state = "closing"
            return True

    def ended(self, *, all_of_it: bool) -> None:
        """The caller has done what it could."""
        with self._lock:
            self.state = "closed" if all_of_it or self.state == "closed" else "poisoned"
