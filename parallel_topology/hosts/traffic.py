"""Orders ranked by what crosses hosts, the axes with the heaviest traffic first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import factorial, prod
from typing import TypeAlias

from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.reorder import axis_spans
from parallel_topology.hosts.spans import Spans
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import listed

MOST_ORDERS = 5_040
"""Orders that are ranked: all those of seven axes."""

HEAVIEST = (
    *("tp", "model", "attn_tp", "moe_tp", "etp"),
    *("cp", "pcp", "dcp", "attn_cp"),
    *("ep", "moe_ep"),
    *("dp_shard", "efsdp", "dp", "data", "attn_dp", "moe_dp", "edp", "dp_replicate"),
    *("pp", "pipe"),
    "external_dp",
)
"""Axes by the traffic along them, heaviest first: those within a layer, then gradients, then stages, then nothing.

Tensor parallelism communicates several times in every layer, and belongs inside a host before anything else
(https://arxiv.org/abs/2104.04473, section 3.2, takeaway 1); the sequence of axes is that of Megatron's default order,
`tp-cp-ep-dp-pp`. Llama 3 has pipeline stages before its sharded data parallelism, `[TP, CP, PP, DP]`, also so that "the
innermost parallelism requires the highest network bandwidth and lowest latency" (https://arxiv.org/abs/2407.21783,
section 3.3.2): which of the two is heavier depends on the model. vLLM's external_dp replicas do not communicate.
"""


@dataclass(frozen=True)
class RankedOrder:
    """One order, and what of it crosses hosts.

    Attributes:
        order: the base axes, fastest first.
        hosts_per_group: axis -> on how many hosts its groups are on average, the heaviest axis first; 1 is inside.
    """

    order: str
    hosts_per_group: Mapping[str, float]


def ranked_orders(topology: ParallelTopology, hosts: Hosts, heaviest: Sequence[str] = ()) -> list[RankedOrder]:
    """The orders of the base axes, best first: the fewest hosts per group of the heaviest axis, then of the next one.

    Up to seven axes all orders, of more the best 5,040, of more than eight fewer still; `left_out` says how many others
    there are. Where there are views, these are the best by the base axes alone, and orders that a view does not fit are
    left out. Axes of size 1 keep their place. Among equals, that with the heaviest axes in front is first: neighbouring
    hosts are often nearer to each other, too.

    >>> for ranked in ranked_orders(ParallelTopology(tp=4, pp=2), Hosts.parse("2x4")):
    ...     print(ranked.order, ranked.hosts_per_group)
    tp-pp {'tp': 1.0, 'pp': 2.0}
    pp-tp {'tp': 2.0, 'pp': 1.0}

    Args:
        heaviest: axes that come before those of `HEAVIEST`. Axes in neither come last, in the topology's order.

    Raises:
        TopologyError: the hosts do not hold all ranks of the topology.
        UnknownAxisError: `heaviest` names an axis that is not there.
    """
    if unknown := [axis for axis in heaviest if axis not in topology.all_axes]:
        raise UnknownAxisError(f"heaviest: {topology} has no axis {unknown[0]!r}; it has {listed(topology.all_axes)}")
    hosts.require(topology)
    weighed = [*dict.fromkeys([*heaviest, *HEAVIEST, *topology.all_axes])]
    axes = sorted((axis for axis in topology.all_axes if topology.size(axis) > 1), key=weighed.index)
    ranked = _best(topology, hosts, weighed)
    if not topology.views:
        return ranked
    looked = [one for base in ranked if (one := _look(topology, hosts, base, axes))]
    return sorted(looked, key=lambda one: (list(one.hosts_per_group.values()), _weights(one.order, weighed)))


def left_out(topology: ParallelTopology) -> int:
    """How many orders of the base axes `ranked_orders` does not look at: all but the best, of eight axes and more."""
    moving = sum(size > 1 for size in topology.sizes.values())
    return max(0, factorial(moving) - _most(moving))


def _most(axes: int) -> int:
    """How many orders of so many axes are found; of 10 and more, no more than it takes to find a table's."""
    return MOST_ORDERS if axes <= 8 else max(24, 1_000_000 // (axes << axes))


_Found: TypeAlias = tuple[tuple[float, ...], tuple[int, ...], tuple[str, ...]]
"""Of an order of some axes: mean hosts of a group, the heaviest axis first; the axes by weight; the axes."""


def _best(topology: ParallelTopology, hosts: Hosts, weighed: list[str]) -> list[RankedOrder]:
    """The best orders by what base axes span: an axis's spans depend on which axes stand before it, not how."""
    sizes = topology.sizes
    spans = axis_spans(topology, hosts)
    moving = tuple(sorted((axis for axis, size in sizes.items() if size > 1), key=weighed.index))
    most = _most(len(moving))

    @cache
    def best(left: tuple[str, ...]) -> list[_Found]:
        """Of orders of the slowest axes `left`, heaviest first."""
        stride = topology.world_size // prod(sizes[axis] for axis in left)
        found: list[_Found] = [] if left else [((), (), ())]
        for place, axis in enumerate(left):
            mean = (_mean(spans(sizes[axis], stride)),)
            weight = (weighed.index(axis),)
            found += [
                (means[:place] + mean + means[place:], weight + weights, (axis, *order))
                for means, weights, order in best(left[:place] + left[place + 1 :])
            ]
        return sorted(found)[:most]

    ranked: list[RankedOrder] = []
    for means, _, order in best(moving):
        given = iter(order)
        text = "-".join(axis if size == 1 else next(given) for axis, size in sizes.items())
        ranked.append(RankedOrder(text, dict(zip(moving, means, strict=True))))
    return ranked


def _look(topology: ParallelTopology, hosts: Hosts, base: RankedOrder, axes: Sequence[str]) -> RankedOrder | None:
    """An order of the base axes, and what the axes of views span then; None if a view does not fit."""
    try:
        candidate = topology.model_copy(update={"order": base.order})
    except TopologyError:
        return None
    known = base.hosts_per_group
    spans = {axis: Spans(axis, candidate.groups(axis), hosts) for axis in axes if axis not in known}
    return RankedOrder(base.order, {axis: known[axis] if axis in known else _mean(spans[axis]) for axis in axes})


def _mean(spans: Spans) -> float:
    return sum(count * groups for count, groups in spans.histogram.items()) / spans.groups.size


def _weights(order: str, weighed: list[str]) -> list[int]:
    return [weighed.index(axis) for axis in order.split("-")]
