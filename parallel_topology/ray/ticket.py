"""Ticket: what an actor is handed to become a rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from parallel_topology.errors import DeadRankError
from parallel_topology.groups.manager import GroupManager
from parallel_topology.meeting.creation import choose_backend
from parallel_topology.meeting.rendezvous import join_store
from parallel_topology.ray.calls import own_worker, require_ray, restarted
from parallel_topology.topology.topology import ParallelTopology


@dataclass(frozen=True)
class Ticket:
    """One actor's part in an engine: which rank it is, of what, and where the others are met. A value to be sent.

    Attributes:
        topology: of the engine.
        rank: the actor's global rank.
        local_rank: among the engine's ranks on the actor's node.
        name: of the engine, and of its managers.
        meeting: host and port of the store; None for an engine of one rank.
        timeout: seconds the manager waits for its peers.
        token: the secret that the engine's ranks share.
        worker: Ray's id of the process that it is for; empty where any may use it.
    """

    topology: ParallelTopology
    rank: int
    local_rank: int
    name: str
    meeting: tuple[str, int] | None
    timeout: float
    token: str = field(repr=False)
    worker: str = ""

    def join(self, **options: Any) -> GroupManager:
        """The manager of this rank; every rank of the engine joins, each in its actor. Collective, as creation is.

        With NCCL the device is the GPU that Ray gave the actor, `cuda:0` as a rule whatever the local rank: Ray hides
        the others.

        With `joining=True` a new actor takes a place in the engine, with a ticket of any actor of it, such as one that
        has died: it gets topology and rank from those that are there, when they `rebind`.

        Args:
            options: as for `GroupManager`; what the ticket says is the default.

        Raises:
            DeadRankError: the actor was restarted since the engine was made; at once.
            ParallelTopologyError: what `GroupManager` raises.
        """
        joining = bool(options.get("joining"))
        if self.worker and not joining and (worker := own_worker()) != self.worker:
            raise DeadRankError(f"{self.name}, rank {self.rank}: {restarted(self.worker, worker)}")
        if choose_backend(options.get("backend")) == "nccl" and (gpus := require_ray().get_gpu_ids()):
            options.setdefault("device", f"cuda:{device_index(gpus, os.environ.get('CUDA_VISIBLE_DEVICES'))}")
        options = {"name": self.name, "timeout": self.timeout, "token": self.token, **options}
        store = partial(join_store, *self.meeting) if self.meeting else None
        if joining:
            return GroupManager(store=store, **options)
        options.setdefault("local_rank", self.local_rank)
        return GroupManager(self.topology, rank=self.rank, store=store, **options)


def device_index(gpus: Sequence[int | str], visible: str | None) -> int:
    """CUDA's number for the first of the GPUs that Ray gave an actor.

    Args:
        gpus: Ray's ids.
        visible: the actor's `CUDA_VISIBLE_DEVICES`. Ray sets it to the actor's own GPUs, and leaves it alone where
            `RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES` is set.
    """
    shown = visible.split(",") if visible else []
    first = str(gpus[0])
    if first in shown:
        return shown.index(first)
    return int(first) if first.isdigit() and not shown else 0
