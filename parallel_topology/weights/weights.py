"""Weights: all weights of a model, its layers and their stages. What each rank holds, in closed form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel_topology.errors import TopologyError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.shares import stage_chunks, stage_layers
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted, require, require_each
from parallel_topology.topology.wording import listed
from parallel_topology.weights.dtypes import checked_dtype
from parallel_topology.weights.families import read_config, read_weights, stored_dtype
from parallel_topology.weights.notation import axes_over
from parallel_topology.weights.placed import Held, Placed, pipeline_axis
from parallel_topology.weights.quantized import as_stored
from parallel_topology.weights.weight import Weight

REMEMBERED = 8
"""Topologies for which it is kept where weights lie: questions come rank by rank, of the two sides of a refit, say."""


@dataclass(frozen=True, init=False)
class Weights:
    """The weights of a model: those of every layer once, and those that are in none.

    >>> weights = Weights([Weight("embed", "8/tp 4", stage="first"), Weight("q", "4/tp 4", layer=True)], layers=2)
    >>> weights.on(ParallelTopology(tp=2, pp=2), rank=1)["embed"].ranges
    (range(4, 8), range(0, 4))
    >>> list(weights.on(ParallelTopology(tp=2, pp=2), rank=2))
    ['q.1']

    Args:
        weights: each of another name.
        layers: how many there are, of all stages together.
        dtype: of weights that do not say theirs.
        counts: layers of each stage, or of each chunk, as for `shares.stage_layers` and `stage_chunks`.
        first: layers of the first stage, where the others share what is left.
        last: of the last stage.
        virtual: chunks that each stage has.

    Raises:
        TopologyError: two of one name, or a weight in layers that are not there.
    """

    weights: tuple[Weight, ...]
    layers: int
    dtype: str
    counts: tuple[int, ...] | None
    first: int | None
    last: int | None
    virtual: int

    if TYPE_CHECKING:
        _homes: dict[str, tuple[Weight, int | None]]  # name of a logical tensor -> its weight, and the layer
        _known: dict[ParallelTopology, dict[tuple[str, int], Placed]]  # where weights lie, on the topologies asked last

    def __init__(
        self,
        weights: Iterable[Weight],
        *,
        layers: int = 0,
        dtype: object = "bfloat16",
        counts: Iterable[int] | None = None,
        first: int | None = None,
        last: int | None = None,
        virtual: int = 1,
    ) -> None:
        put = self.__dict__
        put["weights"] = _listed(weights)
        put["layers"] = require(0, "layers", layers)
        put["dtype"] = checked_dtype(dtype)
        put["counts"] = None if counts is None else require_each(0, "counts", counts)
        put["first"] = None if first is None else require(0, "first", first)
        put["last"] = None if last is None else require(0, "last", last)
        put["virtual"] = require(1, "virtual", virtual)
        put |= {"_homes": {}, "_known": {}}
        for weight in self.weights:
            missing = weight.layer is not False and not self.layers
            beyond = not isinstance(weight.layer, bool) and any(layer >= self.layers for layer in weight.layer[-1:])
            if missing or beyond:
                given = "every layer" if weight.layer is True else f"layers {quoted(weight.layer)}"
                raise TopologyError(f"weight {weight.name!r} is in {given} of layers={self.layers}: expected that many")
            for layer in weight.layers(range(self.layers)) if weight.layer is not False else (None,):
                name = weight.full_name(layer)
                if name in put["_homes"]:
                    raise TopologyError(f"two weights have the name {name!r}; expected each to have one of its own")
                put["_homes"][name] = (weight, layer)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: object = None,
        pad_vocab_to: int = 1,
        counts: Iterable[int] | None = None,
        first: int | None = None,
        last: int | None = None,
        virtual: int = 1,
    ) -> Weights:
        """The weights of a model from Hugging Face's config.json, as `json.load` reads it.

        Families: Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3 (the text model), Mixtral, Qwen3-MoE, DeepSeek-V3, GPT-OSS.
        What is named how stands in `parallel_topology.weights.families`.

        Args:
            config: the file's fields.
            dtype: of the weights; None for what the configuration says, or bfloat16. Where the checkpoint is quantized,
                None is for what is stored, scales as weights of their own (see `parallel_topology.weights.quantized`),
                and a dtype for the weights before that.
            pad_vocab_to: the vocabulary is padded until each part is a multiple of this: 128 as Megatron does.
            counts: as for `Weights`.
            first: as for `Weights`.
            last: as for `Weights`.
            virtual: as for `Weights`.

        Raises:
            TopologyError: the family is not known, or a field that is needed is not there or is no size.
        """
        fields = read_config(config)
        weights = read_weights(fields, pad_vocab_to)
        if dtype is None:
            weights = as_stored(fields, weights)
        given = stored_dtype(fields) if dtype is None else dtype
        layers = fields.size("num_hidden_layers")
        return cls(weights, layers=layers, dtype=given, counts=counts, first=first, last=last, virtual=virtual)

    # What it is

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all logical tensors: `embed`, `q.0`, `q.1`, ..."""
        return tuple(self._homes)

    @property
    def parameters(self) -> int:
        """The elements of all logical tensors, without padding and each once."""
        return sum(
            weight.elements * (1 if weight.layer is False else len(weight.layers(range(self.layers))))
            for weight in self.weights
        )

    def named(self, name: str) -> Weight:
        """The weight that a logical tensor's name stands for.

        Raises:
            TopologyError: there is no tensor of this name.
        """
        return self.home(name)[0]

    # Who holds what

    def on(self, topology: ParallelTopology, rank: int) -> dict[str, Held]:
        """What a rank holds: the name of each logical tensor -> its part, those of its stage alone.

        Raises:
            RankError: `rank` is not in this world.
            UnknownAxisError: a cut is over an axis that is not there, or over axes of different factorizations.
            TopologyError: a dim does not divide, or the layers do not over the stages.
        """
        position = require_kind(topology, ParallelTopology, "topology").position(rank)
        held: dict[str, Held] = {}
        for placed, layers in self.here(topology, position):
            part = placed.held(position)
            held.update((placed.weight.full_name(layer), part) for layer in layers)
        return held

    def placed(self, topology: ParallelTopology, name: str) -> Placed:
        """One logical tensor on a topology: `placed.on(rank)`, and `placed.holders(ranges)`, the other way round.

        Raises:
            TopologyError, UnknownAxisError: as for `on`; or there is no tensor of this name.
        """
        weight, layer = self.home(name)
        stages = require_kind(topology, ParallelTopology, "topology").size(pipeline_axis(topology))
        if layer is None:
            return self._placed(weight, topology, stages)
        return self._placed(weight, topology, stages, self.stage_of(layer, stages))

    def stage_of(self, layer: int, stages: int) -> int:
        """The pipeline stage that has a layer, of so many stages.

        Raises:
            TopologyError: the layers do not divide over the stages, or there is no such layer.
        """
        for stage in range(require(1, "stages", stages)):
            if any(layer in part for part in self._own_layers(stage, stages)):
                return stage
        raise TopologyError(f"layer={quoted(layer)}: expected one of 0..{self.layers - 1}")

    def layers_on(self, stage: int, stages: int) -> list[int]:
        """The layers that a pipeline stage has, of so many stages, those of its first chunk first.

        Raises:
            TopologyError: the layers do not divide over the stages.
        """
        return [layer for part in self._own_layers(stage, stages) for layer in part] if self.layers else []

    def bytes_on(
        self,
        topology: ParallelTopology,
        rank: int,
        *,
        sharded_over: str | Iterable[str] = (),
        dtype: object = None,
    ) -> int:
        """The bytes of all that a rank holds, padding included.

        Args:
            sharded_over: axes along which each rank keeps a part only of what it would hold: what ZeRO and FSDP do with
                weights, gradients or the optimizer's states. Each tensor's dim 0 is cut as `torch.chunk` does, as in
                FSDP2, over the ranks along them all together. Of a tensor whose factorization has none of them, as may
                be for experts, all is kept.
            dtype: of what is counted, where it is not the weights: `"float32"` for a state of the optimizer.

        Raises:
            RankError, UnknownAxisError, TopologyError: as for `on`.
        """
        over = axes_over("sharded_over", sharded_over)
        require_kind(topology, ParallelTopology, "topology")
        for axis in over:
            topology.size(axis)
        counted = None if dtype is None else checked_dtype(dtype)
        position = topology.position(rank)
        return sum(
            len(layers) * placed.nbytes(position, over, counted) for placed, layers in self.here(topology, position)
        )

    # Private

    def here(self, topology: ParallelTopology, position: int) -> Iterator[tuple[Placed, Collection[int | None]]]:
        """The weights of a position's stage, as for `on_stage`."""
        pipeline = pipeline_axis(topology)
        single = topology.size(pipeline) == 1
        return self.on_stage(topology, 0 if single else topology.factorization(pipeline).index(pipeline, position))

    def on_stage(self, topology: ParallelTopology, stage: int) -> Iterator[tuple[Placed, Collection[int | None]]]:
        """The weights of a stage, each with the layers in which the stage has it; None for those in none."""
        stages = topology.size(pipeline_axis(topology))
        own = self._own_layers(stage, stages) if self.layers else ()
        for weight in self.weights:
            placed = self._placed(weight, topology, stages, stage)
            if weight.layer is not False:
                if layers := [layer for part in own for layer in weight.layers(part)]:
                    yield placed, layers
            elif placed.stages is None or stage in placed.stages:
                yield placed, (None,)

    def _placed(self, weight: Weight, topology: ParallelTopology, stages: int, stage: int = 0) -> Placed:
        """A weight where it lies; one in layers, on the stage that has the layer."""
        known = self._known.get(topology)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known.setdefault(topology, {})
        key = weight.name, stage if weight.layer is not False else 0
        placed = known.get(key)
        if placed is None:
            ends = {"all": None, "first": (0,), "last": (stages - 1,), "tied": (0, stages - 1)}
            on = (stage,) if weight.layer is not False else ends[weight.stage]
            on = None if stages == 1 else on
            alike = known.get((weight.name, 0)) if weight.layer is not False else None
            made = alike.moved(on) if alike else Placed(weight, topology, on, weight.dtype or self.dtype)
            placed = known.setdefault(key, made)
        return placed

    def _own_layers(self, stage: int, stages: int) -> tuple[range, ...]:
        """The layers of a stage, a range for each of its chunks."""
        counts, first, last = self.counts, self.first, self.last
        if self.virtual > 1:
            return stage_chunks(self.layers, stage, stages, virtual=self.virtual, counts=counts, first=first, last=last)
        return (stage_layers(self.layers, stage, stages, counts=counts, first=first, last=last),)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def home(self, name: str) -> tuple[Weight, int | None]:
        """The weight that a logical tensor's name stands for, and the layer.

        Raises:
            TopologyError: there is no tensor of this name.
        """
        found = self._homes.get(name) if isinstance(name, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if found is None:
            few = [*self._homes][:16]
            raise TopologyError(
                f"no weight is named {quoted(name)}: there are {len(self._homes)}, such as {listed(few)}"
            )
        return found


def _listed(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    given = tuple(weights) if isinstance(weights, Iterable) else (weights,)  # pyright: ignore[reportUnnecessaryIsInstance]
    for weight in given:
        if not isinstance(weight, Weight):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(
                f"{quoted(weight)} is no weight: expected a list of them, as in [Weight('q', '64/tp 64')]"
            )
    return given
