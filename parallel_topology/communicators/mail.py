"""Mail: small messages between two members through shared memory, in place of gloo's.

Each pair has a box for each direction, with room for `LETTERS` messages of at most `PIECE` bytes under any tag. The
receiver takes them out in order, and keeps those that nobody waits for yet. What finds the box full is put in by a
thread, so that whoever only begins to send need not come back; it rings for the receiver's doorkeeper, which takes out
what is there if something is expected, wherever the program is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from ctypes import memmove
from datetime import timedelta
from weakref import WeakSet

from torch import Tensor

from parallel_topology.communicators import futex
from parallel_topology.communicators.attendance import YIELDING, YIELDS, Attendance, PeerLostError, TimeUpError
from parallel_topology.communicators.host_memory import LETTERS, Box
from parallel_topology.communicators.parcels import Parcels
from parallel_topology.communicators.waiting import Once

_FOREVER = float("inf")
_SHORT = 0.001
"""Seconds of a nap of who waits for a message from anybody."""
_OFTEN = 50
"""Naps after which it is looked whether anybody is left to send it."""


class Letter(Once):
    """A message that is sent."""

    __slots__ = ()

    def __init__(self) -> None:
        """Nothing of gloo's is under way."""

    def wait(self, timeout: timedelta) -> bool:
        """Wait until its memory may be used again."""
        return True

    def is_completed(self) -> bool:
        return True


_SENT = Letter()


class _Queued(Letter):
    """One that found the box full."""

    __slots__ = ("done", "error", "memory", "rings", "tag")

    def __init__(self, memory: Tensor, tag: int, rings: bool) -> None:
        self.memory = memory
        self.tag = tag
        self.rings = rings
        self.done = threading.Event()
        self.error: RuntimeError | None = None

    def wait(self, timeout: timedelta) -> bool:
        if not self.done.wait(timeout.total_seconds()):
            raise RuntimeError(f"timed out after {timeout.total_seconds():g} s: what was sent before is not received")
        if self.error is not None:
            raise self.error
        return True

    def is_completed(self) -> bool:
        return self.done.is_set()


class _Outbox:
    """Where letters to one member go."""

    def __init__(self, attendance: Attendance, box: Box, peer: int) -> None:
        self._attendance = attendance
        self._memory = attendance.memory
        self._box = box
        self._peer = peer
        self._sent = 0
        self._fence = futex.Fence()
        self._lock = threading.Lock()
        self._queue: deque[_Queued] = deque()
        self._thread: threading.Thread | None = None

    def send(self, memory: Tensor, tag: int, rings: bool) -> Letter:
        self._attendance.require_open()
        with self._lock:
            if not self._queue and self._has_room():
                self._put(memory, tag, rings)
                return _SENT
            queued = _Queued(memory, tag, rings)
            self._queue.append(queued)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="parallel_topology mail", daemon=True)
                self._thread.start()
            return queued

    def _has_room(self) -> bool:
        return self._sent - self._memory.words[self._box.taken] < LETTERS

    def _ring(self) -> None:
        """Who it is for may be anywhere in its program: let its doorkeeper take out what it expects."""
        self._memory.ring([self._attendance.ranks[self._peer]])

    def _put(self, memory: Tensor, tag: int, rings: bool) -> None:
        words, number = self._memory.words, self._sent
        letter = self._box.letters[number % LETTERS]
        words[letter] = tag
        words[letter + 1] = memory.nbytes
        memmove(self._memory.address + (letter + 8) * 8, memory.data_ptr(), memory.nbytes)
        self._fence()
        self._sent = words[self._box.sent] = number + 1
        self._fence()
        if words[self._box.receiver_sleeps]:
            futex.wake(self._memory.address + self._box.sent * 8)
        if rings:
            self._ring()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                queued = self._queue[0]
            try:
                if not self._has_room():
                    self._ring()
                room = self._sent - LETTERS + 1
                self._attendance.wait(self._peer, self._box.taken, room, self._box.sender_sleeps * 8, _FOREVER)
            except RuntimeError as error:
                queued.error = error.with_traceback(None)
            with self._lock:
                if queued.error is None:
                    self._put(queued.memory, queued.tag, queued.rings)
                self._queue.popleft()
            queued.done.set()


class _Expected(Letter):
    """A message that is to be received."""

    __slots__ = ("_inbox", "_then", "arrived", "memory")

    def __init__(self, inbox: _Inbox, memory: Tensor) -> None:
        self._inbox = inbox
        self._then: Callable[[], object] | None = None
        self.memory = memory
        self.arrived = False

    def tell(self, then: Callable[[], object]) -> None:
        self._then = then
        self.follow()

    def follow(self) -> None:
        """Call what is to be called, if it is there."""
        if self._then is not None and self.arrived:
            then, self._then = self._then, None
            then()

    def wait(self, timeout: timedelta) -> bool:
        self._inbox.wait_for(self, time.monotonic() + timeout.total_seconds())
        return True

    def is_completed(self) -> bool:
        self._inbox.look()
        return self.arrived


class _Inbox:
    """Where letters of one member are."""

    def __init__(self, attendance: Attendance, box: Box, peer: int) -> None:
        self._attendance = attendance
        self._memory = attendance.memory
        self._box = box
        self.peer = peer
        self._taken = 0
        self._fence = futex.Fence()
        self._lock = threading.Lock()
        self._expected: dict[int, deque[_Expected]] = {}
        self._early: dict[int, deque[bytes]] = {}

    def recv(self, memory: Tensor, tag: int) -> Letter:
        self._attendance.require_open()
        with self._lock:
            expected = _Expected(self, memory)
            if early := self._early.get(tag):
                first = early.popleft()
                self._fill(expected, first, len(first))
            else:
                self._expected.setdefault(tag, deque()).append(expected)
        if self._taken < self._memory.words[self._box.sent]:  # what lies here, and was not expected, may be in the way
            self.look()
        return expected

    def attend(self, *, anything: bool) -> None:
        """The sender found no room, or waits: take out what is there, if this or `anything` is expected."""
        with self._lock:
            expects = anything or any(self._expected.values())
        if expects:
            self.look()

    def take(self, memory: Tensor, tag: int) -> bool:
        """Whether there was one under this tag; it is received then."""
        self.look()
        with self._lock:
            if early := self._early.get(tag):
                first = early.popleft()
                self._fill(_Expected(self, memory), first, len(first))
                return True
            return False

    def wait_for(self, expected: _Expected, until: float) -> None:
        while not expected.arrived:
            following = self.look()
            if not expected.arrived:
                box = self._box
                self._attendance.wait(self.peer, box.sent, following, box.receiver_sleeps * 8, until)

    def look(self) -> int:
        """Take out what is there; the number of the next one."""
        came: list[_Expected] = []
        with self._lock:
            words, box = self._memory.words, self._box
            while self._taken < words[box.sent]:
                self._fence()
                letter = box.letters[self._taken % LETTERS]
                tag, nbytes = words[letter], words[letter + 1]
                if expected := self._expected.get(tag):
                    came.append(expected.popleft())
                    self._fill(came[-1], self._memory.address + (letter + 8) * 8, nbytes)
                else:
                    self._early.setdefault(tag, deque()).append(
                        self._memory.bytes[(letter + 8) * 8 : (letter + 8) * 8 + nbytes].tobytes()
                    )
                self._fence()
                self._taken = words[box.taken] = self._taken + 1
                self._fence()
                if words[box.sender_sleeps]:
                    futex.wake(self._memory.address + box.taken * 8)
            following = self._taken + 1
        for one in came:
            one.follow()
        return following

    @staticmethod
    def _fill(expected: _Expected, source: int | bytes, nbytes: int) -> None:
        memmove(expected.memory.data_ptr(), source, min(nbytes, expected.memory.nbytes))
        expected.arrived = True


class Mail:
    """One member's boxes, to and from all others; made when they are used.

    Attributes:
        parcels: what is too large for these.
    """

    def __init__(self, attendance: Attendance, family: str, most: int) -> None:
        """`most`: bytes of the largest parcel."""
        self.parcels = Parcels(attendance.memory, family, attendance.ranks, attendance.rank, most)
        self._attendance = attendance
        self._region = attendance.memory.regions[family]
        self._lock = threading.Lock()
        self._out: dict[int, _Outbox] = {}
        self._in: dict[int, _Inbox] = {}
        self._from_any = WeakSet[AnyLetter]()

    def send(self, memory: Tensor, peer: int, tag: int, *, rings: bool = False) -> Letter:
        """Begin to send at most `PIECE` bytes. `rings`: who sends waits for what the receiver does when it has it."""
        outbox = self._out.get(peer)
        if outbox is None:
            with self._lock:
                box = self._box(self._attendance.rank, peer)
                outbox = self._out.setdefault(peer, _Outbox(self._attendance, box, peer))
        return outbox.send(memory, tag, rings)

    def recv(self, memory: Tensor, peer: int, tag: int) -> Letter:
        """Begin to receive into memory of `PIECE` bytes."""
        return self._inbox(peer).recv(memory, tag)

    def recv_any(self, memory: Tensor, tag: int) -> AnyLetter:
        """Begin to receive from whoever sends first."""
        inboxes = [self._inbox(peer) for peer in range(len(self._attendance.ranks)) if peer != self._attendance.rank]
        letter = AnyLetter(self._attendance, inboxes, memory, tag)
        self._from_any.add(letter)
        return letter

    def attend(self) -> bool:
        """Somebody rang; called by a thread that has nothing else to do. Nothing more is expected of it."""
        anything = any(not letter.is_completed() for letter in list(self._from_any))
        for inbox in list(self._in.values()):
            inbox.attend(anything=anything)
        return False

    def cut(self) -> None:
        """From now on nobody waits for this member here."""
        self._attendance.end("its messages could not be taken out", failed=True)

    def _inbox(self, peer: int) -> _Inbox:
        inbox = self._in.get(peer)
        if inbox is None:
            with self._lock:
                box = self._box(peer, self._attendance.rank)
                inbox = self._in.setdefault(peer, _Inbox(self._attendance, box, peer))
        return inbox

    def _box(self, sender: int, receiver: int) -> Box:
        return self._region.box(self._attendance.memory.area(self._attendance.ranks[sender]), receiver)


class AnyLetter(Letter):
    """A message from whoever sends first. Nobody can sleep on the words of several members, so naps are short."""

    __slots__ = ("__weakref__", "_attendance", "_inboxes", "_memory", "_source", "_tag")

    def __init__(self, attendance: Attendance, inboxes: list[_Inbox], memory: Tensor, tag: int) -> None:
        self._attendance = attendance
        self._inboxes = inboxes
        self._memory = memory
        self._tag = tag
        self._source = -1

    def wait(self, timeout: timedelta) -> bool:
        begun = time.monotonic()
        looks = 0
        while self._source < 0:
            for inbox in self._inboxes:
                if inbox.take(self._memory, self._tag):
                    self._source = inbox.peer
                    return True
            self._attendance.require_open()
            waited = time.monotonic() - begun
            if waited > timeout.total_seconds():
                raise TimeUpError(f"timed out after {timeout.total_seconds():g} s: nobody sent anything")
            looks += 1
            if looks < YIELDS and waited < YIELDING:
                futex.give_way()
            else:
                self._require_somebody(looks)
                time.sleep(_SHORT)
        return True

    def is_completed(self) -> bool:
        return self._source >= 0

    @property
    def work(self) -> AnyLetter:  # pyright: ignore[reportIncompatibleVariableOverride]
        """It knows itself who sent it."""
        return self

    def _source_rank(self) -> int:
        """As gloo's work calls it."""
        return self._source

    def _require_somebody(self, looks: int) -> None:
        if looks % _OFTEN == 0 and all(why := [self._attendance.is_lost(inbox.peer) for inbox in self._inboxes]):
            raise PeerLostError(why[0])
