"""Staging: buffers for what cannot be sent or received in place, never more than was allowed.

On the CPU they are in memory without a name that ranks of this host can open: what goes to one of them is read there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from parallel_topology.communicators.host_memory import PAGE, Offer, mapped


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

    def __init__(self, nbytes: int, count: int, device: torch.device, *, shared: bool) -> None:
        self.taken = 0
        self.offer = ""
        self._nbytes = nbytes
        self._count = count
        self._device = device
        self._made = 0
        self._free: list[Buffer] = []
        self._whole: Tensor | None = None
        self._offered = Offer() if shared else None
        if self._offered is not None and self._offered.text:
            self._whole = opened(self._offered.text, nbytes, count)
            self.offer = self._offered.text if self._whole is not None else ""

    def take(self) -> Buffer | None:
        """A buffer, the one that was used last; None while all are in use."""
        if self._free:
            return self._free.pop()
        if self._made == self._count:
            return None
        number, self._made = self._made, self._made + 1
        self.taken += self._nbytes
        if self._whole is None:
            return Buffer(number, torch.empty(self._nbytes, dtype=torch.uint8, device=self._device))
        return Buffer(number, part(self._whole, number, self._nbytes))

    def put_back(self, buffer: Buffer) -> None:
        self._free.append(buffer)

    def close(self) -> None:
        """It can no longer be found; who has opened it keeps it."""
        if self._offered is not None:
            self._offered.close()


def opened(offer: str, nbytes: int, count: int) -> Tensor | None:
    """The memory of somebody's buffers; None where it cannot be found from here, or not be mapped."""
    try:
        return torch.frombuffer(mapped(offer, PAGE + nbytes * count), dtype=torch.uint8)
    except (OSError, ValueError):
        return None


def part(whole: Tensor, number: int, nbytes: int) -> Tensor:
    """One buffer of them."""
    return whole[PAGE + number * nbytes : PAGE + (number + 1) * nbytes]
