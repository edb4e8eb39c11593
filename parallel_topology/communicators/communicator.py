"""The seam below a group's collectives: what a communicator has to offer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators.announcement import Announcement


class Work(Protocol):
    """An operation under way, such as torch's `Work`."""

    def wait(self, timeout: timedelta = ...) -> object: ...
    def is_completed(self) -> bool: ...


def wait_for(work: Work | None, timeout: timedelta | None = None) -> None:
    """Wait for work, if there is any under way: as long as it waits by itself, unless told otherwise."""
    if work is not None:
        work.wait() if timeout is None else work.wait(timeout)


def within(timeout: timedelta | None) -> float | None:
    """The instant of `time.monotonic()` at which a timeout is over."""
    return None if timeout is None else time.monotonic() + timeout.total_seconds()


def remaining(end: float | None) -> timedelta | None:
    """What is left until then; never nothing, which torch takes for no limit at all."""
    return None if end is None else timedelta(seconds=max(end - time.monotonic(), 0.001))


class Together:
    """Several works as one."""

    def __init__(self, *works: Work | None) -> None:
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> object:
        end = within(timeout)
        for work in self._works:
            wait_for(work, remaining(end))
        return True

    def is_completed(self) -> bool:
        return all(work is None or work.is_completed() for work in self._works)


class Communicator:
    """Carries out collectives for the members of one group. Derive from it and override what yours can do.

    A group asks each communicator of its chain in turn whether it handles a call; the last one is torch's. Tensors
    come contiguous; sources and destinations are positions in the group. A method returns the work under way, or None
    when all is done, or in the order of the current stream. With `async_op` false a device's operation must be
    ordered after what is on the current stream, and what comes next after it.

    One that cannot work where it is made raises `BackendError` in its factory: there is no disabled state.
    """

    name: str

    def handles(self, operation: str, tensor: Tensor) -> bool:
        """Whether this carries out `operation` (a method's name) on such a tensor.

        The answer must be the same on every member: decide by operation, dtype, device type, and by shape only where
        the operation demands equal shapes.
        """
        raise NotImplementedError

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        """Carry out `operation`; every call comes this way. For those that watch or check the calls of another."""
        return getattr(self, operation)(tensor, **arguments)

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> Work | None:
        """Reduce in place."""
        raise NotImplementedError

    def reduce(self, tensor: Tensor, *, op: Any, dst: int, async_op: bool) -> Work | None:
        """Reduce in place on the member `dst`; what is left in the others' tensors does not matter."""
        raise NotImplementedError

    def broadcast(self, tensor: Tensor, *, src: int, async_op: bool) -> Work | None:
        """Overwrite every tensor with that of `src`."""
        raise NotImplementedError

    def broadcast_message(self, tensor: Tensor, *, src: int, announcement: Announcement, async_op: bool) -> Work | None:
        """Give all members the bytes that `src` has in `tensor`; the others' is empty, and they learn how many come.

        Who does not take what is announced takes part all the same.
        """
        raise NotImplementedError

    def all_gather(self, tensor: Tensor, *, output: Tensor, async_op: bool) -> Work | None:
        """`output` is `[size * n, ...]` for a tensor `[n, ...]`."""
        raise NotImplementedError

    def all_gather_v(self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], async_op: bool) -> Work | None:
        """`output` is `[sum(sizes), ...]`; `tensor` is `[sizes[rank], ...]`."""
        raise NotImplementedError

    def reduce_scatter(self, tensor: Tensor, *, output: Tensor, op: Any, async_op: bool) -> Work | None:
        """`tensor` is `[size * n, ...]`, `output` this member's `[n, ...]`."""
        raise NotImplementedError

    def reduce_scatter_v(
        self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], op: Any, async_op: bool
    ) -> Work | None:
        """`tensor` is `[sum(sizes), ...]`, `output` is `[sizes[rank], ...]`."""
        raise NotImplementedError

    def gather(self, tensor: Tensor, *, output: Tensor | None, dst: int, async_op: bool) -> Work | None:
        """`output`, on `dst` only, is `[size * n, ...]` for tensors `[n, ...]`."""
        raise NotImplementedError

    def scatter(self, tensor: Tensor, *, source: Tensor | None, src: int, async_op: bool) -> Work | None:
        """`source`, on `src` only, is `[size * n, ...]`; `tensor` takes this member's `[n, ...]`."""
        raise NotImplementedError

    def all_to_all(
        self,
        tensor: Tensor,
        *,
        output: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        async_op: bool,
    ) -> Work | None:
        """Rows of `tensor` by `input_splits` go to the members in turn; `output` takes theirs by `output_splits`."""
        raise NotImplementedError

    def send(self, tensor: Tensor, *, dst: int, async_op: bool) -> Work | None:
        """Send to one member."""
        raise NotImplementedError

    def recv(self, tensor: Tensor, *, src: int, async_op: bool) -> Work | None:
        """Receive from one member."""
        raise NotImplementedError

    def exchange(self, tensor: Tensor, *, output: Tensor, dst: int, src: int, async_op: bool) -> Work | None:
        """Send to one member and receive from one, both at once, so that a ring of these cannot deadlock."""
        raise NotImplementedError

    def barrier(self, tensor: Tensor, *, async_op: bool) -> Work | None:
        """Wait for all members. `tensor` is one number on the CPU, free to be used."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Connect and allocate what a first call would, on the current stream: all members call this before capture."""

    def capture(self) -> AbstractContextManager[None]:
        """Entered while CUDA graphs are captured."""
        return nullcontext()

    def follow(self, rank: int, members: Sequence[int], *, broken: bool) -> Communicator | None:
        """What carries out the calls of a group of some of these members, made out of this one; None to make it anew.

        A manager that is rebound asks on all members of the new group, at the same time, if all of them were in this
        one and nothing is under way in it. This one goes on until it is closed, in case another rank fails.

        Args:
            rank: this member's position in the new group.
            members: of the new group, by their positions in this one's.
            broken: operations have failed here, and some may never end.
        """
        return None

    def suspend(self) -> None:
        """Give back what memory can be had again: all members call this, and nothing is under way."""

    def resume(self) -> None:
        """Take it again, before the next call."""

    def fail(self, why: str) -> None:
        """Nothing comes from this member any more: those who wait for it are told, as far as there is a way."""

    def close(self, *, abort: bool) -> None:
        """Release what this holds. With `abort`, what is under way may never end, and is given up."""


def exercise(communicator: Communicator, device: torch.device, size: int, rank: int) -> None:
    """Every kind of operation once, and reductions on either side of NCCL's change of algorithm: each connects others
    of its own when it is first used, which a capture refuses."""
    reduced = dist.ReduceOp.SUM
    for elements in (1, 1 << 20):
        wait_for(communicator.all_reduce(torch.zeros(elements, device=device), op=reduced, async_op=False))
    one, other = torch.zeros(1, device=device), torch.zeros(1, device=device)
    following, before = (rank + 1) % size, (rank - 1) % size
    for dst, src in ((following, before), (before, following)):
        wait_for(communicator.exchange(one, output=other, dst=dst, src=src, async_op=False))
    rows, splits = torch.zeros(size, device=device), [1] * size
    into = torch.zeros(size, device=device)
    wait_for(communicator.all_to_all(rows, output=into, output_splits=splits, input_splits=splits, async_op=False))


class Around(Communicator):
    """Another communicator with something around each of its calls: override `issue`, and call the inner one's."""

    def __init__(self, inner: Communicator) -> None:
        self.name = inner.name
        self.inner = inner

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return self.inner.handles(operation, tensor)

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        return self.inner.issue(operation, tensor, **arguments)

    def warmup(self) -> None:
        self.inner.warmup()

    def capture(self) -> AbstractContextManager[None]:
        return self.inner.capture()

    def follow(self, rank: int, members: Sequence[int], *, broken: bool) -> Communicator | None:
        return self.inner.follow(rank, members, broken=broken)

    def suspend(self) -> None:
        self.inner.suspend()

    def resume(self) -> None:
        self.inner.resume()

    def fail(self, why: str) -> None:
        self.inner.fail(why)

    def close(self, *, abort: bool) -> None:
        self.inner.close(abort=abort)
