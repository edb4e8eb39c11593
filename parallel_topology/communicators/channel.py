"""Channel: one way between two members under one tag. Messages on it arrive in the order in which they were begun."""

from __future__ import annotations

import threading
from collections import deque
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from parallel_topology.communicators.links import Links
from parallel_topology.communicators.piece import Pieces
from parallel_topology.communicators.refusal import Refusal
from parallel_topology.communicators.waiting import Once
from parallel_topology.errors import (
    ClosedError,
    CollectiveError,
    MismatchError,
    ParallelTopologyError,
    WireError,
)
from parallel_topology.wire.frames import INLINE, Frame, Header, Kind, first_tag, inline, unpack_transfer
from parallel_topology.wire.structure import name_of


class Passage(Protocol):
    """A message under way: `communicators.flight`."""

    number: int

    def is_dropped(self) -> bool: ...
    def end_quietly(self) -> None: ...
    def let_go(self) -> None: ...


class Channel:
    """How far one channel has come.

    Attributes:
        peer, tag, sends: the other member's position, and whether messages go there.
        pieces: memory that all channels share.
        links: whose gloo group it is.
        strict: whether a tensor is only received into one of equal shape; else of equal dtype and size.
        lock: held where a message gets its number and is handed to gloo, so that both have one order.
        under_way: messages that somebody has begun and not ended, by their numbers.
        described: what `send_tensors` last described here, which the next one may refer to.
    """

    __slots__ = (
        "_broken", "_dtype", "_header", "_shape", "_stale", "count", "described", "first_tag", "links", "lock", "peer",
        "pieces", "sends", "strict", "tag", "under_way",
    )  # fmt: skip

    def __init__(self, links: Links, pieces: Pieces, peer: int, tag: int, *, sends: bool, strict: bool) -> None:
        self.peer = peer
        self.tag = tag
        self.sends = sends
        self.strict = strict
        self.pieces = pieces
        self.lock = threading.Lock()
        self.count = 0
        self.under_way: deque[Passage] = deque()
        self.described = b""
        self.first_tag = first_tag(tag)
        self.links = links
        self._broken = ""
        self._dtype: torch.dtype | None = None
        self._shape: tuple[int, ...] = ()
        self._stale: dict[int, object] = {}  # wire tag -> memory given for what will never come

    @property
    def group(self) -> Any:
        """The gloo group, as of `gloo_of`."""
        return gloo_of(self.links, "send" if self.sends else "recv")

    def next(self) -> int:
        """The number of a message that is begun now.

        Raises:
            Refusal: as `require_whole`, where it is to be received.
        """
        if self._broken and not self.sends:
            self.require_whole()
        number = self.count
        self.count = number + 1
        return number

    def frame(self, kind: Kind, number: int, tensor: Tensor | None, said: dict[str, Any] | None = None) -> Frame:
        """A message as it is announced: of a `Kind.CHECK` only what it is, of what is to be forgotten nothing."""
        if tensor is None:
            return Frame(kind, number, 0)
        nbytes = 0 if kind == Kind.CHECK else tensor.nbytes
        return Frame(kind, number, nbytes, name_of(tensor.dtype), tuple(tensor.shape), **(said or {}))

    def header(self, number: int, tensor: Tensor) -> bytes:
        """That of a message which is a tensor, most often one like the last."""
        dtype, shape = tensor.dtype, tensor.shape
        if dtype is not self._dtype or shape != self._shape:
            self._dtype, self._shape = dtype, shape
            self._header = Header(self.frame(Kind.TENSOR, number, tensor))
        return self._header.numbered(number)

    def is_near(self, nbytes: int) -> bool:
        """Whether what goes behind the first piece of such a message is left in memory, if there is room."""
        return nbytes > INLINE and self.links.mail is not None and nbytes <= self.links.mail.parcels.most

    def put(self, tensor: Tensor) -> int:
        """Leave what goes behind the first piece in memory; its place, or 0 if it must go in chunks."""
        nbytes = tensor.nbytes
        if self.links.mail is None or not self.is_near(nbytes):
            return 0
        return self.links.mail.parcels.put(tensor.data_ptr(), nbytes - inline(nbytes))

    def take(self, frame: Frame, into: Tensor | None) -> None:
        """Copy what was left in memory, or forget it.

        Raises:
            Refusal: a WireError, it is nowhere.
        """
        try:
            if self.links.mail is None:
                raise WireError("a peer announces what is in memory, which it does not share")
            nbytes = frame.nbytes - inline(frame.nbytes)
            self.links.mail.parcels.take(self.peer, frame.place, nbytes, None if into is None else into.data_ptr())
        except WireError as error:
            self.break_off(str(error))
            raise self.refusal(WireError, f": {error}") from None

    def send_first(self, memory: Tensor, *, rings: bool = False) -> Once:
        """Begin to send a first piece. `rings`: whoever receives it must do more for this one to go on."""
        if self.links.mail is not None:
            return self.links.mail.send(memory, self.peer, self.first_tag, rings=rings)
        return self.send_chunk(memory, self.first_tag)

    def send_chunk(self, memory: Tensor, wire_tag: int) -> Once:
        """Begin to send one chunk."""
        if self.links.has_met(self.peer):
            return Once(self.group.send([memory], self.peer, wire_tag))
        return Once(self.links.post(self.peer, lambda: self.group.send([memory], self.peer, wire_tag)))

    def recv_first(self, memory: Tensor) -> Once:
        """Begin to receive a first piece."""
        if self.links.mail is not None:
            return self.links.mail.recv(memory, self.peer, self.first_tag)
        return self._recv(memory, self.first_tag)

    def recv_chunk(self, memory: Tensor, wire_tag: int) -> Once:
        """Begin to receive one chunk."""
        if wire_tag in self._stale:
            self.break_off("a receive that did not match still waits for a message under this number")
            self.require_whole()
        return self._recv(memory, wire_tag)

    def _recv(self, memory: Tensor, wire_tag: int) -> Once:
        if self.links.has_met(self.peer):
            return Once(self.group.recv([memory], self.peer, wire_tag))
        return Once(self.links.post(self.peer, lambda: self.group.recv([memory], self.peer, wire_tag)))

    def leave(self, wire_tag: int, held: object) -> None:
        """Keep memory that was given for a chunk that will not come."""
        self._stale[wire_tag] = held

    def wait(self, work: Once, timeout: timedelta) -> None:
        """Wait for one piece.

        Raises:
            RuntimeError: it did not come.
        """
        if not self.links.wait_for_message(work, timeout):
            raise RuntimeError("the operation was aborted")

    def settle(self, number: int) -> None:
        """First pieces came up to this number: end what was begun before, where nobody waits for it."""
        with self.lock:
            if not self.under_way or self.under_way[0].number >= number:
                return
            earlier = [one for one in self.under_way if one.number < number and one.is_dropped()]
            for one in earlier:
                self.under_way.remove(one)
        for one in earlier:
            one.end_quietly()

    def ended(self, flight: Passage) -> None:
        """A message is through."""
        with self.lock:
            if self.under_way and self.under_way[0] is flight:
                self.under_way.popleft()
                return
            if flight in self.under_way:
                self.under_way.remove(flight)
        self.settle(flight.number)

    def close(self) -> None:
        """Let go of what nobody waits for."""
        for flight in self.under_way:
            if flight.is_dropped():
                flight.let_go()
        self.under_way.clear()
        self._stale.clear()

    def note(self, message: bytearray) -> list[int]:
        """Remember what a transfer described; the numbers of its tensors."""
        try:
            digests, description = unpack_transfer(message)
        except WireError:
            self.described = b""
            raise
        if description:
            self.described = description
        return digests

    def require_whole(self) -> None:
        """Check that receives can go on.

        Raises:
            Refusal: a CollectiveError, an earlier message left the channel out of step.
        """
        if self._broken:
            raise self.refusal(CollectiveError, f": nothing more can be received on this channel: {self._broken}")

    def break_off(self, why: str) -> None:
        """From now on every receive on this channel says why it cannot be."""
        self._broken = self._broken or why

    def refusal(self, kind: type[ParallelTopologyError], why: str, operation: str = "") -> Refusal:
        """`recv on engine/tp[0] from rank 0: ...`"""
        way = "to" if self.sends else "from"
        operation = operation or ("send" if self.sends else "recv")
        return Refusal(kind, f"{operation} on", f" {way} rank {self._rank(self.peer)}{why}")

    def mismatch(self, theirs: Frame, ours: Frame) -> Refusal:
        """What came is not what is received here."""
        here, there = self._rank(self.group.rank()), self._rank(self.peer)
        into = f"into {ours}" if ours.kind in (Kind.TENSOR, Kind.PART, Kind.CHECK) else f"{ours}"
        return Refusal(MismatchError, "recv on", f": rank {there} sends {theirs}, but rank {here} receives {into}")

    def _rank(self, position: int) -> int:
        """A member's global rank."""
        return self.links.ranks[position] if self.links.ranks else position


def gloo_of(links: Links, operation: str) -> Any:
    """The gloo group. Not to be held: whoever drops its last reference waits for what is under way in it.

    Raises:
        Refusal: a ClosedError, there is none any more.
    """
    if (group := links.cpu_group) is None:
        raise Refusal(ClosedError, f"{operation} on", ": its manager was closed")
    return group
