"""Recording what real groups are called with: each group of a test's manager tells a tape before and after a call.

Only managers that a test harness made are recorded; `ParallelGroup` itself knows nothing of this.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager
from parallel_topology.testing.calls import Call, mismatch
from parallel_topology.testing.diagnosis import Heard


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
    for group in _groups_of(groups):
        channel = channels.setdefault(id(group.links), f"{groups.name}/{group.name}")
        # On the instance, where it hides the method: the class, and all other managers, stay as they are.
        vars(group)["_run"] = partial(_recorded, tape, channel, group, getattr(group, "_run"))  # noqa: B009


def describe(group: ParallelGroup, channel: str, operation: str, tensor: Tensor, options: dict[str, Any]) -> Call:
    """The call that a group is about to make, from what its `_run` is given."""
    position: int | None = next((options[name] for name in ("peer", "group_src") if name in options), None)
    reduce = str(options["op"]) if "op" in options else None
    return Call(
        rank=group.ranks[group.rank],
        operation=operation,
        group=group.name,
        label=group.label,
        ranks=tuple(group.ranks),
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        bytes=tensor.numel() * tensor.element_size(),
        peer=None if position is None else group.ranks[position],
        reduce=None if reduce is None else reduce.rpartition(".")[2],
        channel=channel,
    )


def _groups_of(groups: GroupManager) -> Iterable[ParallelGroup]:
    return [getattr(groups, name) for name in groups.plan.families]


def _recorded(
    tape: Tape,
    channel: str,
    group: ParallelGroup,
    run: Callable[..., None],
    operation: str,
    call: Callable[..., Any],
    tensor: Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    __tracebackhide__ = True
    tape.begin(describe(group, channel, operation, tensor, kwargs))
    failed = False

    def heard(*given: Any, **options: Any) -> None:
        __tracebackhide__ = True
        nonlocal failed
        try:
            call(*given, **options)
        except BaseException:  # said now: before `run` raises it asks the others where they were, and waits for them
            failed = True
            tape.end(failed=True)
            raise

    try:
        run(operation, heard, tensor, *args, **kwargs)
    except BaseException:
        if not failed:
            tape.end(failed=True)
        raise
    tape.end(failed=False)
