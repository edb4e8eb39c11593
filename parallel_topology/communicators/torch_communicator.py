"""TorchCommunicator: torch's process groups behind the communicator seam; the end of every group's chain.

It calls the process groups' own methods, as the functions of `torch.distributed` do after looking a group up in their
registry, which does not know these groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology import torch_private
from parallel_topology.communicators.announcement import Announcement
from parallel_topology.communicators.channels import Incoming, Source, channels_of
from parallel_topology.communicators.communicator import Communicator, Together, Work, exercise, wait_for
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.waiting import InSlices
from parallel_topology.errors import GroupArgumentError
from parallel_topology.wire.frames import CHUNK, Kind

_NATIVE = frozenset(
    {
        torch.float32, torch.float64, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip
"""What gloo and NCCL both move as it is. Anything else is moved as bytes: they refuse it, or some operations do."""


_REPEATED = 2**20
"""The most bytes of an uneven gather over gloo that is one all-to-all of repeated input; larger ones are
broadcasts, which take no memory."""


class TorchCommunicator(Communicator):
    """CPU tensors over the CPU group, those on the manager's device over the device group."""

    name = "torch"

    def __init__(self, links: Links, device: torch.device, size: int, rank: int) -> None:
        self._links = links
        self._device = device
        self._kind = device.type
        self._size = size
        self._rank = rank

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return tensor.is_cpu or tensor.device == self._device

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        work = getattr(self, operation)(tensor, **arguments)
        if work is None:
            return None
        is_gloos = tensor.is_cpu and isinstance(work, torch_private.Work)
        return InSlices(work, self._links) if is_gloos else work

    def _group(self, tensor: Tensor) -> Any:
        group = self._links.device_group if tensor.device.type == self._kind else self._links.cpu_group
        if group is None:
            raise RuntimeError("its manager was closed")
        return group

    def _is_gloo(self, tensor: Tensor) -> bool:
        return tensor.is_cpu

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> Work | None:
        tensor = _real(tensor)
        options = dist.AllreduceOptions()
        options.reduceOp = _reduction(op, tensor)
        options.asyncOp = async_op
        return self._group(tensor).allreduce([tensor], options)

    def reduce(self, tensor: Tensor, *, op: Any, dst: int, async_op: bool) -> Work | None:
        tensor = _real(tensor)
        options = dist.ReduceOptions()
        options.reduceOp = _reduction(op, tensor)
        options.rootRank = dst
        options.asyncOp = async_op
        return self._group(tensor).reduce([tensor], options)

    def broadcast(self, tensor: Tensor, *, src: int, async_op: bool) -> Work | None:
        options = dist.BroadcastOptions()
        options.rootRank = src
        options.rootTensor = 0
        options.asyncOp = async_op
        return self._group(tensor).broadcast([_movable(tensor)], options)

    def broadcast_message(self, tensor: Tensor, *, src: int, announcement: Announcement, async_op: bool) -> None:
        """Returns when all is done."""

        def broadcast(chunk: Tensor, src: int) -> None:
            wait_for(self.issue("broadcast", chunk, src=src, async_op=False))

        broadcast_in_chunks(broadcast, self._rank, tensor, src, announcement)

    def all_gather(self, tensor: Tensor, *, output: Tensor, async_op: bool) -> Work | None:
        return torch_private.all_gather_single(
            self._group(tensor), _movable(output), _movable(tensor), async_op=async_op
        )

    def all_gather_v(self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], async_op: bool) -> Work | None:
        if self._is_gloo(tensor) and output.nbytes > _REPEATED:
            parts = _rows(output, sizes)
            parts[self._rank].copy_(tensor)
            sent = (
                self.issue("broadcast", part, src=src, async_op=True) for src, part in enumerate(parts) if part.numel()
            )
            return Together(*sent)
        if self._is_gloo(tensor):  # gloo gathers equal sizes only; as an all-to-all, exactly what is needed travels
            repeated = tensor.repeat(self._size, *[1] * (tensor.dim() - 1))
            mine = [sizes[self._rank]] * self._size
            return self.all_to_all(repeated, output=output, output_splits=sizes, input_splits=mine, async_op=async_op)
        parts = _rows(_movable(output), sizes)
        return torch_private.all_gather(self._group(tensor), parts, _movable(tensor), async_op=async_op)

    def reduce_scatter(self, tensor: Tensor, *, output: Tensor, op: Any, async_op: bool) -> Work | None:
        op = _reduction(op, tensor)
        if self._takes_sums(tensor, op):
            rows = output.shape[0]
            return self._reduced_part(tensor, output, self._rank * rows, op, async_op)
        options = _reduce_scatter_options(op, async_op)
        return torch_private.reduce_scatter_single(self._group(tensor), _real(output), _real(tensor), options)

    def reduce_scatter_v(
        self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], op: Any, async_op: bool
    ) -> Work | None:
        op = _reduction(op, tensor)
        if self._takes_sums(tensor, op):
            return self._reduced_part(tensor, output, sum(sizes[: self._rank]), op, async_op)
        options = _reduce_scatter_options(op, async_op)
        return self._group(tensor).reduce_scatter([_real(output)], [_rows(_real(tensor), sizes)], options)

    def gather(self, tensor: Tensor, *, output: Tensor | None, dst: int, async_op: bool) -> Work | None:
        options = dist.GatherOptions()
        options.rootRank = dst
        options.asyncOp = async_op
        parts = [] if output is None else [self._parts(_movable(output))]
        return self._group(tensor).gather(parts, [_movable(tensor)], options)

    def scatter(self, tensor: Tensor, *, source: Tensor | None, src: int, async_op: bool) -> Work | None:
        options = dist.ScatterOptions()
        options.rootRank = src
        options.asyncOp = async_op
        parts = [] if source is None else [self._parts(_movable(source))]
        return self._group(tensor).scatter([_movable(tensor)], parts, options)

    def all_to_all(
        self,
        tensor: Tensor,
        *,
        output: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        async_op: bool,
    ) -> Work | None:
        options = dist.AllToAllOptions()
        options.asyncOp = async_op
        given = (_movable(output), _movable(tensor), list(output_splits), list(input_splits))
        return self._group(tensor).alltoall_base(*given, options)

    def send(self, tensor: Tensor, *, dst: int, async_op: bool, tag: int = 0) -> Work | None:
        if self._is_gloo(tensor):
            channels = channels_of(self._links)
            if async_op:
                return channels.send(tensor, dst, Kind.TENSOR, tag=tag)
            return channels.send_now(tensor, dst, tag=tag)
        return self._group(tensor).send([_movable(tensor)], dst, _no_tag(tag, tensor))

    def recv(self, tensor: Tensor, *, src: int, async_op: bool, tag: int = 0) -> Work | None:
        if self._is_gloo(tensor):
            channels = channels_of(self._links)
            if async_op:
                return channels.recv(tensor, src, Kind.TENSOR, tag=tag)
            return channels.recv_now(tensor, src, tag=tag)
        return self._group(tensor).recv([_movable(tensor)], src, _no_tag(tag, tensor))

    def recv_any(self, tensor: Tensor, *, source: Source, async_op: bool, tag: int = 0) -> Work | None:
        """Receive a CPU tensor from whoever sends first; `source` says who it was."""
        return channels_of(self._links).recv_any(tensor, source, tag=tag)

    def exchange(
        self, tensor: Tensor, *, output: Tensor, dst: int, src: int, async_op: bool, tag: int = 0
    ) -> Work | None:
        if self._is_gloo(tensor):
            sent = self.send(tensor, dst=dst, async_op=True, tag=tag)
            return Together(sent, self.recv(output, src=src, async_op=True, tag=tag))
        # On NCCL both must be one call, or every member's send would wait for a receive that is queued behind a send.
        with torch_private.coalesced(self._group(tensor), tensor.device) as together:
            self.send(tensor, dst=dst, async_op=True, tag=tag)
            self.recv(output, src=src, async_op=True, tag=tag)
        return together.work

    def send_message(
        self, tensor: Tensor, *, dst: int, kind: Kind, async_op: bool, tag: int = 0, **said: Any
    ) -> Work | None:
        """Send what is more than a tensor, over the CPU group. `said`: fields of its `Frame`."""
        return channels_of(self._links).send(tensor, dst, kind, tag=tag, **said)

    def recv_message(
        self, tensor: Tensor, *, src: int, kind: Kind, async_op: bool, tag: int = 0, incoming: Incoming | None = None
    ) -> Work | None:
        """Receive what `send_message` sends, into `tensor` or, of an unknown size, into `incoming`; or forget it."""
        if incoming is None and kind != Kind.ANY:
            return channels_of(self._links).recv(tensor, src, kind, tag=tag)
        return channels_of(self._links).take(incoming, src, kind, tag=tag)

    def barrier(self, tensor: Tensor, *, async_op: bool) -> Work | None:
        return self.all_reduce(tensor, op=dist.ReduceOp.SUM, async_op=async_op)

    def warmup(self) -> None:
        if self._kind != "cpu":
            exercise(self, self._device, self._size, self._rank)

    def close(self, *, abort: bool) -> None:
        """The process groups are ended by whoever made them."""
        if self._links.channels is not None:
            self._links.channels.close()

    def _takes_sums(self, tensor: Tensor, op: Any) -> bool:
        return torch_private.GLOO_SCATTERS_SUMS and self._is_gloo(tensor) and op != dist.ReduceOp.SUM

    def _reduced_part(self, tensor: Tensor, output: Tensor, start: int, op: Any, async_op: bool) -> Work:
        """A reduce-scatter as an all-reduce, of which each member keeps its part."""
        whole = tensor.clone()
        work = self.issue("all_reduce", whole, op=op, async_op=async_op)
        return _Copying(work, whole.narrow(0, start, output.shape[0]), output)

    def _parts(self, whole: Tensor) -> list[Tensor]:
        """One for each member, also when they are empty."""
        return _rows(whole, [whole.shape[0] // self._size] * self._size)


def broadcast_in_chunks(
    broadcast: Callable[[Tensor, int], None], rank: int, tensor: Tensor, src: int, announcement: Announcement
) -> None:
    """Give all members the bytes that one has by broadcasts of known size: first the length, then chunks of it."""
    length = torch.tensor([announcement.length], dtype=torch.int64, device="cpu")
    broadcast(length, src)
    announcement.length = int(length)
    follows, is_taken = announcement.follows, announcement.is_taken
    if rank != src:
        announcement.data = bytearray(follows if is_taken else min(follows, CHUNK))
        tensor = torch.frombuffer(announcement.data or bytearray(1), dtype=torch.uint8)
    for start in range(0, follows, CHUNK):
        here = start if is_taken or rank == src else 0  # what is not taken is written over
        broadcast(tensor[here : here + min(CHUNK, follows - start)], src)


class _Copying:
    """Work whose result is copied to where it belongs once it is done."""

    def __init__(self, work: Work | None, result: Tensor, output: Tensor) -> None:
        self._work = work
        self._result = result
        self._output = output

    def wait(self, timeout: timedelta | None = None) -> object:
        wait_for(self._work, timeout)
        self._output.copy_(self._result)
        return True

    def is_completed(self) -> bool:
        return self._work is None or self._work.is_completed()


def _rows(whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(torch.split_with_sizes(whole, list(sizes)))


def _movable(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that every backend moves, first dim first."""
    if tensor.dtype in _NATIVE:
        return tensor
    # A contiguous tensor may have any strides in dims of length 1, which view(dtype) refuses; as one dim it has none.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).view(*(tensor.shape or (1,)), tensor.element_size())  # the rows stay rows


def _no_tag(tag: int, tensor: Tensor) -> int:
    if tag:
        raise GroupArgumentError(f"tag={tag} on a {tensor.device.type} tensor: NCCL has no tags; send a CPU tensor")
    return 0


def _real(tensor: Tensor) -> Tensor:
    """The same memory as real numbers: complex ones are summed by their parts."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _reduction(op: Any, tensor: Tensor) -> Any:
    """Gloo adds booleans as bytes: True and True make a 2, which is no boolean. Torch's NCCL takes the maximum, too."""
    return dist.ReduceOp.MAX if tensor.dtype is torch.bool and op == dist.ReduceOp.SUM else op


def _reduce_scatter_options(op: Any, async_op: bool) -> Any:
    options = dist.ReduceScatterOptions()
    options.reduceOp = op
    options.asyncOp = async_op
    return options
