"""Classes that a receiver may allow: pydantic models, dataclasses, named tuples and enums, found by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, Flag
from typing import Any, TypeAlias

from pydantic import BaseModel

from parallel_topology.errors import GroupArgumentError, WireError

Class: TypeAlias = type[Any]
"""A subclass of `pydantic.BaseModel` or `enum.Enum`, a dataclass, or a class that `NamedTuple` makes."""


@dataclass(frozen=True)
class Parts:
    """What an instance is made of, without its class.

    Attributes:
        kind: `"dataclass"`, `"named"` or `"model"`.
        name: the class's, with its module.
        keys: names of the fields.
        values: of the fields; of a model one, its dump.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]


def parts_of(value: Any) -> Parts | None:
    """What a dataclass's instance or a named tuple is made of; None for anything else.

    Raises:
        ValueError: it cannot be made again of its fields.
    """
    kind: Any = value.__class__
    of = _kind_of(kind)
    if of == "named":
        return Parts("named", name_of_class(kind), tuple(kind._fields), tuple(value))
    if of != "dataclass":
        return None
    fields = dataclasses.fields(kind)
    if any(field._field_type is dataclasses._FIELD_INITVAR for field in kind.__dataclass_fields__.values()):  # pyright: ignore
        raise ValueError("it has an InitVar, which it does not keep")
    keys = tuple(field.name for field in fields)
    return Parts("dataclass", name_of_class(kind), keys, tuple(getattr(value, key) for key in keys))


def built(parts: Parts, classes: dict[str, Class]) -> Any:
    """The instance. A dataclass's `__init__` gets the fields that it takes; the others are set afterwards.

    Raises:
        WireError: the class is not allowed, is of another kind, or refuses the values.
    """
    kind = allowed(parts.name, classes, parts.kind)
    try:
        if parts.kind == "model":
            return kind.model_validate(parts.values[0])
        if parts.kind == "named":
            _require(parts.keys == tuple(kind._fields), kind._fields)
            return kind(*parts.values)
        fields = dataclasses.fields(kind)
        _require(parts.keys == tuple(field.name for field in fields), [field.name for field in fields])
        given = dict(zip(parts.keys, parts.values, strict=True))
        made = kind(**{field.name: given[field.name] for field in fields if field.init})
        for field in fields:
            if not field.init:
                object.__setattr__(made, field.name, given[field.name])
        return made
    except Exception as error:  # validators and constructors are the user's, and raise anything
        raise WireError(f"what a peer sent as a {parts.name} makes none: {error!s:.500}") from error


def member_of(name: str, key: str | int, classes: dict[str, Class]) -> Enum:
    """A member of an enum, by its name, or of a flag by its value.

    Raises:
        WireError: the enum is not allowed, or has no such member.
    """
    kind = allowed(name, classes, "enum")
    try:
        return kind[key] if type(key) is str else kind(key)
    except Exception as error:
        raise WireError(f"a peer sent {key!r:.80} as a {name}, which has no such member") from error


def key_of(member: Enum) -> str | int:
    """What `member_of` takes: several flags at once have no name."""
    return member.value if isinstance(member, Flag) else member.name


def allowed(name: str, classes: dict[str, Class], kind: str) -> Any:
    """The class of that name.

    Raises:
        WireError: the receiver did not name it, or it is none of that kind.
    """
    if name not in classes:
        known = ", ".join(classes) or "none"
        raise WireError(
            f"a peer sent a {name!r:.200}, and the models that this call allows are {known}: to allow it, give "
            f"the class, as in models=({name.rpartition('.')[2]:.80},)"
        )
    if (here := _kind_of(classes[name])) != kind:
        raise WireError(f"a peer sent a {name} as if it were a {kind}; here it is a {here}")
    return classes[name]


def by_name(classes: Iterable[Class]) -> dict[str, Class]:
    """The classes that a receiver allows, by the names under which they are sent.

    Raises:
        GroupArgumentError: one is no such class, or two have one name.
    """
    if not isinstance(classes, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupArgumentError(f"models={classes!r}: expected classes, as in models=(Request,)")
    named: dict[str, Class] = {}
    for one in classes:
        if not isinstance(one, type) or not _kind_of(one):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(
                f"models has {one!r}: expected classes that derive from pydantic.BaseModel or enum.Enum, dataclasses "
                "or named tuples"
            )
        if named.setdefault(name_of_class(one), one) is not one:
            raise GroupArgumentError(f"models has two classes named {name_of_class(one)}; expected different names")
    return named


def name_of_class(kind: type) -> str:
    """`engine.Request`"""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _kind_of(one: Any) -> str:
    if issubclass(one, BaseModel):
        return "model"
    if issubclass(one, Enum):
        return "enum"
    if issubclass(one, tuple) and hasattr(one, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
        return "named"
    return "dataclass" if dataclasses.is_dataclass(one) else ""  # pyright: ignore[reportUnknownArgumentType]


def _require(equal: bool, fields: Iterable[str]) -> None:
    if not equal:
        raise ValueError(f"its fields here are {', '.join(fields)}")
