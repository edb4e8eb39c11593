"""Orders ranked by what crosses hosts, the axes with the heaviest traffic first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel_topology.errors import UnknownAxisError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.reorder import orders_inside
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import listed

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
    """All orders of the base axes, best first: the fewest hosts per group of the heaviest axis, then of the next one.

    Axes of size 1 keep their place. Orders that a view does not fit are left out. Among equals, that with the heaviest
    axes in front is first: neighbouring hosts are often nearer to each other, too.

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
    weighed = [*dict.fromkeys([*heaviest, *HEAVIEST, *topology.all_axes])]
    axes = sorted((axis for axis in topology.all_axes if topology.size(axis) > 1), key=weighed.index)
    ranked = [_look(topology, hosts, order, axes) for order in orders_inside(topology, hosts, ())]

    def merit(one: RankedOrder) -> tuple[list[float], list[int]]:
        return list(one.hosts_per_group.values()), [weighed.index(axis) for axis in one.order.split("-")]

    return sorted(ranked, key=merit)


def _look(topology: ParallelTopology, hosts: Hosts, order: str, axes: Sequence[str]) -> RankedOrder:
    candidate = topology.model_copy(update={"order": order})
    spans = {axis: hosts.spans(candidate, axis) for axis in axes}
    return RankedOrder(
        order,
        {
            axis: sum(count * groups for count, groups in span.histogram.items()) / len(span.groups)
            for axis, span in spans.items()
        },
    )
