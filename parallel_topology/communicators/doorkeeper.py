"""Doorkeeper: does what other members need of this one at once, wherever its program is.

They write what they need to memory that all have, and ring, `HostMemory.ring`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from parallel_topology.communicators.host_memory import HostMemory

_log = logging.getLogger("parallel_topology")
_LOOK = 0.25
"""Seconds after which what was to come is looked for: who was to ring may have died."""
_REST = 5.0
"""Seconds after which it is looked whether anybody still has what is attended to."""
_SOON = 0.05
"""Seconds that the end waits for a thread which ends at once."""


class Attended(Protocol):
    """Something of which others may need something."""

    def attend(self) -> bool:
        """Somebody rang. Whether something is still to come, and is to be looked for."""
        ...

    def cut(self) -> None:
        """It failed: nobody is to wait for it any more."""
        ...


class Doorkeeper:
    """A manager's thread that attends to what it knows whenever somebody rings. It keeps nothing of that alive."""

    def __init__(self, memory: HostMemory, rank: int) -> None:
        """`rank`: this one's, among those that share `memory`."""
        self._memory = memory
        self._rank = rank
        self._known: list[weakref.ref[Attended]] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="parallel_topology door", daemon=True)
        self._thread.start()

    def attend_to(self, one: Attended) -> None:
        """From now on to this one, too; `look` comes when all are known."""
        self._known.append(weakref.ref(one))

    def look(self) -> None:
        """See what others have done already."""
        self._memory.ring([self._rank])

    def end(self) -> None:
        """All of it has ended."""
        self._is_over = True
        self._memory.ring([self._rank])
        if self._thread is not threading.current_thread():
            self._thread.join(_SOON)

    def _run(self) -> None:
        heard = 0
        while not self._is_over:
            waits = [self._attend(known) for known in list(self._known)]
            if waits and waits.count(None) == len(waits):
                return
            heard = self._memory.hear(self._rank, heard, _LOOK if any(waits) else _REST)

    def _attend(self, known: weakref.ref[Attended]) -> bool | None:
        """Whether it is to be looked at soon; None where nobody has it any more."""
        one = known()
        if one is None:
            return None
        try:
            return one.attend()
        except Exception as error:
            _log.warning("rank %d cannot do what others need of it: %s", self._rank, error)
            one.cut()
            return False
