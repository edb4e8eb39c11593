"""Recording what real groups are called with: communicators that tell a tape before and after a call.

They are put in front of the communicators of managers that a test harness made.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from parallel_topology.communicators.communicator import Around, Communicator, Work, wait_for
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager
from parallel_topology.testing.calls import Call, mismatch
from parallel_topology.testing.diagnosis import Heard
from parallel_topology.wire.frames import Kind

_OWN = ("parallel_topology.", "torch.")


class Tape(Protocol):
    """Where a rank's calls are written."""

    def begin(self, call: Call) -> None: ...
    def end(self, *, failed: bool) -> None: ...


class Ledger:
    """The tapes of ranks that are threads of one process.

    A call that does not fit what another member called in the same place is refused before it reaches gloo, which
    ends the process on some mismatches (`gloo::EnforceNotMet` in its own thread) and adds up what it gets on others.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.heard = {rank: Heard() for rank in ranks}
        self._lock = threading.Lock()
        self._counts: dict[int, defaultdict[tuple[object, ...], int]] = {rank: defaultdict(int) for rank in ranks}
        self._first: dict[tuple[object, ...], Call] = {}

    def tape(self, rank: int) -> Tape:
        return _ThreadTape(self, rank)

    def post(self, call: Call) -> None:
        """Raises: MismatchError: it does not fit what another member called."""
        __tracebackhide__ = True
        with self._lock:
            counts = self._counts[call.rank]
            key = (*call.slot, counts[call.slot])
            counts[call.slot] += 1
            if error := mismatch(self._first.setdefault(key, call), call):
                self.heard[call.rank].failed = True
                raise error
            self.heard[call.rank].calls.append(call)


class _ThreadTape:
    def __init__(self, ledger: Ledger, rank: int) -> None:
        self._ledger = ledger
        self._heard = ledger.heard[rank]
        self._thread: int | None = None

    def begin(self, call: Call) -> None:
        __tracebackhide__ = True
        mine = threading.get_ident()
        if self._thread not in (None, mine):
            self._heard.tangled = True
        self._thread = mine
        self._ledger.post(call)

    def end(self, *, failed: bool) -> None:
        self._heard.failed |= failed
        self._heard.done += 1


class FileTape:
    """A tape on disk: what a process wrote before it died can still be read."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._thread: int | None = None

    def begin(self, call: Call) -> None:
        mine = threading.get_ident()
        tangled = self._thread not in (None, mine)
        self._thread = mine
        self._write({"call": call.to_json(), "tangled": tangled})

    def end(self, *, failed: bool) -> None:
        self._write({"failed": failed})

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def record(groups: GroupManager, tape: Tape) -> None:
    """From now on, every call on one of the manager's groups goes on the tape."""
    channels: dict[int, str] = {}
    for name in groups.plan.families:
        group: ParallelGroup = getattr(groups, name)
        channel = channels.setdefault(id(group.links), f"{groups.name}/{group.name}")
        group.communicators = tuple(
            _Recorded(communicator, group, channel, tape) for communicator in group.communicators
        )


def describe(
    group: ParallelGroup, channel: str, operation: str, tensor: Tensor, arguments: Mapping[str, Any]
) -> list[Call]:
    """What a communicator was asked for: one call, or for an exchange a send and a receive."""
    if operation == "exchange":
        tag = {"tag": arguments.get("tag", 0)}
        towards = {"dst": arguments["dst"], "async_op": True, **tag}
        by = {"src": arguments["src"], "async_op": arguments["async_op"], **tag}
        there = describe(group, channel, "send", tensor, towards)
        return there + describe(group, channel, "recv", arguments["output"], by)
    position: int | None = next((arguments[name] for name in ("src", "dst") if name in arguments), None)
    reduce = str(arguments["op"]) if "op" in arguments else None
    kind: Kind | None = arguments.get("kind")
    is_object = operation == "broadcast_message"
    is_tensor = (
        kind in (None, Kind.PART) and not is_object
    )  # else its size is known to the sender only, and is not compared
    return [
        Call(
            rank=group.ranks[group.rank],
            operation=operation.removesuffix("_message"),
            group=group.name,
            label=group.label,
            ranks=tuple(group.ranks),
            shape=tuple(tensor.shape) if is_tensor else (),
            dtype=_dtype_of(tensor, kind, is_object),
            bytes=tensor.numel() * tensor.element_size(),
            peer=None if position is None else group.ranks[position],
            reduce=None if reduce is None else reduce.rpartition(".")[2],
            channel=channel,
            blocking=not arguments["async_op"],
            tag=arguments.get("tag", 0),
            at=_caller(),
        )
    ]


def _dtype_of(tensor: Tensor, kind: Kind | None, is_object: bool) -> str:
    if is_object:
        return "object"
    return str(tensor.dtype).removeprefix("torch.") if kind in (None, Kind.PART) else kind.name.lower()


def _caller() -> str:
    """The line outside of this package and torch that made the call."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage] (there is no other way that costs microseconds)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Recorded(Around):
    """A communicator that tells a tape before and after what another one carries out."""

    def __init__(self, inner: Communicator, group: ParallelGroup, channel: str, tape: Tape) -> None:
        super().__init__(inner)
        self._of = (group, channel)
        self._tape = tape

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        __tracebackhide__ = True
        if operation == "recv_any":
            return self._issue_any(tensor, arguments)
        *before, call = describe(*self._of, operation, tensor, arguments)
        for one in before:
            self._tape.begin(one)
            self._tape.end(failed=False)
        self._tape.begin(call)
        try:
            work = self.inner.issue(operation, tensor, **arguments)
        except BaseException:
            self._tape.end(failed=True)
            raise
        if work is None or not call.blocking:
            self._tape.end(failed=False)
            return work
        return _RecordedWork(work, self._tape)

    def _issue_any(self, tensor: Tensor, arguments: dict[str, Any]) -> None:
        """On the tape when it has ended, as a receive from whoever it was."""
        wait_for(self.inner.issue("recv_any", tensor, **arguments))
        by = {"src": arguments["source"].position, "async_op": False, "tag": arguments.get("tag", 0)}
        for call in describe(*self._of, "recv", tensor, by):
            self._tape.begin(call)
            self._tape.end(failed=False)


class _RecordedWork:
    """Work that is waited for at once."""

    def __init__(self, work: Work, tape: Tape) -> None:
        self._work = work
        self._tape = tape

    def wait(self, timeout: timedelta | None = None) -> object:
        try:
            wait_for(self._work, timeout)
        except BaseException:
            self._tape.end(failed=True)
            raise
        self._tape.end(failed=False)
        return True

    def is_completed(self) -> bool:
        return self._work.is_completed()
