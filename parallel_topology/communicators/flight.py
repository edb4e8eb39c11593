"""Flights: messages under way, each with the memory that it needs until it is through."""

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

from parallel_topology.communicators.channel import Channel
from parallel_topology.communicators.piece import Piece
from parallel_topology.communicators.refusal import Refusal
from parallel_topology.communicators.waiting import Once
from parallel_topology.errors import MismatchError, ParallelTopologyError, WireError
from parallel_topology.wire.frames import HEADER, INLINE, MAX_MESSAGE, Frame, Kind, chunks, inline
from parallel_topology.wire.structure import bytes_of, flat_bytes

MAX_DESCRIPTION = 64 * 2**20
"""The most bytes that a transfer's description may take, tensors not counted."""
_NOTHING = Frame(0, 0, 0)


@dataclass(slots=True)
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


class Ticket:
    """What a caller waits on. The flight itself is held until it has ended, whether anybody does or not."""

    __slots__ = ("__weakref__", "_flight")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    def wait(self, timeout: timedelta | None = None) -> object:
        self._flight.wait(timeout)
        return True

    def is_completed(self) -> bool:
        return self._flight.is_done()


class Flight:
    """A message under way; as it is, one that is sent.

    Attributes:
        number: its place in the channel's order.
        nbytes: what it holds until it is through.
    """

    __slots__ = (
        "_channel", "_done", "_error", "_piece", "_tensor", "_through", "_ticket", "_waiting", "_works", "nbytes",
        "number",
    )  # fmt: skip

    def __init__(self, channel: Channel, frame: Frame, tensor: Tensor | None, piece: Piece, first: Once | None) -> None:
        self.number = frame.sequence
        self.nbytes = frame.nbytes
        self._channel = channel
        self._tensor: Tensor | None = tensor
        self._piece: Piece | None = piece
        # Kept until all are through: whoever drops one while gloo's thread carries the next waits for that thread.
        self._works: list[Once] = [] if first is None else [first]
        self._through = 0
        self._waiting = threading.RLock()
        self._done = False
        self._error: Exception | None = None
        self._ticket: weakref.ref[Ticket] | None = None

    def ticket(self, dropped: Callable[[Flight], object] | None = None) -> Ticket:
        """What the caller gets; `dropped` is called with this when it is thrown away before the end."""
        ticket = Ticket(self)
        self._ticket = weakref.ref(ticket, None if dropped is None else lambda _: dropped(self))
        return ticket

    def send_chunks(self, frame: Frame) -> None:
        """Begin to send what goes after the first piece."""
        if frame.nbytes <= INLINE or self._tensor is None:
            return
        flat, channel = flat_bytes(self._tensor), self._channel
        for wire_tag, start, size in chunks(frame.nbytes, channel.tag, frame.sequence):
            self._works.append(channel.send_chunk(flat[start : start + size], wire_tag))

    def is_done(self) -> bool:
        """Whether it was waited for; gloo cannot tell earlier."""
        return self._done

    def is_dropped(self) -> bool:
        """Whether nobody can wait for it any more."""
        return self._ticket is not None and self._ticket() is None

    def wait(self, timeout: timedelta | None = None) -> None:
        """Wait until it is through; an interrupted wait can be taken up again."""
        deadline = time.monotonic() + (timeout or self._channel.links.timeout).total_seconds()
        with self._waiting:
            if self._error is not None:
                raise self._error
            if self._done:
                return
            try:
                self._finish(deadline)
            except (RuntimeError, ParallelTopologyError) as error:  # after any other it can be taken up again
                self._keep(error)
                self._end()
                raise
            if self._piece is not None:
                self._channel.pieces.put_back(self._piece, self._works[0] if self._works else None)
            self._end()

    def end_quietly(self) -> None:
        """As nobody can be told, an error is told to nobody."""
        try:
            self.wait()
        except Exception:
            self.let_go()

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._done = True
        self._ticket = self._tensor = self._piece = None
        self._works.clear()

    def _keep(self, error: Exception) -> None:
        """Raise this to whoever waits from now on; torch's without its traceback, whose frames hold process groups."""
        is_ours = isinstance(error, (Refusal, ParallelTopologyError))
        self._error = error if is_ours else RuntimeError(*error.args)

    def _end(self) -> None:
        self.let_go()
        self._channel.ended(self)

    def _finish(self, deadline: float) -> None:
        while self._through < len(self._works):
            self._until(self._works[self._through], deadline)
            self._through += 1

    def _until(self, work: Once, deadline: float) -> None:
        self._channel.wait(work, timedelta(seconds=max(deadline - time.monotonic(), 0.001)))


class Receipt(Flight):
    """A message to be received: into memory that is there, or that is made when its size is known."""

    __slots__ = ("_arrived", "_incoming", "_ours", "_posted", "_theirs")

    def __init__(
        self, channel: Channel, ours: Frame, piece: Piece, first: Once | None = None, *, into: Tensor | None = None,
        incoming: Incoming | None = None,
    ) -> None:  # fmt: skip
        """`first`: the work of the first piece; None, where it is there."""
        super().__init__(channel, ours, into, piece, first)
        self._ours = ours
        self._incoming = incoming
        self._arrived = first is None
        self._theirs: Frame | None = None
        self._posted: dict[int, deque[tuple[Once, Tensor]]] = {}

    def let_go(self) -> None:
        super().let_go()
        self._posted = {}

    def post_chunks(self, frame: Frame) -> None:
        """Give memory for the chunks, where it is there."""
        if frame.nbytes <= INLINE or self._tensor is None:
            return
        flat = flat_bytes(self._tensor)
        for wire_tag, start, size in chunks(frame.nbytes, self._channel.tag, frame.sequence):
            memory = flat[start : start + size]
            self._posted.setdefault(wire_tag, deque()).append((self._channel.recv_chunk(memory, wire_tag), memory))

    def go_on(self) -> None:
        """The first piece is there: if more comes in chunks, whoever sends them waits for memory, where it is."""
        if self._waiting.acquire(blocking=False):  # else who waits for it comes to this, too
            try:
                if self._piece is not None and self._theirs is None and not self._posted:
                    self._post_what_is_announced(self._piece)
            finally:
                self._waiting.release()

    def _post_what_is_announced(self, piece: Piece) -> None:
        try:
            theirs = Frame.unpack(piece.memory)
        except WireError:  # who waits for it is told
            return
        if theirs.place or theirs.sequence != self.number or not theirs.fits(self._ours, shapes=False):
            return
        try:
            self.post_chunks(theirs)
        except (RuntimeError, Refusal) as error:
            self._channel.break_off(f"{theirs} could not be received")
            self._keep(error)
            self.let_go()

    def _finish(self, deadline: float) -> None:
        piece = self._piece
        if piece is None:
            return
        if not self._arrived:
            self._until(self._works[0], deadline)
            self._arrived = True
            self._channel.settle(self.number)  # which may be into the same memory
        if self._theirs is None:
            theirs = self._read(piece)
            refusal = self._refusal(theirs)
            if refusal is not None:
                try:
                    self._forget(theirs, piece, deadline)
                except RuntimeError as error:
                    raise refusal from error
                raise refusal
            if self._tensor is None and self._incoming is None:
                self._forget(theirs, piece, deadline)
            else:
                self._accept(theirs, piece)
            self._theirs = theirs
        try:
            for posted in self._posted.values():
                while posted:
                    self._until(posted[0][0], deadline)
                    self._works.append(posted.popleft()[0])
        except RuntimeError:
            self._channel.break_off(f"{self._theirs} did not come to its end")
            raise

    def _read(self, piece: Piece) -> Frame:
        channel = self._channel
        channel.require_whole()
        try:
            theirs = Frame.unpack(piece.memory)
        except WireError as error:
            channel.break_off(str(error))
            raise channel.refusal(WireError, f": {error}") from None
        if theirs.nbytes > MAX_MESSAGE:
            why = f"it announces {theirs.nbytes} bytes, more than any message has"
            channel.break_off(why)
            raise channel.refusal(WireError, f": {why}")
        if theirs.sequence != self.number:
            why = f"message {theirs.sequence}, {theirs}, came in place of message {self.number}"
            channel.break_off(why)
            raise channel.refusal(MismatchError, f" is out of step: {why}")
        return theirs

    def _refusal(self, theirs: Frame) -> Refusal | None:
        ours, incoming = self._ours, self._incoming
        if incoming is None:
            shapes = self._channel.strict or ours.kind == Kind.CHECK
            fits = self._tensor is None or theirs.fits(ours, shapes=shapes)
            return None if fits else self._channel.mismatch(theirs, ours)
        if theirs.kind != ours.kind:
            return self._channel.mismatch(theirs, ours)
        incoming.frame = theirs
        if theirs.nbytes <= incoming.max_bytes:
            return None
        why = f": it announces {theirs.nbytes} bytes, expected at most max_bytes={incoming.max_bytes}"
        return self._channel.refusal(WireError, why, incoming.operation)

    def _accept(self, theirs: Frame, piece: Piece) -> None:
        if self._incoming is not None:
            self._incoming.data = data = bytearray(theirs.nbytes)
            self._tensor = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)[: theirs.nbytes]
        if self._tensor is None:
            return
        if theirs.place:
            self._channel.take(theirs, self._tensor)
        elif not self._posted:
            self.post_chunks(theirs)
        piece.copy_into(self._tensor, theirs.nbytes)

    def _forget(self, theirs: Frame, piece: Piece, deadline: float) -> None:
        """Receive what was announced and is refused, so that what comes after it is understood."""
        is_lost = theirs.kind == Kind.TRANSFER and self._ours.kind != Kind.TRANSFER
        kept = bytearray(theirs.nbytes if is_lost and theirs.nbytes <= MAX_DESCRIPTION else 0)
        if theirs.place:
            self._channel.take(theirs, torch.frombuffer(kept, dtype=torch.uint8) if kept else None)
        else:
            self._forget_chunks(theirs, kept, deadline)
        for wire_tag, posted in self._posted.items():
            if posted:
                self._channel.leave(wire_tag, list(posted))
        self._posted = {}
        if kept:
            behind = inline(len(kept))
            kept[len(kept) - behind :] = piece.memory[HEADER : HEADER + behind]
        if is_lost:
            self._lose(theirs, kept)

    def _forget_chunks(self, theirs: Frame, kept: bytearray, deadline: float) -> None:
        """`kept`: where they go, if it is as large."""
        try:
            for wire_tag, start, size in chunks(theirs.nbytes, self._channel.tag, theirs.sequence):
                if posted := self._posted.get(wire_tag):
                    work, memory = posted.popleft()
                else:
                    memory = torch.empty(size, dtype=torch.uint8, device="cpu")
                    work = self._channel.recv_chunk(memory, wire_tag)
                self._until(work, deadline)
                if kept:
                    kept[start : start + size] = bytes_of(memory)
        except BaseException:
            self._channel.break_off(f"{theirs}, which was refused, did not come to its end")
            raise

    def _lose(self, theirs: Frame, description: bytearray) -> None:
        """A transfer came where it was not expected: its tensors are no use, its description may be."""
        channel = self._channel
        channel.described = b""
        if description:
            channel.note(description)
        if channel.count == self.number + 1:  # else those that follow are taken for other messages
            for _ in range(theirs.parts):
                received(channel, Kind.ANY).ticket().wait()


def sent(channel: Channel, kind: Kind, tensor: Tensor, said: dict[str, Any] | None = None) -> Flight:
    """Begin to send a contiguous CPU tensor; `said`: more fields of its frame."""
    piece = channel.pieces.take()
    place = 0 if kind == Kind.CHECK else channel.put(tensor)
    with channel.lock:
        frame = channel.frame(kind, channel.next(), tensor, {**(said or {}), "place": place})
        rings = not place and channel.is_near(frame.nbytes)  # there was no room: it is not expected in chunks yet
        first = channel.send_first(piece.filled(frame.packed(), tensor, frame.nbytes), rings=rings)
        flight = Flight(channel, frame, None if place else tensor, piece, first)
        flight.send_chunks(frame)
        channel.under_way.append(flight)
    return flight


def received(
    channel: Channel, kind: Kind, *, into: Tensor | None = None, incoming: Incoming | None = None,
    arrived: Piece | None = None,
) -> Receipt:  # fmt: skip
    """Begin to receive into a contiguous CPU tensor, or what is as large as its sender says; else to forget it.

    Args:
        arrived: the first piece, where it is there.
    """
    piece = arrived or channel.pieces.take()
    with channel.lock:
        ours = channel.frame(kind, channel.next(), into)
        first = None if arrived else channel.recv_first(piece.whole)
        receipt = Receipt(channel, ours, piece, first, into=into, incoming=incoming)
        if not channel.is_near(ours.nbytes):
            receipt.post_chunks(ours)
        elif first is not None:
            first.tell(receipt.go_on)
        channel.under_way.append(receipt)
    return receipt
