"""Transfer: one rank's part of a refit, its messages sent and received in the order of their keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor

from parallel_topology.communicators.handle import Handle
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.boxes import Boxes
from parallel_topology.refit.given import Coming, Have, checked, require_apart
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.refit.schedule import Message, Piece, schedule, stretches
from parallel_topology.refit.staging import Staging

LARGEST_MESSAGE = 8 * 2**20
"""Bytes from which on larger messages are no faster over gloo."""
UNDER_WAY = 64
"""Messages that a rank has under way at most: those that need no memory of ours are bounded by nothing else."""

Progress = Callable[[int, int], object]


class UnderWay(NamedTuple):
    message: Message
    handle: Handle[Tensor] | Handle[None]
    staged: Tensor | None


class Transfer:
    """One rank's part.

    Attributes:
        failed: what went wrong with this rank's tensors. Its messages go on, so that nobody waits for it, and all are
            told in the end.
        sent, received, kept: bytes that are through.

    Raises:
        RefitError: the tensors are not what the plan says.
        GroupArgumentError: the group lacks a rank.
    """

    def __init__(
        self,
        plan: RefitPlan,
        group: ParallelGroup,
        have: Have,
        into: Mapping[str, Tensor],
        staging_bytes: int,
        progress: Progress | None,
    ) -> None:
        if missing := [rank for rank in plan.ranks if rank not in group.ranks]:
            raise GroupArgumentError(f"{group.label} lacks ranks {missing[:16]} of {plan}: expected a group with all")
        self.failed: str | None = None
        self.sent = self.received = self.kept = 0
        self._plan, self._group, self._progress = plan, group, progress
        self._rank = rank = group.ranks[group.rank]
        given = checked(plan.target, rank, into, group.device)
        self._coming: Coming | None = None
        if isinstance(have, Mapping):
            had = checked(plan.source, rank, cast("Mapping[str, Tensor]", have), group.device)
            require_apart(had, given)
            tensor = had.__getitem__
        else:
            self._coming = Coming(plan.source, rank, have, group.device, stretches(plan))
            tensor = self._coming.tensor
        self._have = Boxes(plan.source, rank, tensor)
        self._into = Boxes(plan.target, rank, given.__getitem__)
        largest = min(LARGEST_MESSAGE, staging_bytes // 8)
        self.staging = Staging(largest, staging_bytes // largest, group.device)
        self._schedule = schedule(plan, rank, largest)
        self._under_way: deque[UnderWay] = deque()
        self._dtypes = {name: getattr(torch, plan.dtype(name)) for name in plan.order}

    def run(self) -> None:
        """Send and receive everything.

        Raises:
            CollectiveError, GroupTimeoutError: a peer is gone, or does not come.
        """
        begun = -1
        for message in self._schedule.messages:
            for stretch in range(begun + 1, message.stretch + 1):
                self._begin(stretch)
            begun = message.stretch
            self._issue(message)
        while self._under_way:
            self._complete()
        for stretch in range(begun + 1, self._schedule.stretches):
            self._begin(stretch)

    def _begin(self, stretch: int) -> None:
        """Let go of what no later stretch needs, and copy what this rank has already."""
        if self._coming is not None:
            self._coming.begin(stretch)
        for move in self._schedule.kept.get(stretch, ()):
            with self._noting():
                self._have.copy(move.weight, move.ranges, self._into)
            self._through(kept=self._plan.nbytes(move))

    def _issue(self, message: Message) -> None:
        if len(self._under_way) >= UNDER_WAY:
            self._complete()
        if message.source == self._rank:
            self._send(message)
        else:
            buffer, staged = self._buffer(self._into, message)
            self._under_way.append(UnderWay(message, self._group.irecv(buffer, src_rank=message.source), staged))

    def _send(self, message: Message) -> None:
        boxes = self._have
        if message.hop:  # it has come in this stretch, or is still to come
            boxes = self._into
            while any(other.message.key[:2] == (message.stretch, 0) for other in self._under_way):
                self._complete()
        buffer, staged = self._buffer(boxes, message)
        if staged is not None:
            for piece in message.pieces:
                with self._noting():
                    boxes.read(piece.weight, piece.box, self._values(staged, piece))
        self._under_way.append(UnderWay(message, self._group.isend(buffer, dst_rank=message.target), staged))

    def _complete(self) -> None:
        """Wait for the message that is under way for the longest time."""
        message, handle, staged = self._under_way.popleft()
        handle.wait()
        if message.source == self._rank:
            self._through(sent=message.nbytes)
        else:
            self._through(received=message.nbytes)
        if staged is not None:
            for piece in message.pieces if message.target == self._rank else ():
                with self._noting():
                    self._into.write(piece.weight, piece.box, self._values(staged, piece))
            self.staging.put_back(staged)

    def _buffer(self, boxes: Boxes, message: Message) -> tuple[Tensor, Tensor | None]:
        """(the memory to send or receive, the buffer that it is in, if it is not the tensor itself)."""
        if len(message.pieces) == 1:
            [piece] = message.pieces
            with self._noting():
                if (memory := boxes.bytes_in_place(piece.weight, piece.box, self._dtypes[piece.weight])) is not None:
                    return memory, None
        while (staged := self.staging.take()) is None:
            self._complete()
        return staged[: message.nbytes], staged

    def _values(self, staged: Tensor, piece: Piece) -> Tensor:
        """A piece of a message as the box that it is."""
        memory = staged[piece.offset : piece.offset + piece.nbytes]
        return memory.view(self._dtypes[piece.weight]).view([len(part) for part in piece.box])

    @contextmanager
    def _noting(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self.failed = self.failed or f"{type(error).__name__}: {error}"

    def _through(self, *, sent: int = 0, received: int = 0, kept: int = 0) -> None:
        self.sent, self.received, self.kept = self.sent + sent, self.received + received, self.kept + kept
        if self._progress is not None:
            with self._noting():
                self._progress(self.sent + self.received + self.kept, self._schedule.nbytes)
