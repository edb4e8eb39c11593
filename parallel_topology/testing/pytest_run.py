"""Running one marked test on its ranks, from pytest's process."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

from parallel_topology.testing.failures import RanksUsageError
from parallel_topology.testing.pool import WorkerPool
from parallel_topology.testing.pytest_private import argument_names
from parallel_topology.testing.pytest_worker import RankOutcomeError, Target, call, call_here
from parallel_topology.testing.ranks import World, run_ranks
from parallel_topology.topology.topology import ParallelTopology

PATIENCE = 3600.0
"""Seconds that ranks may take when a debugger may stop them."""


def run_item(
    item: pytest.Function, marker: pytest.Mark, topology: ParallelTopology, world: World, pool: WorkerPool
) -> None:
    """Run the test's function on every rank.

    Raises:
        ExceptionGroup: ranks failed; marked as theirs for the report.
        RanksUsageError: the test cannot run on ranks.
        Exception: pytest's skip or xfail, if every rank raised it.
    """
    __tracebackhide__ = True
    function = item.obj
    arguments = {name: item.funcargs[name] for name in argument_names(item)}
    _require_plain(item, function)
    options = {name: value for name, value in marker.kwargs.items() if name != "world"}
    options.setdefault("timeout", item.config.getoption("--ranks-timeout"))
    if item.config.getoption("usepdb", False) or item.config.getoption("trace", False):
        options["timeout"] = PATIENCE
    how: tuple[Any, ...] = (call_here, function, arguments)
    if world == "processes":
        how = (call, _target(item, function, arguments))
    try:
        run_ranks(topology, *how, world=world, pool=pool, **options)
    except BaseExceptionGroup as failures:
        outcomes = [_here(error) for error in failures.exceptions if isinstance(_here(error), _OUTCOMES)]
        if len(outcomes) == topology.world_size:
            raise outcomes[0] from None
        failures.of_ranks = world  # pyright: ignore[reportAttributeAccessIssue] (read by the report)
        raise


_OUTCOMES = (pytest.skip.Exception, pytest.xfail.Exception)


def _here(error: BaseException) -> BaseException:
    return error.as_here() if isinstance(error, RankOutcomeError) else error


def _require_plain(item: pytest.Function, function: Any) -> None:
    if inspect.iscoroutinefunction(function):
        raise RanksUsageError(f"{item.nodeid} is a coroutine function: @pytest.mark.ranks runs plain functions")
    if getattr(function, "is_hypothesis_test", False):
        raise RanksUsageError(
            f"{item.nodeid} is made by hypothesis, which would draw other examples on each rank: call "
            "parallel_topology.testing.run_ranks inside it instead of marking it"
        )


def _target(item: pytest.Function, function: Any, arguments: dict[str, Any]) -> Target:
    for name, value in arguments.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise RanksUsageError(
                f"the fixture {name!r} of {item.nodeid} cannot travel to other processes "
                f"({type(error).__name__}: {error}): run it with --ranks-world=threads, or make it a rank_fixture"
            ) from error
    try:
        payload = pickle.dumps((function, arguments))
    except Exception as error:
        raise RanksUsageError(
            f"{item.nodeid} cannot travel to other processes ({error}): its function is to be found by its name, at "
            "the top level of its module or class"
        ) from error
    return Target(function.__module__, str(item.path), str(item.config.rootpath), payload)
