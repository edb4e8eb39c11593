"""What a library's own functions give after its own initialisation, and what they give when a manager serves them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import FunctionType
from typing import Any

import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopologyError
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.rows import Ask, Composed, Constant, Kept, Options, Own, Table


def questions(table: Table) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(module, function, arguments that are true), of all that only ask."""
    for module, rows in table.modules.items():
        for name, row in rows.items():
            if name.startswith("init") or (isinstance(row, Own) and not row.line):
                continue
            if isinstance(row, Options):
                yield from ((module, name, names) for names in row.rows)
            elif isinstance(row, Ask | Constant | Composed | Own) or (isinstance(row, Kept) and name.startswith("get")):
                yield module, name, ()


def comparable(value: Any) -> Any:
    """A process group by its members, anything else as it is."""
    if isinstance(value, dist.ProcessGroup):
        return [dist.get_rank()] if value.size() == 1 else dist.get_process_group_ranks(value)
    if hasattr(value, "rank_in_group"):
        names = (
            "rank", "ranks", "world_size", "rank_in_group", "first_rank", "last_rank", "next_rank", "prev_rank",
            "is_first_rank", "is_last_rank",
        )  # fmt: skip
        return {name: getattr(value, name) for name in names} | {
            name: sorted(comparable(getattr(value, name)))
            for name in ("device_group", "cpu_group")  # as new_group does
        }
    return value


def answers(table: Table, left_out: Callable[[str], bool] = lambda name: False) -> dict[str, Any]:
    """Every question's answer here; an assertion is one, too."""
    found: dict[str, Any] = {}
    for module, name, names in questions(table):
        function = getattr(import_module(module), name, None)
        if not isinstance(function, FunctionType) or left_out(name):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[f"{name}({', '.join(names)})"] = comparable(function(**dict.fromkeys(names, True)))
        except (AssertionError, ParallelTopologyError, TypeError) as error:
            found[f"{name}({', '.join(names)})"] = type(error).__name__
    return found


def names(table: Table) -> tuple[Mapping[str, set[str]], Mapping[str, set[str]]]:
    """By module: the names that are new to the table, and those that are only there."""
    new: dict[str, set[str]] = {}
    gone: dict[str, set[str]] = {}
    for module, rows in table.modules.items():
        own = {
            name
            for name, value in vars(import_module(module)).items()
            if isinstance(value, FunctionType | type) and value.__module__ == module
        }
        new[module] = {name for name in own if not name.startswith("_")} - rows.keys()
        gone[module] = rows.keys() - own - table.passing
    return new, gone


def served(table: Table, groups: GroupManager, left_out: Callable[[str], bool] = lambda name: False) -> dict[str, Any]:
    with serving(groups, table.system):
        return answers(table, left_out)
