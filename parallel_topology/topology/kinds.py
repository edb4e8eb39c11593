"""Values of this library's own kinds, where something else could have been given: a text in place of a topology."""

from __future__ import annotations

from typing import TypeVar

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted

Kind = TypeVar("Kind")


def require_kind(value: object, kind: type[Kind], what: str) -> Kind:
    """`value`, which is of that kind.

    Raises:
        TopologyError: it is not; the message begins with `what`, and says how a text becomes one.
    """
    if not isinstance(value, kind):
        read = isinstance(value, str) and hasattr(kind, "parse")
        hint = f": use {kind.__name__}.parse({quoted(value)})" if read else ""
        raise TopologyError(f"{what}={quoted(value)}: expected a {kind.__name__}{hint}")
    return value
