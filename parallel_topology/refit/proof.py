"""That a plan writes every element that the target needs exactly once, from a rank that holds it.

Boxes of a tensor are told apart by their ranges in each dim: where those of one dim are equal or apart, boxes are, too.
So what a rank receives of a tensor is all that it needs, and nothing twice, if its boxes lie in what it needs and have
as many elements. Layers that lie alike are looked at once, and in each the turns that replicas take.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import prod

from parallel_topology.errors import RefitError
from parallel_topology.refit.patterns import Met
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.weights.place import Box
from parallel_topology.weights.weight import Weight


def prove(plan: RefitPlan) -> None:
    """Raises:
    RefitError: an element is written twice, or not, or is read where it is not.
    """
    for weight, kinds in plan.patterns.kinds():
        for layer, *_ in kinds:
            written: Counter[int] = Counter()
            boxes: list[Box] = []
            for met in plan.patterns.met(weight, layer):
                _prove_sources(plan, weight, layer, met)
                boxes.append(met.box)
                written.update(dict.fromkeys(_receivers(met), prod(map(len, met.box))))
            _prove_apart(weight, boxes)
            for rank in plan.target.world:
                need = plan.target.held(weight, layer, rank) if plan.gets(rank) else None
                needed = 0 if need is None else prod(map(len, need.ranges))
                if written[rank] != needed:
                    raise RefitError(
                        f"weight {weight.full_name(layer)!r}: {written[rank]} elements reach rank {rank}, which needs "
                        f"{needed}"
                    )


def _receivers(met: Met) -> tuple[int, ...]:
    return (*met.handing.own, *(rank for flow in met.handing.flows for party in flow.parties for rank in party))


def _prove_sources(plan: RefitPlan, weight: Weight, layer: int | None, met: Met) -> None:
    """Who gives a box has it, or has just got it from one who has; who gets it needs it; both sides say the same."""
    handing, said = met.handing, dict[int, int]()
    senders = {rank for flow in handing.flows for rank in flow.senders} | {*handing.own}
    for rank in senders:
        _prove_holds(plan.source.held(plan.patterns.origin(weight), layer, rank), met.box, weight, rank, "has")
    turn = met.turn(0, layer)
    for rank in senders:
        said.update((target, rank) for target, _ in handing.given_by(rank, turn))
    leaders = {*said}
    for rank in leaders:
        said.update((target, rank) for target, _ in handing.handed_on_by(rank, turn))
    for rank in _receivers(met):
        _prove_holds(plan.target.held(weight, layer, rank), met.box, weight, rank, "needs")
        source, hop = handing.source_of(rank, turn)
        right = source == rank if rank in handing.own else said.get(rank) == source
        if not right or source not in (leaders if hop else senders):
            raise RefitError(f"weight {weight.name!r}: rank {rank} waits for rank {source}, which does not send to it")


def _prove_holds(held: object, box: Box, weight: Weight, rank: int, verb: str) -> None:
    ranges: Box | None = getattr(held, "ranges", None)
    if ranges is None or any(a.start < b.start or a.stop > b.stop for a, b in zip(box, ranges, strict=True)):
        raise RefitError(f"weight {weight.name!r}: {box} is not what rank {rank} {verb}: {ranges}")


def _prove_apart(weight: Weight, boxes: list[Box]) -> None:
    if len(set(boxes)) < len(boxes):
        raise RefitError(f"weight {weight.name!r}: a box is written twice")
    for parts in zip(*boxes, strict=True):
        edges = sorted({(part.start, part.stop) for part in parts})
        for (_, stop), (start, _) in pairwise(edges):
            if start < stop:
                raise RefitError(f"weight {weight.name!r}: two boxes overlap at {start} of a dim")
