"""Waiting for actors: a deadline, and one error that names who died, failed or did not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from parallel_topology.errors import DeadRankError, MissingExtraError, RanksFailedError, StuckRankError

GRACE = 5.0
"""Seconds after the first failure in which the others' are collected: a death is often heard of after its effects."""

PATIENCE = 10.0
"""Seconds without an answer after which it is told how many have come; then twice as many, and so on."""


def require_ray() -> Any:
    """The module `ray`, which has no types worth the name.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("parallel_topology.ray needs Ray: pip install 'parallel-topology[ray]'") from None


@dataclass(frozen=True)
class Answers:
    """What came of references, by rank, and which of them are not through."""

    results: dict[int, Any]
    failures: dict[int, Exception]
    waiting: dict[int, Any]


def collect(refs: Mapping[int, Any], timeout: float, tell: Callable[[int], None] | None = None) -> Answers:
    """What comes within `timeout` seconds; after a first failure within a few more, as the others may wait for who
    failed, and need not be waited for.

    Args:
        tell: is told how many answers there are, now and then while none comes.
    """
    ray = require_ray()
    deadline = time.monotonic() + timeout
    patience = PATIENCE
    waiting = {ref: rank for rank, ref in refs.items()}
    results: dict[int, Any] = {}
    failures: dict[int, Exception] = {}
    while waiting:
        left = max(deadline - time.monotonic(), 0)
        ready, _ = ray.wait(list(waiting), timeout=min(left, patience) if tell else left)
        if not ready and tell and patience < left:
            tell(len(results))
            patience *= 2
            continue
        if not ready:
            break
        rank = waiting.pop(ready[0])
        try:
            results[rank] = ray.get(ready[0])
        except Exception as error:
            failures[rank] = _understood(error)
            deadline = min(deadline, time.monotonic() + GRACE)
    return Answers(results, failures, {rank: ref for ref, rank in waiting.items()})


def gather(
    refs: Mapping[int, Any],
    labels: Mapping[int, str],
    doing: str,
    timeout: float,
    tell: Callable[[int], None] | None = None,
) -> list[Any]:
    """The results of `refs`, in their order, all within `timeout` seconds.

    Args:
        refs: rank -> the reference to its result.
        labels: rank -> what errors call it.
        doing: what errors say was done.
        tell: as for `collect`.

    Raises:
        RanksFailedError: not all came, see `failure_of`.
    """
    answers = collect(refs, timeout, tell)
    if answers.failures or answers.waiting:
        raise failure_of(answers, labels, doing, timeout)
    return [answers.results[rank] for rank in refs]


def failure_of(answers: Answers, labels: Mapping[int, str], doing: str, timeout: float) -> RanksFailedError:
    """One error: a `DeadRankError` for each actor that died, before all others; the errors that calls raised, in the
    order in which they came; or, when nobody failed, a `StuckRankError` for each rank that had not answered in time."""
    late = f"did not answer within {timeout:g} s; what it was told to do goes on there"
    failures = answers.failures or {rank: StuckRankError(late) for rank in answers.waiting}
    waiting = len(answers.waiting) if answers.failures else 0
    ranks = sorted(failures, key=lambda rank: not isinstance(failures[rank], DeadRankError))  # else as they came
    for rank in ranks:
        failures[rank].add_note(f"on {labels[rank]}")
    first = failures[ranks[0]]
    message = (
        f"{doing}: {len(ranks)} of {len(labels)} failed, first {labels[ranks[0]]} with "
        f"{type(first).__name__}: {next(iter(str(first).splitlines()), '')}"
    )
    if waiting:
        message += f"; {waiting} had not answered yet"
    error = RanksFailedError(message, [failures[rank] for rank in ranks])
    error.ranks = tuple(ranks)
    return error


def own_worker(_: object = None) -> str:
    """Ray's id of this process. Runs in an actor."""
    return require_ray().get_runtime_context().get_worker_id()


def restarted(before: str, now: str) -> str:
    """What is said of an actor whose process is another one than it was."""
    return (
        f"its actor was restarted, as another process ({now[:8]}, before {before[:8]}), and has lost what it held; "
        "find the actors again and make a new RayEngine"
    )


def _understood(error: Any) -> Exception:
    """What failed: the error that the call raised, with its traceback there as a note, or a death with its cause."""
    exceptions: Any = import_module("ray.exceptions")
    cause = getattr(error, "cause", None)
    if isinstance(error, exceptions.RayTaskError) and isinstance(cause, Exception):  # also if it is an actor's death
        cause.add_note(str(error))
        return cause
    if isinstance(error, exceptions.RayActorError):
        said = str(error)
        short = f"it could not be made: {said.splitlines()[-1]}" if error.actor_init_failed else " ".join(said.split())
        death = DeadRankError(short)
        death.__cause__ = error
        return death
    return error
