"""Objects: plain values between members, over the CPU group, without pickle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from parallel_topology.errors import CollectiveError, GroupArgumentError, ParallelTopologyError, WireError
from parallel_topology.groups.collectives import Collectives
from parallel_topology.groups.p2p import PointToPoint
from parallel_topology.wire.structure import bytes_of
from parallel_topology.wire.wire import decode, decode_pickled, encode, encode_pickled

MAX_BYTES = 256 * 2**20
"""The most bytes that an object may take, unless told otherwise: what a peer announces is not allocated unseen."""
_FAILED = -1
"""Sent instead of a length by who could not encode its object, so that the others need not wait for it."""


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
        models: Iterable[type[BaseModel]] = (),
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
            try:
                message = self._encoded("broadcast_object", value, max_bytes, unsafe_pickle)
            except ParallelTopologyError:
                self.broadcast(_length(_FAILED), source)
                raise
            self.broadcast(_length(len(message)), source)
            self.broadcast(message, source)
            return value
        length = int(self.broadcast(_length(0), source))
        self._require_length("broadcast_object", length, max_bytes, source)
        message = bytearray(length)
        self.broadcast(torch.frombuffer(message, dtype=torch.uint8), source)
        return _decoded(message, models, unsafe_pickle)

    def all_gather_object(
        self,
        value: Any,
        *,
        models: Iterable[type[BaseModel]] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> list[Any]:
        """The members' objects, in group order; this member's is `value` itself."""
        if self._is_alone("all_gather_object"):
            return [value]
        try:
            message = self._encoded("all_gather_object", value, max_bytes, unsafe_pickle)
        except ParallelTopologyError:
            self.all_gather(_length(_FAILED))
            raise
        lengths = [int(length) for length in self.all_gather(_length(len(message)))]
        for member, length in enumerate(lengths):
            self._require_length("all_gather_object", length, max_bytes, member)
        gathered = self.all_gather_v(message, lengths)
        values: list[Any] = []
        for member, length in enumerate(lengths):
            part = gathered.narrow(0, sum(lengths[:member]), length)
            values.append(value if member == self.rank else _decoded(bytes_of(part), models, unsafe_pickle))
        return values

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
        try:
            message = self._encoded("send_object", value, max_bytes, unsafe_pickle)
        except ParallelTopologyError:
            self.send(_length(_FAILED), peer)
            raise
        self.send(_length(len(message)), peer)
        self.send(message, peer)

    def recv_object(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        models: Iterable[type[BaseModel]] = (),
        max_bytes: int = MAX_BYTES,
        unsafe_pickle: bool = False,
    ) -> Any:
        """Receive an object: from `prev_rank` unless told otherwise.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
        """
        peer = self._other("recv_object", self._peer("src", src, src_rank, self.rank - 1))
        length = int(self.recv(_length(0), peer))
        self._require_length("recv_object", length, max_bytes, peer)
        message = bytearray(length)
        self.recv(torch.frombuffer(message, dtype=torch.uint8), peer)
        return _decoded(message, models, unsafe_pickle)

    def _encoded(self, operation: str, value: Any, max_bytes: int, unsafe_pickle: bool) -> Tensor:
        message = bytearray(encode_pickled(value)) if unsafe_pickle else encode(value)
        if len(message) > max_bytes:
            raise GroupArgumentError(
                f"{operation} on {self.label}: the object takes {len(message)} bytes, more than max_bytes={max_bytes}"
            )
        return torch.frombuffer(message, dtype=torch.uint8)

    def _require_length(self, operation: str, length: int, max_bytes: int, member: int) -> None:
        if length == _FAILED:
            raise CollectiveError(
                f"{operation} on {self.label} = {self.ranks}: rank {self.ranks[member]} could not send its object; "
                "its own error says why"
            )
        if not 0 < length <= max_bytes:
            raise WireError(
                f"{operation} on {self.label} = {self.ranks}: rank {self.ranks[member]} announces {length} bytes, "
                f"expected at most max_bytes={max_bytes}"
            )


def _length(length: int) -> Tensor:
    return torch.tensor([length], dtype=torch.int64, device="cpu")


def _decoded(message: bytearray, models: Iterable[type[BaseModel]], unsafe_pickle: bool) -> Any:
    return decode_pickled(message) if unsafe_pickle else decode(message, models=models)
