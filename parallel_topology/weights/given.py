"""What rules are given, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted, require
from parallel_topology.weights.forms import Form


def said(rule: object) -> str:
    """A rule, as messages begin: `Fused('qkv')`."""
    return f"{type(rule).__name__}({quoted(getattr(rule, 'name', None))})"


def named(rule: object, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TopologyError(f"{said(rule)}: name={quoted(name)}: expected the name of a weight or tensor, as in 'qkv'")
    return name


def several(rule: object, parts: object) -> tuple[str, ...]:
    """The names of parts, each once."""
    names = () if isinstance(parts, str) or not isinstance(parts, Iterable) else tuple(cast("Iterable[object]", parts))
    if not names:
        raise TopologyError(
            f"{said(rule)}: parts={quoted(cast('object', parts))}: expected names, as in ['q', 'k', 'v']"
        )
    checked = tuple(named(rule, name) for name in names)
    if twice := [name for name in checked if checked.count(name) > 1]:
        raise TopologyError(f"{said(rule)}: part {twice[0]!r} is named twice; expected each once")
    return checked


def whole_dim(rule: object, dim: object) -> int:
    return require(-99, f"{said(rule)}: dim", dim)


def dim_of(rule: object, dim: int, form: Form) -> int:
    """Which of a form's dims it is; a negative one counts from the last."""
    count = len(form.dims)
    if not -count <= dim < count:
        raise TopologyError(f"{said(rule)}: dim={dim}: expected one of the {count} of {form.name!r}, {form}")
    return dim % count


def put(rule: object, **values: object) -> None:
    """Sets what is checked, as an immutable value is made."""
    for name, value in values.items():
        object.__setattr__(rule, name, value)
