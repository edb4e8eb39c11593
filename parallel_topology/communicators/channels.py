"""Channels: messages between members over their gloo group, each announced by a header, so that none is misread.

gloo itself matches what is sent with what is received by order alone: of other sizes they end the process or leave
memory half filled, and what nobody waits for is lost. `wire.frames` says what travels.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.communicator import Work
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.turns import Turns
from parallel_topology.errors import ClosedError, CollectiveError, MismatchError, ParallelTopologyError, WireError
from parallel_topology.wire.frames import (
    HEADER,
    MAX_MESSAGE,
    PIECE,
    Frame,
    Kind,
    chunks,
    first_tag,
    inline,
    unpack_transfer,
)
from parallel_topology.wire.structure import bytes_of, flat_bytes, name_of

MAX_DROPPED = 1024
"""Sends whose handles were dropped that are held at most: the next send then waits for the first of them."""
MAX_DROPPED_BYTES = 256 * 2**20
"""The most bytes that they may hold."""

MAX_DESCRIPTION = 64 * 2**20
"""The most bytes that a transfer's description may take, tensors not counted."""
_NOTHING = Frame(0, 0, 0)

_Key = tuple[int, int, bool]
"""Peer, tag, and whether it is sent to that peer: messages with one key arrive in order."""


@dataclass
class Incoming:
    """A message of a size that only the sender knows.

    Attributes:
        operation: who receives, for errors.
        max_bytes: the most that is taken.
        frame, data: what came.
    """

    operation: str
    max_bytes: int
    frame: Frame = _NOTHING
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Source:
    """From whom a message came that any member could send: a position."""

    position: int = -1


class Channels:
    """All messages of one set of process groups, in both directions.

    Attributes:
        described, heard: what `send_tensors` last described to each member, and each member to this one.
        turns: of collectives that are checked.
        strict: whether a tensor is only received into one of equal shape; else of equal dtype and size.
    """

    def __init__(self, links: Links) -> None:
        self.strict = False
        self.described: dict[int, bytes] = {}
        self.heard: dict[int, bytes] = {}
        self.turns = Turns()
        self._links = links
        self._lock = threading.Lock()
        self._counts: dict[_Key, int] = {}
        self._under_way: dict[_Key, deque[_Flight]] = {}
        self._broken: dict[_Key, str] = {}
        self._stale: dict[tuple[int, int], object] = {}  # source, wire tag -> memory given for what will never come
        self._just_dropped: deque[_Flight] = deque()
        self._dropped: deque[_Flight] = deque()

    def send(self, tensor: Tensor, dst: int, kind: Kind, *, tag: int = 0, **said: Any) -> Work:
        """Begin to send a contiguous CPU tensor; of a `Kind.CHECK` only what it is."""
        self._bound_dropped()
        flat, key = _contents(tensor, kind), (dst, tag, True)
        with self._lock:
            frame = self._announce(key, kind, tensor, said)
            message = bytearray(HEADER + (behind := inline(frame.nbytes)))
            frame.pack_into(message)
            first = torch.frombuffer(message, dtype=torch.uint8)
            if behind:
                first[HEADER:] = flat[frame.nbytes - behind :]
            flight = _Flight(self, key, tensor)
            flight.add(self.group.send([first], dst, first_tag(tag)), first)
            for wire_tag, start, size in chunks(frame.nbytes, tag, frame.sequence):
                flight.add(self.group.send([flat[start : start + size]], dst, wire_tag))
            return self._launch(flight)

    def recv(self, tensor: Tensor, src: int, kind: Kind, *, tag: int = 0) -> Work:
        """Begin to receive into a contiguous CPU tensor."""
        key = (src, tag, False)
        with self._lock:
            frame = self._announce(key, kind, tensor, {})
            flight = _Receipt(self, key, frame, into=_contents(tensor, kind))
            flight.post_first()
            flight.post_chunks(frame)
            return self._launch(flight)

    def take(self, incoming: Incoming | None, src: int, kind: Kind, *, tag: int = 0) -> Work:
        """Begin to receive a message of any size, whose memory is made when its header has come; or to forget it."""
        key = (src, tag, False)
        with self._lock:
            frame = self._announce(key, kind, None, {})
            flight = _Receipt(self, key, frame, incoming=incoming)
            flight.post_first()
            return self._launch(flight)

    def recv_any(self, tensor: Tensor, source: Source, *, tag: int = 0) -> Work:
        """Begin to receive a tensor from whoever sends first; chunks are asked for when its header has come."""
        message = bytearray(PIECE)
        first = torch.frombuffer(message, dtype=torch.uint8)
        work = self.group.recv_anysource([first], first_tag(tag))

        def known(src: int) -> Work:
            source.position, key = src, (src, tag, False)
            with self._lock:
                frame = self._announce(key, Kind.TENSOR, tensor, {})
                flight = _Receipt(self, key, frame, into=flat_bytes(tensor), message=message)
                return self._launch(flight)

        return _FromAny(work, first, known, self._links)

    def discard(self, src: int, count: int) -> None:
        """Receive the next `count` messages, of any kind and size, and forget them."""
        for _ in range(count):
            self.take(None, src, Kind.ANY).wait()

    def note(self, src: int, message: bytearray) -> list[int]:
        """Remember what a transfer described, which the next one may refer to; the numbers of its tensors."""
        try:
            digests, description = unpack_transfer(message)
        except WireError:
            self.heard.pop(src, None)
            raise
        if description:
            self.heard[src] = description
        return digests

    def lose(self, key: _Key, theirs: Frame, message: bytearray | None) -> None:
        """A transfer came where it was not expected: its tensors are no use, its description may be."""
        src = key[0]
        self.heard.pop(src, None)
        if message:
            self.note(src, message)
        if self._counts[key] == theirs.sequence + 1:  # else those that follow are taken for other messages
            self.discard(src, theirs.parts)

    def close(self) -> None:
        """Let go of everything."""
        for flights in self._under_way.values():
            for flight in flights:
                if flight.is_dropped():
                    flight.let_go()
        for held in (self._under_way, self._stale, self._just_dropped, self._dropped):
            held.clear()

    @property
    def group(self) -> Any:
        """The gloo group. Not to be held: whoever drops its last reference waits for what is under way in it."""
        if self._links.cpu_group is None:
            raise ClosedError(f"{self._links.label}: its manager was closed")
        return self._links.cpu_group

    @property
    def timeout(self) -> timedelta:
        """How long operations wait."""
        return self._links.timeout

    def wait_for(self, work: Any, timeout: timedelta) -> bool:
        """Wait for one piece; whether it arrived."""
        return self._links.wait_for_message(work, timeout)

    def require_whole(self, key: _Key) -> None:
        """Raises: CollectiveError: an earlier message left the channel out of step."""
        if why := self._broken.get(key):
            raise CollectiveError(f"{self.between(key)}: nothing more can be received on this channel: {why}")

    def break_off(self, key: _Key, why: str) -> None:
        """From now on every receive on this channel says why it cannot be."""
        self._broken.setdefault(key, why)

    def give(self, key: _Key, wire_tag: int, memory: Tensor) -> Work:
        """Begin to receive one chunk."""
        if (key[0], wire_tag) in self._stale:
            self.break_off(key, "a receive that did not match still waits for a message under this number")
            self.require_whole(key)
        return self.group.recv([memory], key[0], wire_tag)

    def leave(self, key: _Key, wire_tag: int, held: object) -> None:
        """Keep memory that was given for a chunk that will not come."""
        self._stale[key[0], wire_tag] = held

    def ended(self, key: _Key, flight: _Flight) -> None:
        """A message is through, and so are the first pieces of those before it: end those that nobody waits for."""
        with self._lock:
            before = self._under_way.get(key)
            if before is None or flight not in before:
                return
            if before[0] is flight:
                before.popleft()
                return
            earlier = [one for one in before if one.number < flight.number and one.is_dropped()]
            self._under_way[key] = deque(one for one in before if one is not flight and one not in earlier)
        for one in earlier:
            one.end_quietly()

    def between(self, key: _Key) -> str:
        """`recv on engine/tp[0] = [0, 1] from rank 0`"""
        way = "send on {} to" if key[2] else "recv on {} from"
        return f"{way.format(self._links.label)} rank {self.rank(key[0])}"

    def rank(self, position: int) -> int:
        """A member's global rank."""
        return self._links.ranks[position] if self._links.ranks else position

    def mismatch(self, key: _Key, theirs: Frame, ours: Frame) -> MismatchError:
        """What came is not what is received here."""
        here, there = self.rank(self.group.rank()), self.rank(key[0])
        into = f"into {ours}" if ours.kind in (Kind.TENSOR, Kind.PART, Kind.CHECK) else f"{ours}"
        return MismatchError(
            f"recv on {self._links.label}: rank {there} sends {theirs}, but rank {here} receives {into}"
        )

    def _announce(self, key: _Key, kind: Kind, tensor: Tensor | None, said: dict[str, Any]) -> Frame:
        if not key[2]:
            self.require_whole(key)
        number = self._counts.get(key, 0)
        self._counts[key] = number + 1
        if tensor is None:
            return Frame(kind, number, 0)
        nbytes = 0 if kind == Kind.CHECK else tensor.nbytes
        return Frame(kind, number, nbytes, name_of(tensor.dtype), tuple(tensor.shape), **said)

    def _launch(self, flight: _Flight) -> Work:
        self._under_way.setdefault(flight.key, deque()).append(flight)
        return flight.ticket(self._just_dropped.append)

    def _bound_dropped(self) -> None:
        while self._just_dropped:
            flight = self._just_dropped.popleft()
            if flight.key[2] and not flight.is_done():
                self._dropped.append(flight)
        while self._dropped and self._dropped[0].is_done():
            self._dropped.popleft()
        while len(self._dropped) > MAX_DROPPED or sum(one.nbytes for one in self._dropped) > MAX_DROPPED_BYTES:
            self._dropped.popleft().wait()


def channels_of(links: Links) -> Channels:
    """The channels of one set of process groups: all who use them count the same messages."""
    if links.channels is None:
        links.channels = Channels(links)
    return links.channels


class _Ticket:
    """What a caller waits on. The flight itself is held until it has ended, whether anybody does or not."""

    __slots__ = ("__weakref__", "_flight")

    def __init__(self, flight: _Flight) -> None:
        self._flight = flight

    def wait(self, timeout: timedelta | None = None) -> object:
        self._flight.wait(timeout)
        return True

    def is_completed(self) -> bool:
        return self._flight.is_done()


class _FromAny:
    """A message from whoever sends first."""

    def __init__(self, first: Any, memory: Tensor, known: Callable[[int], Work], links: Links) -> None:
        self._first = first
        self._memory = memory
        self._known = known
        self._links = links
        self._rest: Work | None = None

    def wait(self, timeout: timedelta | None = None) -> object:
        if self._rest is None:
            self._links.wait_for_message(self._first, timeout or self._links.timeout)
            self._rest = self._known(self._first._source_rank())
        return self._rest.wait() if timeout is None else self._rest.wait(timeout)

    def is_completed(self) -> bool:
        return self._rest is not None and self._rest.is_completed()


class _Flight:
    """One message under way, with the memory that it needs."""

    def __init__(self, channels: Channels, key: _Key, tensor: Tensor | None) -> None:
        self.key = key
        self.nbytes = 0 if tensor is None else tensor.nbytes
        self.number = channels._counts[key]  # pyright: ignore[reportPrivateUsage]
        self._channels = channels
        self._held: list[object] = [tensor]
        self._works: deque[Any] = deque()
        self._waiting = threading.RLock()
        self._done = False
        self._error: Exception | None = None
        self._ticket: weakref.ref[_Ticket] | None = None

    def add(self, work: Any, held: object = None) -> None:
        """One piece more to wait for."""
        self._works.append(work)
        if held is not None:
            self._held.append(held)

    def ticket(self, dropped: Any) -> Work:
        """What the caller gets; `dropped` is called with this when it is thrown away before the end."""
        ticket = _Ticket(self)
        self._ticket = weakref.ref(ticket, lambda _: dropped(self))
        return ticket

    def is_done(self) -> bool:
        """Whether it was waited for; gloo cannot tell earlier."""
        return self._done

    def is_dropped(self) -> bool:
        """Whether nobody can wait for it any more."""
        return self._ticket is not None and self._ticket() is None

    def wait(self, timeout: timedelta | None = None) -> None:
        """Wait until it is through; an interrupted wait can be taken up again."""
        deadline = time.monotonic() + (timeout or self._channels.timeout).total_seconds()
        with self._waiting:
            if self._error is not None:
                raise self._error
            if self._done:
                return
            try:
                self._finish(deadline)
            except Exception as error:
                self._error = error if isinstance(error, ParallelTopologyError) else RuntimeError(*error.args)
                raise
            finally:
                if self._done or self._error is not None:
                    self.let_go()
                    self._channels.ended(self.key, self)

    def end_quietly(self) -> None:
        """As nobody can be told, an error is told to nobody."""
        try:
            self.wait()
        except Exception:
            self.let_go()

    def _finish(self, deadline: float) -> None:
        while self._works:
            self._until(self._works[0], deadline)
            self._works.popleft()
        self._done = True

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._done = True
        self._ticket = None
        self._held.clear()
        self._works.clear()

    def _until(self, work: Any, deadline: float) -> None:
        left = max(deadline - time.monotonic(), 0.001)
        if not self._channels.wait_for(work, timedelta(seconds=left)):
            raise RuntimeError("the operation was aborted")


class _Receipt(_Flight):
    """A message to be received: into memory that is there, or that is made when its size is known."""

    def __init__(
        self, channels: Channels, key: _Key, ours: Frame, *, into: Tensor | None = None,
        incoming: Incoming | None = None, message: bytearray | None = None,
    ) -> None:  # fmt: skip
        """Without `into` and `incoming` what comes is forgotten."""
        super().__init__(channels, key, into)
        self._ours = ours
        self._into = into
        self._incoming = incoming
        self._message = bytearray(PIECE) if message is None else message
        self._arrived = message is not None
        self._theirs: Frame | None = None
        self._posted: dict[int, deque[tuple[Any, Tensor]]] = {}

    def post_first(self) -> None:
        """Give memory for the first piece."""
        first = torch.frombuffer(self._message, dtype=torch.uint8)
        self.add(self._channels.group.recv([first], self.key[0], first_tag(self.key[1])), first)

    def post_chunks(self, frame: Frame) -> None:
        """Give memory for the chunks, where there are any."""
        for wire_tag, start, size in chunks(frame.nbytes, self.key[1], frame.sequence):
            memory = torch.empty(size, dtype=torch.uint8) if self._into is None else self._into[start : start + size]
            work = self._channels.give(self.key, wire_tag, memory)
            self._posted.setdefault(wire_tag, deque()).append((work, memory))

    def _finish(self, deadline: float) -> None:
        if not self._arrived:
            self._until(self._works[0], deadline)
            self._arrived = True
        if self._theirs is None:
            theirs = self._read()
            refusal = self._refusal(theirs)
            if refusal is not None:
                try:
                    self._forget(theirs, deadline)
                except RuntimeError as error:
                    raise refusal from error
                raise refusal
            if self._into is None and self._incoming is None:
                self._forget(theirs, deadline)
            else:
                self._accept(theirs)
            self._theirs = theirs
        try:
            for posted in self._posted.values():
                while posted:
                    self._until(posted[0][0], deadline)
                    posted.popleft()
        except Exception:  # an interrupted wait can be taken up again
            self._channels.break_off(self.key, f"{self._theirs} did not come to its end")
            raise
        self._done = True

    def _read(self) -> Frame:
        self._channels.require_whole(self.key)
        try:
            theirs = Frame.unpack(self._message)
        except WireError as error:
            self._channels.break_off(self.key, str(error))
            raise
        if theirs.nbytes > MAX_MESSAGE:
            why = f"it announces {theirs.nbytes} bytes, more than any message has"
            self._channels.break_off(self.key, why)
            raise WireError(f"{self._channels.between(self.key)}: {why}")
        if theirs.sequence != self._ours.sequence:
            why = f"message {theirs.sequence}, {theirs}, came in place of message {self._ours.sequence}"
            self._channels.break_off(self.key, why)
            raise MismatchError(f"{self._channels.between(self.key)} is out of step: {why}")
        return theirs

    def _refusal(self, theirs: Frame) -> ParallelTopologyError | None:
        ours, incoming = self._ours, self._incoming
        if incoming is None and self._into is None:
            return None  # to be forgotten
        shapes = self._channels.strict or ours.kind == Kind.CHECK
        fits = theirs.kind == ours.kind if incoming else theirs.fits(ours, shapes=shapes)
        if not fits:
            return self._channels.mismatch(self.key, theirs, ours)
        if incoming:
            incoming.frame = theirs
        if incoming and theirs.nbytes > incoming.max_bytes:
            way = self._channels.between(self.key).replace("recv", incoming.operation, 1)
            return WireError(
                f"{way}: it announces {theirs.nbytes} bytes, expected at most max_bytes={incoming.max_bytes}"
            )
        return None

    def _accept(self, theirs: Frame) -> None:
        if self._incoming is not None:
            data = bytearray(theirs.nbytes)
            self._into = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)[: theirs.nbytes]
            self._incoming.frame, self._incoming.data = theirs, data
        if self._into is None:  # what comes is to be forgotten
            return
        if not self._posted:
            self.post_chunks(theirs)
        if behind := inline(theirs.nbytes):
            came = torch.frombuffer(self._message, dtype=torch.uint8, count=behind, offset=HEADER)
            self._into[theirs.nbytes - behind :] = came

    def _forget(self, theirs: Frame, deadline: float) -> None:
        """Receive what was announced and is refused, so that what comes after it is understood."""
        is_lost = theirs.kind == Kind.TRANSFER and self._ours.kind != Kind.TRANSFER
        kept = bytearray(theirs.nbytes if is_lost and theirs.nbytes <= MAX_DESCRIPTION else 0)
        try:
            for wire_tag, start, size in chunks(theirs.nbytes, self.key[1], theirs.sequence):
                if posted := self._posted.get(wire_tag):
                    work, memory = posted.popleft()
                else:
                    memory = torch.empty(size, dtype=torch.uint8)
                    work = self._channels.give(self.key, wire_tag, memory)
                self._until(work, deadline)
                if kept:
                    kept[start : start + size] = bytes_of(memory)
        except BaseException:
            self._channels.break_off(self.key, f"{theirs}, which was refused, did not come to its end")
            raise
        for wire_tag, posted in self._posted.items():
            if posted:
                self._channels.leave(self.key, wire_tag, list(posted))
        self._posted.clear()
        if kept:
            behind = inline(len(kept))
            kept[len(kept) - behind :] = self._message[HEADER : HEADER + behind]
        if is_lost:
            self._channels.lose(self.key, theirs, kept)


def _contents(tensor: Tensor, kind: Kind) -> Tensor:
    """The bytes that travel."""
    return torch.empty(0, dtype=torch.uint8) if kind == Kind.CHECK else flat_bytes(tensor)
