"""Membership: what a communicator is told of the group that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from parallel_topology.communicators.communicator import Communicator
from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.host_memory import HostMemory
from parallel_topology.communicators.links import Links


@dataclass(frozen=True)
class Membership:
    """What a communicator's factory is told.

    Attributes:
        label: the group's name among all managers, `engine/tp[1]`.
        ranks: the members' global ranks, in group order.
        rank: this member's position.
        device: where the manager's tensors are.
        links: the group's process groups; `cpu_group` is there to exchange what a connection needs.
        options: the group's.
        family: the group's name on all ranks, `tp`.
        memory: what the ranks of this host share, if they do.
        hosts: each rank's host, numbered.
        sharing: ranks that share memory with all others of this manager on their hosts.
    """

    label: str
    ranks: Sequence[int]
    rank: int
    device: torch.device
    links: Links
    options: GroupOptions
    family: str = ""
    memory: HostMemory | None = None
    hosts: Mapping[int, int] = field(default_factory=dict[int, int])
    sharing: Collection[int] = ()

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.ranks)


Factory = Callable[[Membership], Communicator]
"""Makes a communicator for one group; all members call it at the same time.

Raises `BackendError` where it cannot work.
"""
