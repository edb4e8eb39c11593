"""Transfer: one rank's part of a refit, its messages sent and received in the order of their keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from parallel_topology.communicators.channels import channels_of
from parallel_topology.communicators.handle import Handle
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.boxes import Boxes
from parallel_topology.refit.given import Coming, Have, checked, require_apart
from parallel_topology.refit.neighbours import Borrowed, Lent, Neighbours, sharing
from parallel_topology.refit.patterns import shown
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.refit.schedule import Message, Piece, schedule, stretches
from parallel_topology.refit.staging import Buffer, Staging
from parallel_topology.wire.structure import digest_of

LARGEST_MESSAGE = 8 * 2**20
"""Bytes from which on larger messages are no faster over gloo."""
LARGEST_LOAN = 4 * 2**20
"""The same where all share a host: what is filled is still in the cache when it is read."""
READ_AT_ONCE = 2
"""Buffers that neighbours read at a time: others are filled meanwhile. More would not be in the cache any more when
they are read, and the system needs longer to give each its memory than a copy takes."""
UNDER_WAY = 64
"""Messages that a rank has under way at most: those that need no memory of ours are bounded by nothing else."""

Progress = Callable[[int, int], object]


class UnderWay(NamedTuple):
    """A message that is not through.

    Attributes:
        handle: on what says that it is.
        buffer: what it is in, if that is not the tensor itself.
        note: on its digest, where it goes beside.
    """

    message: Message
    handle: Handle[Any] | Lent | Borrowed
    buffer: Buffer | None = None
    note: Handle[Any] | None = None


class Transfer:
    """One rank's part.

    Attributes:
        staging: its buffers; to be closed.
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
        given = checked(plan.target, rank, into, group.device) if plan.gets(rank) else {}
        self._coming: Coming | None = None
        if isinstance(have, Mapping):
            had = {}
            if plan.gives(rank) or rank not in plan.source.world:
                had = checked(plan.source, rank, cast("Mapping[str, Tensor]", have), group.device)
            require_apart(had, given)
            tensor = had.__getitem__
        else:
            self._coming = Coming(plan.source, rank, have, group.device, stretches(plan))
            tensor = self._coming.tensor
        self._have = Boxes(plan.source, rank, tensor)
        self._into = Boxes(plan.target, rank, given.__getitem__)
        by = sharing(group)
        largest = min(LARGEST_LOAN if by == "shared_memory" else LARGEST_MESSAGE, staging_bytes // 8)
        self._buffers = largest, staging_bytes // largest
        self._schedule = schedule(plan, rank, largest)
        self.staging = Staging(*self._buffers, group.device, members=group.size if by else 0)
        self._under_way: deque[UnderWay] = deque()
        self._read_now = 0
        self._digests = bool(group.size > 1 and channels_of(group.links).strict)
        self._dtypes = {name: getattr(torch, plan.dtype(name)) for name in plan.order}

    def run(self, offers: Mapping[int, str]) -> None:
        """Send and receive everything.

        Args:
            offers: each rank's, as its `staging` has it.

        Raises:
            CollectiveError, GroupTimeoutError: a peer is gone, or does not come.
        """
        messages = self._schedule.messages
        sources = {message.source for message in messages} - {self._rank}
        targets = {message.target for message in messages} - {self._rank}
        self._neighbours = Neighbours(self._group, offers, sources, targets, self.staging, *self._buffers)
        try:
            self._go()
        finally:
            self._neighbours.leave()

    def _go(self) -> None:
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
        self._neighbours.finish()

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
            self._receive(message)

    def _send(self, message: Message) -> None:
        boxes = self._have
        if message.hop:  # it has come in this stretch, or is still to come
            boxes = self._into
            while any(other.message.key[:2] == (message.stretch, 0) for other in self._under_way):
                self._complete()
        is_read = self._neighbours.reads(message.target)
        buffer, whole = None, None if is_read else self._in_place(boxes, message)
        if whole is None:
            while is_read and self._read_now == READ_AT_ONCE:
                self._complete()
            buffer = self._staged()
            whole = buffer.memory[: message.nbytes]
            with self._noting():
                for piece in message.pieces:
                    boxes.read(piece.weight, piece.box, self._values(whole, piece))
        digest = digest_of(whole) if self._digests else 0
        if is_read and buffer is not None:
            self._read_now += 1
            self._under_way.append(UnderWay(message, self._neighbours.lend(message.target, buffer, digest), buffer))
            return
        note = None
        if self._digests:
            note = self._group.isend(torch.tensor(digest, device="cpu"), dst_rank=message.target)
        self._under_way.append(UnderWay(message, self._group.isend(whole, dst_rank=message.target), buffer, note))

    def _receive(self, message: Message) -> None:
        if self._neighbours.lends(message.source):
            self._under_way.append(UnderWay(message, self._neighbours.borrow(message.source)))
            return
        note = None
        if self._digests:
            note = self._group.irecv(torch.empty((), dtype=torch.int64, device="cpu"), src_rank=message.source)
        buffer, whole = None, self._in_place(self._into, message)
        if whole is None:
            buffer = self._staged()
            whole = buffer.memory[: message.nbytes]
        handle = self._group.irecv(whole, src_rank=message.source)
        self._under_way.append(UnderWay(message, handle, buffer, note))

    def _complete(self) -> None:
        """Wait for the message that is under way for the longest time."""
        message, handle, buffer, note = self._under_way.popleft()
        came = handle.wait()
        told = None if note is None else note.wait()
        if isinstance(handle, Borrowed):
            whole, digest = cast("tuple[Tensor, int]", came)
            self._have_come(message, whole[: message.nbytes], digest, in_place=False)
            self._neighbours.give_back(message.source)
        elif message.target == self._rank:
            what = cast(Tensor, came)
            self._have_come(message, what, None if told is None else int(told), in_place=buffer is None)
        if message.target == self._rank:
            self._through(received=message.nbytes)
        else:
            self._read_now -= isinstance(handle, Lent)
            self._through(sent=message.nbytes)
        if buffer is not None:
            self.staging.put_back(buffer)

    def _have_come(self, message: Message, whole: Tensor, digest: int | None, *, in_place: bool) -> None:
        if self._digests and digest_of(whole) != digest:
            first = message.pieces[0]
            self._fail(f"what rank {message.source} sent of {first.weight!r} {shown(first.box)} came as other bytes")
        if not in_place:
            with self._noting():
                for piece in message.pieces:
                    self._into.write(piece.weight, piece.box, self._values(whole, piece))

    def _in_place(self, boxes: Boxes, message: Message) -> Tensor | None:
        """The memory of a message that needs no buffer."""
        if len(message.pieces) == 1:
            [piece] = message.pieces
            with self._noting():
                return boxes.bytes_in_place(piece.weight, piece.box, self._dtypes[piece.weight])
        return None

    def _staged(self) -> Buffer:
        """A buffer, as soon as one is free."""
        while (buffer := self.staging.take()) is None:
            self._complete()
        return buffer

    def _values(self, memory: Tensor, piece: Piece) -> Tensor:
        """A piece of a message as the box that it is."""
        own = memory[piece.offset : piece.offset + piece.nbytes]
        return own.view(self._dtypes[piece.weight]).view([len(part) for part in piece.box])

    @contextmanager
    def _noting(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        self.failed = self.failed or why

    def _through(self, *, sent: int = 0, received: int = 0, kept: int = 0) -> None:
        self.sent, self.received, self.kept = self.sent + sent, self.received + received, self.kept + kept
        if self._progress is not None:
            with self._noting():
                self._progress(self.sent + self.received + self.kept, self._schedule.nbytes)
