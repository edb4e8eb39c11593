"""TwoLevelCommunicator: small collectives of groups on several hosts, through memory in each, over gloo between them.

The first member on each host speaks for it. These send each other what their hosts have, reduce it in the order of
hosts, so that all come to the same, and pass it on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators.announcement import Announcement
from parallel_topology.communicators.channels import channels_of
from parallel_topology.communicators.communicator import Communicator, Work, remaining, wait_for, within
from parallel_topology.communicators.host_memory import MOST, SLOT_BYTES
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.shared_memory import REDUCED, SharedMemoryCommunicator, reduce_into
from parallel_topology.communicators.torch_communicator import TorchCommunicator, broadcast_in_chunks
from parallel_topology.communicators.turns import Turns
from parallel_topology.errors import BackendError
from parallel_topology.wire.frames import LEVELS_TAG, Kind

MOST_HOSTS = 16
"""The first member on each host sends to those on all others."""
_CARRIED = ("all_reduce", "barrier", "broadcast", "broadcast_message")


class TwoLevelCommunicator(Communicator):
    """All-reduce, barrier, and broadcast of tensors and objects; other collectives, and what is large, are torch's."""

    name = "two_levels"

    def __init__(self, membership: Membership) -> None:
        if (why := why_not(membership)) is not None:
            raise BackendError(f"communicator 'two_levels' of {membership.label}: {why}")
        hosts = _members_by_host(membership)
        self._firsts = [members[0] for members in hosts]
        self._host = {member: number for number, members in enumerate(hosts) for member in members}
        self._places = {member: place for members in hosts for place, member in enumerate(members)}
        self._rank = membership.rank
        self._size = membership.size
        self._links = membership.links
        here = hosts[self._host[self._rank]]
        self._inside: SharedMemoryCommunicator | None = None
        if len(here) > 1:
            ranks = [membership.ranks[member] for member in here]
            self._inside = SharedMemoryCommunicator(replace(membership, ranks=ranks, rank=self._places[self._rank]))
        self._torch = TorchCommunicator(membership.links, membership.device, membership.size, membership.rank)
        self._turns = Turns()

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return tensor.is_cpu and operation in _CARRIED and (operation != "all_reduce" or tensor.dtype in REDUCED)

    def issue(self, operation: str, tensor: Tensor, *, async_op: bool, **arguments: Any) -> Work | None:
        if operation != "broadcast_message" and tensor.nbytes > SLOT_BYTES:
            how = {"async_op": async_op, **arguments}
            return self._turns.take(lambda: self._torch.issue(operation, tensor, **how), here=True)
        method = getattr(self, operation)
        return self._turns.take(lambda: method(tensor, async_op=async_op, **arguments), here=not async_op)

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> None:
        until = within(self._links.timeout)
        if self._inside is not None:
            inner = dist.ReduceOp.SUM if op == dist.ReduceOp.AVG else op
            self._inside.reduce(tensor, op=inner, dst=0, async_op=False)
        if self._speaks:
            with self._telling():
                self._exchange(tensor, op, until)
        if self._inside is not None:
            self._inside.broadcast(tensor, src=0, async_op=False)

    def barrier(self, tensor: Tensor, *, async_op: bool) -> None:
        self.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=async_op)

    def broadcast(self, tensor: Tensor, *, src: int, async_op: bool) -> None:
        until, speaker = within(self._links.timeout), self._firsts[self._host[src]]
        is_source_here = self._host[src] == self._host[self._rank]
        if is_source_here and self._inside is not None:
            self._inside.broadcast(tensor, src=self._places[src], async_op=False)
        if self._speaks:
            channels = channels_of(self._links)
            with self._telling():
                if self._rank == speaker:
                    others = [first for first in self._firsts if first != self._rank]
                    works = [channels.send(tensor, first, Kind.TENSOR, tag=LEVELS_TAG) for first in others]
                else:
                    works = [channels.recv(tensor, speaker, Kind.TENSOR, tag=LEVELS_TAG)]
                for work in works:
                    work.wait(*_left(until))
        if not is_source_here and self._inside is not None:
            self._inside.broadcast(tensor, src=0, async_op=False)

    def broadcast_message(self, tensor: Tensor, *, src: int, announcement: Announcement, async_op: bool) -> None:
        broadcast_in_chunks(self._broadcast_any, self._rank, tensor, src, announcement)

    def fail(self, why: str) -> None:
        if self._inside is not None:
            self._inside.fail(why)

    def close(self, *, abort: bool) -> None:
        if self._inside is not None:
            self._inside.close(abort=abort)

    @property
    def _speaks(self) -> bool:
        return self._places[self._rank] == 0

    @contextmanager
    def _telling(self) -> Generator[None]:
        """Those who wait for this member on its host are told if it fails."""
        try:
            yield
        except BaseException as error:
            self.fail(f"an earlier operation failed here, between hosts: {type(error).__name__}")
            raise

    def _broadcast_any(self, tensor: Tensor, src: int) -> None:
        if tensor.nbytes > SLOT_BYTES:
            wait_for(self._torch.issue("broadcast", tensor, src=src, async_op=False))
        else:
            self.broadcast(tensor, src=src, async_op=False)

    def _exchange(self, tensor: Tensor, op: Any, until: float | None) -> None:
        """What each host has, reduced by all who speak for one."""
        channels, mine = channels_of(self._links), tensor.clone()
        parts = {first: mine if first == self._rank else torch.empty_like(mine) for first in self._firsts}
        others = [first for first in self._firsts if first != self._rank]
        sent = [channels.send(mine, first, Kind.TENSOR, tag=LEVELS_TAG) for first in others]
        come = [channels.recv(parts[first], first, Kind.TENSOR, tag=LEVELS_TAG) for first in others]
        for work in (*come, *sent):
            work.wait(*_left(until))
        reduce_into(tensor, list(parts.values()), op, self._size)


def why_not(membership: Membership) -> str | None:
    """Why a group cannot have two levels, equal on all members; None if it can."""
    hosts = _members_by_host(membership)
    if not 1 < len(hosts) <= MOST_HOSTS:
        return f"its ranks {membership.ranks} are on {len(hosts)} hosts, expected 2 to {MOST_HOSTS}"
    several = [membership.ranks[members[0]] for members in hosts if len(members) > 1]
    if not several:
        return f"each of its ranks {membership.ranks} is on a host of its own"
    there = Counter(membership.hosts.values())
    if most := [rank for rank in several if min(membership.size, there[membership.hosts[rank]]) > MOST]:
        return f"the host of rank {most[0]} has more than {MOST} ranks"
    if lacking := [rank for rank in several if rank not in membership.sharing]:
        return f"the ranks on the host of rank {lacking[0]} share no memory"
    return None


def _members_by_host(membership: Membership) -> list[list[int]]:
    """The members' positions, for each host."""
    found: dict[int, list[int]] = {}
    for position, rank in enumerate(membership.ranks):
        found.setdefault(membership.hosts.get(rank, 0), []).append(position)
    return list(found.values())


def _left(until: float | None) -> tuple[Any, ...]:
    left = remaining(until)
    return () if left is None else (left,)
