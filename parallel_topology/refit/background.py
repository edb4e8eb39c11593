"""start_refit: a refit beside other work, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from datetime import timedelta

import torch
from torch import Tensor

from parallel_topology.errors import GroupTimeoutError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.meeting.deadline import seconds_of
from parallel_topology.refit.execute import Attempt, Refitted
from parallel_topology.refit.given import Have
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.refit.transfer import Progress

_LOOK = 0.2
"""Seconds after which a wait looks for signals, where that is needed."""


class Refitting:
    """A refit under way. Until it is done, read nothing of `into`, and change nothing of `have`.

    It cannot be called off: the other ranks may be done already.
    """

    def __init__(self, name: str, begin: Callable[[Progress], Attempt]) -> None:
        self._name = name
        self._through = 0, 0
        attempt, mode = begin(self._note), _inference()
        self._result: Refitted | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run, attempt, mode), name=f"parallel_topology {name}", daemon=True
        )
        self._thread.start()

    @property
    def progress(self) -> tuple[int, int]:
        """The bytes that are through on this rank, and all of them; both 0 before the ranks have agreed."""
        return self._through

    def is_done(self) -> bool:
        """Whether `wait()` would return or raise at once."""
        return not self._thread.is_alive()

    def wait(self, timeout: float | timedelta | None = None) -> Refitted:
        """What `refit` returns; asked again, the same result or the same error.

        Args:
            timeout: seconds; the refit goes on if they are over.

        Raises:
            GroupTimeoutError: it is not done in this time.
            RefitError: as of `refit`.
        """
        seconds = None if timeout is None else seconds_of("timeout", timeout)
        begun = time.monotonic()
        while self._thread.is_alive() and (seconds is None or time.monotonic() - begun < seconds):
            left = _LOOK if seconds is None else min(_LOOK, begun + seconds - time.monotonic())
            self._thread.join(max(left, 0))  # in slices: Ctrl-C is obeyed everywhere
        if self._error is not None:
            raise self._error
        if self._result is None:
            far = "{:,} of {:,} bytes".format(*self._through)
            raise GroupTimeoutError(f"{self._name} is not done after {seconds:g} s: {far} are through")
        return self._result

    def _note(self, through: int, of: int) -> None:
        self._through = through, of

    def _run(self, attempt: Attempt, mode: AbstractContextManager[object]) -> None:
        try:
            with mode:
                self._result = attempt.carry_out()
        except BaseException as error:
            self._error = error


def start_refit(
    plan: RefitPlan,
    group: ParallelGroup,
    have: Have,
    into: Mapping[str, Tensor],
    staging_bytes: int = 64 * 2**20,
    *,
    version: int = 0,
) -> Refitting:
    """Begin what `refit` does, and return at once; arguments and errors as there. All ranks of `group` call it.

    It runs on a thread. What else runs meanwhile needs other groups: give the weights one of their own, as in
    `GroupManager(..., isolated={"weights": ("tp", "dp")})`.
    """
    return Refitting(
        f"refit to version {version}",
        lambda note: Attempt(plan, group, have, into, staging_bytes, version, note),
    )


def _inference() -> AbstractContextManager[object]:
    """This thread's mode, for another one: tensors of inference are written in it only."""
    return torch.inference_mode() if torch.is_inference_mode_enabled() else nullcontext()
