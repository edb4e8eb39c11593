"""Pieces: memory of the first piece of a message, its header and what travels behind it."""

from __future__ import annotations

from ctypes import memmove

import torch
from torch import Tensor

from parallel_topology.communicators.waiting import Once
from parallel_topology.wire.frames import HEADER, INLINE, PIECE, inline

_KEPT = 16
"""Pieces that are kept to be used again."""


class Piece:
    """One piece, `bytearray` and tensor in one.

    Bytes are copied by address: a view, a slice and a copy of torch's take longer than gloo takes for a small message.
    """

    __slots__ = ("_address", "_behind", "_part", "memory", "whole", "work")

    def __init__(self) -> None:
        self.memory = bytearray(PIECE)
        self.whole = self._part = torch.frombuffer(self.memory, dtype=torch.uint8)
        self._behind = INLINE
        self.work: Once | None = None
        self._address = self.whole.data_ptr()

    def filled(self, header: bytes, tensor: Tensor, nbytes: int) -> Tensor:
        """Write a header and the last bytes of a contiguous CPU tensor of `nbytes`; what is to be sent."""
        self.memory[:HEADER] = header
        behind = nbytes if nbytes <= INLINE else inline(nbytes)
        if behind:
            memmove(self._address + HEADER, tensor.data_ptr() + nbytes - behind, behind)
        if behind != self._behind:  # most messages are of the size of the last one
            self._part = torch.frombuffer(self.memory, dtype=torch.uint8, count=HEADER + behind)
            self._behind = behind
        return self._part

    def copy_into(self, tensor: Tensor, nbytes: int) -> None:
        """Copy what came behind the header to where it belongs, the end of a contiguous CPU tensor."""
        behind = nbytes if nbytes <= INLINE else inline(nbytes)
        if behind:
            memmove(tensor.data_ptr() + nbytes - behind, self._address + HEADER, behind)


class Pieces:
    """Those that nothing is under way in."""

    __slots__ = ("_closed", "_free")

    def __init__(self) -> None:
        self._free: list[Piece] = []
        self._closed = False

    def take(self) -> Piece:
        """One for any message."""
        try:
            return self._free.pop()
        except IndexError:
            return Piece()

    def put_back(self, piece: Piece, work: Once | None) -> None:
        """Let it be used again, after its `work`: gloo has let go of it when the wait for that has returned.

        The work is kept with it. Whoever drops it at once waits for gloo's thread, which has only just ended it.
        """
        if not self._closed and len(self._free) < _KEPT:
            piece.work = work
            self._free.append(piece)

    def close(self) -> None:
        """Keep nothing: work holds the group's connections."""
        self._closed = True
        self._free.clear()
