"""Starts: which keys of a store that outlives its ranks belong to the present ones.

torchrun's agents keep one store over all restarts of their workers (torch 2.13: dynamic_rendezvous.py caches it), and
nothing in a worker's environment numbers the starts: each agent counts its own failures in TORCHELASTIC_RESTART_COUNT,
so after the first failure on one of two hosts that host's workers read 1 and the other's read 0.

So the first rank opens each start under a name that nobody used before, and closes the one before; the others take the
newest. That may still be an earlier one, which they learn: it is full, or the first rank, opening the next, closes it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import torch.distributed as dist

from parallel_topology.errors import GroupTimeoutError, RendezvousError
from parallel_topology.meeting.agreement import wait_for
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line


@dataclass(frozen=True)
class Start:
    """One rank's search for the present start; every process of an earlier one has to be gone.

    Attributes:
        store: kept by torchrun's agent.
        world: the ranks that are to come.
        rank: this one.
        timeout: seconds.
    """

    store: dist.Store
    world: Ranks
    rank: int
    timeout: float

    def keys(self) -> dist.Store:
        """The part of the store that is this start's own; see `name`."""
        return dist.PrefixStore(f"{self.name()}/keys", self.store)

    def name(self) -> str:
        """Equal on all ranks of this start, and no other's.

        Raises:
            GroupTimeoutError: not all ranks came in time; names them.
            RendezvousError: the store failed.
        """
        deadline = time.monotonic() + self.timeout
        try:
            return self._open(deadline) if self.rank == self._first else self._find(deadline)
        except STORE_ERRORS as error:
            raise RendezvousError(
                f"the store failed while rank {self.rank} looked for the others: {first_line(error)}"
            ) from error

    @property
    def _first(self) -> int:
        return min(self.world)

    @property
    def _newest(self) -> str:
        return f"newest@{self._first}"  # by the first rank, as in the agreement that follows

    def _open(self, deadline: float) -> str:
        name = f"{secrets.token_hex(8)}/{len(self.world) - 1}"
        former = self.store.get(self._newest).decode() if self.store.check([self._newest]) else None
        self.store.set(self._newest, name)
        if former is not None:
            self.store.compare_set(f"{former}/state", "", "over")
            self.store.set(f"{former}/next", name)
        self._wait(f"{name}/all", name, deadline)
        self.store.set(f"{name}/state", "complete")  # by the first rank alone: in an earlier start nobody is it
        return name

    def _find(self, deadline: float) -> str:
        name = self._wait(self._newest, None, deadline)
        while True:
            others = int(name.rpartition("/")[2])  # as many as the first rank waits for
            self.store.set(f"{name}/came/{self.rank}", "")
            count = self.store.add(f"{name}/count", 1)
            if count == others:
                self.store.set(f"{name}/all", "")
            if count <= others and self._wait(f"{name}/state", name, deadline) == "complete":
                return name
            name = self._wait(f"{name}/next", None, deadline)

    def _wait(self, key: str, name: str | None, deadline: float) -> str:
        """The value of a key when it is there; `name` is the start in which ranks come, if others may be missing."""
        if wait_for(self.store, key, deadline):
            return self.store.get(key).decode()
        absent = [self._first]
        if name is not None:
            came = {rank for rank in self.world if self.store.check([f"{name}/came/{rank}"])}
            absent = [rank for rank in self.world if rank not in came and rank != self._first] or absent
        raise GroupTimeoutError(
            f"{shown_ranks(absent)} did not come within {self.timeout:g} s; rank {self.rank} waited at the store of "
            "torchrun's agent"
        )
