"""Slips: what a rank and a reader of its buffers tell each other, in words of the memory that holds the buffers.

A message of the group says no more, and takes ten times as long. Each pair has a slip in the owner's memory: how many
buffers were lent, which, and how many of them were read. Who leaves says so there, or its process is seen to have
ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from parallel_topology.communicators import futex
from parallel_topology.communicators.attendance import Memory, PeerLostError, TimeUpError, come_to
from parallel_topology.communicators.presence import is_gone

SLIP = 256
"""Bytes of a slip: a line of words for each of both, and the loans."""
LOANS = 8
"""How many may be open between two."""
_LINE = 8
_COUNT, _ASLEEP, _LEFT = 0, 1, 2


class Loan(NamedTuple):
    """A buffer that is lent: its number among the owner's, and the digest of what is in it."""

    buffer: int
    digest: int


class Peer(NamedTuple):
    """Who has the other side of a slip.

    Attributes:
        rank: its global rank.
        process: its process, and when that began.
    """

    rank: int
    process: tuple[int, int]


class Slip:
    """One side of a slip.

    Args:
        start: where it begins, in bytes.
        lends: whether this is the owner's side.
        timeout: how long the other one is waited for.
        look: called now and then in a wait; raises if it is to end.
    """

    def __init__(
        self, memory: Memory, start: int, peer: Peer, *, lends: bool, timeout: timedelta, look: Callable[[], object]
    ) -> None:
        first = start // 8
        self._mine, self._theirs = (first, first + _LINE) if lends else (first + _LINE, first)
        self._loans = first + 2 * _LINE
        self._memory, self._peer, self._look = memory, peer, look
        self._timeout = timeout
        self._fence = futex.Fence()

    def lend(self, loan: Loan) -> int:
        """Let the other one read a buffer; how many were lent until now."""
        number = self._memory.words[self._mine]
        at = self._loans + 2 * (number % LOANS)
        self._memory.words[at], self._memory.words[at + 1] = loan
        return self._count(number + 1)

    def borrowed(self, number: int) -> Loan:
        """What the loan of this number, counted from 1, is; waits for it."""
        self.wait(number)
        at = self._loans + 2 * ((number - 1) % LOANS)
        return Loan(self._memory.words[at], self._memory.words[at + 1])

    def give_back(self) -> None:
        """The oldest loan has been read."""
        self._count(self._memory.words[self._mine] + 1)

    def wait(self, number: int) -> None:
        """Wait until the other one has lent, or given back, so many.

        Raises:
            PeerLostError: it will not.
            TimeUpError: it has not in time.
        """
        seconds = self._timeout.total_seconds()
        asleep = (self._mine + _ASLEEP) * 8
        if not come_to(self._memory, self._theirs, number, asleep, time.monotonic() + seconds, self._looking(number)):
            raise TimeUpError(f"timed out after {seconds:g} s, waiting for rank {self._peer.rank}")
        self._fence()

    def leave(self) -> None:
        """Nothing more comes from here: the other one need not wait."""
        self._memory.words[self._mine + _LEFT] = 1
        futex.wake(self._memory.address + self._mine * 8)

    def _count(self, number: int) -> int:
        self._fence()
        self._memory.words[self._mine] = number
        self._fence()
        if self._memory.words[self._theirs + _ASLEEP]:
            futex.wake(self._memory.address + self._mine * 8)
        return number

    def _looking(self, number: int) -> Callable[[int], None]:
        words = self._memory.words

        def look(naps: int) -> None:
            self._look()
            left = words[self._theirs + _LEFT]
            if left or (naps and is_gone(*self._peer.process)):
                self._fence()  # it may have come just before
                if words[self._theirs] < number:
                    raise PeerLostError(
                        f"rank {self._peer.rank} has " + ("given up" if left else "died: its process has ended")
                    )

        return look
