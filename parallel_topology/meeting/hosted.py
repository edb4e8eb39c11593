"""Hosted: a store that this process runs for a manager, whose port is free as soon as it is closed."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist

from parallel_topology.communicators.forked import leave_to_parent


class Hosted:
    """The one reference to a store's server: whoever uses the store has a client of its own.

    Attributes:
        server: None once it is closed.
    """

    def __init__(self, server: dist.TCPStore) -> None:
        self.server: dist.TCPStore | None = server
        leave_to_parent(self)

    def close(self) -> None:
        """Stop to serve."""
        self.server = None

    def held(self) -> Iterator[object]:
        """What a forked child must leave alone."""
        yield self.server

    def forked(self) -> None:
        """Nothing more: the child has its own copy of this object."""
