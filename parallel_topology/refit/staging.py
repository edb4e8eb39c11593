"""Staging: buffers for what cannot be sent or received in place, never more than was allowed.

On the CPU they are in memory without a name that ranks of this host can open: what goes to one of them is read there.
Before the buffers are the slips, on which owner and readers tell each other what is lent.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from parallel_topology.communicators.host_memory import PAGE, Offer, mapped
from parallel_topology.refit.slips import SLIP


class Buffer(NamedTuple):
    """Memory of one message, and its number among the buffers."""

    number: int
    memory: Tensor


class Staging:
    """Buffers of one size, made when they are first needed.

    Attributes:
        taken: the bytes of those that were made.
        offer: where ranks of this host find them; empty where they cannot.
    """

    def __init__(self, nbytes: int, count: int, device: torch.device, *, members: int) -> None:
        """`members`: how many ranks may read them; 0 if none may."""
        self.taken = 0
        self.offer = ""
        self.shared: Shared | None = None
        self._nbytes = nbytes
        self._count = count
        self._device = device
        self._made = 0
        self._free: list[Buffer] = []
        self._offered = Offer() if members else None
        if self._offered is not None and self._offered.text:
            self.shared = opened(self._offered.text, nbytes, count, members)
            self.offer = self._offered.text if self.shared is not None else ""

    def take(self) -> Buffer | None:
        """A buffer, the one that was used last; None while all are in use."""
        if self._free:
            return self._free.pop()
        if self._made == self._count:
            return None
        number, self._made = self._made, self._made + 1
        self.taken += self._nbytes
        if self.shared is None:
            return Buffer(number, torch.empty(self._nbytes, dtype=torch.uint8, device=self._device))
        return Buffer(number, self.shared.buffer(number))

    def put_back(self, buffer: Buffer) -> None:
        self._free.append(buffer)

    def close(self) -> None:
        """It can no longer be found; who has opened it keeps it."""
        if self._offered is not None:
            self._offered.close()


class Shared:
    """One rank's buffers and slips, as this process has them.

    Attributes:
        bytes: all of the memory.
        words: the same in words of 8 bytes.
        address: where it begins.
    """

    def __init__(self, offer: str, nbytes: int, count: int, members: int) -> None:
        """
        Raises:
            OSError, ValueError: it cannot be found from here, or not be mapped.
        """
        self._nbytes = nbytes
        self._buffers = PAGE + -(-members * SLIP // PAGE) * PAGE
        found = mapped(offer, self._buffers + nbytes * count)
        self.bytes = memoryview(found).cast("B")
        self.words = self.bytes.cast("Q")
        self.address = ctypes.addressof(found)
        self._whole = torch.frombuffer(found, dtype=torch.uint8)

    def buffer(self, number: int) -> Tensor:
        """One of the buffers."""
        start = self._buffers + number * self._nbytes
        return self._whole[start : start + self._nbytes]

    @staticmethod
    def slip(member: int) -> int:
        """Where a member's slip begins."""
        return PAGE + member * SLIP


def opened(offer: str, nbytes: int, count: int, members: int) -> Shared | None:
    """Somebody's buffers; None where they cannot be found from here, or not be mapped."""
    try:
        return Shared(offer, nbytes, count, members)
    except (OSError, ValueError):
        return None
