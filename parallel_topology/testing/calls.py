"""What the ranks called: one `Call` per collective, and whether the calls of all ranks fit together. Pure values."""

from __future__ import annotations

import linecache
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from parallel_topology.errors import MismatchError
from parallel_topology.testing.failures import DeadlockError
from parallel_topology.topology.wording import shown_ranks

P2P = ("send", "recv")
ANY = "any"
"""The dtype of a receive that takes what comes, and forgets it."""
UNEVEN = ("all_gather_v", "reduce_scatter_v", "all_to_all")
"""Operations in which the members' tensors may differ in length."""


@dataclass(frozen=True)
class Call:
    """One collective as one rank called it.

    Attributes:
        rank: the caller's global rank.
        operation: `"all_reduce"`, `"send"`, ...
        group: the group's axes, `"tp"`; `"world"` for all ranks.
        label: the group's full name, `engine/tp[1]`.
        ranks: the members' global ranks, in group order.
        shape, dtype, bytes: of this rank's tensor, as it goes in (for `recv`: as it comes out).
        peer: the global rank of the other side of `send` and `recv`, and of the source or destination of the others.
        reduce: the reduction, where there is one: `"SUM"`.
        channel: groups with one channel share connections, so that their calls must be in one order.
        blocking: whether the rank went on only when the operation was done.
        tag: of `send` and `recv`.
        at: the line that made the call, `file:line`; calls from different lines may be equal.
    """

    rank: int
    operation: str
    group: str
    label: str
    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    peer: int | None = None
    reduce: str | None = None
    channel: str = ""
    blocking: bool = True
    tag: int = 0
    at: str = field(default="", compare=False)

    def __str__(self) -> str:
        towards = _TOWARDS.get(self.operation, "")
        peer = f"{towards} {self.peer}" if self.peer is not None and towards else ""
        reduce = f" {self.reduce}" if self.reduce not in (None, "SUM") else ""
        what = f" of {self.dtype}{list(self.shape)}" if self.operation != "barrier" else ""
        return f"{self.operation}{reduce}{peer}{what} on {self.label} = {list(self.ranks)}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Call:
        fields["ranks"], fields["shape"] = tuple(fields["ranks"]), tuple(fields["shape"])
        return cls(**fields)

    @property
    def slot(self) -> tuple[object, ...]:
        """Calls with equal slots are matched with each other, the first with the first, and so on."""
        if self.operation == "send":
            return self.channel, self.ranks, self.rank, self.peer, self.tag
        if self.operation == "recv":
            return self.channel, self.ranks, self.peer, self.rank, self.tag
        return self.channel, self.ranks

    @property
    def needs(self) -> tuple[int, ...]:
        """The other ranks that must take part."""
        if self.operation in P2P and self.peer is not None:
            return (self.peer,)
        return tuple(rank for rank in self.ranks if rank != self.rank)


_TOWARDS = {
    "send": " to", "recv": " from", "broadcast": " from", "scatter": " from", "gather": " to", "reduce": " to",
}  # fmt: skip

Calls = Mapping[int, Sequence[Call]]
"""Global rank -> its calls, in order."""


def mismatch(one: Call, other: Call) -> MismatchError | None:
    """Why two calls in the same slot and place do not fit together, if they do not."""
    if ANY in (one.dtype, other.dtype):
        return None
    fields = [] if one.operation in P2P and other.operation in P2P else ["operation", "reduce", "peer"]
    for name in [*fields, "dtype", "shape"]:
        mine, theirs = getattr(one, name), getattr(other, name)
        if name == "shape" and one.operation in UNEVEN:
            mine, theirs = mine[1:], theirs[1:]
        if mine != theirs:
            return MismatchError(
                f"rank {one.rank} calls {one}, but rank {other.rank} calls {other}: "
                f"{name} {_shown(mine)} against {_shown(theirs)}{line_of(one, 'calls')}{line_of(other, 'calls')}"
            )
    return None


def find_mismatch(calls: Calls) -> MismatchError | None:
    """The first two calls that meet and do not fit, over what all ranks have called so far."""
    meetings: defaultdict[tuple[object, ...], dict[int, Call]] = defaultdict(dict)
    for rank in calls:
        for call, number in numbered(calls[rank]):
            meeting = meetings[*call.slot, number]
            for other in meeting.values():
                if error := mismatch(other, call):
                    return error
                break  # the others equal the first
            meeting[rank] = call
    return None


def numbered(calls: Iterable[Call]) -> Iterable[tuple[Call, int]]:
    """One rank's calls, each with how many calls it made before in the same slot."""
    counts: defaultdict[tuple[object, ...], int] = defaultdict(int)
    for call in calls:
        yield call, counts[call.slot]
        counts[call.slot] += 1


def check_complete(calls: Calls, *, buffered_sends: bool = False) -> None:
    """Whether ranks that make exactly these calls would all come to the end.

    Args:
        calls: of every rank that takes part; calls that need other ranks count as a mismatch.
        buffered_sends: whether `send` returns before the other side receives. Without, a ring in which everybody
            sends first is a deadlock, which is what it is for large tensors.

    Raises:
        MismatchError: calls that meet differ in operation, shape, dtype, source or reduction.
        DeadlockError: ranks that wait for each other, or for a call that another rank never makes.
    """
    if error := find_mismatch(calls):
        raise error
    place, alone = _replay(calls, buffered_sends)
    waiting = alone | {rank: calls[rank][at] for rank, at in place.items() if at < len(calls[rank])}
    if waiting:
        ends = {rank: "makes no more calls" for rank in calls if rank not in waiting}
        raise _deadlock(waiting, ends, place, calls)


def find_deadlock(calls: Calls, done: Mapping[int, int], ended: set[int]) -> DeadlockError | None:
    """Ranks that now wait for each other, or for one that has ended, and that nobody still running can free.

    Args:
        calls: what each rank has called so far; all but the last call have returned.
        done: how many of each rank's calls have returned.
        ended: ranks that will call nothing more.
    """
    waiting = {rank: calls[rank][-1] for rank in calls if rank not in ended and done[rank] < len(calls[rank])}
    posted: dict[int, dict[tuple[object, ...], int]] = {}
    for rank in calls:
        counts = posted[rank] = dict[tuple[object, ...], int]()
        for call, number in numbered(calls[rank]):
            counts[call.slot] = number + 1

    def awaited(call: Call) -> list[int]:
        number = posted[call.rank][call.slot]
        return [rank for rank in call.needs if posted.get(rank, {}).get(call.slot, 0) < number]

    lacking = {rank: awaited(call) for rank, call in waiting.items()}
    free = {rank for rank in calls if rank not in ended and not lacking.get(rank)}
    while more := {rank for rank in lacking if rank not in free and all(other in free for other in lacking[rank])}:
        free |= more
    stuck = {rank: call for rank, call in waiting.items() if rank not in free}
    if not stuck:
        return None
    ends = dict.fromkeys(ended, "has ended")
    return _deadlock(stuck, ends, {rank: len(calls[rank]) - 1 for rank in stuck}, calls)


def _replay(calls: Calls, buffered_sends: bool) -> tuple[dict[int, int], dict[int, Call]]:
    """How far each rank comes, and of those that come to the end a call whose other side never came."""
    order = {rank: list(numbered(calls[rank])) for rank in calls}
    place = dict.fromkeys(calls, 0)
    came: defaultdict[tuple[object, ...], set[int]] = defaultdict(set)  # the meeting -> who is there, or was
    ready = list(calls)
    while ready:
        rank = ready.pop()
        if place[rank] == len(order[rank]):
            continue
        call, number = order[rank][place[rank]]
        meeting = came[*call.slot, number]
        meeting.add(rank)
        goes_on = not call.blocking or (call.operation == "send" and buffered_sends)
        if goes_on or meeting.issuperset(call.needs):
            place[rank] += 1
            ready += [rank, *(other for other in call.needs if other in order)]
    alone: dict[int, Call] = {}
    for rank in calls:
        if place[rank] == len(order[rank]):
            for call, number in order[rank]:
                if not came[*call.slot, number].issuperset(call.needs):
                    alone.setdefault(rank, call)
    return place, alone


def _deadlock(
    waiting: Mapping[int, Call], ends: Mapping[int, str], place: Mapping[int, int], calls: Calls
) -> DeadlockError:
    """What each of the waiting ranks is in, and whom it waits for; equal stories are told once."""
    missing = {
        rank: [other for other in call.needs if other not in waiting or waiting[other].slot != call.slot] or call.needs
        for rank, call in sorted(waiting.items())
    }
    stories: defaultdict[str, list[int]] = defaultdict(list)
    for rank, call in sorted(waiting.items()):
        reasons = [
            f"rank {other}, which " + (ends.get(other) or _doing(waiting.get(other))) for other in missing[rank][:2]
        ]
        stories[f"in its call {place[rank]}, {call}, waits for {' and for '.join(reasons)}"].append(rank)
    told = [
        f"\n  rank {ranks[0]}, {story}" + (f"; {shown_ranks(ranks[1:])}, too" if ranks[1:] else "")
        for story, ranks in stories.items()
    ]
    first = next((rank for rank in missing if any(other in ends for other in missing[rank])), min(waiting))
    call, absent = waiting[first], next((other for other in missing[first] if other in ends), missing[first][0])
    if absent in ends:
        head = f"rank {absent} returned without {call.operation} on {call.label}, in which rank {first} waits"
    else:
        head = f"{shown_ranks(sorted(waiting))} would wait for ever, rank {first} in {call}"
    lines = line_of(call, "waits")
    if absent in waiting:
        lines += line_of(waiting[absent], "waits")
    elif calls.get(absent):
        lines += line_of(calls[absent][-1], f"last called {calls[absent][-1].operation}")
    elif absent in ends:
        lines += f"\n  rank {absent} called nothing"
    error = DeadlockError(f"{head}:{lines}" + "".join(told))
    error.at = call.at
    return error


def line_of(call: Call, doing: str) -> str:
    """A line that shows the one from which a rank made its call; nothing where that is not known."""
    path, _, number = call.at.rpartition(":")
    if not path:
        return ""
    short = path.removeprefix(f"{os.getcwd()}{os.sep}")
    return f"\n  {short}:{number}: rank {call.rank} {doing}: {linecache.getline(path, int(number)).strip()}"


def _doing(call: Call | None) -> str:
    return "takes no part" if call is None else f"is in {call.operation} on {call.label}"


def _shown(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value)  # pyright: ignore[reportUnknownArgumentType]
