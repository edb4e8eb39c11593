"""ParallelGroup: one of a manager's groups as this rank sees it, with collectives."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.errors import (
    ClosedError,
    CollectiveError,
    GroupArgumentError,
    GroupTimeoutError,
    ParallelTopologyError,
)
from parallel_topology.groups import torch_private
from parallel_topology.groups.agreement import first_line
from parallel_topology.groups.creation import Links, is_timeout
from parallel_topology.groups.options import require_seconds
from parallel_topology.layout import Ranks
from parallel_topology.rank_view import RankGroup

_c10d: Any = dist  # its functions are not typed


class ParallelGroup(RankGroup):
    """A `RankGroup` that can communicate. All members must call the same collectives in the same order.

    A tensor on the CPU goes over the CPU group (gloo), one on the manager's device over the device group. In a group
    of one rank every collective returns at once.

    Attributes:
        label: the group's name among all managers, such as `engine/tp[1]`; torch's profiler shows it.
        device: where the device group's tensors are.
        links: the process groups themselves, shared with this manager's other groups of the same ranks.

    Every collective raises:
        ClosedError: the manager was closed.
        GroupArgumentError: a peer outside the group, or a tensor on a device this group does not serve.
        GroupTimeoutError: the others did not take part within the manager's timeout.
        CollectiveError: the operation failed, most often because a peer is gone.
    """

    def __init__(self, name: str, ranks: Ranks, rank: int, *, label: str, device: torch.device, links: Links) -> None:
        super().__init__(name, ranks, rank)
        self.label = label
        self.device = device
        self.links = links

    @property
    def device_group(self) -> dist.ProcessGroup | None:
        """torch's process group for this group's device; None in a group of one rank."""
        self._require_open("device_group")
        return self.links.device_group

    @property
    def cpu_group(self) -> dist.ProcessGroup | None:
        """torch's gloo process group for CPU tensors; None in a group of one rank."""
        self._require_open("cpu_group")
        return self.links.cpu_group

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Reduce over all members, in place; returns `tensor`."""
        if not self._is_alone("all_reduce"):
            whole = tensor.contiguous()
            self._run("all_reduce", _c10d.all_reduce, whole, op=op)
            _copy_back(whole, tensor)
        return tensor

    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The members' tensors, of equal shapes, joined along `dim` in group order. 0-dim tensors become `[size]`."""
        if self._is_alone("all_gather"):
            return tensor if tensor.dim() else tensor.reshape(1)
        whole = tensor.contiguous() if tensor.dim() else tensor.reshape(1)
        gathered = whole.new_empty((self.size * whole.shape[0], *whole.shape[1:]))
        self._run("all_gather", _gather_into, whole, gathered)
        return gathered if dim % whole.dim() == 0 else torch.cat(gathered.chunk(self.size), dim)

    def broadcast(self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None) -> Tensor:
        """Copy the source's tensor into everybody's, in place; returns `tensor`.

        Args:
            src: the source's position in the group; 0 unless either is given.
            src_rank: or its global rank.
        """
        source = self._peer("src", src, src_rank, 0)
        if not self._is_alone("broadcast"):
            whole = tensor.contiguous()
            self._run("broadcast", _c10d.broadcast, whole, group_src=source)
            _copy_back(whole, tensor)
        return tensor

    def send(self, tensor: Tensor, dst: int | None = None, *, dst_rank: int | None = None) -> None:
        """Send to another member: to `next_rank` unless told otherwise. Returns when `tensor` may be reused.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
        """
        peer = self._other("send", self._peer("dst", dst, dst_rank, self.rank + 1))
        self._run("send", _send, tensor.contiguous(), peer=peer, timeout=self.links.timeout)

    def recv(self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None) -> Tensor:
        """Receive into `tensor`, which has the sender's shape and dtype: from `prev_rank` unless told otherwise.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
        """
        peer = self._other("recv", self._peer("src", src, src_rank, self.rank - 1))
        whole = tensor.contiguous()
        self._run("recv", _recv, whole, peer=peer, timeout=self.links.timeout)
        _copy_back(whole, tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every member has called this. It runs on the CPU group and does not wait for device work."""
        if not self._is_alone("barrier"):
            self._run("barrier", _c10d.all_reduce, torch.zeros(1, dtype=torch.int8))

    def set_timeout(self, seconds: float) -> None:
        """Let operations wait this long from now on; every member calls it, and a barrier comes first.

        Groups of one manager that share their process groups (equal ranks, not isolated) share the timeout too.

        Raises:
            GroupArgumentError: `seconds` is not above 0.
        """
        require_seconds("seconds", seconds)
        self.barrier()
        self.links.set_timeout(timedelta(seconds=seconds))

    def _require_open(self, operation: str) -> None:
        if self.links.closed:
            raise ClosedError(f"{operation} on {self.label}: its manager was closed")

    def _is_alone(self, operation: str) -> bool:
        if self.links.closed:
            self._require_open(operation)
        return self.size == 1

    def _other(self, operation: str, peer: int) -> int:
        if self._is_alone(operation) or peer == self.rank:
            raise GroupArgumentError(f"{operation} on {self.label}: rank {self.ranks[self.rank]} would be its own peer")
        return peer

    def _peer(self, argument: str, position: int | None, rank: int | None, default: int) -> int:
        """A member's position, from a position or a global rank."""
        if position is not None and rank is not None:
            raise GroupArgumentError(
                f"{self.label}: both {argument}={position} and {argument}_rank={rank}; expected one of them"
            )
        if rank is not None:
            if rank not in self.ranks:
                raise GroupArgumentError(
                    f"{self.label}: {argument}_rank={rank} is not a member: expected one of {self.ranks}"
                )
            return self.ranks.index(rank)
        if position is None:
            return default % self.size
        if not 0 <= position < self.size:
            raise GroupArgumentError(
                f"{self.label}: {argument}={position} is outside the group: expected 0..{self.size - 1}"
            )
        return position

    def _group_for(self, operation: str, tensor: Tensor) -> dist.ProcessGroup | None:
        if tensor.device.type == self.device.type:
            return self.links.device_group
        if tensor.device.type == "cpu":
            return self.links.cpu_group
        raise GroupArgumentError(
            f"{operation} on {self.label}: the tensor is on {tensor.device}, expected {self.device} or cpu"
        )

    def _run(self, operation: str, call: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.links.process != os.getpid():
            raise ClosedError(
                f"{operation} on {self.label}: its manager belongs to process {self.links.process}, of which this one "
                "was forked; make a manager of its own here"
            )
        try:
            call(tensor, *args, **kwargs, group=self._group_for(operation, tensor))
        except RuntimeError as error:
            # The traceback's frames hold the process group: whoever keeps the error would keep its sockets open after
            # close(), and peers that wait for this rank would not see it go.
            traceback.clear_frames(error.__traceback__)
            raise self._failure(operation, error) from error

    def _failure(self, operation: str, error: RuntimeError) -> ParallelTopologyError:
        said = self.links.witness.report(self.label, self.ranks, operation) if self.links.witness else ""
        where = f"{operation} on {self.label} = {self.ranks} failed at rank {self.ranks[self.rank]}"
        return (GroupTimeoutError if is_timeout(error) else CollectiveError)(f"{where}: {first_line(error)}; {said}")


def _copy_back(whole: Tensor, tensor: Tensor) -> None:
    if whole is not tensor:
        tensor.copy_(whole)


def _gather_into(tensor: Tensor, gathered: Tensor, group: dist.ProcessGroup) -> None:
    torch_private.all_gather_single(gathered, tensor, group=group)


# Not dist.send and dist.recv: gloo waits in these as long as it was told at creation, whatever was set since, and
# dist.recv looks the sender's global rank up in torch's registry, which does not know these groups.


def _send(tensor: Tensor, peer: int, timeout: timedelta, group: dist.ProcessGroup) -> None:
    _finish(_c10d.isend(tensor, group_dst=peer, group=group), timeout)


def _recv(tensor: Tensor, peer: int, timeout: timedelta, group: dist.ProcessGroup) -> None:
    _finish(_c10d.irecv(tensor, group_src=peer, group=group), timeout)


def _finish(work: Any, timeout: timedelta) -> None:
    if work is not None:
        work.wait(timeout)
