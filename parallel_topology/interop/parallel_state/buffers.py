"""Memory that is asked for by name again and again, as Megatron's GlobalMemoryBuffer: one for each manager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import Tensor


class Buffers:
    """Tensors by name and dtype, each as large as the largest that was asked for. On the manager's device."""

    def __init__(self, device: torch.device) -> None:
        self.buffer: dict[tuple[str, torch.dtype], Tensor] = {}
        self._device = device

    def get_tensor(
        self,
        tensor_shape: Sequence[int],
        dtype: torch.dtype,
        name: str,
        mem_alloc_context: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> Tensor:
        """Memory of this name, of that shape; what it holds is whatever was written there last."""
        size = prod(tensor_shape)
        found = self.buffer.get((name, dtype))
        if found is None or found.numel() < size:
            with (mem_alloc_context or nullcontext)():
                found = torch.empty(size, dtype=dtype, device=self._device, requires_grad=False)
            self.buffer[name, dtype] = found
        return found[:size].view(*tensor_shape)
