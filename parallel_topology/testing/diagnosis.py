"""What was heard of the ranks' calls while they ran, and what that says when they do not come to an end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from parallel_topology.errors import ParallelTopologyError
from parallel_topology.testing.calls import Call, check_complete, find_deadlock, find_mismatch, line_of
from parallel_topology.testing.failures import MismatchError

if TYPE_CHECKING:
    from parallel_topology.topology.topology import ParallelTopology

PATIENCE = 1.0
"""Seconds for which the same ranks must be seen waiting in vain: one may be between two calls, and on a busy machine
gloo's threads are late to notice that a connection has ended."""


class Heard:
    """What one rank was heard to call.

    Attributes:
        calls: in order; all but the last have returned.
        done: how many have returned.
        failed: whether one raised.
        tangled: whether calls came from several threads, so that their order is not known.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.done = 0
        self.failed = False
        self.tangled = False

    def copy(self) -> Heard:
        """As it stands now, while the rank goes on."""
        now = Heard()
        now.done, now.failed, now.tangled = self.done, self.failed, self.tangled
        now.calls = self.calls[: now.done + 1]
        return now


class Diagnosis:
    """Looks at the calls of all ranks of one world from outside.

    Args:
        hear: by global rank, what was heard so far.
    """

    def __init__(self, topology: ParallelTopology, hear: Callable[[], dict[int, Heard]]) -> None:
        self._topology = topology
        self._hear = hear
        self._suspected, self._since = "", 0.0

    def suspect(self, ended: Iterable[int]) -> ParallelTopologyError | None:
        """Whether ranks wait in vain, where those at the positions `ended` have returned.

        To be asked now and then: it says so when it found the same for `PATIENCE` seconds.
        """
        heard = self._now()
        calls = {rank: one.calls for rank, one in heard.items()}
        over = {self._topology.world[position] for position in ended}
        found = find_mismatch(calls) or find_deadlock(calls, {rank: one.done for rank, one in heard.items()}, over)
        if str(found) != self._suspected:
            self._suspected, self._since = str(found), time.monotonic()
        return found if time.monotonic() - self._since >= PATIENCE else None

    def mismatch(self) -> MismatchError | None:
        """Whether calls made so far do not fit together."""
        return find_mismatch({rank: one.calls for rank, one in self._now().items()})

    def at_the_end(self) -> ParallelTopologyError | None:
        """Whether the calls of ranks that all returned fit together; nothing if some failed, and were expected to."""
        heard = self._now()
        if any(one.failed for one in heard.values()):
            return None
        try:
            check_complete({rank: one.calls for rank, one in heard.items()}, buffered_sends=True)
        except MismatchError as error:
            return error
        return None

    def last(self, position: int) -> str:
        """The call in which, or after which, the rank at a position was last heard, and its line."""
        one = self._hear()[self._topology.world[position]].copy()
        if not one.calls:
            return " before its first call"
        last, within = one.calls[-1], one.done < len(one.calls)
        return f" {'in' if within else 'after'} {last}{line_of(last, 'waits' if within else 'last called it here')}"

    def _now(self) -> dict[int, Heard]:
        """A copy; empty where one rank's order is not known, as nothing can then be said of any."""
        heard = {rank: one.copy() for rank, one in self._hear().items()}
        return {} if any(one.tangled for one in heard.values()) else heard


def read_tape(path: Path) -> Heard:
    """What was written to a `FileTape` so far; nothing if it was not begun."""
    heard = Heard()
    if not path.exists():
        return heard
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is being written
        entry = json.loads(line)
        if "call" in entry:
            heard.calls.append(Call.from_json(entry["call"]))
            heard.tangled |= entry["tangled"]
        else:
            heard.done += 1
            heard.failed |= entry["failed"]
    return heard
