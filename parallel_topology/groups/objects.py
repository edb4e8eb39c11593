"""Objects: plain values between members, over the CPU group, without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.announcement import FAILED, Announcement
from parallel_topology.communicators.channels import Incoming
from parallel_topology.errors import CollectiveError, GroupArgumentError, ParallelTopologyError, WireError
from parallel_topology.groups.bound import nothing
from parallel_topology.groups.collectives import Collectives
from parallel_topology.groups.p2p import PointToPoint
from parallel_topology.topology.whole import quoted, whole
from parallel_topology.wire.classes import by_name
from parallel_topology.wire.frames import CHUNK, COLLECTIVE_TAG, MAX_MESSAGE, Kind
from parallel_topology.wire.structure import bytes_of
from parallel_topology.wire.wire import Class, decode, decode_pickled, encode, encode_pickled

MAX_BYTES = 256 * 2**20
"""The most bytes that an object may take, unless told otherwise: what a peer announces is not allocated unseen."""
_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")


class Objects(Collectives, PointToPoint):
    """The collectives on objects: None, numbers, str, bytes, lists, tuples, dicts, sets, tensors, pydantic models.

    Arguments of all of them:
        models: the pydantic models that may be built from what comes.
        max_bytes: the most that an object may take, encoded.
        unsafe_pickle: send by pickle what nothing else can. Whoever can send to this process may then *run any code* in
            it; all members must say the same.

    Each raises, besides what every collective raises:
        GroupArgumentError: the object cannot be sent, or is too large.
        WireError: what came is no object, is too large, or holds a model that is not in `models`.
        CollectiveError: another member could not send its own.
    """

    def broadcast_object(
        self,
        value: Any = None,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> Any:
        """The source's object, on every member. On the source it is `value` itself.

        Args:
            value: what to send; only the source's matters.
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        if self._is_alone("broadcast_object"):
            return value
        if source == self.rank:
            self._broadcast_mine("broadcast_object", value, max_bytes, unsafe_pickle)
            return value
        models = self._terms("broadcast_object", models, max_bytes, unsafe_pickle)
        announced = self._broadcast_bytes(_NOTHING, source, Announcement(max_bytes))
        return self._told("broadcast_object", announced, source, models, unsafe_pickle)

    def broadcast_objects(
        self,
        values: Iterable[Any] | None = None,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> Iterator[Any]:
        """The source's objects, one after the other, on every member: for loops that one member feeds.

        On the source each of `values` is taken, and sent, when the loop asks for it; within a host it is up to seven
        ahead of the others. The loops end when the values do, on all members. Who leaves it before that is the source:
        then the others' end, too, and if its values raise, theirs raise a CollectiveError.

        Args:
            values: what to send, on the source.
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        if source == self.rank:
            if values is None:
                raise GroupArgumentError(f"broadcast_objects on {self.label}: the source gave no values")
            if not isinstance(values, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise GroupArgumentError(f"broadcast_objects on {self.label}: values={values!r} are no iterable")
            alone = self._is_alone("broadcast_objects")
            return iter(values) if alone else self._feed(values, max_bytes, unsafe_pickle)
        self._is_alone("broadcast_objects")
        models = self._terms("broadcast_objects", models, max_bytes, unsafe_pickle)
        return self._fed(source, models, max_bytes, unsafe_pickle)

    def _feed(self, values: Iterable[Any], max_bytes: int, unsafe_pickle: bool) -> Iterator[Any]:
        taken = iter(values)
        while True:
            try:
                value = next(taken)
            except StopIteration:
                break
            except BaseException:
                self._broadcast_bytes(_NOTHING, self.rank, Announcement(max_bytes, FAILED))
                raise
            self._broadcast_mine("broadcast_objects", value, max_bytes, unsafe_pickle)
            try:
                yield value
            except GeneratorExit:  # at the latest when it is collected, perhaps with the manager
                with suppress(ParallelTopologyError):
                    self._broadcast_bytes(_NOTHING, self.rank, Announcement(max_bytes))
                return
        self._broadcast_bytes(_NOTHING, self.rank, Announcement(max_bytes))

    def _fed(self, source: int, models: Iterable[Class], max_bytes: int, unsafe_pickle: bool) -> Iterator[Any]:
        while True:
            announced = self._broadcast_bytes(_NOTHING, source, Announcement(max_bytes))
            if announced.length == 0:
                return
            yield self._told("broadcast_objects", announced, source, models, unsafe_pickle)

    def all_gather_object(
        self,
        value: Any,
        *,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> list[Any]:
        """The members' objects, in group order; this member's is `value` itself."""
        if self._is_alone("all_gather_object"):
            return [value]
        try:
            models = self._terms("all_gather_object", models, max_bytes, unsafe_pickle)
            message = self._encoded("all_gather_object", value, max_bytes, unsafe_pickle)
        except ParallelTopologyError:
            self.all_gather(_length(FAILED))
            raise
        lengths = [int(length) for length in self.all_gather(_length(len(message)))]
        refusals = [
            self._refusal("all_gather_object", length, max_bytes, member) for member, length in enumerate(lengths)
        ]
        refusal = next((refusal for refusal in refusals if refusal is not None), None)
        found = [bytearray(0) for _ in lengths]
        most = CHUNK // self.size
        for start in range(0, max(lengths), most):  # who refuses takes part all the same
            sizes = [min(max(length - start, 0), most) for length in lengths]
            gathered = bytes_of(self.all_gather_v(message[start : start + most], sizes))
            if refusal is None:
                for end, size, data in zip(accumulate(sizes), sizes, found, strict=True):
                    data += memoryview(gathered)[end - size : end]
        if refusal is not None:
            raise refusal
        return [
            value if member == self.rank else _decoded(data, models, unsafe_pickle) for member, data in enumerate(found)
        ]

    def gather_object(
        self,
        value: Any,
        dst: int | None = None,
        *,
        dst_rank: int | None = None,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> list[Any] | None:
        """On the destination the members' objects, in group order; None on the others, which do not wait for it.

        Args:
            dst: the destination's position in the group; 0 unless either is given.
            dst_rank: or its global rank.
        """
        to = self._peer("dst", dst, dst_rank, 0)
        if self._is_alone("gather_object"):
            return [value]
        if to != self.rank:
            self._send_object("gather_object", value, to, Kind.GATHERED, max_bytes, unsafe_pickle)
            return None
        models = self._terms("gather_object", models, max_bytes, unsafe_pickle)
        begun = {
            member: self._recv_frame("gather_object", member, Kind.GATHERED, max_bytes, async_op=True)
            for member in range(self.size)
            if member != self.rank
        }
        found: list[Any] = []
        failed: ParallelTopologyError | None = None
        for member in range(self.size):
            try:  # one that is refused must not keep the others' from being received
                mine = member == self.rank
                found.append(value if mine else _decoded(begun[member].wait(), models, unsafe_pickle))
            except ParallelTopologyError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return found

    def scatter_object(
        self,
        values: Sequence[Any] | None = None,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> Any:
        """The object that the source has for this member. On the source it is `values[rank]` itself.

        Args:
            values: on the source, an object for each member, in group order.
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        if not self._is_alone("scatter_object") and source != self.rank:
            models = self._terms("scatter_object", models, max_bytes, unsafe_pickle)
            data = self._recv_frame("scatter_object", source, Kind.SCATTERED, max_bytes)
            return _decoded(data, models, unsafe_pickle)
        others = [member for member in range(self.size) if member != self.rank]
        try:
            if not isinstance(values, Sequence) or len(values) != self.size:
                given = len(values) if isinstance(values, Sequence) else f"{quoted(values)} as"
                raise GroupArgumentError(f"scatter_object on {self.label}: {given} values, expected {self.size}")
            messages = [self._encoded("scatter_object", values[member], max_bytes, unsafe_pickle) for member in others]
        except ParallelTopologyError:
            for member in others:
                self._send_frame(Kind.SCATTERED, member, _NOTHING, failed=True)
            raise
        begun = [self._send_frame(Kind.SCATTERED, *to, async_op=True) for to in zip(others, messages, strict=True)]
        for sent in begun:
            sent.wait()
        return values[self.rank]

    def send_object(
        self,
        value: Any,
        dst: int | None = None,
        *,
        dst_rank: int | None = None,
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> None:
        """Send an object to another member: to `next_rank` unless told otherwise.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
        """
        peer = self._other("send_object", self._peer("dst", dst, dst_rank, self.rank + 1))
        self._send_object("send_object", value, peer, Kind.OBJECT, max_bytes, unsafe_pickle)

    def recv_object(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        models: Iterable[Class] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> Any:
        """Receive an object: from `prev_rank` unless told otherwise.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
        """
        peer = self._other("recv_object", self._peer("src", src, src_rank, self.rank - 1))
        models = self._terms("recv_object", models, max_bytes, unsafe_pickle)
        data = self._recv_frame("recv_object", peer, Kind.OBJECT, max_bytes)
        return _decoded(data, models, unsafe_pickle)

    def _send_object(
        self, operation: str, value: Any, peer: int, kind: Kind, max_bytes: int, unsafe_pickle: bool
    ) -> None:
        try:
            message = self._encoded(operation, value, max_bytes, unsafe_pickle)
        except ParallelTopologyError:
            self._send_frame(kind, peer, _NOTHING, failed=True)
            raise
        self._send_frame(kind, peer, message)

    def _broadcast_mine(self, operation: str, value: Any, max_bytes: int, unsafe_pickle: bool) -> None:
        try:
            message = self._encoded(operation, value, max_bytes, unsafe_pickle)
        except ParallelTopologyError:
            self._broadcast_bytes(_NOTHING, self.rank, Announcement(max_bytes, FAILED))
            raise
        self._broadcast_bytes(message, self.rank, Announcement(max_bytes, len(message)))

    def _broadcast_bytes(self, message: Tensor, source: int, announcement: Announcement) -> Announcement:
        self._issue("broadcast_message", message, nothing, False, src=source, announcement=announcement)
        return announcement

    def _told(
        self, operation: str, announced: Announcement, source: int, models: Iterable[Class], unsafe_pickle: bool
    ) -> Any:
        """What came.

        Raises:
            WireError: it is refused, or is no object.
        """
        if (refusal := self._refusal(operation, announced.length, announced.max_bytes, source)) is not None:
            raise refusal
        return _decoded(announced.data, models, unsafe_pickle)

    def _send_frame(self, kind: Kind, peer: int, message: Tensor, *, async_op: bool = False, **said: Any) -> Any:
        tag = {} if kind == Kind.OBJECT else {"tag": COLLECTIVE_TAG}
        return self._issue("send_message", message, nothing, async_op, dst=peer, kind=kind, **tag, **said)

    def _recv_frame(self, operation: str, peer: int, kind: Kind, max_bytes: int, *, async_op: bool = False) -> Any:
        """What came, in whole, or a handle on it."""
        incoming = Incoming(operation, max_bytes)
        tag = {} if kind == Kind.OBJECT else {"tag": COLLECTIVE_TAG}

        def finish() -> bytearray:
            if incoming.frame.failed:
                raise self._failed(operation, peer)
            return incoming.data

        return self._issue("recv_message", _NOTHING, finish, async_op, src=peer, kind=kind, incoming=incoming, **tag)

    def _terms(self, operation: str, models: Iterable[Class], max_bytes: int, unsafe_pickle: bool) -> tuple[Class, ...]:
        """The models that may be built, if these are terms on which an object can be sent and taken.

        Raises:
            GroupArgumentError: they are none; nothing has been sent or received.
        """
        if models == () and max_bytes is MAX_BYTES and unsafe_pickle is False:
            return ()  # most often
        self._flag(operation, "unsafe_pickle", unsafe_pickle)
        if whole(max_bytes) is None:
            raise GroupArgumentError(
                f"{operation} on {self.label}: max_bytes={quoted(max_bytes)}; expected a whole number of bytes"
            )
        try:
            return tuple(by_name(models).values())
        except GroupArgumentError as error:
            raise GroupArgumentError(f"{operation} on {self.label}: {error}") from None

    def _encoded(self, operation: str, value: Any, max_bytes: int, unsafe_pickle: bool) -> Tensor:
        self._terms(operation, (), max_bytes, unsafe_pickle)
        message = bytearray(encode_pickled(value)) if unsafe_pickle else encode(value)
        if len(message) > max_bytes:
            raise GroupArgumentError(
                f"{operation} on {self.label}: the object takes {len(message)} bytes, more than max_bytes={max_bytes}"
            )
        return torch.frombuffer(message, dtype=torch.uint8)

    def _refusal(self, operation: str, length: int, max_bytes: int, member: int) -> WireError | None:
        """Why a message of this length is not taken, which follows all the same.

        Raises:
            CollectiveError: the sender had none; nothing follows.
            WireError: no message is as long; nothing follows.
        """
        if length == FAILED:
            raise self._failed(operation, member)
        if 0 < length <= min(max_bytes, MAX_MESSAGE):
            return None
        refusal = WireError(
            f"{operation} on {self.label} = {self.ranks}: rank {self.ranks[member]} announces {length} bytes, "
            f"expected at most max_bytes={max_bytes}"
        )
        if not 0 < length <= MAX_MESSAGE:
            raise refusal
        return refusal

    def _failed(self, operation: str, member: int) -> CollectiveError:
        return CollectiveError(
            f"{operation} on {self.label} = {self.ranks}: rank {self.ranks[member]} could not send its object; "
            "its own error says why"
        )


def _length(length: int) -> Tensor:
    return torch.tensor([length], dtype=torch.int64, device="cpu")


def _decoded(message: bytearray, models: Iterable[Class], unsafe_pickle: bool) -> Any:
    return decode_pickled(message) if unsafe_pickle else decode(message, models=models)
