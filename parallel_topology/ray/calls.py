"""Waiting for actors: a deadline, and one error that names who died, failed or did not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NoReturn

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


def gather(
    refs: Mapping[int, Any],
    labels: Mapping[int, str],
    doing: str,
    timeout: float,
    tell: Callable[[int], None] | None = None,
) -> list[Any]:
    """The results of `refs`, in their order, all within `timeout` seconds.

    After a first failure the others have a few seconds more: they may wait for who failed, and need not be waited for.

    Args:
        refs: rank -> the reference to its result.
        labels: rank -> what errors call it.
        doing: what errors say was done.
        tell: is told how many answers there are, now and then while none comes.

    Raises:
        RanksFailedError: not all came: a `DeadRankError` for each actor that died, before all others; the errors that
            calls raised, in the order in which they came; or, when nobody failed, a `StuckRankError` for each rank
            that had not answered at the deadline.
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
    if waiting and not failures:
        late = f"did not answer within {timeout:g} s; what it was told to do goes on there"
        failures = {rank: StuckRankError(late) for rank in waiting.values()}
    if failures:
        _raise(failures, len(refs) - len(results) - len(failures), labels, doing)
    return [results[rank] for rank in refs]


def _raise(failures: dict[int, Exception], waiting: int, labels: Mapping[int, str], doing: str) -> NoReturn:
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
    raise error


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
