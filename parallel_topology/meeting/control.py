"""Control: one manager's own way to the store, every use of which ends; and the few things stores do not all do alike.

torch's clients of a store hold one lock while they wait, and wait for a reply without a deadline: a store that froze,
or another thread that waits, would hold up everybody who shares the client (torch 2.13). So each manager has its own
client, and uses it on threads that their callers can overtake. A store of this process needs neither.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.errors import ParallelTopologyError, RendezvousError
from parallel_topology.meeting.deadline import LOOK, Deadline, Overtaken, overtake
from parallel_topology.torch_errors import STORE_ERRORS, first_line

T = TypeVar("T")
FAREWELL = 0.5
"""Seconds that the end of a manager may spend at the store."""
GONE_BY_NOW = timedelta(seconds=1)
"""After which a key that was there a moment ago is taken for gone."""


class Control:
    """One manager's own client of a store.

    Attributes:
        given: the store as the caller gave it.
    """

    def __init__(self, given: dist.Store, *, own: bool = False) -> None:
        """`own`: nobody else uses `given`."""
        self.given = given
        self._client: dist.Store | None = given if own else None
        self._process = os.getpid()
        self._at_end: list[Callable[[dist.Store], object]] = []

    def client(self) -> dist.Store:
        """A client that nobody else uses; it connects when first asked for, so only where a deadline overtakes that."""
        client = self._client
        if client is None:
            client = self._client = torch_private.clone_store(self.given)
        return client

    def renew(self) -> None:
        """Forget the client, and end the wait of what was left behind in it."""
        client, self._client = self._client, None
        if client is not None and torch_private.base_store(client) is not torch_private.base_store(self.given):
            torch_private.end_waits(client)

    def ask(
        self, act: Callable[[dist.Store], T], deadline: Deadline, *, grace: float = 0.0, bounded: bool = False
    ) -> T:
        """What `act` finds out at the store.

        Args:
            bounded: `act` itself waits for nothing after the deadline. Where the store is in this process, and so
                always answers, it then needs no thread of its own; but for the main thread, which gets Ctrl-C.

        Raises:
            Overtaken: the store did not answer in time.
        """
        try:
            if (
                bounded
                and torch_private.is_local(self.given)
                and threading.current_thread() is not threading.main_thread()
            ):
                return act(self.client())
            return overtake(lambda: act(self.client()), deadline, grace=grace)
        except BaseException as error:
            if isinstance(error, Overtaken) or not isinstance(error, Exception):
                self.renew()
            raise

    def answer(self, act: Callable[[dist.Store], T], deadline: Deadline, *, grace: float, name: str = "") -> T:
        """As `ask`, for callers who pass an error on to the user; `name` is the manager's, where they do not add it.

        Raises:
            RendezvousError: the store is gone, or does not answer.
            ParallelTopologyError: what `act` raises.
        """
        of = f"{name}: " if name else ""
        try:
            return self.ask(act, deadline, grace=grace)
        except ParallelTopologyError:
            raise
        except Overtaken:
            raise RendezvousError(f"{of}the store does not answer within {deadline.seconds:g} s") from None
        except STORE_ERRORS as error:
            raise RendezvousError(f"{of}the store is gone: {first_line(error)}") from error

    def at_end(self, act: Callable[[dist.Store], object]) -> None:
        """What `close` does at the store."""
        self._at_end.append(act)

    def close(self) -> None:
        """Take this manager's keys out of the store, as far as it answers at once, and drop the client. Idempotent."""
        acts, self._at_end = self._at_end, []

        def leave(store: dist.Store) -> None:
            for act in acts:
                act(store)

        if acts and self._process == os.getpid():  # a forked child shares the parent's connection
            with suppress(Overtaken, *STORE_ERRORS):
                self.ask(leave, Deadline(FAREWELL), bounded=True)
        self._client = None


def wait_for(store: dist.Store, keys: Sequence[str], deadline: Deadline) -> bool:
    """Whether all keys came before the deadline."""
    if torch_private.is_file(store):  # it waits in whole seconds, and one more (torch 2.13)
        looks = Patience(len(keys))
        while not (there := store.check(list(keys))) and not deadline.passed():
            looks.pause(deadline)
        return there
    is_local = torch_private.is_local(store)
    while True:
        try:
            store.wait(list(keys), deadline.timedelta(LOOK) if is_local else deadline.timedelta())
        except RuntimeError:  # each kind of store has its own type and words for lateness
            if is_local and not deadline.passed():  # what was raised into this thread arrives here
                continue
            if deadline.left() > 0.1:
                raise
            return store.check(list(keys))
        return True


def read(store: dist.Store, key: str) -> bytes | None:
    """The value of a key, or None if it is not there: `get` would wait for it, also if it went after it was seen."""
    found = bytes(store.compare_set(key, _NOTHING, _NOTHING))
    return None if found == _NOTHING.encode() else found


def read_when_there(store: dist.Store, key: str, deadline: Deadline) -> bytes | None:
    """The value of a key that others look for, too, as soon as it is there; None if it did not come in time.

    It looks by itself: who waits at a `TCPStore` is also woken when somebody else looks with `read` (torch 2.13).
    """
    looks = Patience(1)
    while (found := read(store, key)) is None and not deadline.passed():
        looks.pause(deadline)
    return found


_NOTHING = "no such key"
"""Compared with, as no value of ours is this; a store says it back where there is no key."""


def read_all(store: dist.Store, keys: Sequence[str]) -> list[bytes]:
    """The values of keys that were all seen there, empty where one has gone: one operation where the store can."""
    if keys and torch_private.is_tcp(store):
        with suppress(RuntimeError):
            return torch_private.multi_get(store, keys, GONE_BY_NOW)
    return [read(store, key) or b"" for key in keys]


def write_all(store: dist.Store, values: Mapping[str, str]) -> None:
    """Set many keys: one operation where the store can."""
    if torch_private.is_extended(store):
        torch_private.multi_set(store, values)
    else:
        for key, value in values.items():
            store.set(key, value)


def append(store: dist.Store, key: str, line: str) -> None:
    """Add a line to what a key holds, whoever else does at the same time."""
    if torch_private.is_extended(store):
        torch_private.append(store, key, line + "\n")
        return
    held = ""
    while True:
        wanted = held + line + "\n"
        found = store.compare_set(key, held, wanted).decode(errors="replace")
        if found == wanted:
            return
        held = found


def lines(store: dist.Store, key: str) -> list[str]:
    """What was appended to a key."""
    return (read(store, key) or b"").decode(errors="replace").splitlines()


def drop_lines(store: dist.Store, key: str, unwanted: Callable[[str], bool]) -> None:
    """Take lines away from what a key holds, whoever else does at the same time."""
    held = (read(store, key) or b"").decode(errors="replace")
    while any(map(unwanted, held.splitlines())):
        kept = "".join(f"{line}\n" for line in held.splitlines() if not unwanted(line))
        found = store.compare_set(key, held, kept).decode(errors="replace")
        if found == kept:
            return
        held = found


def absent(store: dist.Store, keys: Sequence[str], deadline: Deadline) -> list[str]:
    """Which keys are not there: a store says in one answer whether all are, so halves are asked for, and their halves.

    Those that were not asked for when the deadline passed are not among them, unless none was found by then.
    """
    if not keys or deadline.passed() or store.check(list(keys)):
        return []
    if len(keys) == 1:
        return list(keys)
    half = len(keys) // 2
    return absent(store, keys[:half], deadline) + absent(store, keys[half:], deadline)


def delete(store: dist.Store, *keys: str) -> int:
    """Take keys away, where the store can; how many were there."""
    gone = 0
    with suppress(*STORE_ERRORS):
        for key in keys:
            gone += bool(store.delete_key(key))
    return gone


def keys_under(store: dist.Store, prefixes: Sequence[str]) -> list[str]:
    """Which keys begin so, where the store can tell."""
    return [key for key in torch_private.list_keys(store) if key.startswith(tuple(prefixes))]


class Patience:
    """Looks that grow rarer: soon at first, then so rarely that all ranks together do not trouble the store."""

    def __init__(self, ranks: int) -> None:
        self._pause = 0.0005
        self._longest = max(0.02, ranks * 20e-6)

    def pause(self, deadline: Deadline) -> None:
        """Sleep, no longer than until the deadline."""
        time.sleep(min(self._pause, deadline.left()))
        self._pause = min(self._pause * 1.5, self._longest)
