"""Memory of the host that one rank, of ranks that are threads, cannot find."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import pytest

from parallel_topology.communicators import host_memory


def hidden_from(rank: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    """Hide it from this one; each thread calls the result with its own rank."""
    opened, here = host_memory._opened, ContextVar[int]("here")

    def found(text: str) -> int:
        if here.get() == rank:
            raise PermissionError("another namespace")
        return opened(text)

    monkeypatch.setattr(host_memory, "_opened", found)
    return here.set
