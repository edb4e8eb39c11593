"""Orders of a topology's axes that keep chosen groups inside hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from heapq import heappop, heappush
from math import prod
from typing import TYPE_CHECKING

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.spans import Spans
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Layout, Placement

if TYPE_CHECKING:
    from parallel_topology.topology.topology import ParallelTopology


def orders_inside(
    topology: ParallelTopology, hosts: Hosts, keep: str | Iterable[str | tuple[str, ...]] = ("tp",)
) -> Iterator[str]:
    """The orders of the base axes under which no group along any of `keep` crosses hosts, best first.

    Best is where the fewest groups along the single base axes that need not be kept cross; among equals, where the
    fewest pairs of axes change places, then the one that leaves the earlier axes in front. Axes of size 1 keep their
    place. Orders are found one by one, those that begin wrongly without looking at their continuations. An entry of
    `keep` may be a tuple, for axes together, or an axis of a view; orders that a view does not fit are left out.

    >>> from parallel_topology import ParallelTopology
    >>> list(orders_inside(ParallelTopology(tp=4, pp=2, order="pp-tp"), Hosts.parse("2x4")))
    ['tp-pp']

    Raises:
        TopologyError: the hosts do not hold all ranks of the topology.
        UnknownAxisError: `keep` names an axis that is not there, or axes of different views together.
    """
    require_kind(hosts, Hosts, "hosts").require(topology)
    wanted = [(axes,) if isinstance(axes, str) else axes for axes in ((keep,) if isinstance(keep, str) else keep)]
    for axes in wanted:
        topology.group_name(*axes)
    return _orders(topology, hosts, wanted)


def axis_spans(topology: ParallelTopology, hosts: Hosts) -> Callable[[int, int], Spans]:
    """How an axis of a size lies on hosts when the axes before it have so many positions together (its stride)."""
    placement = None if topology.ranks is None else Placement(topology.ranks)

    @cache
    def spans(size: int, stride: int) -> Spans:
        layout = Layout.of({"before": stride, "axis": size, "after": topology.world_size // stride // size})
        return Spans("axis", layout.groups(frozenset(["axis"]), topology.first_rank, placement), hosts)

    return spans


def _orders(topology: ParallelTopology, hosts: Hosts, wanted: list[tuple[str, ...]]) -> Iterator[str]:
    sizes = topology.sizes
    largest = hosts.starts.step if isinstance(hosts.starts, range) else max(map(len, hosts))
    if any(topology.size(*axes) > largest for axes in wanted):
        return
    single = {axis for axis in sizes if (axis,) in wanted}
    others = [axes for axes in wanted if not (len(axes) == 1 and single.issuperset(axes))]
    together = [frozenset(axes) for axes in others if sizes.keys() >= set(axes)]
    unseen = [axes for axes in others if not sizes.keys() >= set(axes)]  # they are along axes of views
    moving = tuple(axis for axis, size in sizes.items() if size > 1)
    spans = axis_spans(topology, hosts)

    def steps(left: tuple[str, ...]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """What may come next: (its place in `left`, how many of its groups cross, what is left then)."""
        stride = topology.world_size // prod(sizes[axis] for axis in left)
        for place, axis in enumerate(left):
            crossed = spans(sizes[axis], stride).crossing
            if not (crossed and axis in single):
                yield place, crossed, left[:place] + left[place + 1 :]

    @cache
    def best(left: tuple[str, ...]) -> tuple[int, int] | None:
        """The fewest (crossing groups, pairs that change places) of any order of `left`; None if there is none."""
        ways = ((place, crossed, best(then)) for place, crossed, then in steps(left))
        fewest = min(((crossed + to[0], place + to[1]) for place, crossed, to in ways if to), default=None)
        return fewest if left else (0, 0)

    @cache
    def are_inside(modes: frozenset[tuple[int, int]]) -> bool:
        """Whether ranks that differ along axes of these sizes and strides are inside hosts, wherever they begin."""
        layout = _around_modes(modes, topology.world_size)
        placement = None if topology.ranks is None else Placement(topology.ranks)
        return Spans("axes", layout.groups(frozenset(["axes"]), topology.first_rank, placement), hosts).inside

    def breaks(axis: str, placed: tuple[tuple[str, int], ...]) -> bool:
        """Whether a group to be kept crosses already along those of its axes that have a place, `axis` the last."""
        return any(
            not are_inside(frozenset((sizes[one], stride) for one, stride in placed if one in axes))
            for axes in together
            if axis in axes
        )

    # (what the best order with this beginning costs, its places, its own crossing groups, what is left, the strides)
    queue: list[tuple[tuple[int, int], tuple[int, ...], int, tuple[str, ...], tuple[tuple[str, int], ...]]]
    queue = [((0, 0), (), 0, moving, ())]
    while queue:
        _, places, cost, left, placed = heappop(queue)
        if not left:
            ordered = (axis for axis, _ in placed)
            order = "-".join(axis if size == 1 else next(ordered) for axis, size in sizes.items())
            if not topology.views or _stays_inside(topology, order, hosts, unseen):
                yield order
        stride = topology.world_size // prod(sizes[axis] for axis in left)
        for place, crossed, then in steps(left):
            with_this = (*placed, (left[place], stride))
            if (to := best(then)) and not breaks(left[place], with_this):
                total = cost + crossed + to[0], sum(places) + place + to[1]
                heappush(queue, (total, (*places, place), cost + crossed, then, with_this))


def _around_modes(modes: frozenset[tuple[int, int]], world_size: int) -> Layout:
    """The axis `axes` of these modes, and one of all the others."""
    rest: list[tuple[int, int]] = []
    reached = 1
    for size, stride in sorted(modes, key=lambda mode: mode[1]):
        rest.append((stride // reached, reached))
        reached = size * stride
    rest.append((world_size // reached, reached))
    return Layout({"axes": tuple(sorted(modes, key=lambda mode: mode[1])), "rest": tuple(rest)})


def _stays_inside(topology: ParallelTopology, order: str, hosts: Hosts, wanted: list[tuple[str, ...]]) -> bool:
    try:
        reordered = topology.model_copy(update={"order": order})
    except TopologyError:  # a view cuts across the axes in this order
        return False
    return all(hosts.spans(reordered, *axes).inside for axes in wanted)
