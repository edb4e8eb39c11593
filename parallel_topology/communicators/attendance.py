"""Attendance: who of a group's members is there, as their words in shared memory and their processes say.

Whoever waits for a member looks again and again, letting others run in between, and then sleeps until the word it waits
for changes. Each nap ends after `NAP` seconds at the latest, to see whether that member has died, whether this one was
closed, and whether time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from parallel_topology.communicators import futex
from parallel_topology.communicators.host_memory import HostMemory
from parallel_topology.communicators.presence import is_gone
from parallel_topology.topology.wording import shown_ranks

NAP = 0.025
"""Seconds of the longest nap."""
YIELDS = 300
"""Looks between which others may run, before the first nap; each takes a microsecond, if nobody else wants to."""
YIELDING = 0.002
"""Seconds of these at most: where many want the processor, each may take milliseconds, and whoever sleeps instead is
let in sooner."""

_CLOSED, _FAILED = 1, 2
_LOST = {0: "has died: its process has ended", _CLOSED: "has closed its manager", _FAILED: "has failed before"}
"""A member's state -> why it does not come."""


class Memory(Protocol):
    """Memory that several processes have: `bytes`, the same in `words` of 8 bytes, and where it begins."""

    bytes: memoryview
    words: memoryview
    address: int


class PeerLostError(RuntimeError):
    """A member will not come: its process has ended, or it has closed or failed. Of the kind of torch's own errors."""


class Attendance:
    """One member's view of the others.

    Attributes:
        label: the group's.
        ranks: the members' global ranks.
        rank: this one's position among them.
        memory: what all of them have.
        posted: for each member, which word says to how many calls it has come; the next one is its state.
        ended: why nothing more can be done here; empty while it can.
    """

    def __init__(self, memory: HostMemory, family: str, label: str, ranks: Sequence[int], rank: int) -> None:
        self.label = label
        self.ranks = ranks
        self.rank = rank
        self.memory = memory
        self.posted = [(memory.area(one) + memory.regions[family].start) // 8 for one in ranks]
        self.ended = ""
        self._fence = futex.Fence()
        self._slept_on: list[int] = []  # words on which this member's threads sleep, once for each

    def end(self, why: str, *, failed: bool = False) -> None:
        """From now on nobody waits here, nor for this member: neither in this process nor elsewhere."""
        if not self.ended:
            self.ended = why
            self._fence()
            self.memory.words[self.posted[self.rank] + 1] = _FAILED if failed else _CLOSED
        # Others sleep on its own word, and its own threads on theirs; who comes to sleep just now naps once.
        for word in {self.posted[self.rank], *self._slept_on}:
            futex.wake(self.memory.address + word * 8)

    def require_open(self) -> None:
        """Raises: RuntimeError: this member has ended."""
        if self.ended:
            raise RuntimeError(self.ended)

    def wait(self, member: int, word: int, number: int, asleep: int, until: float) -> None:
        """Wait until a word of a member's says at least this number.

        Args:
            asleep: the byte which tells that member that somebody sleeps on its word.
            until: when time is up, by `time.monotonic()`.

        Raises:
            PeerLostError: that member will not come.
            TimeUpError: it did not come in time.
            RuntimeError: this one was closed.
        """

        def look(naps: int) -> None:
            self.require_open()
            self._require_there(member, word, number, look=naps > 0)

        self._slept_on.append(word)
        try:
            came = come_to(self.memory, word, number, asleep, until, look)
        finally:
            self._slept_on.remove(word)
        if not came:
            raise TimeUpError(f"timed out, waiting for {shown_ranks([self.ranks[member]])}")

    def is_lost(self, member: int) -> str:
        """Why a member will not come; empty if it may."""
        state, rank = self.memory.words[self.posted[member] + 1], self.ranks[member]
        if state or is_gone(*self.memory.process(rank)):
            return f"rank {rank} {_LOST.get(state, _LOST[_FAILED])}"
        return ""

    def _require_there(self, member: int, word: int, number: int, *, look: bool) -> None:
        state = self.memory.words[self.posted[member] + 1]
        if state or look:
            why = self.is_lost(member)
            self._fence()  # it may have come just before
            if why and self.memory.words[word] < number:
                raise PeerLostError(why)


class TimeUpError(RuntimeError):
    """A member did not come in time."""


def come_to(memory: Memory, word: int, number: int, asleep: int, until: float, look: Callable[[int], object]) -> bool:
    """Wait until a word says at least this number; False when time is up.

    Args:
        asleep: the byte which tells whoever writes the word that somebody sleeps on it.
        until: when time is up, by `time.monotonic()`.
        look: called before each nap with the number of those before; raises if it never will.
    """
    words, said = memory.words, memory.bytes
    enough = time.monotonic() + YIELDING
    for _ in range(YIELDS):
        if words[word] >= number:
            return True
        if time.monotonic() > enough:
            break
        futex.give_way()
    said[asleep] = 1
    naps = 0
    try:
        while (seen := words[word]) < number:
            look(naps)
            left = until - time.monotonic()
            if left <= 0:
                return False
            naps += 1
            futex.sleep(memory.address + word * 8, seen, min(NAP, left))
        return True
    finally:
        said[asleep] = 0
