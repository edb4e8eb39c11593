"""Fixtures with another value on each rank: placeholders while pytest sets the test up, values inside the ranks."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import pytest

from parallel_topology.testing.failures import RanksUsageError


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

    def __reduce__(self) -> tuple[Any, ...]:
        # The module holds pytest's fixture of this name, not the function itself, so pickle would not find it.
        place = (self._function.__module__, self._function.__qualname__)
        return _found, (self._name, *place, self._arguments)


def rank_fixture(function: Callable[..., Any]) -> Any:
    """A pytest fixture that every rank makes for itself: it may take `groups`, and may `yield`.

    Only tests with `@pytest.mark.ranks`, and other rank fixtures, can take it. For a world of processes it is to be
    at the top level of its module.
    """

    @wraps(function)
    def at_setup(**arguments: Any) -> PerRank:
        return PerRank(function.__name__, function, arguments)

    return pytest.fixture(at_setup)


def own_groups(groups: Any) -> Any:
    """The fixture `groups`."""
    return groups


def own_generator(groups: Any) -> Any:
    """The fixture `generator`."""
    from parallel_topology.testing.seeding import rank_generator

    return rank_generator(groups.rank)


def own_random(groups: Any) -> random.Random:
    """The fixture `rng`."""
    from parallel_topology.testing.seeding import rank_seed

    return random.Random(rank_seed(groups.rank))


_BUILT_IN = (own_groups, own_generator, own_random)


@contextmanager
def values(arguments: Mapping[str, Any], groups: Any) -> Generator[dict[str, Any]]:
    """A test's arguments on the rank of `groups`."""
    made: dict[str, Any] = {}
    with ExitStack() as stack:
        yield {
            name: value.make(groups, stack, made) if isinstance(value, PerRank) else value
            for name, value in arguments.items()
        }


@contextmanager
def _started(generator: Generator[Any, Any, Any]) -> Generator[Any]:
    yield next(generator)
    for _ in generator:
        raise RanksUsageError("a rank fixture yields once, and this one yielded again")


def _found(name: str, module: str, qualified: str, arguments: dict[str, Any]) -> PerRank:
    found: Any = import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return PerRank(name, inspect.unwrap(found), arguments)
