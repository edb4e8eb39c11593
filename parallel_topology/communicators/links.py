"""Links: what one set of ranks communicates over, shared by all groups of a manager that have these ranks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.communicator import Communicator

_c10d: Any = dist  # its functions are not typed


class Witness(Protocol):
    """Asked who was where when an operation fails: `meeting.witness`."""

    def report(self, group: str, ranks: Sequence[int], operation: str) -> str: ...


def holds_capture(graph: Any) -> bool:
    """Whether a `torch.cuda.CUDAGraph` has captured something, and was not reset since."""
    try:
        graph.pool()
    except RuntimeError:  # it says so where there is nothing
        return False
    return True


def _order() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int8)


@dataclass
class Links:
    """The process groups and communicators of one set of ranks.

    Attributes:
        device_group: for tensors on the manager's device; None in a group of one rank, which needs none.
        cpu_group: gloo, for CPU tensors and control; the same object as `device_group` when that is gloo.
        communicators: asked in this order who carries a call out; the last one is torch's.
        label: the name under which they were created.
        ranks: the members' global ranks, in group order.
        timeout: how long operations wait.
        witness: asked who was where when an operation fails.
        order: what compiled code says each operation changes, so that none goes before another; one for a manager.
        graphs: CUDA graphs that were captured with these, as far as they are alive.
        process: the process that made them; a forked child has no part in their connections.
        closed: by the manager; nothing may use these any more.
        channels: messages between members, `communicators.channels`.
    """

    device_group: dist.ProcessGroup | None = None
    cpu_group: dist.ProcessGroup | None = None
    communicators: tuple[Communicator, ...] = ()
    label: str = ""
    ranks: Sequence[int] = ()
    timeout: timedelta = timedelta()
    witness: Witness | None = None
    order: torch.Tensor = field(default_factory=_order)
    graphs: list[weakref.ref[Any]] = field(default_factory=list[weakref.ref[Any]])
    process: int = field(default_factory=os.getpid)
    closed: bool = False
    channels: Any = None

    def live_graphs(self) -> int:
        """How many of the CUDA graphs are alive, and were not reset."""
        return sum(graph is not None and holds_capture(graph) for graph in (known() for known in self.graphs))

    def taken(self) -> list[dist.ProcessGroup]:
        """The process groups, each once, which are nobody's here from now on."""
        self.closed = True
        groups = self._distinct()
        self.device_group = self.cpu_group = None
        return groups

    def start_gather(self, number: torch.Tensor) -> Callable[[], list[int]]:
        """Begin to gather one number from each member over the CPU group; call the result to wait for all of them."""
        numbers = [torch.empty_like(number) for _ in range(_c10d.get_world_size(self.cpu_group))]
        work = _c10d.all_gather(numbers, number, group=self.cpu_group, async_op=True)

        def finish() -> list[int]:
            work.wait()
            return [int(one) for one in numbers]

        return finish

    def set_timeout(self, timeout: timedelta) -> None:
        """How long operations wait from now on."""
        self.timeout = timeout
        for group in self._distinct():
            torch_private.set_timeout(group, timeout)

    def _distinct(self) -> list[dist.ProcessGroup]:
        """The process groups, each once: with gloo, device and CPU group are the same object."""
        groups = {id(group): group for group in (self.device_group, self.cpu_group) if group is not None}
        return list(groups.values())
