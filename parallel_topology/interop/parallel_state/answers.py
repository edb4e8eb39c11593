"""A table's rows answered by one manager."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

from parallel_topology.errors import ClosedError, GroupArgumentError, UnknownAxisError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager
from parallel_topology.interop.alone import ProcessGroups
from parallel_topology.interop.parallel_state.buffers import Buffers
from parallel_topology.interop.parallel_state.coordinator import coordinator
from parallel_topology.interop.parallel_state.required import members, require, resolved
from parallel_topology.reads.rows import (
    Ask,
    Buffer,
    Composed,
    Constant,
    Kept,
    Options,
    Refused,
    Required,
    Row,
    Table,
)

GROUPS = ("device_group", "cpu_group", "coordinator")
"""What is asked of a group and ends with it."""
_UNKNOWN: Any = object()


class Answers:
    """What one manager answers in one system's words. It lives as long as the manager, which it does not hold.

    Attributes:
        kept: what functions have set.
    """

    def __init__(self, table: Table) -> None:
        self.kept: dict[str, Any] = {}
        self._table = table
        self._known: dict[Any, Any] = {}  # what stays true when the manager is closed
        self._lent: dict[Any, Any] = {}  # groups
        self._made: dict[str, Any] = {}
        self._lock = threading.RLock()

    def answer(
        self,
        groups: GroupManager,
        row: Row | Options,
        own: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What `groups` answers to `own(*args, **kwargs)`.

        Raises:
            GroupArgumentError: it has no meaning here, or the arguments have none; says why.
            UnknownAxisError: the groups were not declared; says what to declare.
            TopologyError: `initialize_*` asks for another topology.
            ClosedError: the manager was closed.
        """
        name = own.__name__
        key = (name, args, *kwargs.items()) if args or kwargs else name
        try:
            found = self._known.get(key, _UNKNOWN)
        except TypeError:  # no key
            found, key = _UNKNOWN, None
        if found is not _UNKNOWN:
            return found
        found = self._lent.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            return self._found(groups, row, own, args, kwargs, key)
        if groups.closed:
            raise _closed(groups, name)
        return found

    def _found(
        self,
        groups: GroupManager,
        row: Row | Options,
        own: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Any,
    ) -> Any:
        arguments = {name: value for name, value in _bound(own, args, kwargs).items() if name not in self._table.moot}
        insisting = arguments.pop(self._table.optional, True) is not False
        one = _chosen(own.__name__, row, arguments) if isinstance(row, Options) else row
        while isinstance(one, Composed):
            one = one.compute(sys.modules[own.__module__], groups, arguments)
        if isinstance(one, Ask):
            if not isinstance(row, Options | Composed):
                _require_none(own, arguments)
            value = self._asked(groups, own, one, insisting)
            if not isinstance(row, Composed) and key is not None and one.what != "ranks":
                (self._lent if one.what in GROUPS else self._known)[key] = value
            return value
        return self._other(groups, own, one, arguments, insisting)

    def _other(
        self, groups: GroupManager, own: FunctionType, row: Any, arguments: dict[str, Any], insisting: bool
    ) -> Any:
        match row:
            case Constant(value=value):
                return value
            case Kept(name=name):
                if not arguments:
                    return self.kept.get(name)
                (self.kept[name],) = arguments.values()
            case Buffer():
                return self._once("buffer", lambda: Buffers(groups.device))
            case Required():
                require(groups, own.__name__, row, arguments, self._table.without)
                for argument, (size, rank) in row.kept.items():
                    if arguments.get(argument) is not None:
                        self.kept |= {size: arguments[argument], rank: 0}
            case Refused():
                if insisting or not row.absent:
                    _refuse(own.__name__, row)
            case _:
                return row  # composed
        return None

    def _asked(self, groups: GroupManager, own: FunctionType, ask: Ask, insisting: bool) -> Any:
        name, module = own.__name__, sys.modules[own.__module__]
        axes = resolved(groups.topology, ask.axes, self._table.without)
        if ask.what not in GROUPS:
            group = members(groups, axes)
            if ask.what == "ranks":
                return list(group.ranks)
            first, *others = ask.what.split(" or ")
            return any(getattr(group, what) for what in (first, *others)) if others else getattr(group, first)
        if groups.closed:
            raise _closed(groups, name)
        try:
            group = _declared(groups, axes)
        except UnknownAxisError as error:
            error = UnknownAxisError(f"{name}(): {error}")
            if insisting:
                raise error from None
            return Undeclared(error)
        alone = partial(self._once, "alone", lambda: ProcessGroups(groups).alone)
        if ask.what == "coordinator":
            return self._once(
                group.label, lambda: coordinator(module.GroupCoordinator, group, groups.local_rank, alone)
            )
        return getattr(group, ask.what) or alone()

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if what not in self._made:
                self._made[what] = make()
            return self._made[what]


class Undeclared:
    """In the place of a group for who does not insist on one: None would be the whole world to torch."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


def _declared(groups: GroupManager, axes: tuple[str, ...]) -> ParallelGroup:
    if axes == ("world",) or (len(axes) == 1 and axes[0] in groups.plan.families):
        return groups[axes[0]]
    if not axes:
        return groups._alone("alone")  # pyright: ignore[reportPrivateUsage] (the manager's way to make one)
    return ProcessGroups(groups).group(*axes)


def _closed(groups: GroupManager, name: str) -> ClosedError:
    return ClosedError(f"{name}(): {groups.name}, which serves it, was closed")


def _bound(own: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(own).bind(*args, **kwargs)  # a TypeError as the function itself would raise
    bound.apply_defaults()
    return dict(bound.arguments)


def _chosen(name: str, options: Options, arguments: Mapping[str, Any]) -> Row:
    given = {argument for argument, value in arguments.items() if value}
    for names, row in options.rows.items():
        if given == set(names):
            return row
    raise GroupArgumentError(
        f"{name}({', '.join(f'{argument}={arguments[argument]!r}' for argument in sorted(given))}): no group here is "
        f"that; expected {' or '.join(', '.join(names) or 'no argument' for names in options.rows)}"
    )


def _require_none(own: FunctionType, arguments: Mapping[str, Any]) -> None:
    defaults = inspect.signature(own).parameters
    for name, value in arguments.items():
        if value and value is not defaults[name].default:
            raise GroupArgumentError(f"{own.__name__}({name}={value!r}): served by a manager it takes no {name}")


def _refuse(name: str, row: Refused) -> NoReturn:
    raise GroupArgumentError(f"{name}() has no meaning for a manager: {row.why}")
