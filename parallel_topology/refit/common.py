"""Common: the logical tensors that both sides of a refit have, and in which dtype they travel."""

from __future__ import annotations

from parallel_topology.errors import TopologyError
from parallel_topology.refit.sides import Side
from parallel_topology.topology.wording import listed
from parallel_topology.weights.dtypes import BITS
from parallel_topology.weights.sides import Sharded
from parallel_topology.weights.weight import Weight
from parallel_topology.weights.weights import Weights


class Common:
    """What the target has, of which the source must have the same.

    Attributes:
        origins: by name, the source's weights.
        dtypes: by name of the target's weights, in which dtype each travels.

    Raises:
        TopologyError: the source lacks one or has another one, it does not divide, or a side cuts tensors once more.
    """

    def __init__(self, source: Side, target: Side) -> None:
        self._source, self._target = source, target
        for side in (source, target):
            _require_whole(side)
        self.origins = {weight.name: weight for weight in source.weights.weights}
        self.dtypes = {weight.name: self._checked(weight) for weight in target.weights.weights}

    def _checked(self, weight: Weight) -> str:
        """The dtype in which a weight travels; that both sides have it, alike, and that it divides."""
        origin = self.origins.get(weight.name)
        if origin is None:
            raise TopologyError(
                f"the target has a weight {weight.name!r}, which the source has not: it has "
                f"{listed([*self.origins][:16])}"
            )
        layers = (side.layers(range(weights.layers)) for side, weights in self._pairs(origin, weight))
        if weight.shape != origin.shape or len({tuple(found) for found in layers}) > 1:
            raise TopologyError(
                f"weight {weight.name!r} is {list(weight.shape)} in layer={weight.layer} at the target, but "
                f"{list(origin.shape)} in layer={origin.layer} at the source: expected the same logical tensors"
            )
        for layer in [None] if weight.layer is False else [*weight.layers(range(self._target.weights.layers))][:1]:
            self._source.placed(origin, layer)  # raises what does not divide
            self._target.placed(weight, layer)
        return _travelling(weight.name, *(side.dtype or weights.dtype for side, weights in self._pairs(origin, weight)))

    def _pairs(self, first: Weight, second: Weight) -> list[tuple[Weight, Weights]]:
        return [(first, self._source.weights), (second, self._target.weights)]


def _require_whole(side: Side) -> None:
    """Parts are found by what cuts weights; what a storage cuts after it was put together would be left out."""
    rules = [rule for rule in side.storage.rules if isinstance(rule, Sharded)]
    over = {*side.storage.sharded_over, *(axis for rule in rules for axis in rule.over)}
    here = sorted(axis for axis in over & {*side.topology.all_axes} if side.topology.size(axis) > 1)
    if here:
        raise TopologyError(
            f"{side.called} {side.topology}: its storage cuts tensors once more over {listed(here)}, which a refit "
            f"does not plan: expected weights that are cut so, as in Weight('w', '8/tp/{here[0]} 4', uneven='chunk')"
        )


def _travelling(name: str, source: str, target: str) -> str:
    """The narrower one, if one can become the other."""
    kinds = {dtype.rstrip("0123456789") if BITS[dtype] > 8 else dtype for dtype in (source, target)} - {"bfloat"}
    if source != target and kinds - {"float"}:
        raise TopologyError(
            f"weight {name!r} is {source} at the source and {target} at the target: expected one dtype, or floats of "
            "16 bits and more; quantized weights are weights of their own, beside their scales"
        )
    return source if BITS[source] < BITS[target] else target
