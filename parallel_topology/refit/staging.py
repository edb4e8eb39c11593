"""Staging: buffers for what cannot be sent or received in place, never more than was allowed."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Buffers of one size, made when they are first needed.

    Attributes:
        taken: the bytes of those that were made.
    """

    def __init__(self, nbytes: int, count: int, device: torch.device) -> None:
        self.taken = 0
        self._nbytes = nbytes
        self._left = count
        self._device = device
        self._free: list[Tensor] = []

    def take(self) -> Tensor | None:
        """A buffer; None while all are in use."""
        if self._free:
            return self._free.pop()
        if not self._left:
            return None
        self._left -= 1
        self.taken += self._nbytes
        return torch.empty(self._nbytes, dtype=torch.uint8, device=self._device)

    def put_back(self, buffer: Tensor) -> None:
        self._free.append(buffer)
