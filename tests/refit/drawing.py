"""Weights and pairs of layouts, drawn: what divides over both, in any of the ways that a weight can be cut."""

from __future__ import annotations

from math import lcm, prod
from typing import Any

from hypothesis import strategies as st

from parallel_topology import ParallelTopology
from parallel_topology.testing.strategies import topologies, topologies_of
from parallel_topology.weights import Weight, Weights


@st.composite
def refits(draw: st.DrawFn, most: int = 16) -> tuple[Weights, Weights, ParallelTopology, ParallelTopology]:
    """(weights at the source, the same at the target, source, target)."""
    source = draw(topologies(most))
    target = draw(st.one_of(st.just(source), topologies(most), topologies_of(source.world_size)))
    layers = draw(st.integers(1, 4)) if draw(st.booleans()) else 0
    count = draw(st.integers(1, 3))
    both = [draw(_weight(number, source, target, layers)) for number in range(count)]
    sides: list[Weights] = []
    for side, topology in enumerate((source, target)):
        stages = topology.size(next((axis for axis in ("pp", "pipe") if axis in topology.all_axes), "pp"))
        cuts = sorted(draw(st.lists(st.integers(0, layers), min_size=stages - 1, max_size=stages - 1)))
        counts = [stop - start for start, stop in zip([0, *cuts], [*cuts, layers], strict=True)]
        dtype = draw(st.sampled_from(["float32", "bfloat16"]))
        sides.append(
            Weights([pair[side] for pair in both], layers=layers, counts=counts if layers else None, dtype=dtype)
        )
    return sides[0], sides[1], source, target


@st.composite
def _weight(
    draw: st.DrawFn, number: int, source: ParallelTopology, target: ParallelTopology, layers: int
) -> tuple[Weight, Weight]:
    dims = draw(st.integers(1, 3))
    cuts = [draw(_cut(topology, dims)) for topology in (source, target)]
    uneven: Any = [draw(st.sampled_from(["error", "chunk", "tensor_split"])) for _ in cuts]
    pads = [draw(st.none() | st.integers(1, 4)) for _ in cuts]
    shape: list[int] = []
    units: dict[int, int] = {}
    for dim in range(dims):
        parts = [
            prod(topology.size(axis) for axis in cut.get(dim, ())) if how == "error" and not (dim == 0 and pad) else 1
            for topology, cut, how, pad in zip((source, target), cuts, uneven, pads, strict=True)
        ]
        size = lcm(*parts) * draw(st.integers(1, 4))
        if draw(st.booleans()) and not (dim == 0 and any(pads)):
            units[dim] = size
            size *= draw(st.integers(1, 3))
        shape.append(size)
    how: dict[str, Any] = {"units": units}
    if layers and draw(st.booleans()):
        how["layer"] = draw(
            st.one_of(st.just(True), st.integers(0, layers - 1).map(lambda first: range(first, layers)))
        )
    else:
        how["stage"] = draw(st.sampled_from(["all", "first", "last", "tied"]))
    first, second = (
        Weight(f"w{number}", shape, cut=cut, uneven=rule, pad_to=pad, **how)
        for cut, rule, pad in zip(cuts, uneven, pads, strict=True)
    )
    return first, second


@st.composite
def _cut(draw: st.DrawFn, topology: ParallelTopology, dims: int) -> dict[int, tuple[str, ...]]:
    pipeline = [axis for axis in ("pp", "pipe") if axis in topology.all_axes and topology.size(axis) > 1]
    views = (topology.view(name) for name in dict(topology.views))
    factorization = draw(st.sampled_from([topology, *(view for view in views if {*pipeline} <= {*view.axes})]))
    axes = draw(st.permutations([axis for axis in factorization.axes if axis not in ("pp", "pipe")]))
    cut: dict[int, tuple[str, ...]] = {}
    for axis in axes[: draw(st.integers(0, 3))]:
        dim = draw(st.integers(0, dims - 1))
        cut[dim] = (*cut.get(dim, ()), axis)
    return cut
