"""SharedMemoryCommunicator: small collectives on CPU tensors of groups within a host, at the speed of memory.

Members write what they have to their slots and read it out of the others': one round for each collective, in whatever
order of members, so that sums are the same on all. What is large goes on to torch's groups; it has a round all the
same, in which nothing but what is called is compared, so that members who call something else get an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ctypes import memmove
from functools import cached_property
from math import prod
from struct import Struct
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators.announcement import Announcement
from parallel_topology.communicators.attendance import Attendance
from parallel_topology.communicators.communicator import Communicator, Work
from parallel_topology.communicators.descriptions import UNEVEN, described
from parallel_topology.communicators.mail import Mail
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.rounds import Call, Rounds
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.communicators.turns import Turns
from parallel_topology.errors import BackendError, MismatchError

_APPLIED: dict[Any, Callable[..., Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.AVG: torch.add,
    dist.ReduceOp.PRODUCT: torch.mul,
    dist.ReduceOp.MIN: torch.minimum,
    dist.ReduceOp.MAX: torch.maximum,
    dist.ReduceOp.BAND: torch.bitwise_and,
    dist.ReduceOp.BOR: torch.bitwise_or,
    dist.ReduceOp.BXOR: torch.bitwise_xor,
}
REDUCED = frozenset(
    {
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip
"""What gloo reduces, too; it says itself of the others that it does not."""
_REDUCTIONS = frozenset({"all_reduce", "reduce", "reduce_scatter", "reduce_scatter_v"})
_CARRIED = _REDUCTIONS | {
    "broadcast",
    "broadcast_message",
    "all_gather",
    "all_gather_v",
    "gather",
    "scatter",
    "all_to_all",
    "barrier",
}
_OF_ANY_SIZE = ("all_to_all", "broadcast_message")
"""Where each member sees only in the round what the others give."""
_IN_PIECES = ("all_reduce", "broadcast", "all_gather")
"""What goes in as many rounds as it takes."""
_WORD = 2**64 - 1
_REMEMBERED = 1024
"""Descriptions, and views of slots, that are kept at most."""


class SharedMemoryCommunicator(Communicator):
    """The members' rounds, and what they mean for each collective.

    Attributes:
        strict: whether shapes are compared, too, and by all members in every collective.
    """

    name = "shared_memory"
    strict = False

    def __init__(self, membership: Membership) -> None:
        memory = membership.memory
        if memory is None or not memory.has(membership.family, membership.ranks):
            raise BackendError(
                f"communicator 'shared_memory' of {membership.label}: the ranks {membership.ranks} share no memory: "
                "they are on several hosts, in containers that do not see each other's processes, or not on Linux"
            )
        self._memory = memory
        self._links = membership.links
        self._limit = membership.options.shared_memory_bytes
        self._size = membership.size
        self._rank = membership.rank
        self._attendance = Attendance(memory, membership.family, membership.label, membership.ranks, membership.rank)
        self._family = membership.family
        self._slot_bytes = memory.regions[membership.family].slot_bytes
        if memory.is_shared and membership.size == len(membership.links.ranks):  # as all know: messages, too
            membership.links.mail = Mail(self._attendance, membership.family, 2 * self._limit)
        self._torch = TorchCommunicator(membership.links, membership.device, membership.size, membership.rank)
        self._turns = Turns()
        self._calls: dict[Any, Call] = {}
        self._views: dict[Any, list[Tensor]] = {}
        self._splits = Struct(f"{1 + 2 * membership.size}q")

    def checked(self) -> Self:
        """This one, from now on strict."""
        self.strict = True
        return self

    @cached_property
    def _rounds(self) -> Rounds:
        """Made by the first call, in its turn: a group that is never used need not know where each slot is."""
        return Rounds(self._attendance, self._family)

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return (
            tensor.is_cpu
            and operation in _CARRIED
            and self._memory.is_shared
            and (operation not in _REDUCTIONS or tensor.dtype in REDUCED)
        )

    def issue(self, operation: str, tensor: Tensor, *, async_op: bool, **arguments: Any) -> Work | None:
        if operation not in _OF_ANY_SIZE and self._is_large(operation, tensor, arguments):
            is_begun = async_op and not self.strict
            return self._turns.take(
                lambda: self._by_torch(operation, tensor, arguments, async_op), here=is_begun or not async_op
            )
        method = getattr(self, operation)
        return self._turns.take(lambda: method(tensor, async_op=async_op, **arguments), here=not async_op)

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> None:
        for start, piece in self._pieces(tensor):
            slot, call = self._given("all_reduce", tensor, moved=piece, start=start, op=op)
            self._rounds.wait_for(self._rounds.others, call)
            self._reduce(slot, op, piece)

    def reduce(self, tensor: Tensor, *, op: Any, dst: int, async_op: bool) -> None:
        slot, call = self._given("reduce", tensor, op=op, dst=dst)
        self._wait_at(dst, call)
        if self._rank == dst:
            self._reduce(slot, op, tensor)

    def broadcast(self, tensor: Tensor, *, src: int, async_op: bool) -> None:
        for start, piece in self._pieces(tensor):
            moved = piece if self._rank == src else None
            slot, call = self._given("broadcast", tensor, moved=moved, start=start, src=src)
            self._wait_for(src, call)
            if self._rank != src:
                memmove(piece.data_ptr(), self._rounds.addresses[slot][src], piece.nbytes)

    def broadcast_message(self, tensor: Tensor, *, src: int, announcement: Announcement, async_op: bool) -> None:
        """The length and what has room behind it; the rest in as many rounds as it takes. The source does not wait."""
        rounds, room = self._rounds, self._rounds.slot_bytes - 8
        is_source, here, start = self._rank == src, tensor.data_ptr(), 0
        while start < max(announcement.follows, 1):
            slot = rounds.begin(self._links.timeout.total_seconds(), goes_on=start > 0)
            offset = rounds.offsets[slot][src]
            if is_source:
                self._memory.words[offset // 8] = announcement.length & _WORD
                count = min(room, announcement.follows - start)
                memmove(self._memory.address + offset + 8, here + start, count)
            call = self._call("broadcast_message", tensor, start=start, src=src)
            rounds.post(call)
            self._wait_for(src, call)
            if not is_source:
                length = self._memory.words[offset // 8]
                announcement.length = length if length <= _WORD >> 1 else length - _WORD - 1
                if announcement.is_taken:
                    count = min(room, announcement.follows - start)
                    announcement.data += self._memory.bytes[offset + 8 : offset + 8 + count]
            start += room

    def all_gather(self, tensor: Tensor, *, output: Tensor, async_op: bool) -> None:
        into, step = output.data_ptr(), tensor.nbytes
        for start, piece in self._pieces(tensor):
            slot, call = self._given("all_gather", tensor, moved=piece, start=start)
            self._rounds.wait_for(self._rounds.others, call)
            for member, address in enumerate(self._rounds.addresses[slot]):
                memmove(into + member * step, address, piece.nbytes)
            into += piece.nbytes

    def all_gather_v(self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], async_op: bool) -> None:
        slot, call = self._given("all_gather_v", tensor, sizes=tuple(sizes))
        self._rounds.wait_for(self._rounds.others, call)
        row = _row_bytes(output)
        self._gather(slot, output, [size * row for size in sizes])

    def gather(self, tensor: Tensor, *, output: Tensor | None, dst: int, async_op: bool) -> None:
        slot, call = self._given("gather", tensor, dst=dst)
        self._wait_at(dst, call)
        if output is not None:
            self._gather(slot, output, [tensor.nbytes] * self._size)

    def reduce_scatter(self, tensor: Tensor, *, output: Tensor, op: Any, async_op: bool) -> None:
        slot, call = self._given("reduce_scatter", tensor, op=op)
        self._rounds.wait_for(self._rounds.others, call)
        self._reduce(slot, op, output, self._rank * output.nbytes)

    def reduce_scatter_v(
        self, tensor: Tensor, *, output: Tensor, sizes: Sequence[int], op: Any, async_op: bool
    ) -> None:
        slot, call = self._given("reduce_scatter_v", tensor, op=op, sizes=tuple(sizes))
        self._rounds.wait_for(self._rounds.others, call)
        self._reduce(slot, op, output, sum(sizes[: self._rank]) * _row_bytes(tensor))

    def scatter(self, tensor: Tensor, *, source: Tensor | None, src: int, async_op: bool) -> None:
        slot, call = self._given("scatter", tensor, moved=source, src=src)
        self._wait_for(src, call)
        part = self._rounds.addresses[slot][src] + self._rank * tensor.nbytes
        memmove(tensor.data_ptr(), part, tensor.nbytes)

    def all_to_all(
        self,
        tensor: Tensor,
        *,
        output: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        async_op: bool,
    ) -> Work | None:
        rounds = self._rounds
        slot = rounds.begin(self._links.timeout.total_seconds())
        fits = self._splits.size + tensor.nbytes <= rounds.slot_bytes
        self._splits.pack_into(
            self._memory.bytes, rounds.offsets[slot][self._rank], fits, *input_splits, *output_splits
        )
        if fits:
            memmove(rounds.addresses[slot][self._rank] + self._splits.size, tensor.data_ptr(), tensor.nbytes)
        call = self._call("all_to_all", tensor)
        rounds.post(call)
        rounds.wait_for(rounds.others, call)
        tables = [self._splits.unpack_from(self._memory.bytes, offset) for offset in rounds.offsets[slot]]
        self._require_splits(tables)
        row = _row_bytes(tensor)
        parts = [(sum(table[1 : 1 + self._rank]) * row, table[1 + self._rank] * row) for table in tables]
        if all(table[0] for table in tables):
            behind = [address + self._splits.size for address in rounds.addresses[slot]]
            _take(behind, parts, output, 0, rounds.slot_bytes)
            return None
        most = max(sum(table[1 : 1 + self._size]) for table in tables) * row
        if most * self._size > self._limit:
            splits = {"output_splits": output_splits, "input_splits": input_splits}
            return self._torch.issue("all_to_all", tensor, output=output, async_op=async_op, **splits)
        for number, start in enumerate(range(0, most, rounds.slot_bytes), 1):
            slot = rounds.begin(self._links.timeout.total_seconds(), goes_on=True)
            count = min(rounds.slot_bytes, tensor.nbytes - start)
            if count > 0:
                memmove(rounds.addresses[slot][self._rank], tensor.data_ptr() + start, count)
            call = self._call("all_to_all", tensor, start=number)
            rounds.post(call)
            rounds.wait_for(rounds.others, call)
            _take(rounds.addresses[slot], parts, output, start, rounds.slot_bytes)
        return None

    def barrier(self, tensor: Tensor, *, async_op: bool) -> None:
        _, call = self._given("barrier", tensor, moved=None)
        self._rounds.wait_for(self._rounds.others, call)

    def fail(self, why: str) -> None:
        self._attendance.end(why, failed=True)

    def close(self, *, abort: bool) -> None:
        self._attendance.end("its manager was closed")
        self._views.clear()

    def _is_large(self, operation: str, tensor: Tensor, arguments: dict[str, Any]) -> bool:
        """Whether torch's groups carry it; the same on all members."""
        given = self._bytes(operation, tensor, arguments)
        if given <= self._slot_bytes:
            return False
        read = given if operation == "broadcast" else given * self._size
        return operation not in _IN_PIECES or read > self._limit

    def _bytes(self, operation: str, tensor: Tensor, arguments: dict[str, Any]) -> int:
        """The most bytes that a member gives; the same on all of them."""
        if operation == "scatter":
            return tensor.nbytes * self._size
        if operation == "all_gather_v":
            return max(arguments["sizes"]) * _row_bytes(arguments["output"])
        return tensor.nbytes

    def _pieces(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """A contiguous tensor in pieces that have room in a slot; a small one is one, and keeps its shape."""
        if tensor.nbytes <= self._rounds.slot_bytes:
            yield 0, tensor
            return
        flat = tensor.as_strided((tensor.numel(),), (1,))
        yield from enumerate(torch.split(flat, self._rounds.slot_bytes // tensor.itemsize))

    def _given(
        self, operation: str, tensor: Tensor, *, moved: Any = ..., start: int = 0, **arguments: Any
    ) -> tuple[int, Call]:
        """Give what this member has to a call, the tensor itself unless told otherwise; the slot, and the call.

        Args:
            start: which piece of it that is.
        """
        rounds = self._rounds
        slot = rounds.begin(self._links.timeout.total_seconds(), goes_on=start > 0)
        if moved is ...:
            moved = tensor
        if moved is not None:
            memmove(rounds.addresses[slot][self._rank], moved.data_ptr(), moved.nbytes)
        call = self._call(operation, tensor, start=start, **arguments)
        rounds.post(call)
        return slot, call

    def _by_torch(self, operation: str, tensor: Tensor, arguments: dict[str, Any], async_op: bool) -> Work | None:
        """What is too large: the members compare what they call, unless they must not wait for each other."""
        named = {name: arguments[name] for name in ("op", "src", "dst") if name in arguments}
        if "sizes" in arguments:
            named["sizes"] = tuple(arguments["sizes"])
        _, call = self._given(operation, tensor, moved=None, **named)
        if self.strict or not async_op:
            self._rounds.wait_for(self._rounds.others, call)
        return self._torch.issue(operation, tensor, async_op=async_op, **arguments)

    def _call(self, operation: str, tensor: Tensor, *, start: int = 0, **arguments: Any) -> Call:
        key = (operation, tensor.dtype, tensor.shape, start, *arguments.values())
        found = self._calls.get(key)
        if found is None:
            if len(self._calls) > _REMEMBERED:
                self._calls.clear()
            text = described(operation, tensor, arguments, self.name)
            like = tensor if self.strict or operation in UNEVEN else tensor.flatten()
            compared = f"{described(operation, like, arguments, self.name)}, piece {start}"
            found = self._calls[key] = Call.of(compared, text)
        return found

    def _wait_at(self, dst: int, call: Call) -> None:
        """Where only `dst` needs the others."""
        if self.strict or self._rank == dst:
            self._rounds.wait_for(self._rounds.others, call)

    def _wait_for(self, src: int, call: Call) -> None:
        """Where all need only `src`."""
        if self.strict:
            self._rounds.wait_for(self._rounds.others, call)
        elif self._rank != src:
            self._rounds.wait_for((src,), call)

    def _gather(self, slot: int, output: Tensor, counts: Sequence[int]) -> None:
        into = output.data_ptr()
        for address, count in zip(self._rounds.addresses[slot], counts, strict=True):
            memmove(into, address, count)
            into += count

    def _reduce(self, slot: int, op: Any, into: Tensor, start: int = 0) -> None:
        reduce_into(into, self._slot_views(slot, into, start), op, self._size)

    def _slot_views(self, slot: int, like: Tensor, start: int) -> list[Tensor]:
        """The members' slots as tensors like this one."""
        key = (slot, like.dtype, like.shape, start)
        found = self._views.get(key)
        if found is None:
            if len(self._views) > _REMEMBERED:
                self._views.clear()
            with torch.inference_mode(False):
                found = self._views[key] = [
                    self._memory.tensor[offset + start : offset + start + like.nbytes].view(like.dtype).view(like.shape)
                    for offset in self._rounds.offsets[slot]
                ]
        return found

    def _require_splits(self, tables: Sequence[tuple[int, ...]]) -> None:
        size, ranks = self._size, self._rounds.ranks
        given = [table[1 : 1 + size] for table in tables]
        taken = list(zip(*(table[1 + size :] for table in tables), strict=True))
        if given == taken:
            return
        pairs = ((giver, taker) for taker in range(size) for giver in range(size))
        giver, taker = next((giver, taker) for giver, taker in pairs if given[giver][taker] != taken[giver][taker])
        raise MismatchError(
            f"all_to_all on {self._links.label}: rank {ranks[giver]} sends {given[giver][taker]} rows to rank "
            f"{ranks[taker]}, which expects {taken[giver][taker]}"
        )


def reduce_into(into: Tensor, parts: Sequence[Tensor], op: Any, count: int) -> None:
    """Reduce in this order, so that all who do it come to the same; an average is of so many."""
    inside = into.is_inference()
    if inside != torch.is_inference_mode_enabled():  # what was made inside may not be written outside
        with torch.inference_mode(inside):
            return reduce_into(into, parts, op, count)
    first, second, *others = parts
    apply = _APPLIED[op]
    apply(first, second, out=into)
    for other in others:
        apply(into, other, out=into)
    if op == dist.ReduceOp.AVG:
        into.div_(count)
    return None


def _take(addresses: Sequence[int], parts: Sequence[tuple[int, int]], output: Tensor, start: int, room: int) -> None:
    """Put what came of each member into its place in the output.

    Args:
        addresses: where each member's bytes from `start` on are, `room` of them at most.
        parts: of each member's bytes, where those for this one begin, and how many they are.
    """
    into = output.data_ptr()
    for address, (begin, count) in zip(addresses, parts, strict=True):
        first, end = max(begin, start), min(begin + count, start + room)
        if first < end:
            memmove(into + first - begin, address + first - start, end - first)
        into += count


def _row_bytes(tensor: Tensor) -> int:
    """Bytes of what one step along the first dim is."""
    return prod(tensor.shape[1:]) * tensor.itemsize
