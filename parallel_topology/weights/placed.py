"""Placed: one weight on a topology. What a rank holds of it, and which ranks hold a range, in closed form.

The axes that cut a weight stand in one factorization of the topology (the base or a view), and the pipeline with them.
A coordinate along these says which part; ranks that differ along the others hold the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import prod

from parallel_topology.errors import UnknownAxisError
from parallel_topology.topology.layout import Layout, Placement, Ranks
from parallel_topology.topology.modes import Mode, Modes, coalesce, compose, offset
from parallel_topology.topology.shares import shard
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.checks import PIPELINE_AXES
from parallel_topology.weights.division import Division, Run
from parallel_topology.weights.dtypes import bytes_of
from parallel_topology.weights.place import asked
from parallel_topology.weights.weight import Weight

EXPERT_AXES = {"ep": None, "etp": "tp"}
"""Axes of experts where no factorization has them: all experts everywhere, each cut as all else is.

As Megatron's, whose `expert_model_parallel_size` is 1 and whose `expert_tensor_parallel_size` is that of `tp` unless
they are given (megatron/core/parallel_state.py, 0.16.1); and vLLM's, if there is no data parallelism and no
`--enable-expert-parallel`. Under data parallelism vLLM cuts each expert over the ranks of `dp` and `tp` together, or
with expert parallelism has whole experts on each of them (`FusedMoEParallelConfig.make`,
vllm/model_executor/layers/fused_moe/config.py at 002d607): that is a view of its own.
"""

EXPERT_DATA_AXES = ("efsdp", "edp", "moe_dp")
"""Along which experts are the same, by the names the systems give it; what all ranks have is along other axes."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one rank has of a weight.

    Attributes:
        ranges: of the logical tensor, one a dim; padding is in none.
        shape: of the tensor that the rank has, padding included.
        nbytes: of that tensor.
    """

    ranges: tuple[range, ...]
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Placed:
    """One weight on a topology, in one layer or none.

    Attributes:
        weight, topology: what lies where.
        stages: indices along the pipeline that hold it: a stage, or the first and last; None for all.
        dtype: of its elements.
    """

    weight: Weight
    topology: ParallelTopology
    stages: tuple[int, ...] | None
    dtype: str

    def moved(self, stages: tuple[int, ...] | None) -> Placed:
        """The same in a layer of another stage, with all that is known of it already: how it is cut is the same."""
        other = replace(self, stages=stages)
        kept = ("layout", "_dims", "_pipeline", "_furthers", "mean_elements")
        other.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return other

    def on(self, rank: int) -> Held | None:
        """What a rank holds; None where it is not on its stage.

        Raises:
            RankError: `rank` is not in this world.
        """
        position = self.topology.position(rank)
        return self.held(position) if self.has(position) else None

    def has(self, position: int) -> bool:
        """Whether a position is on one of its stages."""
        return self.stages is None or self.layout.index(self._pipeline, position) in self.stages

    def held(self, position: int) -> Held:
        """What is held at a position, on whatever stage."""
        parts = self.parts(position)
        shape = tuple(map(len, parts))
        return Held(self.within(parts), shape, bytes_of(prod(shape), self.dtype))

    def parts(self, position: int) -> tuple[range, ...]:
        """What is held at a position, one range a dim, padding included."""
        return tuple(
            division.part(tuple(self.layout.index(axis, position) for axis in axes)) for axes, division in self._dims
        )

    def within(self, parts: Sequence[range]) -> tuple[range, ...]:
        """Parts without their padding."""
        return tuple(division.within(part) for (_, division), part in zip(self._dims, parts, strict=True))

    def nbytes(self, position: int, over: Sequence[str] = (), dtype: str | None = None) -> int:
        """The bytes held at a position; of a part cut once more along dim 0, over further axes: see `further`."""
        return bytes_of(self.elements(position, over), dtype or self.dtype)

    def elements(self, position: int, over: Sequence[str] = ()) -> int:
        """The elements held at a position, padding included; of a part cut once more, as for `nbytes`."""
        return self.whole_and_part(position, over)[1]

    def whole_and_part(self, position: int, over: Sequence[str]) -> tuple[int, int]:
        """The elements held at a position, and of a part cut once more along dim 0, as for `nbytes`."""
        shape = list(map(len, self.parts(position)))
        whole = prod(shape)
        if not (over and shape and whole):
            return whole, whole
        return whole, len(self.further(over).part(shape[0], position)) * (whole // shape[0])

    @cached_property
    def mean_elements(self) -> Fraction:
        """The elements held at a position, padding included: the mean of all."""
        return Fraction(
            prod(division.held for _, division in self._dims), prod(division.parts for _, division in self._dims)
        )

    def holders(self, ranges: Sequence[range] | None = None) -> Iterator[tuple[tuple[range, ...], Ranks]]:
        """Who has these elements: boxes that make them up, none twice, and the ranks that hold all of each.

        Costs as many steps as there are boxes, whatever the world.

        Args:
            ranges: of the logical tensor, one a dim; the whole tensor if they are left out.

        >>> placed = Placed(Weight("w", "8/tp 4"), ParallelTopology(tp=4, dp=2), None, "bfloat16")
        >>> for box, ranks in placed.holders([range(1, 4), range(4)]):
        ...     print(box, ranks)
        (range(1, 2), range(0, 4)) [0, 4]
        (range(2, 4), range(0, 4)) [1, 5]

        Raises:
            TopologyError: not one range a dim.
        """
        for box, runs in self.meeting(ranges):
            yield box, self.having(runs)

    def meeting(self, ranges: Sequence[range] | None = None) -> Iterator[tuple[tuple[range, ...], dict[str, Run]]]:
        """The boxes of parts that meet these ranges, and where along the axes that cut it each is held.

        Raises:
            TopologyError: as for `holders`.
        """
        wanted = asked(ranges, self.weight.shape, f"weight {self.weight.name!r}")
        met = (list(division.meeting(one)) for (_, division), one in zip(self._dims, wanted, strict=True))
        axes = [axis for axes, _ in self._dims for axis in axes]
        for boxes in product(*met):
            runs = [run for _, found in boxes for run in found]
            yield tuple(box for box, _ in boxes), dict(zip(axes, runs, strict=True))

    @cached_property
    def copies(self) -> int:
        """By how many ranks each element is held."""
        first = next(ranks for _, ranks in self.holders([range(1) for _ in self.weight.shape]))
        return first.size

    def further(self, over: Sequence[str]) -> Further:
        """Those of these axes that stand in one factorization with what cuts it, and do not cut it themselves.

        Raises:
            UnknownAxisError: an axis that is not there.
        """
        names = tuple(over)
        if names not in self._furthers:
            self._furthers[names] = self._found_further(names)
        return self._furthers[names]

    @cached_property
    def _furthers(self) -> dict[tuple[str, ...], Further]:
        return {}

    def _found_further(self, over: Sequence[str]) -> Further:
        cutting = [axis for dim in self.weight.cut for axis in self._named(dim)]
        held = [*cutting, *([self._pipeline] if self.stages is not None else [])]
        names = {axis for dim in self.weight.cut for axis in self.weight.axes(dim)}
        others = EXPERT_DATA_AXES if names.isdisjoint(EXPERT_AXES) else ()
        free = [axis for axis in over if axis not in (*held, *others) and self.topology.size(axis) > 1]
        best, found = self.layout, list[str]()
        for axis in free:
            try:
                layout = self.topology.factorization(*held, *found, axis)
            except UnknownAxisError:
                continue
            best, found = layout, [*found, axis]
        return Further(best, frozenset(found))

    @cached_property
    def layout(self) -> Layout:
        """The factorization that has the axes that cut it, and the pipeline."""
        axes = [axis for dim in self.weight.cut for axis in self._named(dim)]
        pipeline = [self._pipeline] if self.stages is not None else []
        try:
            return self.topology.factorization(*(axis for axis in (*axes, *pipeline) if self.topology.size(axis) > 1))
        except UnknownAxisError as error:
            raise UnknownAxisError(f"weight {self.weight.name!r}: {error}") from None

    @cached_property
    def _dims(self) -> tuple[tuple[tuple[str, ...], Division], ...]:
        """For each dim the axes that cut it, and how."""
        found: list[tuple[tuple[str, ...], Division]] = []
        for dim in range(len(self.weight.shape)):
            sizes = {axis: self.topology.size(axis) for axis in self._named(dim)}
            given = isinstance(self.weight.uneven, tuple)  # says how many parts it expects, be it one
            sizes = {axis: size for axis, size in sizes.items() if size > 1 or given}
            division = self.weight.division(dim, sizes)
            steps = tuple(step for step in division.steps if step.count > 1)
            moving = tuple(axis for axis, size in sizes.items() if size > 1)
            found.append((moving, replace(division, steps=steps)))
        return tuple(found)

    def _named(self, dim: int) -> tuple[str, ...]:
        """The axes that cut a dim, those of experts by what stands for them here."""
        try:
            axes = (expert_axis(self.topology, axis) for axis in self.weight.axes(dim))
            named = tuple(axis for axis in axes if axis is not None)
            for axis in named:
                self.topology.size(axis)
        except UnknownAxisError as error:
            raise UnknownAxisError(f"weight {self.weight.name!r}: {error}") from None
        return named

    @cached_property
    def _pipeline(self) -> str:
        return pipeline_axis(self.topology)

    def having(self, runs: Mapping[str, Run], among: Further | None = None, index: int = 0) -> Ranks:
        """The ranks at these indices along the axes that cut; and at one index of the group along further axes."""
        layout = self.layout if among is None else among.layout
        start, free = self._alike(layout, {*runs, *(among.axes if among else ())})
        if among is not None:
            start += offset(among.modes, index)
        tables: list[list[int]] = []  # indices whose positions no modes describe
        for axis, (first, count) in runs.items():
            along = layout.modes[axis]
            found = compose(along, first, ((count, 1),))
            if found is None:
                tables.append([offset(along, index) for index in range(first, first + count)])
            else:
                begins, further = found
                start += begins
                free += further
        world = self.topology.world
        ordered = coalesce(sorted(free, key=lambda mode: mode[1]))
        if not tables:
            return Ranks(world.start + start, ordered, world.placement)
        positions = sorted(sum(one) for one in product(Ranks(world.start + start, ordered), *tables))
        places = positions if world.placement is None else [world.placement.ranks[place] for place in positions]
        return Ranks(0, ((len(places), 1),), Placement(tuple(places)))

    def _alike(self, layout: Layout, fixed: Set[str]) -> tuple[int, list[Mode]]:
        """Ranks that hold the same whatever the part: (where they start, modes)."""
        start, free = 0, list[Mode]()
        for axis, modes in layout.modes.items():
            if axis == self._pipeline and self.stages is not None:
                first, *other = self.stages
                start = offset(modes, first)
                free += [(2, offset(modes, stage) - start) for stage in other]
            elif axis not in fixed:
                free += modes
        return start, free


@dataclass(frozen=True)
class Further:
    """Axes along which parts are cut once more, together as one group: by `torch.chunk`, as FSDP2 and ZeRO do.

    Attributes:
        layout: the factorization that has them, and what cuts the weight.
        axes: members stand in the layout's order, as in `topology.groups(*axes)`.
    """

    layout: Layout
    axes: frozenset[str]

    def part(self, length: int, position: int) -> range:
        """What of so many indices a position keeps."""
        return self.chunk(length, self.index(position))

    def index(self, position: int) -> int:
        """Where a position stands in its group."""
        index, weight = 0, 1
        for axis in self.names:
            index += self.layout.index(axis, position) * weight
            weight *= self.layout.axis_size(axis)
        return index

    def chunk(self, length: int, index: int) -> range:
        return shard(length, index, self.count, uneven="chunk")

    @property
    def names(self) -> tuple[str, ...]:
        """The axes in the layout's order."""
        return tuple(axis for axis in self.layout.modes if axis in self.axes)

    @cached_property
    def count(self) -> int:
        return prod(size for size, _ in self.modes)

    @cached_property
    def modes(self) -> Modes:
        """Of the group."""
        return coalesce(mode for axis, modes in self.layout.modes.items() if axis in self.axes for mode in modes)


def pipeline_axis(topology: ParallelTopology) -> str:
    """The axis along which stages stand, by either of its names."""
    return next((axis for axis in PIPELINE_AXES if axis in topology.all_axes), PIPELINE_AXES[0])


def expert_axis(topology: ParallelTopology, axis: str) -> str | None:
    """The axis that stands for `axis` here; None where it would have size 1. See `EXPERT_AXES`."""
    known = topology.all_axes
    if axis in known or axis not in EXPERT_AXES:
        return axis
    other = EXPERT_AXES[axis]
    if other is None or topology.size(other) == 1:
        return None
    try:
        if "ep" in known:
            topology.size("ep", other)
    except UnknownAxisError:  # experts have a factorization of their own, without it
        return None
    return other
