"""Standby: a manager of another topology that is built while the one there is serves, and then takes its place."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from parallel_topology.errors import ParallelTopologyError, RebindError, RendezvousError
from parallel_topology.groups.elastic import Change
from parallel_topology.groups.life import Life
from parallel_topology.meeting.control import FAREWELL
from parallel_topology.meeting.deadline import LAST, Deadline
from parallel_topology.meeting.operations import CALLED_OFF, REPLACED
from parallel_topology.topology.topology import ParallelTopology

M = TypeVar("M")
State = Literal["building", "ready", "committed", "failed", "cancelled"]
LOOK = 0.25
"""Seconds between looks whether what is ready was called off by another rank."""
LINGER = 0.25
"""Seconds for which a manager that another took the place of leaves the processor to that one, before it ends."""


@dataclass(frozen=True)
class Status:
    """How far a standby is, as this rank knows.

    Attributes:
        operation: identifies what is under way; the same on all ranks.
        state: "building", "ready" (on all ranks), "committed", "failed" or "cancelled".
        why: it failed, or was cancelled; says which rank.
        leaving: ranks of the manager that are not in the new topology.
        safe_to_stop: those of them that nobody needs any more, as all have gone over.
    """

    operation: str
    state: State
    why: str
    leaving: tuple[int, ...]
    safe_to_stop: tuple[int, ...]


class Standby(Generic[M]):
    """What `GroupManager.prepare` returns; all ranks have one.

    Attributes:
        topology: that it is for.
        operation: identifies it on all ranks.
    """

    def __init__(
        self, change: Change[M], operation: str, leaving: tuple[int, ...], follow: Callable[[Change[M], Standby[M]], M]
    ) -> None:
        """`follow` lets the successor take the manager's place, once it is committed."""
        self.topology: ParallelTopology = change.topology
        self.operation = operation
        self._change = change
        self._leaving = leaving
        self._follow = follow
        self._state: State = "building"
        self._why = ""
        self._failure: BaseException | None = None
        self._all_over = False
        self._lock = threading.Lock()  # held while the state changes for good
        self._built = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="parallel_topology standby", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="parallel_topology standby", daemon=True)
        self._thread.start()
        self._watcher.start()

    @property
    def status(self) -> Status:
        """How far it is; asks nobody."""
        safe = self._leaving if self._all_over else ()
        return Status(self.operation, self._state, self._why, self._leaving, safe)

    def commit(self) -> M:
        """Let the new manager take the place of the old one, on all ranks or on none; all of them call it.

        It waits until all have built. Then it is decided in the store, once for all: a rank that calls it later gets
        the same answer. The old manager is closed at once, and ends when all have gone over.

        Returns:
            The new manager. On a rank that leaves, the old one, which is closed.

        Raises:
            RebindError: it was cancelled, or a rank could not build, did not come, or has ended; says which and why.
                The old manager goes on.
            ParallelTopologyError: what building raised on this rank.
        """
        self._built.wait()  # building has a deadline
        with self._lock:
            if self._state == "ready":
                try:
                    self._change.commit()
                except ParallelTopologyError as error:
                    self._end("failed", error)
                    raise
                self._end("committed")
                return self._follow(self._change, self)
            if self._state == "committed":
                raise RebindError(f"{self.operation}: it was committed before; use the manager that commit returned")
            if self._failure is not None and self._state == "failed":
                raise self._failure
            raise RebindError(f"standby for {self.topology} was cancelled: {self._why}")

    def cancel(self, why: str = "cancelled") -> None:
        """Call it off, on all ranks. Nothing happens where it has failed, or was cancelled before.

        Raises:
            RebindError: it is committed, perhaps by another rank: all go over, and so has this one.
            RendezvousError: the store is gone, or does not answer; on this rank it is cancelled all the same.
        """
        self._call_off(why, CALLED_OFF)

    def replace(self, why: str, seconds: float) -> None:
        """As `cancel`, in that time, as this rank asks for another topology: who asks for this one hears of it."""
        self._call_off(why, REPLACED, seconds)

    def is_replaced(self) -> bool:
        """Whether it came to nothing as another rank asks for another topology, or has closed its manager."""
        with suppress(RendezvousError):
            return self._state != "committed" and self._change.is_replaced()
        return False

    def _call_off(self, why: str, kind: str, seconds: float = FAREWELL) -> None:
        with self._lock:
            if self._state == "committed":
                raise RebindError(f"standby for {self.topology}: it is committed, and cannot be cancelled")
            if self._state not in ("building", "ready"):
                return
            try:
                if not self._change.call_off(why, seconds, kind=kind):
                    raise RebindError(
                        f"standby for {self.topology}: another rank has committed it, so it cannot be cancelled: call "
                        "commit() here, too"
                    )
            except RendezvousError:
                self._end("cancelled", why=why)
                raise
            self._end("cancelled", why=why)

    def wait_until_given_up(self, deadline: Deadline) -> None:
        """Wait until nothing happens here any more, once it is committed or has come to nothing: an interpreter that
        ends meanwhile would end its threads within torch, and abort."""
        for thread in (self._thread, self._watcher):
            thread.join(min(deadline.left(), threading.TIMEOUT_MAX))
        self._change.end()

    def is_for(self, topology: ParallelTopology) -> bool:
        """Whether it is for this one, and may still come to something; asks the store, as another rank may have
        cancelled it just now."""
        if self.topology == topology:
            self._look()
        return self.topology == topology and self._state in ("building", "ready")

    def leave(self, why: str) -> None:
        """The manager ends: call it off, as far as that is still possible."""
        with suppress(ParallelTopologyError):
            self._call_off(why, REPLACED)
        self.wait_until_given_up(Deadline(LAST))

    def all_over(self) -> None:
        """All ranks have gone over."""
        self._all_over = True

    def _end(self, state: State, error: BaseException | None = None, *, why: str = "") -> None:
        self._state, self._failure, self._why = state, error, why or (str(error) if error is not None else "")
        self._done.set()
        self._built.set()
        if state != "committed":
            self._change.stop()
            self._change.abandon()

    def _run(self) -> None:
        try:
            self._change.agree()
            if not self._done.is_set():  # else it was called off meanwhile, and nobody builds
                self._change.build()
        except BaseException as error:  # it is raised by `commit`
            with self._lock:
                if self._state == "building" and self._change.cancelled:
                    self._end("cancelled", why=self._change.cancelled)
                elif self._state == "building":
                    self._end("failed", error)
        with self._lock:
            if self._state == "building":
                self._state = "ready"
                self._built.set()
            elif self._state != "ready":
                self._change.abandon()

    def _watch(self) -> None:
        """See whether another rank has called it off, or, once it is ready, has ended."""
        while not self._done.wait(LOOK):
            self._look()

    def _look(self) -> None:
        why = ""
        if self._state in ("building", "ready"):
            with suppress(RendezvousError):
                why = self._change.called_off(only=self._state == "building")
        if why:
            with self._lock:
                if self._state in ("building", "ready"):
                    self._end("cancelled", why=why)


def end_later(change: Change[M], standby: Standby[M], life: Life, end: Callable[[], object]) -> None:
    """End a manager, whose `life` it is, on a thread, as soon as no rank uses it any more: a rank that did so sooner
    would cut off those that are still in their last call. An interpreter that ends does not wait for these."""
    hurry = threading.Event()

    def run() -> None:
        hurry.wait(LINGER)  # all have just gone over, and are to get on with their work first
        with suppress(ParallelTopologyError):
            if change.wait_for_all(lambda: hurry.is_set() or life.state == "closed"):
                standby.all_over()
        standby.wait_until_given_up(Deadline(LAST))
        end()
        atexit.unregister(finish)

    def finish() -> None:
        hurry.set()
        ending.join(LAST)

    ending = threading.Thread(target=run, name="parallel_topology end", daemon=True)
    atexit.register(finish)
    ending.start()
