"""Form: what a tensor is made of, whatever the topology."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from parallel_topology.topology.shares import Uneven
from parallel_topology.topology.whole import quoted
from parallel_topology.weights.weight import Weight
from parallel_topology.weights.weights import Weights


@dataclass(frozen=True, slots=True)
class Along:
    """What of one weight runs along a dim: so many indices, divided in this way."""

    size: int
    axes: tuple[str, ...]
    units: int | None
    uneven: Uneven | tuple[int, ...]
    pad_to: int | None
    pad_whole_to: int | None

    def __str__(self) -> str:
        return "/".join((str(self.size), *self.axes))


Dim: TypeAlias = tuple[Along, ...]
"""What runs along a dim of a tensor: of one weight, or of several."""


@dataclass(frozen=True)
class Form:
    """What a tensor is made of, whatever the topology.

    Attributes:
        name: with `{}` for the layer, and `{index}` where it is split.
        weights: those that are in it.
        dims: what runs along each.
        layers: those that have one; None for what is in none.
        stage, dtype: of all that is in it.
        split: whether it is a tensor for each index of what was dim 0.
    """

    name: str
    weights: tuple[str, ...]
    dims: tuple[Dim, ...]
    layers: Sequence[int] | None
    stage: str
    dtype: str
    split: bool = False

    def __str__(self) -> str:
        return " ".join("+".join(map(str, dim)) for dim in self.dims)


def form_of(weight: Weight, weights: Weights) -> Form:
    """Of a weight that has a tensor of its own."""
    dims = tuple(
        (
            Along(
                size,
                weight.axes(dim),
                weight.units.get(dim),
                weight.uneven if dim in weight.cut else "error",
                weight.pad_to if dim == 0 else None,
                weight.pad_whole_to if dim == 0 else None,
            ),
        )
        for dim, size in enumerate(weight.shape)
    )
    layers = None if weight.layer is False else tuple(weight.layers(range(weights.layers)))
    return Form(weight.name, (weight.name,), dims, layers, weight.stage, weight.dtype or weights.dtype)


def differences(one: Form, other: Form, dim: int) -> Iterator[str]:
    """Why they cannot be put together along a dim, in words."""
    if len(one.dims) != len(other.dims):
        yield f"the number of dims, {one} and {other}"
        return
    for at, (own, its) in enumerate(zip(one.dims, other.dims, strict=True)):
        sizes, axes = ([[getattr(along, what) for along in dims] for dims in (own, its)] for what in ("size", "axes"))
        if at != dim and sizes[0] != sizes[1]:
            yield f"dim {at}, {one} and {other}"
        if {*axes[0]} != {*axes[1]}:
            yield f"the cut of dim {at}, {one} and {other}"
        if at != dim and own != its:
            yield f"how dim {at} is divided, in units, padding or uneven parts"
    if one.dtype != other.dtype:
        yield f"dtype, {one.dtype} and {other.dtype}"
    if (one.layers, one.stage) != (other.layers, other.stage):
        yield f"where they are, {_where(one)} and {_where(other)}"
    if one.split != other.split:
        yield "being split"


def _where(form: Form) -> str:
    if form.layers is None:
        return f"stage {form.stage!r}"
    return f"layers {quoted(form.layers)}"
