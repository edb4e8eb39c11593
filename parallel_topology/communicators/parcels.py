"""Parcels: what is too large for a letter, left in shared memory until who it is for has taken it out.

Each member has an area of its own, which it alone lays out; a byte for each block says whether that is in use. The
receiver clears these when it has read. So nobody waits for anybody: what is sent is sent, in whatever order messages
are received, and what finds no room goes over gloo.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import memmove

from parallel_topology.communicators import futex
from parallel_topology.communicators.host_memory import HostMemory, Region
from parallel_topology.errors import WireError

BLOCK = Region.PARCELS // Region.BLOCKS
"""Bytes of a block."""


class Parcels:
    """One member's area, and those of the others.

    Attributes:
        most: bytes of the largest parcel; the same on all members.
    """

    def __init__(self, memory: HostMemory, family: str, ranks: Sequence[int], rank: int, most: int) -> None:
        """`rank`: this one's position among `ranks`, the members' global ranks."""
        self.most = min(most, Region.PARCELS // 2)
        self._memory = memory
        self._region = memory.regions[family]
        self._ranks = ranks
        self._rank = rank
        self._fence = futex.Fence()
        self._lock = threading.Lock()

    def put(self, address: int, nbytes: int) -> int:
        """Copy so many bytes to where others find them; the place, from 1, or 0 if there is no room."""
        count, shared, (used, blocks) = -(-nbytes // BLOCK), self._memory.bytes, self._area(self._rank)
        with self._lock:
            first = bytes(shared[used : used + Region.BLOCKS]).find(bytes(count))
            if first < 0:
                return 0
            shared[used + first : used + first + count] = b"\1" * count
        self._fence()  # who had them before has read all of it
        memmove(blocks + first * BLOCK, address, nbytes)
        return first + 1

    def take(self, sender: int, place: int, nbytes: int, address: int | None) -> None:
        """Copy what a member put there, or forget it; its place is free then.

        Raises:
            WireError: there is no such place.
        """
        count, (used, blocks) = -(-nbytes // BLOCK), self._area(sender)
        if not (0 < nbytes <= self.most and 0 < place <= Region.BLOCKS - count + 1):
            raise WireError(f"a peer announces {nbytes} bytes at place {place} of {Region.BLOCKS}")
        if address is not None:
            memmove(address, blocks + (place - 1) * BLOCK, nbytes)
        self._fence()
        self._memory.bytes[used + place - 1 : used + place - 1 + count] = bytes(count)

    def _area(self, position: int) -> tuple[int, int]:
        """Where a member's bytes for blocks are in the memory, and the address of its first block."""
        start = self._memory.area(self._ranks[position])
        return start + self._region.used, self._memory.address + start + self._region.parcels
