"""`serving`: a library's module-level functions answer from a manager, in this thread and context only."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from parallel_topology.errors import ClosedError, GroupArgumentError
from parallel_topology.groups.manager import GroupManager
from parallel_topology.installed import required
from parallel_topology.interop.parallel_state.answers import Answers
from parallel_topology.interop.parallel_state.blocks import Place
from parallel_topology.interop.parallel_state.swaps import Answer, Answering, Swaps
from parallel_topology.reads.rows import Options, Own, Refused, Row, Table
from parallel_topology.reads.systems import SYSTEMS


@contextmanager
def serving(groups: GroupManager, system: str) -> Generator[None]:
    """Within this, the functions of a library that keeps its groups in module globals answer from `groups`.

    In this thread and context only: other threads see what was there before, asyncio's tasks and executors that copy
    the context see the block they were started in, generators the one that is around their own code, autograd's threads
    the one around the call of `backward`. Blocks may be nested and run side by side, with different managers. After the
    last block has ended, the functions are the library's own again.

    What has no meaning here raises and says why: `destroy_*`, setters of a rank. `initialize_*` checks that it asks for
    the topology of `groups`.

    Args:
        groups: with the combinations of axes that the code asks for declared.
        system: `"megatron"`, `"vllm"`, `"vllm-2024"`, `"sglang"` or `"deepspeed"`, of docs/migrating.md's versions.

    Raises:
        GroupArgumentError: there is no such system.
        MissingExtraError: it is not installed.
        ClosedError: `groups` was closed.
    """
    if system not in SYSTEMS:
        raise GroupArgumentError(f"serving(..., {system!r}): expected one of {', '.join(map(repr, SYSTEMS))}")
    if groups.closed:
        raise ClosedError(f"serving: {groups.name} was closed")
    served = _served(SYSTEMS[system])
    with served.place.open(_Inside(groups, served.answers(groups))):
        served.swaps.enter()
        try:
            yield
        finally:
            served.swaps.leave()


class _Inside(NamedTuple):
    groups: GroupManager
    answers: Answers


class _Served:
    """One system's functions in this process."""

    def __init__(self, table: Table) -> None:
        self.place = Place[_Inside]()
        self.swaps = Swaps(self._functions)
        self._table = table
        self._answers: WeakKeyDictionary[GroupManager, Answers] = WeakKeyDictionary()

    def answers(self, groups: GroupManager) -> Answers:
        return self._answers.setdefault(groups, Answers(self._table))

    def _functions(self) -> dict[FunctionType, Answering]:
        found: dict[FunctionType, Answering] = {}
        for name in self._table.modules:
            module = required(name, self._table.package)
            found |= {function: self._answering(row) for function, row in _functions(module, self._table).items()}
        return found

    def _answering(self, row: Row | Options) -> Answering:
        current = self.place.current

        def answering(own: FunctionType) -> Answer:
            def answer(*args: Any, **kwargs: Any) -> Any:
                inside = current()
                if inside is None:
                    return own(*args, **kwargs)
                return inside.answers.answer(inside.groups, row, own, args, kwargs)

            return answer

        return answering


_all_served: dict[str, _Served] = {}
"""The functions are the process's, so what stands in for them is, too. It holds nothing of a manager that is gone."""


def _served(table: Table) -> _Served:
    return _all_served.setdefault(table.system, _Served(table))


def _functions(module: ModuleType, table: Table) -> dict[FunctionType, Row | Options]:
    """The module's functions that are not left to themselves; those that the table does not know are refused."""
    rows = table.modules[module.__name__]
    unknown = Refused(f"the table knows {table.versions}, where there is no such function")
    found: dict[FunctionType, Row | Options] = {}
    for name, value in vars(module).items():
        if not isinstance(value, FunctionType) or value.__module__ != module.__name__:
            continue
        row = rows.get(name) or (Own() if name.startswith("_") else unknown)
        if not isinstance(row, Own):
            found[value] = row
    return found
