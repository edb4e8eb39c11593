"""Hypothesis strategies of valid topologies, built by factoring a drawn world size: nothing is rejected.

They shrink towards one rank, all sizes 1 and the default order.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

from hypothesis import strategies as st

from parallel_topology.hosts.hosts import Hosts
from parallel_topology.topology.orders import DEFAULT_ORDER, ORDERS
from parallel_topology.topology.topology import ParallelTopology

AXES = (*DEFAULT_ORDER, "ep", "dp_shard")
"""Names that topologies are drawn with; the last two have no place in the default order."""
_VIEWS = {"expert": ("etp", "ep", "edp"), "attention": ("attn_tp", "attn_dp"), "other": ("x", "y", "z", "rest")}
"""Views that are drawn, and their axes, each in one alone."""


def orders(axes: tuple[str, ...] = DEFAULT_ORDER) -> st.SearchStrategy[str]:
    """Every order of the axes."""
    return st.permutations(axes).map("-".join)


@st.composite
def topologies(
    draw: st.DrawFn, max_world: int = 64, axes: tuple[str, ...] = AXES, *, max_views: int = 2
) -> ParallelTopology:
    """Topologies of up to `max_world` ranks; see `topologies_of`."""
    return draw(topologies_of(draw(st.integers(1, max_world)), axes, max_views=max_views))


@st.composite
def topologies_of(
    draw: st.DrawFn, world_size: int, axes: tuple[str, ...] = AXES, *, max_views: int = 2
) -> ParallelTopology:
    """Topologies of exactly `world_size` ranks: some of the axes in any order, or a system's, at any place in a job.

    Up to `max_views` views factor the ranks again, along the base's axes or on a walk of their own.
    """
    named = draw(st.lists(st.sampled_from(axes), min_size=1, unique=True))
    preset = draw(st.sampled_from([None, *ORDERS])) if axes is AXES else None
    if preset:
        named = list(ORDERS[preset].axes)
    sizes: dict[str, Any] = dict.fromkeys(named, 1)
    for factor in _prime_factors(world_size):
        sizes[draw(st.sampled_from(named))] *= factor
    views = draw(_views(sizes, max_views))
    return ParallelTopology(order=preset or "-".join(named), views=views, **draw(_places(world_size)), **sizes)


@st.composite
def topology_pairs(
    draw: st.DrawFn, max_world: int = 64, *, same_world: bool = False
) -> tuple[ParallelTopology, ParallelTopology]:
    """Two topologies, of equally many ranks if `same_world`."""
    first = draw(topologies(max_world))
    second = draw(topologies_of(first.world_size) if same_world else topologies(max_world))
    return first, second


@st.composite
def hosts_for(draw: st.DrawFn, topology: ParallelTopology) -> Hosts:
    """Hosts that hold every rank of a topology, uniform, uneven or listed, and perhaps other ranks besides."""
    ranks = sorted(topology.world)
    low, high = ranks[0] - draw(st.integers(0, ranks[0])), ranks[-1] + 1 + draw(st.integers(0, 5))
    form = draw(st.sampled_from(["uniform", "uneven", "listed"]))
    if form == "uniform":
        per_host = draw(st.integers(1, high - low))
        return Hosts.uniform(count=-(-(high - low) // per_host), ranks_per_host=per_host, first_rank=low)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(ranks) - 1)), max_size=4)) | {0, len(ranks)})
    if form == "uneven":
        places = [low, *(ranks[cut] for cut in cuts[1:-1]), high]
        return Hosts.uneven([stop - start for start, stop in pairwise(places) if stop > start], first_rank=low)
    shuffled = draw(st.permutations(ranks))
    return Hosts.listed(shuffled[start:stop] for start, stop in pairwise(cuts) if stop > start)


@st.composite
def _views(draw: st.DrawFn, sizes: dict[str, int], most: int) -> dict[str, str]:
    """Names and texts of views that fit a base of these sizes."""
    names = draw(st.lists(st.sampled_from(list(_VIEWS)), max_size=most, unique=True))
    return {name: draw(_view(sizes, [axis for axis in _VIEWS[name] if axis not in sizes])) for name in names}


@st.composite
def _view(draw: st.DrawFn, sizes: dict[str, int], names: list[str]) -> str:
    """A view's text: the factors of the ranks, in the order of a walk over the base's axes, cut into new axes."""
    walk = draw(st.one_of(st.just(list(sizes)), st.permutations(list(sizes))))
    factors = [factor for axis in walk for factor in _prime_factors(sizes[axis])]
    count = draw(st.integers(1, len(names)))
    cuts = sorted(draw(st.lists(st.integers(0, len(factors)), min_size=count - 1, max_size=count - 1)))
    parts = [prod(factors[start:stop]) for start, stop in pairwise([0, *cuts, len(factors)])]
    left_out = draw(st.one_of(st.none(), st.integers(0, count - 1)))
    axes = (
        f"{name}{'' if number == left_out else part}"
        for number, (name, part) in enumerate(zip(names, parts, strict=False))
    )
    return "-".join(axes) + (f"~{'-'.join(walk)}" if draw(st.booleans()) or walk != list(sizes) else "")


def _prime_factors(number: int) -> list[int]:
    factors: list[int] = []
    candidate = 2
    while prod(factors) < number:
        if number // prod(factors) % candidate == 0:
            factors.append(candidate)
        else:
            candidate += 1
    return factors


def _places(world_size: int) -> st.SearchStrategy[dict[str, Any]]:
    """Where the ranks are in the job: from 0, from a first rank, or anywhere."""
    nowhere: dict[str, Any] = {}
    return st.one_of(
        st.just(nowhere),
        st.integers(0, 1000).map(lambda first: {"first_rank": first}),
        st.permutations(range(world_size)).map(lambda ranks: {"ranks": tuple(3 * rank for rank in ranks)}),
    )
