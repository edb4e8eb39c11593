"""Patterns: the boxes that a part of the source and a part of the target have in common, and who hands each to whom.

Layers that lie alike have the same boxes, which are found once; only the turns that replicas take differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.refit.common import Common
from parallel_topology.refit.handing import Handing
from parallel_topology.refit.sides import Side
from parallel_topology.topology.layout import Ranks
from parallel_topology.weights.dtypes import bytes_of
from parallel_topology.weights.place import Box
from parallel_topology.weights.placed import Placed
from parallel_topology.weights.weight import Weight


@dataclass(frozen=True, slots=True)
class Met:
    """A box that one part of the source and one part of the target have in common.

    Attributes:
        number: where it stands among those of its tensor, roughly: what makes boxes take turns.
    """

    box: Box
    handing: Handing
    number: int

    def turn(self, order: int, layer: int | None) -> int:
        return self.number + order + (layer or 0)


class Patterns:
    """Those of two sides.

    Args:
        hosts: as of `RefitPlan`.
        without: the same.
        only: the same.

    Raises:
        TopologyError: the sides do not have the same tensors.
    """

    def __init__(
        self, source: Side, target: Side, hosts: Hosts | None, without: frozenset[int], only: frozenset[int] | None
    ) -> None:
        self.source, self.target = source, target
        self._hosts, self._without, self._only = hosts, without, only
        self._common = Common(source, target)
        self._handings: dict[Any, Handing] = {}

    def kinds(self) -> Iterator[tuple[Weight, list[list[int | None]]]]:
        """Each weight, with its layers; those together that are on the same stages of both sides, and so lie alike."""
        for weight in self.target.weights.weights:
            if weight.layer is False:
                yield weight, [[None]]
                continue
            alike: dict[tuple[int, int], list[int | None]] = {}
            for layer in weight.layers(range(self.target.weights.layers)):
                alike.setdefault((self.source.stage(layer), self.target.stage(layer)), []).append(layer)
            yield weight, list(alike.values())

    def met(self, weight: Weight, layer: int | None) -> Iterator[Met]:
        """All boxes of a tensor."""
        here, there = self.source.placed(self.origin(weight), layer), self.target.placed(weight, layer)
        for part, having in here.holders():
            for box, needing in there.holders(part):
                yield self._met(weight, box, having, needing)

    def origin(self, weight: Weight) -> Weight:
        """The source's weight of the same name."""
        return self._common.origins[weight.name]

    def needed(self, weight: Weight, layer: int | None, rank: int) -> Iterator[Met]:
        """What a rank needs of a tensor, box by box."""
        here, there = self.source.placed(self.origin(weight), layer), self.target.placed(weight, layer)
        need = _held(there, rank)
        alike = next((ranks for _, ranks in there.holders(need)), None)
        if alike is not None:
            yield from (self._met(weight, box, having, alike) for box, having in here.holders(need))

    def had(self, weight: Weight, layer: int | None, rank: int) -> Iterator[Met]:
        """What others may need of what a rank has of a tensor, box by box."""
        here, there = self.source.placed(self.origin(weight), layer), self.target.placed(weight, layer)
        have = _held(here, rank)
        alike = next((ranks for _, ranks in here.holders(have)), None)
        if alike is not None:
            yield from (self._met(weight, box, alike, needing) for box, needing in there.holders(have))

    def _met(self, weight: Weight, box: Box, having: Ranks, needing: Ranks) -> Met:
        key = self._key(having, self.source), self._key(needing, self.target)
        handing = self._handings.get(key)
        if handing is None:
            have = tuple(rank for rank in self.left(having) if self._only is None or rank not in self._only)
            if not have:
                raise TopologyError(
                    f"weight {weight.name!r}: of {shown(box)} no copy is left, they were on ranks {having}"
                )
            host_of = None if self._hosts is None else self._hosts.host_of
            handing = self._handings.setdefault(key, Handing(have, self.getting(needing), host_of))
        return Met(box, handing, sum(part.start // len(part) for part in box))

    def _key(self, ranks: Ranks, side: Side) -> object:
        plain = ranks.placement is side.world.placement
        return (ranks.start, ranks.modes) if plain else tuple(ranks)

    def left(self, ranks: Ranks) -> tuple[int, ...]:
        return tuple(rank for rank in ranks if rank not in self._without)

    def getting(self, ranks: Ranks) -> tuple[int, ...]:
        left = self.left(ranks)
        return left if self._only is None else tuple(rank for rank in left if rank in self._only)

    def volume(self, weight: Weight, box: Box) -> int:
        """The bytes of a box on its way."""
        return bytes_of(prod(map(len, box)), self.dtype(weight))

    def dtype(self, weight: Weight) -> str:
        """In which dtype a weight travels."""
        return self._common.dtypes[weight.name]


def _held(placed: Placed, rank: int) -> Box:
    held = placed.on(rank)
    return () if held is None else held.ranges


def shown(box: Box) -> str:
    """As slices.

    >>> shown((range(2, 4), range(8)))
    '[2:4, 0:8]'
    """
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in box) + "]"
