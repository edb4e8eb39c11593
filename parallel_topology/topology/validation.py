"""What makes a topology: every check of its arguments, and the canonical form they are brought to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.modes import nested, strided
from parallel_topology.topology.notation import format_strides, is_axis_name, parse_axes, parse_strides, split_order
from parallel_topology.topology.orders import DEFAULT_ORDER, ORDERS
from parallel_topology.topology.whole import quoted, whole
from parallel_topology.topology.wording import listed, product

LISTED = 16
"""Ranks that a topology's text writes out; of more it says start and strides, where they have some."""

# Names an axis cannot have, because a topology, a view or a manager has an attribute of that name, or pydantic's models
# have; `model_...` is refused as a whole. Written out, so that a name does not come or go with what is installed; tests
# hold the list against all of these. This module may import none of them.
RESERVED = frozenset(
    {
        *("self", "order", "first_rank", "ranks", "views", "world_size", "axes", "all_axes", "sizes", "size", "world"),
        *("fingerprint", "parse", "view", "coordinate", "rank", "position", "at", "groups", "group", "group_name"),
        "factorization",
        *("plan", "diff", "filling", "subtopology", "reordered_for", "topology"),
        *("name", "backend", "device", "timeout", "store", "local_rank", "close", "closed", "require", "describe"),
        *("from_env", "from_world", "connect", "diagnose", "survivors", "abort", "rebind", "capture", "set_timeout"),
        *("prepare", "commit", "suspend", "resume", "newcomers"),
        *("construct", "copy", "dict", "from_orm", "json", "parse_file", "parse_obj", "parse_raw", "schema"),
        *("schema_json", "update_forward_refs", "validate"),
    }
)


def require_free(axis: str) -> None:
    """Check the name of an axis.

    Raises:
        TopologyError: it is no name, or means something else.
    """
    if not is_axis_name(axis):
        raise TopologyError(f"{quoted(axis)} cannot name an axis: expected lower-case letters and '_'")
    if axis in RESERVED or axis.startswith("model_"):
        raise TopologyError(f"{axis!r} cannot name an axis: it is taken by an attribute; choose another name")
    if axis in ORDERS:
        raise TopologyError(f"{axis!r} cannot name an axis: it is the name of a system's order; choose another name")


def checked(sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes as plain ints of at least 1, or -1 for one that is to be inferred."""
    if not sizes:
        raise TopologyError("no axes were given; expected at least one, as in ParallelTopology(tp=2, pp=4)")
    found: dict[str, int] = {}
    for axis, given in sizes.items():
        require_free(axis)
        size = whole(given)
        if size is None or (size < 1 and size != -1):
            raise TopologyError(f"{axis}={quoted(given)}: expected a size, a whole number of at least 1")
        found[axis] = size
    return found


def checked_world_size(given: object) -> int | None:
    """The number of ranks, if one was given."""
    world_size = whole(given)
    if given is not None and world_size is None:
        raise TopologyError(f"world_size={quoted(given)}: expected a number of ranks, a whole number of at least 1")
    return world_size


def checked_views(given: object) -> dict[str, str]:
    """View -> its text, as they were given."""
    if not isinstance(given, Mapping):
        raise TopologyError(f"views={quoted(given)}: expected name -> axes, as in {{'expert': 'etp1-ep8-pp2'}}")
    views = cast("Mapping[object, object]", given)
    for name, text in views.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TopologyError(
                f"views={{{quoted(name)}: {quoted(text)}}}: expected name -> axes, as in {{'expert': 'etp1-ep8-pp2'}}"
            )
    return cast("dict[str, str]", dict(views))


def with_inferred(sizes: dict[str, int], world_size: int | None) -> dict[str, int]:
    """The sizes with -1 replaced by what is left over of `world_size`."""
    unknown = [axis for axis, size in sizes.items() if size == -1]
    if not unknown:
        return sizes
    if len(unknown) > 1 or world_size is None:
        raise TopologyError(
            f"{' and '.join(f'{axis}=-1' for axis in unknown)}: expected at most one size to be inferred, "
            "and world_size to infer it from"
        )
    known = {axis: size for axis, size in sizes.items() if size != -1}
    inferred, rest = divmod(world_size, prod(known.values()))
    if rest or inferred < 1:
        divisor = product(known) if known else "1"
        raise TopologyError(f"world_size {world_size} leaves {rest} ranks over when divided by {divisor}")
    return {axis: inferred if size == -1 else size for axis, size in sizes.items()}


def in_order(sizes: Mapping[str, int], order: str | None, views: Iterable[str]) -> dict[str, int]:
    """The sizes, fastest axis first."""
    if order is None:
        for axis in sizes:
            if axis not in DEFAULT_ORDER:
                raise TopologyError(
                    f"axis {axis!r} has no place in the default order {'-'.join(DEFAULT_ORDER)}: "
                    f"say where it stands, as in order='{'-'.join(sizes)}'"
                )
        return {axis: sizes[axis] for axis in DEFAULT_ORDER if axis in sizes}
    if not isinstance(order, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(
            f"order {quoted(order)}: expected axis names joined by '-', fastest first, as in 'tp-dp-pp'"
        )
    if order in ORDERS:
        axes = ORDERS[order].axes
        viewed = {axis for text in views for axis in parse_axes(text.partition("~")[0], unsized=True)}
        for axis in sizes:
            if axis not in axes:
                raise TopologyError(f"the order {order!r} has no axis {axis!r}; it has {listed(axes)}")
        yielded = viewed.intersection(ORDERS[order].yields) - sizes.keys()
        return {axis: sizes.get(axis, 1) for axis in axes if axis not in yielded}
    if is_axis_name(order) and order not in sizes:
        raise TopologyError(f"order {order!r} is no system's order: expected one of {listed(ORDERS)}, or axis names")
    axes = split_order(order)
    if missing := [axis for axis in sizes if axis not in axes]:
        raise TopologyError(f"order {order!r} misses {listed(missing)}; expected every axis of {listed(sizes)} once")
    if invented := [axis for axis in axes if axis not in sizes]:
        raise TopologyError(
            f"order {order!r} names {listed(invented)}, which has no size; the axes given are {listed(sizes)}"
        )
    return {axis: sizes[axis] for axis in axes}


def with_axis(order: Sequence[str], axis: str) -> list[str]:
    """The order with an axis more, if it is not there: where the default order has it among those that are.

    >>> with_axis(["pp", "tp"], "dp"), with_axis(["tp", "pp"], "dp"), with_axis(["model"], "dp")
    (['pp', 'tp', 'dp'], ['tp', 'dp', 'pp'], ['model', 'dp'])
    """
    if axis in order:
        return list(order)
    place = len(order)
    if axis in DEFAULT_ORDER:
        number = DEFAULT_ORDER.index(axis)
        before = [order.index(other) for other in DEFAULT_ORDER[:number] if other in order]
        after = [order.index(other) for other in DEFAULT_ORDER[number + 1 :] if other in order]
        place = max(before) + 1 if before else min(after, default=place)
    return [*order[:place], axis, *order[place:]]


def places(
    first_rank: int, ranks: Sequence[int] | str | None, sizes: Mapping[str, int]
) -> tuple[int, tuple[int, ...] | Ranks | None]:
    """Where the positions are, in the simplest form: a first rank if the ranks count up from it, a few written out.

    More than `LISTED` ranks are strides where they can be, so that views and parts of a topology of any size are small.
    """
    first = whole(first_rank)
    if first is None or first < 0:
        raise TopologyError(f"first_rank={quoted(first_rank)}: expected a rank, a whole number of at least 0")
    if ranks is None:
        return first, None
    if first:
        raise TopologyError(f"both first_rank={first} and ranks={quoted(ranks)} were given; expected one of them")
    placed = parse_strides(ranks) if isinstance(ranks, str) else _as_strides(ranks)
    count = placed.size if isinstance(placed, Ranks) else len(placed)
    if count != prod(sizes.values()):
        raise TopologyError(f"{count} ranks were given for {product(sizes)} positions")
    if not isinstance(placed, Ranks):
        return 0, placed
    if placed.start < 0 or not nested(placed.modes):
        raise TopologyError(
            f"ranks={format_strides(placed)!r}: expected ranks of at least 0, and steps that are longer than all "
            "shorter ones together reach, so that no rank stands twice"
        )
    if placed.modes in ((), ((count, 1),)):
        return placed.start, None
    return 0, placed if count > LISTED else tuple(placed)


def _as_strides(ranks: Sequence[int]) -> tuple[int, ...] | Ranks:
    """The ranks as strides if they can be, without looking at each where they are already."""
    if isinstance(ranks, Ranks) and (plain := ranks.plain()) is not None:
        return Ranks(*plain)
    if isinstance(ranks, (bytes, Mapping)) or not isinstance(ranks, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"ranks={quoted(ranks)}: expected a rank for each position, as in (0, 4, 1, 5)")
    given = tuple(ranks)
    placed = tuple(rank for rank in map(whole, given) if rank is not None and rank >= 0)
    if len(placed) != len(given):
        raise TopologyError(f"ranks={quoted(given)}: expected ranks, whole numbers of at least 0")
    if len(set(placed)) != len(placed):
        seen: set[int] = set()
        repeated = next(rank for rank in placed if rank in seen or seen.add(rank))
        raise TopologyError(f"rank {repeated} was given {placed.count(repeated)} times; expected each rank once")
    modes = strided(placed) if placed else None
    return placed if modes is None else Ranks(placed[0], modes)
