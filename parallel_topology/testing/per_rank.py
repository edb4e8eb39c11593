"""Fixtures with another value on each rank: in threads placeholders while pytest sets the test up, values in the ranks.

Where ranks are processes each has a pytest of its own, and these are fixtures like any other.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import pytest

from parallel_topology.testing.failures import RanksUsageError

SEAT = "parallel_topology_seat"
"""The name of the plugin that pytest has in a process that is a rank."""


class PerRank:
    """Stands for a value that each rank makes for itself, by calling `function` with `arguments`."""

    def __init__(self, name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._name = name
        self._function = function
        self._arguments = dict(arguments)

    def make(self, groups: Any, stack: ExitStack, made: dict[str, Any]) -> Any:
        """The value on the rank of `groups`; what it takes down when the test ends goes onto the stack."""
        if self._name not in made:
            arguments = {
                name: value.make(groups, stack, made) if isinstance(value, PerRank) else value
                for name, value in self._arguments.items()
            }
            leading = [groups] if self._function in _BUILT_IN else []
            value: Any = self._function(*leading, **arguments)
            if inspect.isgeneratorfunction(self._function):
                value = stack.enter_context(_started(value))
            made[self._name] = value
        return made[self._name]

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise RanksUsageError(
            f"the fixture {self._name!r} has a value only inside the ranks, and here no rank runs; "
            "a fixture that needs it is made with parallel_topology.testing.rank_fixture"
        )


def rank_fixture(function: Callable[..., Any]) -> Any:
    """A pytest fixture that every rank makes for itself: it may take `groups`, and may `yield`.

    Only tests with `@pytest.mark.ranks`, and other rank fixtures, can take it.
    """
    parameters = inspect.signature(function).parameters
    takes_request = "request" in parameters

    @wraps(function)
    def at_setup(request: pytest.FixtureRequest, **arguments: Any) -> Generator[Any]:
        if takes_request:
            arguments["request"] = request
        value = PerRank(function.__name__, function, arguments)
        with ExitStack() as stack:
            yield value.make(None, stack, {}) if request.config.pluginmanager.has_plugin(SEAT) else value

    first = [] if takes_request else [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)]
    at_setup.__signature__ = inspect.Signature([*parameters.values(), *first])  # pyright: ignore[reportAttributeAccessIssue]
    return pytest.fixture(at_setup)


def own_groups(groups: Any) -> Any:
    """The fixture `groups`."""
    return groups


def own_generator(groups: Any, seed: int) -> Any:
    """The fixture `generator`."""
    from parallel_topology.testing.seeding import rank_generator

    return rank_generator(groups.rank, seed)


def own_random(groups: Any, seed: int) -> random.Random:
    """The fixture `rng`."""
    from parallel_topology.testing.seeding import rank_seed

    return random.Random(rank_seed(groups.rank, seed))


_BUILT_IN = (own_groups, own_generator, own_random)


def call_on_rank(groups: Any, function: Any, arguments: Mapping[str, Any], phases: dict[int, str]) -> None:
    """The test on a rank that is a thread.

    Args:
        phases: by rank, in which of pytest's phases it is: what fails there is judged as pytest judges it.
    """
    made: dict[str, Any] = {}
    failure: BaseException | None = None
    phases[groups.rank] = "setup"
    with ExitStack() as stack:
        own = {
            name: value.make(groups, stack, made) if isinstance(value, PerRank) else value
            for name, value in arguments.items()
        }
        phases[groups.rank] = "call"
        try:
            function(**own)
        except BaseException as error:
            failure = error
        else:
            phases[groups.rank] = "teardown"
        _take_down(stack, failure)


def _take_down(stack: ExitStack, failure: BaseException | None) -> None:
    """What the fixtures do at the end; a failure of the test itself is more than one of theirs."""
    try:
        stack.close()
    except Exception as error:
        if failure is None:
            raise
        failure.add_note(f"and its teardown failed: {type(error).__name__}: {error}")
    if failure is not None:
        raise failure


@contextmanager
def _started(generator: Generator[Any, Any, Any]) -> Generator[Any]:
    yield next(generator)
    for _ in generator:
        raise RanksUsageError("a rank fixture yields once, and this one yielded again")
