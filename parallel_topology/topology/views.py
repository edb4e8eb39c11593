"""Views: further factorizations of a topology's ranks, such as the expert side of a mixture-of-experts model."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod
from typing import NamedTuple

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Layout, Ranks
from parallel_topology.topology.modes import Mode, Modes, coalesce
from parallel_topology.topology.notation import format_axes, is_axis_name, parse_axes, split_order
from parallel_topology.topology.whole import quoted


class View(NamedTuple):
    """One further factorization.

    Attributes:
        text: in canonical form: every size written out, and the walk only where it is not the base's own order.
        layout: its axes and their modes.
        inferred: the axis whose size was left out, if one was.
    """

    text: str
    layout: Layout
    inferred: str | None


def build_views(texts: Mapping[str, str], base: Layout) -> dict[str, View]:
    """The views, by name.

    Raises:
        TopologyError: a view cannot be read, does not cover the ranks, or cuts across the base's axes.
    """
    views: dict[str, View] = {}
    for name in sorted(texts):
        if not is_axis_name(name):
            raise TopologyError(f"{quoted(name)} cannot name a view: expected lower-case letters and '_'")
        text, over, order = texts[name].partition("~")
        walk = _walk(name, order, base) if over else None
        given = parse_axes(text, unsized=True)
        if name == "expert" and "ep" in given and not _has_edp(given, name, texts, base):
            given = _with_edp(given)
        sizes, inferred = _completed(name, text, given, base.size)
        walked = coalesce(mode for axis in walk or base.modes for mode in base.modes[axis])
        canonical = format_axes(sizes) + (f"~{'-'.join(walk)}" if walk else "")
        views[name] = View(canonical, Layout(_split(name, sizes, walked)), inferred)
    return views


def unsized(view: View) -> str | None:
    """The view's text with the size left out that was inferred, or else `edp`'s; None if there is none of these.

    >>> unsized(build_views({"v": "a2-b"}, Layout.of({"tp": 2, "dp": 4}))["v"])
    'a2-b'
    """
    left_out = view.inferred or ("edp" if "edp" in view.layout.modes else None)
    if left_out is None:
        return None
    axes = (axis if axis == left_out else f"{axis}{view.layout.axis_size(axis)}" for axis in view.layout.modes)
    _, over, order = view.text.partition("~")
    return f"{'-'.join(axes)}{over}{order}"


def require_same_groups(layouts: Mapping[str, Layout], world: Ranks) -> None:
    """An axis that stands in several factorizations must mean the same groups in all of them.

    Raises:
        TopologyError: it does not; the message shows the first group that differs.
    """
    home: dict[str, str] = {}
    for name, layout in layouts.items():
        for axis, modes in layout.modes.items():
            other = layouts[home.setdefault(axis, name)]
            if other is layout or coalesce(other.modes[axis]) == coalesce(modes):
                continue
            axes = frozenset([axis])
            # Every group along an axis is a shift of the one through position 0: that one differs if any does.
            here, there = (each.group(axes, 0, world.start, world.placement) for each in (layout, other))
            raise TopologyError(
                f"axis {axis!r} of {name} is not that of {home[axis]}: its first group is {here}, not {there}; "
                "give it the same size and place, or another name"
            )


def _has_edp(given: Mapping[str, object], name: str, texts: Mapping[str, str], base: Layout) -> bool:
    """Whether this view, the base or another view has an axis of that name."""
    others = (parse_axes(text.partition("~")[0], unsized=True) for other, text in texts.items() if other != name)
    return any("edp" in axes for axes in (given, base.modes, *others))


def _with_edp(given: dict[str, int | None]) -> dict[str, int | None]:
    """The expert view's axes as Megatron has them: the experts' data parallelism may be left unwritten, behind `ep`.

    It is always there, so that the text means the same however often it is read.
    """
    after = list(given).index("ep") + 1
    items = list(given.items())
    return dict([*items[:after], ("edp", 1 if None in given.values() else None), *items[after:]])


def _walk(name: str, order: str, base: Layout) -> list[str] | None:
    """The base's axes in the order in which this view counts the ranks, in canonical form; None for the base's own.

    Axes of size 1 make no difference: they stand last.
    """
    axes = split_order(order)
    if sorted(axes) != sorted(base.modes):
        raise TopologyError(
            f"view {name!r} walks over {order!r}: expected each of the base's axes {'-'.join(base.modes)} once"
        )
    moving = [axis for axis in axes if base.axis_size(axis) > 1]
    still = [axis for axis in base.modes if base.axis_size(axis) == 1]
    own = [axis for axis in base.modes if axis in moving]
    return None if moving == own else moving + still


def _completed(
    name: str, text: str, sizes: dict[str, int | None], world_size: int
) -> tuple[dict[str, int], str | None]:
    """The view's sizes, the one left out inferred, and which that is."""
    product = prod(size for size in sizes.values() if size is not None)
    unknown = [axis for axis, size in sizes.items() if size is None]
    if len(unknown) > 1:
        raise TopologyError(f"view {name!r}, {text!r}, leaves out the sizes of {unknown}; expected at most one")
    if product == 0:
        raise TopologyError(f"view {name!r}, {text!r}, has an axis of size 0; expected sizes of at least 1")
    if unknown and world_size % product == 0:
        rest = world_size // product
        return {axis: rest if size is None else size for axis, size in sizes.items()}, unknown[0]
    if unknown or product != world_size:
        remedy = "" if unknown else "; leave one size out to have it inferred"
        raise TopologyError(
            f"view {name!r}, {text!r}, has {product} positions{' without ' + unknown[0] if unknown else ''}, "
            f"which {'does not divide' if unknown else 'is not'} the world_size {world_size}{remedy}"
        )
    return {axis: size for axis, size in sizes.items() if size is not None}, None


def _split(name: str, sizes: Mapping[str, int], walked: Modes) -> dict[str, Modes]:
    """Cut the walked modes into axes of the given sizes (a layout composition in CuTe's words)."""
    left: list[Mode] = list(walked)
    axes: dict[str, Modes] = {}
    for axis, wanted in sizes.items():
        taken: list[Mode] = []
        need = wanted
        while need > 1:
            size, stride = left[0]
            part = gcd(size, need)
            if part != min(size, need):
                raise TopologyError(
                    f"view {name!r}: axis {axis!r} of size {wanted} would cut the base's ranks unevenly "
                    f"(a run of {size} with stride {stride}); expected a size that divides or is divided by it"
                )
            taken.append((part, stride))
            need //= part
            left[0] = (size // part, stride * part)
            if left[0][0] == 1:
                del left[0]
        axes[axis] = tuple(taken) or ((1, 1),)
    return axes
