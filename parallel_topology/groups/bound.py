"""BoundGroup: what stands between a group's collectives and its communicators: checks, waiting, and errors."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from operator import index
from typing import Any, Literal, NoReturn, Self, overload

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators import compiled
from parallel_topology.communicators.communicator import Communicator, Work
from parallel_topology.communicators.forked import this_process
from parallel_topology.communicators.handle import Handle
from parallel_topology.communicators.links import Call, Links
from parallel_topology.communicators.refusal import Refusal
from parallel_topology.errors import (
    ClosedError,
    CollectiveError,
    GroupArgumentError,
    GroupTimeoutError,
    NotPicklableError,
    ParallelTopologyError,
)
from parallel_topology.groups.tensors import require_tensor, values, write
from parallel_topology.meeting.deadline import seconds_of
from parallel_topology.meeting.options import require_flag
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.rank_view import RankGroup
from parallel_topology.torch_errors import first_line, is_timeout

_BETWEEN_TWO = {"send", "recv", "recv_any", "exchange", "send_message", "recv_message"}
"""Operations in which not all members take part."""


class BoundGroup(RankGroup):
    """A `RankGroup` with connections.

    Attributes:
        label: the group's name among all managers, such as `engine/tp[1]`; torch's profiler shows it.
        device: where the device group's tensors are.
        links: the process groups, shared with this manager's other groups of the same ranks.
        communicators: asked in this order who carries out a call; the last one is torch's.
        key: by which compiled code finds this group; no other has it in this process, ever.
    """

    __setattr__ = object.__setattr__  # not a value, as a `RankGroup` is
    __delattr__ = object.__delattr__

    def __init__(self, name: str, ranks: Ranks, rank: int, *, label: str, device: torch.device, links: Links) -> None:
        super().__init__(name, ranks, rank)
        self.label = label
        self.device = device
        self.links = links
        self.communicators: tuple[Communicator, ...] = links.communicators
        self._called = 0  # how many collectives began here; of members that call the same, the same
        self.key = compiled.register(self, label)

    @property
    def device_group(self) -> dist.ProcessGroup | None:
        """torch's process group for this group's device; None in a group of one rank."""
        links = self.links
        if links.closed:
            self._require_open("device_group")
        links.lent = True
        return links.device_group

    @property
    def cpu_group(self) -> dist.ProcessGroup | None:
        """torch's gloo process group for CPU tensors; None in a group of one rank."""
        links = self.links
        if links.closed:
            self._require_open("cpu_group")
        links.lent = True
        return links.cpu_group

    @overload
    def barrier(self, *, async_op: Literal[False] = ...) -> None: ...
    @overload
    def barrier(self, *, async_op: Literal[True]) -> Handle[None]: ...
    def barrier(self, *, async_op: bool = False) -> Handle[None] | None:
        """Wait until every member has called this.

        It runs on the CPU group, and waits neither for device work nor for operations begun with `async_op` that were
        not waited for.
        """
        if self._is_alone("barrier"):
            return self._done("barrier", None, async_op)
        return self._issue("barrier", torch.zeros(1, dtype=torch.int8, device="cpu"), nothing, async_op)

    def set_timeout(self, seconds: float | timedelta) -> None:
        """Let operations wait this long from now on; every member calls it, and a barrier comes first.

        Groups of one manager that share their process groups (equal ranks, not isolated) share the timeout too.

        Raises:
            GroupArgumentError: `seconds` is not above 0.
        """
        given = seconds_of("seconds", seconds)
        self.barrier()
        self.links.set_timeout(timedelta(seconds=given))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The same group: a copy of a module that holds it speaks over the same connections."""
        return self

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(
            f"the group {self.label} holds connections and cannot be pickled; send the topology instead"
        )

    def _require_open(self, operation: str) -> None:
        if self.links.closed:
            raise ClosedError(f"{operation} on {self.label}: {self.links.refusal()}")

    def _is_alone(self, operation: str) -> bool:
        if self.links.closed and not torch.compiler.is_compiling():  # compiled code asks when it runs
            self._require_open(operation)
        return self.size == 1

    def _flag(self, operation: str, name: str, given: bool) -> bool:
        return given if given is True else require_flag(f"{operation} on {self.label}: {name}", given)

    def _done(self, operation: str, result: Any, async_op: bool) -> Any:
        """What an operation that is through returns: its result, or a handle on it."""
        if async_op is not False and self._flag(operation, "async_op", async_op):
            return Handle.of(result)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return result

    def _other(self, operation: str, peer: int) -> int:
        """The same position, if there is somebody else there."""
        if self._is_alone(operation) or peer == self.rank:
            raise GroupArgumentError(f"{operation} on {self.label}: rank {self.ranks[self.rank]} would be its own peer")
        return peer

    def _peer(self, argument: str, position: int | None, rank: int | None, default: int) -> int:
        """A member's position, from a position or a global rank."""
        if position is not None and rank is not None:
            raise GroupArgumentError(
                f"{self.label}: both {argument}={position} and {argument}_rank={rank}; expected one of them"
            )
        if position is None and rank is None:
            return default % self.size
        try:
            position, rank = position if position is None else index(position), rank if rank is None else index(rank)
        except TypeError:
            raise GroupArgumentError(
                f"{self.label}: {argument}={position!r}, {argument}_rank={rank!r}; expected a whole number"
            ) from None
        if rank is not None:
            if rank not in self.ranks:
                raise GroupArgumentError(
                    f"{self.label}: {argument}_rank={rank} is not a member: expected one of {self.ranks}"
                )
            return self.ranks.index(rank)
        if position is None or not 0 <= position < self.size:
            raise GroupArgumentError(
                f"{self.label}: {argument}={position} is outside the group: expected 0..{self.size - 1}"
            )
        return position

    def _values(self, operation: str, tensor: Tensor) -> Tensor:
        """A contiguous tensor that holds the values of `tensor`: itself, where its memory does.

        Its gradient ends here.

        Raises:
            GroupArgumentError: `tensor` is none whose values stand in memory.
        """
        self._admit(operation, tensor)
        return values(tensor.detach() if tensor.requires_grad else tensor)

    def _admit(self, operation: str, tensor: Tensor) -> None:
        """Check that a tensor can be moved; that it is one, in a group of one rank, where nothing moves.

        Raises:
            GroupArgumentError: it cannot.
        """
        if torch.compiler.is_compiling() or (self.size == 1 and isinstance(tensor, Tensor)):  # pyright: ignore[reportUnnecessaryIsInstance]
            return  # compiled code asks when it runs
        require_tensor(self, operation, tensor)

    def _target(self, operation: str, tensor: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """As `_values`, for an operation that overwrites it, and what finishes that one: it returns `tensor`."""
        self._admit(operation, tensor)
        plain = tensor.detach() if tensor.requires_grad else tensor
        whole = values(plain)
        return whole, copying_back(whole, plain, tensor)

    def _issue(
        self, operation: str, tensor: Tensor, finish: Callable[[], Any], async_op: bool, **arguments: Any
    ) -> Any:
        """Let the first communicator that takes it carry out an operation; what `finish` returns, or a handle on it.

        Args:
            operation: the communicator's method.
            tensor: contiguous, what the operation is about.
            arguments: the method's.
        """
        if self.links.process != this_process.id:
            raise ClosedError(f"{operation} on {self.label}: {self.links.refusal()}")
        call = self._next(operation)
        try:
            if async_op is not False and self._flag(operation, "async_op", async_op):
                work = self._start(operation, tensor, async_op, arguments)
                return Handle(self, call, work, finish, self.links.holding())
            self._carry_out(call, tensor, arguments)
        except ParallelTopologyError:
            raise
        except Refusal as refusal:
            raise refusal.to(self.label) from refusal.__cause__
        except RuntimeError as error:
            raise self.failure(call, error) from error
        return finish()

    def _next(self, operation: str) -> Call:
        if operation in _BETWEEN_TWO:
            return Call(operation)
        self._called += 1
        return Call(operation, self._called)

    def _start(self, operation: str, tensor: Tensor, async_op: bool, arguments: dict[str, Any]) -> Work | None:
        communicator = self._require_carried(operation, tensor)
        return communicator.issue(operation, tensor, async_op=async_op, **arguments)

    def _require_carried(self, operation: str, tensor: Tensor) -> Communicator:
        """The first communicator that carries this out.

        Raises:
            GroupArgumentError: the tensor is on a device that none of them serves.
        """
        for communicator in self.communicators:
            if communicator.handles(operation, tensor):
                return communicator
        raise GroupArgumentError(
            f"{operation} on {self.label}: the tensor is on {tensor.device}, expected "
            + ("cpu" if self.device.type == "cpu" else f"{self.device} or cpu")
        )

    def _carry_out(self, call: Call, tensor: Tensor, arguments: dict[str, Any]) -> None:
        # Held while this waits: whoever drops the last reference to a gloo group waits for what is under way in it, and
        # that would be close() in another thread, which is to end this wait.
        links = self.links
        held = links.holding()
        witness = links.witness
        if witness is not None:
            witness.vigil.begins(self.label, call, links.timeout, time.monotonic())
        try:
            work = self._start(call.operation, tensor, False, arguments)
            if work is not None:
                work.wait()
        finally:
            if witness is not None:
                witness.vigil.is_over()
        del held

    def failure(self, call: Call, error: RuntimeError) -> ParallelTopologyError:
        """What to raise for an error of torch's: where it happened, and who else was there."""
        # The traceback's frames hold work and process group: whoever keeps the error would keep its sockets open after
        # close(), and peers that wait for this rank would not see it go.
        traceback.clear_frames(error.__traceback__)
        operation = call.operation
        if self.links.closed:  # the others need not be asked
            return ClosedError(f"{operation} on {self.label}: {self.links.refusal()} while this was under way")
        if "scalar type" in str(error):
            return GroupArgumentError(f"{operation} on {self.label}: {first_line(error)}; convert the tensor first")
        if not is_timeout(error) and operation not in _BETWEEN_TWO:
            self.links.cut()  # it fails on all members: those that wait for others than who is gone are told, too
        operation = operation.removesuffix("_message")
        call, witness = call._replace(operation=operation), self.links.witness
        said = witness.report(self.label, self.ranks, call) if witness else ""
        where = f"{operation} on {self.label} = {self.ranks} failed at rank {self.ranks[self.rank]}"
        return (GroupTimeoutError if is_timeout(error) else CollectiveError)(f"{where}: {first_line(error)}; {said}")


def nothing() -> None:
    """What finishes an operation that has no result here."""


def copying_back(whole: Tensor, plain: Tensor, tensor: Tensor) -> Callable[[], Tensor]:
    """What finishes an operation in place on `plain`, whose values `whole` held; it returns `tensor`."""

    def finish() -> Tensor:
        if whole is not plain:
            write(whole, plain)
        return tensor

    return finish
