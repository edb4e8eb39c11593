"""What is to be known of a whole plan: who sends how much to whom, and the way of one tensor in words."""

from __future__ import annotations

from collections.abc import Iterator

from parallel_topology.refit.patterns import Met, shown
from parallel_topology.refit.plan import RefitPlan

MOST_BOXES = 16
"""Boxes that are told one by one."""


def matrix(plan: RefitPlan) -> dict[tuple[int, int], int]:
    """(source, target) -> bytes, what a rank keeps included. Costs as many steps as there are moves."""
    found: dict[tuple[int, int], int] = {}
    for order, (weight, kinds) in enumerate(plan.patterns.kinds()):
        for layers in kinds:
            for met in plan.patterns.met(weight, layers[0]):
                nbytes = plan.patterns.volume(weight, met.box)
                for layer in layers:
                    for pair in _pairs(met, met.turn(order, layer)):
                        found[pair] = found.get(pair, 0) + nbytes
    return found


def explained(plan: RefitPlan, name: str) -> str:
    """See `RefitPlan.explain`."""
    weight, layer = plan.target.weights.home(name)
    origin = plan.patterns.origin(weight)
    order = plan.target.weights.weights.index(weight)
    boxes = list(plan.patterns.met(weight, layer))
    kept = sum(len(met.handing.own) * plan.patterns.volume(weight, met.box) for met in boxes)
    moved = sum(met.handing.moved * plan.patterns.volume(weight, met.box) for met in boxes)
    lines = [
        f"{name}: {list(weight.shape)}, in {plan.dtype(name)} on its way",
        f"source {plan.source.topology}: {origin}, each element on {plan.source.placed(origin, layer).copies} ranks",
        f"target {plan.target.topology}: {weight}, each element on {plan.target.placed(weight, layer).copies} ranks",
        f"{len(boxes):,} boxes: {moved:,} bytes move, {kept:,} stay where they are",
    ]
    for met in boxes[:MOST_BOXES]:
        ways = ", ".join(
            f"rank {source} keeps it" if source == target else f"{source} -> {target}"
            for source, target in _pairs(met, met.turn(order, layer))
        )
        lines.append(f"  {shown(met.box)}: {ways or 'nobody needs it'}")
    if len(boxes) > MOST_BOXES:
        lines.append(f"  ... and {len(boxes) - MOST_BOXES:,} more")
    return "\n".join(lines)


def _pairs(met: Met, turn: int) -> Iterator[tuple[int, int]]:
    yield from ((rank, rank) for rank in met.handing.own)
    for flow in met.handing.flows:
        for party in flow.parties:
            yield from ((met.handing.source_of(rank, turn)[0], rank) for rank in party)
