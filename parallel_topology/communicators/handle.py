"""Handle: what an asynchronous collective gives at once, to wait on later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from parallel_topology.communicators.communicator import Work, remaining, wait_for, within
from parallel_topology.communicators.forked import this_process
from parallel_topology.communicators.links import Call, Links
from parallel_topology.communicators.refusal import Refusal
from parallel_topology.errors import (
    ClosedError,
    CollectiveError,
    GroupArgumentError,
    GroupTimeoutError,
    ParallelTopologyError,
)

T = TypeVar("T")


class Owner(Protocol):
    """The group that a collective runs on."""

    label: str
    links: Links

    def failure(self, call: Call, error: RuntimeError) -> ParallelTopologyError: ...


class Handles:
    """Several handles as the work of one."""

    def __init__(self, handles: Sequence[Handle[Any]]) -> None:
        self._handles = handles

    def wait(self, timeout: timedelta | None = None) -> object:
        end = within(timeout)
        for handle in self._handles:
            handle.wait(remaining(end))
        return True

    def is_completed(self) -> bool:
        return all(handle.is_done() for handle in self._handles)


class Handle(Generic[T]):
    """A collective under way. Neither read nor write its tensors before `wait()` has returned.

    On a device, `wait()` lets the current stream wait and returns at once; on the CPU it returns when all is done. Any
    number of threads may wait.
    """

    def __init__(
        self, group: Owner, call: Call, work: Work | None, finish: Callable[[], T], held: object = None
    ) -> None:
        """`held` lives until the wait is over: whoever drops the last reference to a gloo group waits for its work."""
        self._group = group
        self._held = held
        self._call = call
        self._work = work
        self._finish: Callable[[], T] | None = finish
        self._begun = time.monotonic()
        self._result: T
        self._error: BaseException | None = None
        self._one_waits = threading.Lock()

    @classmethod
    def of(cls, result: T) -> Handle[T]:
        """A handle on something that is done."""
        return _Done(result)

    def wait(self, timeout: float | timedelta | None = None) -> T:
        """What the collective returns; asked again, the same result or the same error.

        After a KeyboardInterrupt it can be asked again, too: it then goes on waiting.

        Args:
            timeout: seconds for all of it, if not the group's; only for CPU tensors.

        Raises:
            GroupTimeoutError: the others did not take part in time.
            CollectiveError: it failed.
            ClosedError: the manager was closed meanwhile, or this is a forked child.
        """
        if self._finish is not None or self._error is not None:
            self._require_here()
            end = within(_duration(timeout))
            if not self._one_waits.acquire(timeout=-1 if end is None else max(end - time.monotonic(), 0)):
                raise GroupTimeoutError(f"{self._where()}: another thread still waits for it after {timeout} s")
            try:
                self._complete(end)
            finally:
                self._one_waits.release()
        return self._result

    def _complete(self, end: float | None) -> None:
        """Wait, if nobody has yet, and finish what came; once."""
        if self._error is not None:
            raise self._error
        if self._finish is None:
            return
        links = self._group.links
        witness = links.witness
        if witness is not None:
            timeout = links.timeout if end is None else timedelta(seconds=max(end - self._begun, 0))
            witness.vigil.begins(self._group.label, self._call, timeout, self._begun)
        try:
            wait_for(self._work, remaining(end))
        except ParallelTopologyError as error:
            self._fail(error)
        except Refusal as refusal:
            told = refusal.to(self._group.label)
            told.__cause__ = refusal.__cause__
            self._fail(told)
        except RuntimeError as error:
            failure = self._group.failure(self._call, error)
            failure.__cause__ = error
            self._fail(failure)
        finally:
            if witness is not None:
                witness.vigil.is_over()
        # An interrupt leaves all as it was. From here on, what comes must not happen twice: it may be collectives.
        self._error = CollectiveError(f"{self._where()}: interrupted when it was all but done; its result is lost")
        finish, self._finish = self._finish, None
        self._work = self._held = None
        try:
            self._result = finish()
        except Exception as error:
            self._error = error
            raise
        self._error = None

    def _fail(self, error: ParallelTopologyError) -> NoReturn:
        self._error = error
        self._finish = self._work = self._held = None  # work that failed holds its group's connections
        raise error

    def _require_here(self) -> None:
        if self._group.links.process != this_process.id:
            raise ClosedError(f"{self._where()}: {self._group.links.refusal()}")

    def is_done(self) -> bool:
        """Whether `wait()` would return at once. A collective that failed is done, too.

        Raises:
            ClosedError: this is a forked child.
        """
        work = self._work
        if work is None:
            return True
        self._require_here()
        return work.is_completed()

    def _where(self) -> str:
        return f"{self._call.operation} on {self._group.label}"

    def __repr__(self) -> str:
        is_done = self._work is None or self._work.is_completed()
        return f"<Handle of {self._where()}, {'done' if is_done else 'under way'}>"


class _Done(Handle[T]):
    """On something that is done. Compiled code makes these, and could not make a lock."""

    def __init__(self, result: T) -> None:
        self._result = result

    def wait(self, timeout: float | timedelta | None = None) -> T:
        return self._result

    def is_done(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "<Handle, done>"


def _duration(timeout: float | timedelta | None) -> timedelta | None:
    if timeout is None or isinstance(timeout, timedelta):
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < float("inf"):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupArgumentError(f"wait(timeout={timeout!r}): expected a number of seconds from 0, or a timedelta")
    return timedelta(seconds=timeout)
