"""Handle: what an asynchronous collective gives at once, to wait on later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from parallel_topology.communicators.communicator import Work, wait_for
from parallel_topology.errors import ParallelTopologyError

T = TypeVar("T")


class Owner(Protocol):
    """The group that a collective runs on."""

    label: str

    def failure(self, operation: str, error: RuntimeError) -> ParallelTopologyError: ...


class Handles:
    """Several handles as the work of one."""

    def __init__(self, handles: Sequence[Handle[Any]]) -> None:
        self._handles = handles

    def wait(self, timeout: timedelta | None = None) -> object:
        for handle in self._handles:
            handle.wait(None if timeout is None else timeout.total_seconds())
        return True

    def is_completed(self) -> bool:
        return all(handle.is_done() for handle in self._handles)


class Handle(Generic[T]):
    """A collective under way. Neither read nor write its tensors before `wait()` has returned.

    On a device, `wait()` lets the current stream wait and returns at once; on the CPU it returns when all is done.
    """

    def __init__(
        self, group: Owner | None, operation: str, work: Work | None, finish: Callable[[], T], held: object = None
    ) -> None:
        """`held` lives until the wait is over: whoever drops the last reference to a gloo group waits for its work."""
        self._group = group
        self._held = held
        self._operation = operation
        self._work = work
        self._finish: Callable[[], T] | None = finish
        self._result: T
        self._error: ParallelTopologyError | None = None

    @classmethod
    def of(cls, result: T) -> Handle[T]:
        """A handle on something that is done."""
        return cls(None, "", None, lambda: result)

    def wait(self, timeout: float | None = None) -> T:
        """What the collective returns; asked again, the same.

        Args:
            timeout: seconds, if not the group's; only for CPU tensors.

        Raises:
            GroupTimeoutError: the others did not take part in time.
            CollectiveError: it failed.
        """
        if self._error is not None:
            raise self._error
        if self._finish is not None:
            try:
                self._carry_out(timeout)
            except ParallelTopologyError as error:
                self._error = error
                raise
            except RuntimeError as error:
                if self._group is None:
                    raise
                self._error = self._group.failure(self._operation, error)
                raise self._error from error
            finally:
                self._work = self._held = None  # work that failed holds its group's connections
            self._result, self._finish = self._finish(), None
        return self._result

    def _carry_out(self, timeout: float | None) -> None:
        wait_for(self._work, None if timeout is None else timedelta(seconds=timeout))

    def is_done(self) -> bool:
        """Whether `wait()` would return at once. A collective that failed is done, too."""
        return self._work is None or self._work.is_completed()

    def __repr__(self) -> str:
        where = f" of {self._operation} on {self._group.label}" if self._group is not None else ""
        return f"<Handle{where}, {'done' if self.is_done() else 'under way'}>"
