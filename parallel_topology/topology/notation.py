"""The compact notation: `tp2-pp4`, and with everything `tp2-dp4-pp2@8/expert:etp1-ep8-edp1-pp2`.

- topology = axes [ "@" first_rank | "@" rank "," rank ... | "@" strides ] { "/" view ":" axes [ "~" order ] }
- strides = first_rank "+" count "x" step { "+" count "x" step }: `0+512x4+2x1` is 0, 4, ... 2044, then 1, 5, ... 2045
- axes = name size { "-" name size }: fastest-varying first; in a view, one size may be left out
- order = name { "-" name }: the order in which a view walks the base's axes ("over")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.modes import coalesce
from parallel_topology.topology.whole import from_digits, quoted

_AXIS = re.compile(r"[a-z][a-z_]*")  # no digits: a forgotten '-' in "tp2-pp4" must not read as the axis "tp2pp"
_SIZED = re.compile(rf"({_AXIS.pattern})([0-9]*)")
_STRIDES = re.compile(r"[0-9]+(\+[0-9]+x[0-9]+)+")
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
        sizes[axis] = from_digits(match[2]) if match[2] else None
    return sizes


def format_axes(sizes: Mapping[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in sizes.items())


def parse_topology(text: str) -> tuple[dict[str, int], dict[str, Any]]:
    """The sizes that `text` stands for, fastest axis first, and the other arguments of `ParallelTopology`."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"cannot read {text!r}: {_EXAMPLE}")
    base, *view_texts = text.split("/")
    axes, at, places = base.partition("@")
    sizes = {axis: size for axis, size in parse_axes(axes).items() if size is not None}
    arguments: dict[str, Any] = {}
    if at:
        if _STRIDES.fullmatch(places):
            arguments["ranks"] = parse_strides(places)
        elif re.fullmatch(r"[0-9]+(,[0-9]+)*", places):
            ranks = list(map(from_digits, places.split(",")))
            arguments |= {"first_rank": ranks[0]} if len(ranks) == 1 else {"ranks": tuple(ranks)}
        else:
            raise TopologyError(
                f"cannot read '@{places}' in {text!r}: expected the first rank, as in 'tp2-pp2@8', "
                "every rank, as in 'tp2-pp2@0,4,1,5', or strides, as in 'tp2-pp512@0+2x1+512x4'"
            )
    views: dict[str, str] = {}
    for view_text in view_texts:
        name, colon, view = view_text.partition(":")
        if not colon or name in views:
            raise TopologyError(
                f"cannot read '/{view_text}' in {text!r}: expected one view of each name, as in '/expert:etp1-ep8-pp2'"
            )
        views[name] = view
    return sizes, arguments | {"views": views}


def format_topology(
    sizes: Mapping[str, int], first_rank: int, ranks: tuple[int, ...] | Ranks | None, views: Iterable[tuple[str, str]]
) -> str:
    places = f"@{first_rank}" if first_rank else ""
    if ranks is not None:
        places = "@" + (format_strides(ranks) if isinstance(ranks, Ranks) else ",".join(map(str, ranks)))
    return format_axes(sizes) + places + "".join(f"/{name}:{view}" for name, view in views)


def parse_strides(text: str) -> Ranks:
    """The ranks that `"0+2x1+512x4"` stands for: from 0 on, 2 in steps of 1, and that 512 times in steps of 4."""
    if not _STRIDES.fullmatch(text):
        raise TopologyError(f"ranks={quoted(text)}: expected a rank and steps from it, as in '0+2x1+512x4'")
    first, *modes = (tuple(map(from_digits, part.split("x"))) for part in text.split("+"))
    if any(0 in mode for mode in modes):
        raise TopologyError(f"ranks={quoted(text)}: expected counts and steps of at least 1")
    return Ranks(first[0], coalesce((size, stride) for size, stride in modes))


def format_strides(ranks: Ranks) -> str:
    return f"{ranks.start}" + "".join(f"+{size}x{stride}" for size, stride in ranks.modes)
