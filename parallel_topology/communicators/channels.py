"""Channels: messages between members over their gloo group, each announced by a header, so that none is misread.

gloo itself matches what is sent with what is received by order alone: of other sizes they end the process or leave
memory half filled, and what nobody waits for is lost. `wire.frames` says what travels, `channel` keeps its order,
`flight` carries it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import Tensor

from parallel_topology.communicators.at_once import recv_now, send_now
from parallel_topology.communicators.channel import Channel, gloo_of
from parallel_topology.communicators.communicator import Work, remaining, wait_for, within
from parallel_topology.communicators.flight import MAX_DESCRIPTION, Flight, Incoming, received, sent
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.piece import Pieces
from parallel_topology.communicators.turns import Turns
from parallel_topology.communicators.waiting import Once
from parallel_topology.wire.frames import Kind, first_tag

__all__ = ["MAX_DESCRIPTION", "Channels", "Incoming", "Source", "channels_of"]

MAX_DROPPED = 1024
"""Sends whose handles were dropped that are held at most: the next send then waits for the first of them."""
MAX_DROPPED_BYTES = 256 * 2**20
"""The most bytes that they may hold."""


@dataclass(slots=True)
class Source:
    """From whom a message came that any member could send: a position."""

    position: int = -1


class Channels:
    """All messages of one set of process groups, in both directions.

    Attributes:
        turns: of collectives that are checked.
    """

    def __init__(self, links: Links) -> None:
        self.turns = Turns()
        self._links = links
        self._strict = False
        self._pieces = Pieces()
        self._lock = threading.Lock()
        self._channels: dict[tuple[int, int, bool], Channel] = {}
        self._just_dropped: deque[Flight] = deque()
        self._dropped: deque[Flight] = deque()

    @property
    def strict(self) -> bool:
        """Whether a tensor is only received into one of equal shape; else of equal dtype and size."""
        return self._strict

    @strict.setter
    def strict(self, strict: bool) -> None:
        with self._lock:
            self._strict = strict
            for channel in self._channels.values():
                channel.strict = strict

    def to(self, dst: int, tag: int = 0) -> Channel:
        """On which messages to a member go."""
        return self._channels.get((dst, tag, True)) or self._made(dst, tag, sends=True)

    def by(self, src: int, tag: int = 0) -> Channel:
        """On which messages from a member come."""
        return self._channels.get((src, tag, False)) or self._made(src, tag, sends=False)

    def send(self, tensor: Tensor, dst: int, kind: Kind, *, tag: int = 0, **said: Any) -> Work:
        """Begin to send a contiguous CPU tensor; of a `Kind.CHECK` only what it is. `said`: fields of its `Frame`."""
        if self._just_dropped or self._dropped:
            self._bound_dropped()
        return sent(self.to(dst, tag), kind, tensor, said).ticket(self._just_dropped.append)

    def send_now(self, tensor: Tensor, dst: int, *, tag: int = 0) -> None:
        """Send a tensor, and wait until it is through."""
        if self._just_dropped or self._dropped:
            self._bound_dropped()
        send_now(self.to(dst, tag), tensor)

    def recv_now(self, tensor: Tensor, src: int, *, tag: int = 0) -> None:
        """Receive a tensor, and wait for it."""
        recv_now(self.by(src, tag), tensor)

    def recv(self, tensor: Tensor, src: int, kind: Kind, *, tag: int = 0) -> Work:
        """Begin to receive into a contiguous CPU tensor."""
        return received(self.by(src, tag), kind, into=tensor).ticket()

    def take(self, incoming: Incoming | None, src: int, kind: Kind, *, tag: int = 0) -> Work:
        """Begin to receive a message of any size, whose memory is made when its header has come; or to forget it."""
        return received(self.by(src, tag), kind, incoming=incoming).ticket()

    def recv_any(self, tensor: Tensor, source: Source, *, tag: int = 0) -> Work:
        """Begin to receive a tensor from whoever sends first; chunks are asked for when its header has come."""
        piece = self._pieces.take()
        if self._links.mail is not None:
            first = self._links.mail.recv_any(piece.whole, first_tag(tag))
        else:
            first = Once(gloo_of(self._links, "recv_any").recv_anysource([piece.whole], first_tag(tag)))

        def known(src: int) -> Work:
            source.position = src
            return received(self.by(src, tag), Kind.TENSOR, into=tensor, arrived=piece).ticket()

        return _FromAny(first, known, self._links)

    def close(self) -> None:
        """Let go of everything."""
        for channel in list(self._channels.values()):
            channel.close()
        self._pieces.close()
        self._just_dropped.clear()
        self._dropped.clear()

    def _made(self, peer: int, tag: int, *, sends: bool) -> Channel:
        with self._lock:
            made = Channel(self._links, self._pieces, peer, tag, sends=sends, strict=self._strict)
            return self._channels.setdefault((peer, tag, sends), made)

    def _bound_dropped(self) -> None:
        while self._just_dropped:
            flight = self._just_dropped.popleft()
            if not flight.is_done():
                self._dropped.append(flight)
        while self._dropped and self._dropped[0].is_done():
            self._dropped.popleft()
        while len(self._dropped) > MAX_DROPPED or sum(one.nbytes for one in self._dropped) > MAX_DROPPED_BYTES:
            self._dropped.popleft().wait()


def channels_of(links: Links) -> Channels:
    """The channels of one set of process groups: all who use them count the same messages."""
    if links.channels is None:
        with links.making:  # two threads' first messages may be at the same time
            links.channels = links.channels or Channels(links)
    return links.channels


class _FromAny:
    """A message from whoever sends first."""

    def __init__(self, first: Once, known: Callable[[int], Work], links: Links) -> None:
        self._first = first
        self._known = known
        self._links = links
        self._rest: Work | None = None

    def wait(self, timeout: timedelta | None = None) -> object:
        total = timeout or self._links.timeout
        end = within(total)
        if self._rest is None:
            try:
                self._links.wait_for_message(self._first, total)
            finally:
                if self._first.is_completed():  # also where a signal's handler has raised: it is counted
                    self._rest = self._known(self._first.work._source_rank())
        wait_for(self._rest, remaining(end))
        return True

    def is_completed(self) -> bool:
        return self._rest is not None and self._rest.is_completed()
