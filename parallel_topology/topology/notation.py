"""The compact notation: `tp2-pp4`, and with everything `tp2-dp4-pp2@8/expert:etp1-ep8-edp1-pp2`.

- topology = axes [ "@" first_rank | "@" rank "," rank ... ] { "/" view ":" axes [ "~" order ] }
- axes = name size { "-" name size }: fastest-varying first; in a view, one size may be left out
- order = name { "-" name }: the order in which a view walks the base's axes ("over")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from parallel_topology.errors import TopologyError

_AXIS = re.compile(r"[a-z][a-z_]*")  # no digits: a forgotten '-' in "tp2-pp4" must not read as the axis "tp2pp"
_SIZED = re.compile(rf"({_AXIS.pattern})([0-9]*)")
_EXAMPLE = "expected axes and sizes, fastest first, as in 'tp2-pp4'"


def is_axis_name(text: str) -> bool:
    """Whether `text` can name an axis or view: lower-case letters and `_`."""
    return _AXIS.fullmatch(text) is not None


def split_order(order: str) -> list[str]:
    """The axes of `"tp-cp-dp-pp"`; Megatron's notation.

    Raises:
        TopologyError: a name is malformed or stands twice.
    """
    axes = order.split("-")
    for axis in axes:
        if not is_axis_name(axis):
            raise TopologyError(
                f"order {order!r}: {axis!r} is not an axis name; expected names joined by '-', fastest first, "
                "as in 'tp-dp-pp', or the name of a system's order"
            )
        if axes.count(axis) > 1:
            raise TopologyError(f"order {order!r} names {axis!r} {axes.count(axis)} times; expected each axis once")
    return axes


def parse_axes(text: str, *, unsized: bool = False) -> dict[str, int | None]:
    """The axes of `"tp2-pp4"` and their sizes; None where a size is left out, which only `unsized` allows."""
    sizes: dict[str, int | None] = {}
    for part in text.split("-"):
        match = _SIZED.fullmatch(part)
        if match is None or not (match[2] or unsized):
            raise TopologyError(f"cannot read {part!r} in {text!r}: {_EXAMPLE}")
        axis = match[1]
        if axis in sizes:
            raise TopologyError(f"{text!r} names axis {axis!r} twice")
        sizes[axis] = int(match[2]) if match[2] else None
    return sizes


def format_axes(sizes: Mapping[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in sizes.items())


def parse_topology(text: str) -> dict[str, Any]:
    """The keyword arguments of `ParallelTopology` that `text` stands for."""
    base, *view_texts = text.split("/")
    axes, at, places = base.partition("@")
    sizes = parse_axes(axes)
    arguments: dict[str, Any] = {**sizes, "order": "-".join(sizes)}
    if at:
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", places):
            raise TopologyError(
                f"cannot read '@{places}' in {text!r}: expected the first rank, as in 'tp2-pp2@8', "
                "or every rank, as in 'tp2-pp2@0,4,1,5'"
            )
        ranks = list(map(int, places.split(",")))
        arguments |= {"first_rank": ranks[0]} if len(ranks) == 1 else {"ranks": tuple(ranks)}
    views: dict[str, str] = {}
    for view_text in view_texts:
        name, colon, view = view_text.partition(":")
        if not colon or name in views:
            raise TopologyError(
                f"cannot read '/{view_text}' in {text!r}: expected one view of each name, as in '/expert:etp1-ep8-pp2'"
            )
        views[name] = view
    return arguments | {"views": views}


def format_topology(
    sizes: Mapping[str, int], first_rank: int, ranks: tuple[int, ...] | None, views: Iterable[tuple[str, str]]
) -> str:
    places = "@" + ",".join(map(str, ranks)) if ranks else f"@{first_rank}" if first_rank else ""
    return format_axes(sizes) + places + "".join(f"/{name}:{view}" for name, view in views)
