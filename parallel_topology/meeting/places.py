"""Places: where in the store the ranks of a manager meet, and who stands there.

Each rank has a place, and the newest card there counts. Once its rank was called, or has gone, the place says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch.distributed as dist

from parallel_topology.errors import GroupTimeoutError
from parallel_topology.meeting.cards import Entry, UnreadableError
from parallel_topology.meeting.control import Patience, delete, read
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.topology.layout import Ranks

GONE = "gone"
_HELD_UP = 0.5
"""Seconds that one thread at a place waits for another one, whose store may be frozen."""

present: set[str] = set()
"""Nonces of meetings that threads of this process are in: two threads of one rank meet one after the other."""
_placing = tuple(threading.Lock() for _ in range(64))
"""Held by a thread that puts a card at its rank's place, or clears that: a store cannot compare and delete at once."""


@dataclass(frozen=True)
class Places:
    """Where ranks meet.

    Attributes:
        first: the rank that calls.
        root: under which all keys are. By the first rank, so that managers of one name on different parts of a job do
            not meet; not by all ranks, so that those who disagree about how many there are do.
        spot: where the cards are.
    """

    first: int
    root: str
    spot: str

    @classmethod
    def of(cls, name: str, world: Ranks, at: str = "") -> Places:
        """Those of a manager; `at` instead of the usual spot, if it is given."""
        plain = world.plain()
        first = min(world) if plain is None else plain[0]  # without counting them where they count up by steps
        root = f"{name}@{first}"
        return cls(first, root, at or root)

    def came(self, rank: int) -> str:
        """The key of a rank's place."""
        return f"{self.spot}/came/{rank}"

    def called(self, entry: Entry) -> str:
        """The key at which who shows this card waits to be called."""
        return f"{self.root}/called/{entry.nonce}/{entry.turn}"

    def enter(self, store: dist.Store, entry: Entry, name: str, deadline: Deadline) -> str:
        """Put a card at its rank's place; another one there is replaced, unless a thread of this process waits.

        Returns:
            The process whose card was replaced; empty if there was none.

        Raises:
            GroupTimeoutError: that thread was there all the time.
        """
        key, mine = self.came(entry.rank), entry.text()
        looks = Patience(1)
        while True:
            with _alone_at(key):
                before = store.compare_set(key, "", mine)
                if before.decode(errors="replace") == mine:
                    return ""
                other = None
                with suppress(UnreadableError):
                    other = Entry.read(before)
                if other is None or other.process != entry.process or other.nonce not in present:
                    store.set(key, mine)
                    return other.process if other else ""
            if deadline.passed():
                raise GroupTimeoutError(
                    f"{name}: another thread of rank {entry.rank} was in a meeting of this name for "
                    f"{deadline.seconds:g} s"
                )
            looks.pause(deadline)

    def give_up(self, store: dist.Store, rank: int, *mine: str) -> None:
        """Say at a rank's place that it has gone, if one of these stands there."""
        for text in mine:
            store.compare_set(self.came(rank), text, f"{GONE} {time.time()}")

    def clear(self, store: dist.Store, rank: int, round_: str) -> None:
        """Take away what says that a rank was called to a round; not a card of a later meeting."""
        with _alone_at(self.came(rank)):
            if read(store, self.came(rank)) == called_to(round_).encode():
                delete(store, self.came(rank))


def called_to(round_: str) -> str:
    """What stands at a rank's place once it has been called."""
    return f"@{round_}"


def is_free(text: bytes) -> bool:
    """Whether nobody waits who put this at a rank's place: it went away, or was called."""
    return not text or text.startswith((GONE.encode(), called_to("").encode()))


def gave_up_within(text: bytes, seconds: float) -> bool:
    """Whether a rank came and gave up so shortly ago; by wall clocks, which differ a little."""
    with suppress(ValueError):
        word, when = text.decode(errors="replace").split()
        return word == GONE and time.time() - float(when) < seconds
    return False


@contextmanager
def _alone_at(key: str) -> Generator[None]:
    """While no other thread of this process is at a place; but a store that froze under one does not hold up others."""
    lock = _placing[hash(key) % len(_placing)]
    held = lock.acquire(timeout=_HELD_UP)
    try:
        yield
    finally:
        if held:
            lock.release()
