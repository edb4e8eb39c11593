"""Views: further factorizations of a topology's ranks, such as the expert side of a mixture-of-experts model."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Layout, Ranks
from parallel_topology.topology.modes import Mode, Modes, coalesce
from parallel_topology.topology.notation import format_axes, is_axis_name, parse_axes, split_order


def build_views(texts: Mapping[str, str], base: Layout) -> tuple[dict[str, str], dict[str, Layout]]:
    """The views in canonical form (by name, every size written out) and their layouts.

    Raises:
        TopologyError: a view cannot be read, does not cover the ranks, or cuts across the base's axes.
    """
    canonical: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    for name in sorted(texts):
        if not is_axis_name(name):
            raise TopologyError(f"{name!r} cannot name a view: expected lower-case letters and '_'")
        text, over, order = texts[name].partition("~")
        walked = _walk(name, order if over else None, base)
        sizes = _completed(name, text, base.size)
        layouts[name] = Layout(_split(name, sizes, walked))
        canonical[name] = format_axes(sizes) + (f"~{order}" if over else "")
    return canonical, layouts


def require_same_groups(layouts: Mapping[str, Layout], world: Ranks) -> None:
    """An axis that stands in several factorizations must mean the same groups in all of them.

    Raises:
        TopologyError: it does not; the message shows the first group that differs.
    """
    home: dict[str, str] = {}
    for name, layout in layouts.items():
        for axis, modes in layout.modes.items():
            other = layouts[home.setdefault(axis, name)]
            if coalesce(other.modes[axis]) == coalesce(modes):
                continue
            axes = frozenset([axis])
            # Every group along an axis is a shift of the one through position 0: that one differs if any does.
            here, there = (each.group(axes, 0, world.start, world.placement) for each in (layout, other))
            raise TopologyError(
                f"axis {axis!r} of {name} is not that of {home[axis]}: its first group is {here}, not {there}; "
                "give it the same size and place, or another name"
            )


def _walk(name: str, order: str | None, base: Layout) -> Modes:
    """The base's modes in the order in which this view counts the ranks."""
    axes = list(base.modes) if order is None else split_order(order)
    if sorted(axes) != sorted(base.modes):
        raise TopologyError(
            f"view {name!r} walks over {order!r}: expected each of the base's axes {'-'.join(base.modes)} once"
        )
    return coalesce(mode for axis in axes for mode in base.modes[axis])


def _completed(name: str, text: str, world_size: int) -> dict[str, int]:
    """The view's sizes, the one left out inferred: in `expert`, as in Megatron, that may be an unwritten `edp`."""
    sizes = parse_axes(text, unsized=True)
    product = prod(size for size in sizes.values() if size is not None)
    if name == "expert" and "ep" in sizes and "edp" not in sizes and None not in sizes.values():
        after = list(sizes).index("ep") + 1
        items = list(sizes.items())
        sizes = dict([*items[:after], ("edp", None), *items[after:]])
    unknown = [axis for axis, size in sizes.items() if size is None]
    if len(unknown) > 1:
        raise TopologyError(f"view {name!r}, {text!r}, leaves out the sizes of {unknown}; expected at most one")
    if product == 0:
        raise TopologyError(f"view {name!r}, {text!r}, has an axis of size 0; expected sizes of at least 1")
    if unknown and world_size % product == 0:
        return {axis: world_size // product if size is None else size for axis, size in sizes.items()}
    if unknown or product != world_size:
        remedy = "" if unknown else "; leave one size out to have it inferred"
        raise TopologyError(
            f"view {name!r}, {text!r}, has {product} positions{' without ' + unknown[0] if unknown else ''}, "
            f"which {'does not divide' if unknown else 'is not'} the world_size {world_size}{remedy}"
        )
    return {axis: size for axis, size in sizes.items() if size is not None}


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
