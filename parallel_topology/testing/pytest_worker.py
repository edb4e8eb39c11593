"""What the plugin runs in worker processes: the test's own module, imported there with its assertions rewritten."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from parallel_topology.errors import ParallelTopologyError
from parallel_topology.testing.per_rank import values
from parallel_topology.testing.pytest_private import load_module, start_rewriting

_Info: Any = pytest.ExceptionInfo  # pyright finds its type partially unknown
_OUTCOMES: dict[str, Any] = {
    "skip": pytest.skip.Exception,
    "xfail": pytest.xfail.Exception,
    "fail": pytest.fail.Exception,
}


class RankOutcomeError(ParallelTopologyError):
    """`pytest.skip`, `xfail` or `fail` was called on a rank in another process."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"pytest.{self.kind}({self.reason!r})"

    def as_here(self) -> BaseException:
        """What pytest would have raised in this process."""
        return _OUTCOMES[self.kind](self.reason)


@dataclass(frozen=True)
class Target:
    """Where a test function is found; `payload` is the pickled (function, arguments), which needs the module."""

    module: str
    path: str
    root: str
    payload: bytes


def set_up(root: str, patterns: str, marked: list[str], verbosity: int, style: str) -> Callable[[BaseException], str]:
    """Once in each worker, before it imports any test. Returns how an error is told."""
    if style != "plain":
        start_rewriting(root, patterns, marked, verbosity)
    return _formatted


def call(groups: Any, target: Target) -> None:
    """The test on one rank of a world of processes."""
    load_module(target.module, target.path, target.root)
    function, arguments = pickle.loads(target.payload)
    try:
        with values(arguments, groups) as own:
            function(**own)
    except tuple(_OUTCOMES.values()) as outcome:  # they say they are of `builtins`, where pickle does not find them
        kind = next(kind for kind, type_ in _OUTCOMES.items() if isinstance(outcome, type_))
        raise RankOutcomeError(kind, str(outcome.msg)) from None  # pyright: ignore[reportUnknownArgumentType]


def call_here(groups: Any, function: Any, arguments: dict[str, Any]) -> None:
    """The test on one rank of a world of threads."""
    with values(arguments, groups) as own:
        function(**own)


def _formatted(error: BaseException) -> str:
    info: Any = _Info.from_exception(error)
    inside = [entry for entry in info.traceback if not str(entry.path).startswith(_OWN)]
    if inside:
        info = _Info.from_exc_info((type(error), error, inside[0]._rawentry))
    return str(info.getrepr(style="long", chain=True))


_OWN = __file__.rpartition("/")[0]
