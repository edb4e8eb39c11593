"""Side: the weights of a model on one topology, as one side of a refit stores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from parallel_topology.errors import ParallelTopologyError, TopologyError
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.place import Box
from parallel_topology.weights.placed import Held, Placed, pipeline_axis
from parallel_topology.weights.storage import Storage, Stored
from parallel_topology.weights.weight import Weight
from parallel_topology.weights.weights import Weights


@dataclass(frozen=True)
class Side:
    """One side of a refit.

    Attributes:
        called: "source" or "target", for messages.
        storage: its weights, and the tensors in which it keeps them.
        topology: which rank has which.
        views: (rank, weight, box) -> where that is in the rank's tensors, once `boxes` has found it.
    """

    called: str
    storage: Storage
    topology: ParallelTopology
    _placed: dict[tuple[str, int], Placed] = field(default_factory=dict[Any, Any], repr=False, compare=False)
    views: dict[tuple[int, str, Box], list[Any]] = field(default_factory=dict[Any, Any], repr=False, compare=False)
    _stored: dict[int, dict[str, Stored]] = field(default_factory=dict[Any, Any], repr=False, compare=False)

    @property
    def weights(self) -> Weights:
        return self.storage.weights

    def placed(self, weight: Weight, layer: int | None) -> Placed:
        """One tensor here; the same value for all layers of a stage."""
        key = weight.name, self.stage(layer)
        found = self._placed.get(key)
        if found is None:
            try:
                found = self.weights.placed(self.topology, weight.full_name(layer))
                found.held(0)  # raises what does not divide
            except ParallelTopologyError as error:
                raise type(error)(f"{self.called} {self.topology}: {error}") from None
            self._placed[key] = found
        return found

    def held(self, weight: Weight, layer: int | None, rank: int) -> Held | None:
        """What a rank has of a tensor; None where it has nothing."""
        return self.placed(weight, layer).on(rank)

    def stage(self, layer: int | None) -> int:
        """The stage of a layer; -1 for what is in none."""
        return -1 if layer is None else self._stages[layer]

    def names_on(self, rank: int) -> set[str]:
        """The logical tensors of which a rank has something."""
        return {*self.weights.on(self.topology, rank)}

    def tensors_on(self, rank: int) -> dict[str, Stored]:
        """The tensors of a rank; none if it is not on this side."""
        if rank not in self._stored:
            self._stored[rank] = self.storage.tensors(self.topology, rank) if rank in self.world else {}
        return self._stored[rank]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "views": {}, "_stored": {}}

    @cached_property
    def world(self) -> Ranks:
        """All ranks."""
        return self.topology.world

    @cached_property
    def _stages(self) -> list[int]:
        stages = self.topology.size(pipeline_axis(self.topology))
        try:
            return [self.weights.stage_of(layer, stages) for layer in range(self.weights.layers)]
        except TopologyError as error:
            raise TopologyError(f"{self.called} {self.topology}: {error}") from None


def stored(given: Weights | Storage) -> Storage:
    """How a side stores weights: each in a tensor of its own, unless it is said."""
    return given if isinstance(given, Storage) else Storage(given)
