"""Process groups for code that insists on one, also where a rank is alone and a manager has none."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.errors import ClosedError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager


class ProcessGroups:
    """A manager's process groups by their ranks, and one for a rank that is alone.

    Given None, torch communicates over the whole default group, so code that takes a process group needs one for a
    group of one rank too. That one is made by hand: it connects to nobody, torch's registry does not know it, and it
    ends with the last reference to it.

    Raises:
        ClosedError: the manager was closed.
    """

    def __init__(self, groups: GroupManager) -> None:
        if groups.closed:
            raise ClosedError(f"{groups.name} was closed, and its process groups with it")
        self._groups = groups
        topology = groups.topology
        self._shared = [  # without those that are isolated, which run beside other collectives of the same ranks
            groups[family.name]
            for family in groups.plan.families.values()
            if family.name in ("world", topology.group_name(*family.axes))
        ]

    def along(self, *axes: str) -> dist.ProcessGroup:
        """The process group with the ranks of `groups[axes]`, which an axis of size 1 among the axes does not change.

        Raises:
            UnknownAxisError: an axis is not there, or no group has these ranks; says what to declare.
        """
        return self.group(*axes).device_group or self.alone

    def group(self, *axes: str) -> ParallelGroup:
        """The group with these ranks, as `along` finds it."""
        ranks = self._groups.topology.group(*axes, rank=self._groups.rank)
        return next((group for group in self._shared if group.ranks == ranks), None) or self._groups[axes]

    @cached_property
    def alone(self) -> dist.ProcessGroup:
        """A process group of this rank only."""
        store = dist.HashStore()
        device = torch_private.gloo_device(hostname="127.0.0.1")
        gloo = torch_private.gloo_backend(store, 0, 1, timedelta(minutes=1), device)
        name = f"{self._groups.name}/alone"
        backends = dict.fromkeys({"cpu", self._groups.device.type}, gloo)
        return torch_private.new_process_group(store, 0, 1, description=name, key=name, kind="gloo", backends=backends)
