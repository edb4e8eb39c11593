"""Does it fit? What the ranks of each stage need, the heaviest first, and why.

Ranks of one stage hold equal parts but for what does not divide, of which the first along each axis have the most. So
each stage is asked at its first and its last rank, and where the sizes of parts are given, at each index along that
axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from parallel_topology.topology.modes import offset
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.activations import in_flight
from parallel_topology.weights.memory import Memory, Serving, Training, memory_on, require_all
from parallel_topology.weights.model import Model
from parallel_topology.weights.placed import expert_axis, pipeline_axis


@dataclass(frozen=True)
class Load:
    """What the ranks of some stages need: all of these stages the same.

    Attributes:
        stages: along the pipeline, ascending.
        rank: the heaviest one of the first of them.
        layers: on each of them.
        memory: of that rank.
        lightest: bytes of the lightest rank.
        why: what these stages have that others have not, or have less of; empty where nothing.
    """

    stages: tuple[int, ...]
    rank: int
    layers: int
    memory: Memory
    lightest: int
    why: str


def loads(model: Model, topology: ParallelTopology, use: Training | Serving) -> list[Load]:
    """All stages, the heaviest first. Costs as many steps as there are stages, whatever the world.

    Raises:
        UnknownAxisError, TopologyError: as for `memory_on`.
    """
    require_all(model, topology, use)
    stages = topology.size(pipeline_axis(topology))
    found: dict[tuple[Memory, int, int, str], tuple[int, list[int]]] = {}
    for stage in range(stages):
        heaviest, rank, lightest = _of_stage(model, topology, use, stage)
        layers = len(model.weights.layers_on(stage, stages))
        key = heaviest, lightest, layers, _alone(model, use, stage, stages)
        found.setdefault(key, (rank, []))[1].append(stage)
    fewest = min(layers for _, _, layers, _ in found)
    ordered = sorted(found.items(), key=lambda one: (-one[0][0].total, one[1][1]))
    return [
        Load(tuple(those), rank, layers, memory, lightest, _why(layers, fewest, alone, memory))
        for (memory, lightest, layers, alone), (rank, those) in ordered
    ]


def most(model: Model, topology: ParallelTopology, use: Training | Serving, enough: int | None = None) -> int:
    """Bytes that the heaviest rank of all needs. Of stages that are alike, the first has most micro-batches in flight.

    Args:
        enough: where one needs more, that is the answer, and no further one is asked.

    Raises:
        UnknownAxisError, TopologyError: as for `memory_on`.
    """
    found = 0
    for stages in model.stages_alike(topology.size(pipeline_axis(topology))):
        for first, _ in _examples(model, topology, stages[0]):
            found = max(found, memory_on(model, topology, first, use).total)
            if enough is not None and found > enough:
                return found
    return found


def _of_stage(model: Model, topology: ParallelTopology, use: Training | Serving, stage: int) -> tuple[Memory, int, int]:
    """(what the heaviest rank of a stage needs, which it is, what the lightest one needs)"""
    ranks = dict.fromkeys(rank for pair in _examples(model, topology, stage) for rank in pair)
    asked = {rank: memory_on(model, topology, rank, use) for rank in ranks}
    rank = max(asked, key=lambda one: (asked[one].total, -one))
    return asked[rank], rank, min(memory.total for memory in asked.values())


def _examples(model: Model, topology: ParallelTopology, stage: int) -> Iterator[tuple[int, int]]:
    """Ranks of a stage, among which are its heaviest and its lightest: first and last of those with one given part."""
    pipeline = pipeline_axis(topology)
    uneven = (weight for weight in model.weights.weights if isinstance(weight.uneven, tuple))
    given = {expert_axis(topology, weight.axes(min(weight.cut))[0]) for weight in uneven}
    axes = [axis for axis in topology.all_axes if axis in given and topology.size(axis) > 1]
    stages = [pipeline] if topology.size(pipeline) > 1 else []
    modes = topology.factorization(*axes, *stages).modes
    others = [axis for axis in modes if axis not in axes and axis != pipeline]
    begin = offset(modes[pipeline], stage) if stages else 0
    for indices in product(*(range(topology.size(axis)) for axis in axes)):
        at = begin + sum(offset(modes[axis], index) for axis, index in zip(axes, indices, strict=True))
        last = at + sum((size - 1) * stride for axis in others for size, stride in modes[axis])
        yield topology.world[at], topology.world[last]


def _alone(model: Model, use: Training | Serving, stage: int, stages: int) -> str:
    """What a stage has because of where it stands."""
    if stages == 1:
        return ""
    here = {"first": stage == 0, "last": stage == stages - 1, "tied": stage in (0, stages - 1)}
    large = [one for one in model.weights.weights if len(one.shape) > 1 and one.layer is False]
    said = [one.name for one in large if here.get(one.stage)]
    if isinstance(use, Training):
        kept = in_flight(stage, stages, model.weights.virtual, use.micro_batches)
        said.append(f"activations of {float(kept):g} micro-batch{'es' * (kept > 1)}")
    return ", ".join(said)


def _why(layers: int, fewest: int, alone: str, memory: Memory) -> str:
    most = f"{layers} layers where others have {fewest}" if layers > fewest else ""
    return ", ".join(part for part in (most, alone) if part)
