"""All layouts of so many ranks on which a model fits, the one that sends least across hosts first; why others fall out.

A layout is tp x cp x pp x dp and, for experts, ep over the ranks of a stage; each in the order of its axes that sends
least across hosts. What is sent is found once for each layout, and what of it crosses once for each order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations
from typing import NamedTuple

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.crossings import Crossings
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.orders import DEFAULT_ORDER
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import require
from parallel_topology.weights.checks import divisors
from parallel_topology.weights.fit import most
from parallel_topology.weights.flows import flows
from parallel_topology.weights.memory import Serving, Training, require_use
from parallel_topology.weights.model import Model
from parallel_topology.weights.traffic import Volume


@dataclass(frozen=True)
class Fitting:
    """A layout on which a model fits.

    Attributes:
        topology: in the order that sends least across hosts.
        memory: bytes that its heaviest rank needs.
        inside, across: bytes that all ranks together send for one token, to their own host and to others.
    """

    topology: ParallelTopology
    memory: int
    inside: Fraction
    across: Fraction


@dataclass(frozen=True)
class Search:
    """What was looked at.

    Attributes:
        fitting: layouts that fit, the least across hosts first, then the least inside, then the least memory.
        out: why others fall out -> how many.
    """

    fitting: list[Fitting]
    out: Mapping[str, int]


class _Sizes(NamedTuple):
    tp: int
    cp: int
    dp: int
    pp: int
    ep: int

    def topology(self, order: tuple[str, ...] = DEFAULT_ORDER) -> ParallelTopology:
        """Axes of size 1 are left out.

        Raises:
            TopologyError: experts cut across the other axes in this order.
        """
        sizes = {axis: size for axis in order if (size := getattr(self, axis)) > 1} or {"tp": 1}
        views: dict[str, str] = {}
        if self.ep > 1:
            walk = [axis for axis in sizes if axis != "pp"]
            stages = ["pp"] * (self.pp > 1)
            view = "-".join(["etp1", f"ep{self.ep}", "edp", *(f"pp{self.pp}" for _ in stages)])
            views["expert"] = f"{view}~{'-'.join([*walk, *stages])}"
        return ParallelTopology(**sizes, order="-".join(sizes), views=views)


def search(
    model: Model, ranks: int, use: Training | Serving, *, memory: int, hosts: Hosts, sequences: int | None = None
) -> Search:
    """All layouts of `ranks` ranks, and which of them fit into `memory` bytes a rank.

    Args:
        sequences: in a step of training, of all ranks together, so that layouts are compared by the same work; as many
            micro-batches as there are ranks if it is left out. While serving, each replica has those of `use`.

    Raises:
        TopologyError: a size or memory that cannot be, or the hosts do not hold so many ranks.
    """
    require_use(model, use)
    require_kind(hosts, Hosts, "hosts").require(ParallelTopology(dp=require(1, "ranks", ranks)))
    whole = ranks * use.batch if sequences is None else require(1, "sequences", sequences)
    memory = require(1, "memory", memory)
    crossings = Crossings(hosts)
    found, out = list[Fitting](), Counter[str]()
    for sizes in _all(model, ranks, with_context=isinstance(use, Training)):
        reason = _does_not_divide(model, sizes, use, whole)
        if not reason:
            here = replace(use, micro_batches=whole // (sizes.dp * use.batch)) if isinstance(use, Training) else use
            try:
                one = _fitting(model, sizes, here, memory, crossings)
            except TopologyError:
                reason = f"a weight does not divide over {'tp' if sizes.tp > 1 else 'ep'}"
            else:
                if one is not None:
                    found.append(one)
                    continue
                reason = "needs more memory"
        out[reason] += 1
    ranked = sorted(found, key=lambda one: (one.across, one.inside, one.memory))
    return Search(ranked, dict(out.most_common()))


def _all(model: Model, ranks: int, *, with_context: bool) -> Iterator[_Sizes]:
    """Every way to write the ranks as a product."""
    for tp in sorted(divisors(ranks)):
        for pp in sorted(divisors(ranks // tp)):
            for cp in sorted(divisors(ranks // tp // pp)) if with_context else (1,):
                for ep in sorted(divisors(ranks // pp)) if model.experts else (1,):
                    yield _Sizes(tp, cp, ranks // tp // pp // cp, pp, ep)


def _does_not_divide(model: Model, sizes: _Sizes, use: Training | Serving, sequences: int) -> str:
    """Why a layout cannot be, as far as that is seen without looking at weights."""
    if sizes.pp > model.weights.layers:
        return "more stages than layers"
    if model.heads % sizes.tp:
        return "heads do not divide over tp"
    if model.kv_heads % sizes.tp and sizes.tp % model.kv_heads:
        return "heads of keys and values neither divide over tp nor are held equally often"
    if sizes.ep > 1 and model.experts % sizes.ep:
        return "experts do not divide over ep"
    if isinstance(use, Training):
        if use.context % sizes.cp:
            return "the context does not divide over cp"
        if sequences % (sizes.dp * use.batch):
            return "the sequences of a step do not divide over dp"
    return ""


def _fitting(model: Model, sizes: _Sizes, use: Training | Serving, memory: int, crossings: Crossings) -> Fitting | None:
    """The layout in its best order; None where it does not fit in any."""
    alone = replace(use, communicator_bytes=0)  # all that is the same in each order
    topology = sizes.topology()
    need = most(model, topology, alone, enough=memory)
    if need > memory:
        return None
    sent = Volume(flows(model, topology, use))
    tokens = sizes.dp * use.batch * (use.context * (use.micro_batches or 1) if isinstance(use, Training) else 1)
    across = {ordered: sent.across(ordered, crossings) for ordered in _orders(sizes)}
    total = sent.total(topology)
    for ordered in sorted(across, key=lambda one: across[one]):  # the first of equals is the most usual
        taken = need + use.communicator_bytes * ordered.plan().created_per_rank
        if taken <= memory:
            return Fitting(ordered, taken, (total - across[ordered]) / tokens, across[ordered] / tokens)
    return None


def _orders(sizes: _Sizes) -> Iterator[ParallelTopology]:
    """In each order of the axes that are there, the default one first; those that experts do not fit are left out."""
    for order in permutations(axis for axis in DEFAULT_ORDER if getattr(sizes, axis) > 1):
        try:
            yield sizes.topology(order)
        except TopologyError:
            continue
