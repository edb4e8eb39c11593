"""Storage: how one side keeps the weights of a model. Which tensors a rank has, and where in them elements lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Placement, Ranks
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted
from parallel_topology.topology.wording import listed
from parallel_topology.weights.division import Run
from parallel_topology.weights.dtypes import bytes_of
from parallel_topology.weights.forms import form_of
from parallel_topology.weights.made import Node, all_names, applied, full_name, read, same_name, shown, unknown
from parallel_topology.weights.notation import axes_over
from parallel_topology.weights.place import Box, Place, alone, asked, both
from parallel_topology.weights.placed import Further, Placed
from parallel_topology.weights.rules import Kept, Rule
from parallel_topology.weights.sides import Cut, Padded, Sharded
from parallel_topology.weights.weight import numbered
from parallel_topology.weights.weights import Weights

AnyRule: TypeAlias = Rule | Sharded | Padded

Pieces: TypeAlias = list[tuple[Box, list[int]]]
"""Boxes, and who has each."""

REMEMBERED = 256
"""Tensors, of one layer, whose places are kept: ranks and layers that have the same parts share them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One of a rank's tensors.

    Attributes:
        shape: padding included.
        dtype: its name in torch.
        nbytes: of all of it.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, init=False)
class Storage:
    """How one side keeps weights: each in a tensor of its own, but for what the rules say.

    >>> from parallel_topology.weights import Fused, Weight
    >>> weights = Weights([Weight("q", "8/tp 4"), Weight("k", "4/tp 4"), Weight("v", "4/tp 4")])
    >>> storage = Storage(weights, [Fused("qkv", ["q", "k", "v"])])
    >>> topology = ParallelTopology(tp=2)
    >>> storage.tensors(topology, rank=1)
    {'qkv': Stored(shape=(8, 4), dtype='bfloat16', nbytes=64)}
    >>> [place] = storage.places(topology, 1, "k")
    >>> place.ranges, place.tensor, place.local
    ((range(2, 4), range(0, 4)), 'qkv', (range(4, 6), range(0, 4)))

    Args:
        weights: names, logical shapes, and how this side cuts and pads them.
        rules: one after the other; each may take what those before it made.
        sharded_over: axes, together one group, over which dim 0 of each tensor is cut once more, as FSDP2 does. Of a
            tensor whose factorization has none of them, as may be for experts, all is kept.

    Raises:
        TopologyError: a rule takes what is not there, or what does not fit together; or two tensors have one name.
    """

    weights: Weights
    rules: tuple[AnyRule, ...]
    sharded_over: tuple[str, ...]

    if TYPE_CHECKING:
        _made: dict[str, Node]  # by name, what is a tensor in the end
        _homes: dict[str, Node]  # name of a weight -> that in which it is in the end
        _names: dict[str, tuple[Node, int | None]]  # name of a tensor that is not split -> what it is, and the layer
        _cuts: dict[str, Cut]  # by name, of those that are cut once more
        _known: dict[tuple[Any, ...], Kept]  # name and parts -> places, of the tensors asked for last

    def __init__(
        self, weights: Weights, rules: Iterable[AnyRule] = (), *, sharded_over: str | Iterable[str] = ()
    ) -> None:
        put = self.__dict__
        put["rules"] = _rules(rules)
        put["sharded_over"] = axes_over("sharded_over", sharded_over)
        put["weights"] = weights = _padded(
            require_kind(weights, Weights, "weights"), [rule for rule in self.rules if isinstance(rule, Padded)]
        )
        made = {weight.name: Node(form_of(weight, weights)) for weight in weights.weights}
        for rule in self.rules:
            if isinstance(rule, Rule):
                made = applied(rule, made)
        put["_made"] = made
        put["_homes"] = {weight: node for node in made.values() for weight in node.form.weights}
        put["_names"] = all_names(made.values())
        put["_cuts"] = self._all_cuts([rule for rule in self.rules if isinstance(rule, Sharded)])
        put["_known"] = {}

    # What a rank has

    def tensors(self, topology: ParallelTopology, rank: int) -> dict[str, Stored]:
        """The tensors of a rank: name or name.layer -> shape and dtype, those of its stage alone.

        Raises:
            RankError, UnknownAxisError, TopologyError: as for `Weights.on`; or a cut goes through a rule's groups.
        """
        position = require_kind(topology, ParallelTopology, "topology").position(rank)
        here = {placed.weight.name: (placed, layers) for placed, layers in self.weights.here(topology, position)}
        found: dict[str, Stored] = {}
        for name, node in self._made.items():
            of = node.form.weights
            if of[0] in here:
                kept = self._kept(node, {weight: here[weight][0] for weight in of}, position)
                dtype = node.form.dtype
                for layer in here[of[0]][1]:
                    for index, one in kept.items():
                        full = full_name(name, layer, index)
                        if full in found:
                            raise same_name(full)
                        found[full] = Stored(one.shape, dtype, bytes_of(prod(one.shape), dtype))
        return found

    def places(
        self, topology: ParallelTopology, rank: int, name: str, ranges: Sequence[range] | None = None
    ) -> list[Place]:
        """Where a rank keeps a logical tensor: boxes that make up what it has of these ranges, none twice.

        Args:
            name: of the logical tensor, as in `"q.0"`.
            ranges: of the logical tensor, one a dim; all that the rank has if they are left out.

        Returns:
            Nothing where the rank has nothing of them.

        Raises:
            RankError, UnknownAxisError, TopologyError: as for `tensors`; or there is no such tensor, or not one range a
                dim.
        """
        weight, layer = self.weights.home(name)
        wanted = asked(ranges, weight.shape, f"weight {name!r}")
        node = self._homes[weight.name]
        found: list[Place] = []
        for index, one in self._at(topology, rank, node, layer).items():
            tensor = full_name(node.form.name, layer, index)
            there = (place.within(wanted) for place in one.places if place.weight == weight.name)
            found += [place.named(name, tensor) for place in there if place]
        return found

    def contents(
        self, topology: ParallelTopology, rank: int, tensor: str, ranges: Sequence[range] | None = None
    ) -> list[Place]:
        """What a rank's tensor keeps: boxes that make up all of these ranges but padding, none twice.

        Args:
            tensor: its name, as `tensors` has it.
            ranges: of the rank's tensor, one a dim; all of it if they are left out.

        Returns:
            Nothing where the rank has no such tensor: it is on another stage, or another rank's expert.

        Raises:
            RankError, UnknownAxisError, TopologyError: as for `places`.
        """
        node, layer, index = self._named(tensor)
        one = self._at(topology, rank, node, layer).get(index)
        if one is None:
            return []
        wanted = asked(ranges, one.shape, f"tensor {tensor!r}")
        names = {weight: numbered(weight, layer) for weight in node.form.weights}
        there = (place.at(wanted) for place in one.places)
        return [place.named(names[place.weight], tensor) for place in there if place]

    def holders(
        self, topology: ParallelTopology, name: str, ranges: Sequence[range] | None = None
    ) -> Iterator[tuple[Box, Ranks]]:
        """Who has these elements: boxes that make them up, none twice, and the ranks that hold all of each.

        Raises:
            UnknownAxisError, TopologyError: as for `Weights.placed` and `Placed.holders`.
        """
        weight, layer = self.weights.home(name)
        node = self._homes[weight.name]
        placed = self._placed(topology, node, layer)
        own = placed[weight.name]
        further = self._further(node, own)
        if further is None:
            yield from own.holders(ranges)
            return
        for box, runs in own.meeting(ranges):
            cut: dict[tuple[tuple[Box, int], ...], list[dict[str, Run]]] = {}
            for here in _one_by_one(runs):  # they all have this box, but maybe more or less before it in their tensors
                at = further.layout.position({axis: first for axis, (first, _) in here.items()})
                kept = self._uncut(node, {one: place.parts(at) for one, place in placed.items()}, placed)
                pieces = [*_cut_once_more(kept, weight.name, box, self._cuts[node.form.name].dim, further)]
                cut.setdefault(tuple(pieces), []).append(here)
            if len(cut) == 1:
                yield from ((piece, own.having(runs, further, index)) for piece, index in next(iter(cut)))
                continue
            sides = [
                [(piece, [rank for at in here for rank in own.having(at, further, index)]) for piece, index in pieces]
                for pieces, here in cut.items()
            ]
            yield from ((piece, _in_order(topology, ranks)) for piece, ranks in reduce(_met, sides))

    # Private

    def _at(self, topology: ParallelTopology, rank: int, node: Node, layer: int | None) -> Kept:
        """What a rank has of a form in one layer."""
        placed = self._placed(topology, node, layer)
        position = topology.position(rank)
        if not next(iter(placed.values())).has(position):
            return {}
        return self._kept(node, placed, position)

    def _placed(self, topology: ParallelTopology, node: Node, layer: int | None) -> dict[str, Placed]:
        return {name: self.weights.placed(topology, numbered(name, layer)) for name in node.form.weights}

    def _kept(self, node: Node, placed: Mapping[str, Placed], position: int) -> Kept:
        """What a position has of a form."""
        parts = {name: one.parts(position) for name, one in placed.items()}
        further = self._further(node, next(iter(placed.values())))
        if further is None:
            return self._uncut(node, parts, placed)
        index = further.index(position)
        key = node.form.name, tuple(parts.values()), further.count, index
        known = self._known.get(key)
        if known is None:
            dim = self._cuts[node.form.name].dim
            whole = self._uncut(node, parts, placed)
            cut = {at: one.window(dim, further.chunk(one.shape[dim], index)) for at, one in whole.items()}
            known = self._remember(key, cut)
        return known

    def _uncut(self, node: Node, parts: Mapping[str, Box], placed: Mapping[str, Placed]) -> Kept:
        """What ranks with these parts have of a form, before it is cut once more."""
        key = node.form.name, tuple(parts.values())
        known = self._known.get(key)
        if known is None:
            own = {name: alone(name, part, placed[name].within(part)) for name, part in parts.items()}
            known = self._remember(key, node.kept(own))
        return known

    def _remember(self, key: tuple[Any, ...], kept: Kept) -> Kept:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        return self._known.setdefault(key, kept)

    def _further(self, node: Node, placed: Placed) -> Further | None:
        """Over which ranks a tensor is cut once more, if it is."""
        cut = self._cuts.get(node.form.name)
        if cut is None:
            return None
        further = placed.further(cut.axes)
        if cut.required:
            missing = [axis for axis in cut.axes if axis not in further.axes and placed.topology.size(axis) > 1]
            if missing:
                raise UnknownAxisError(
                    f"tensor {node.form.name!r} is sharded over {'/'.join(cut.axes)}, but no factorization of "
                    f"{placed.topology} has {missing[0]} beside what cuts it, {node.form}"
                )
        return further if further.count > 1 else None

    def _all_cuts(self, rules: Sequence[Sharded]) -> dict[str, Cut]:
        over = self.sharded_over
        found = {name: Cut(over, 0, required=False) for name, node in self._made.items() if over and node.form.dims}
        for rule in rules:
            if rule.name not in self._made:
                raise unknown(rule, rule.name, self._made)
            if sum(rule.name == one.name for one in rules) > 1:
                raise TopologyError(f"{rule}: {rule.name!r} is sharded twice; expected all axes in one rule")
            found[rule.name] = rule.of(self._made[rule.name].form)
        return found

    def _named(self, tensor: str) -> tuple[Node, int | None, int | None]:
        """What a tensor's name stands for: what it is, the layer, and the index."""
        if not isinstance(tensor, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"tensor={quoted(tensor)}: expected its name")
        if tensor in self._names:
            return (*self._names[tensor], None)
        for node in self._made.values():
            if node.form.split:
                for layer, index in read(node.form, tensor):
                    return node, layer, index
        few = listed([shown(node.form) for node in self._made.values()][:16])
        raise TopologyError(f"no tensor is named {quoted(tensor)}: there are {few}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}


def _cut_once_more(kept: Kept, weight: str, box: Box, dim: int, further: Further) -> Iterator[tuple[Box, int]]:
    """The parts of a box that lie in one chunk of a tensor each, and in which."""
    for one in kept.values():
        for place in one.places:
            if place.weight == weight and (inside := place.within(box)):
                length, along = one.shape[dim], inside.local[dim]
                each = -(-length // further.count)
                for index in range(along[0] // each, along[-1] // each + 1):
                    if piece := inside.cut(dim, further.chunk(length, index)):
                        yield piece.ranges, index


def _one_by_one(runs: Mapping[str, Run]) -> Iterator[dict[str, Run]]:
    for indices in product(*(range(first, first + count) for first, count in runs.values())):
        yield {axis: (index, 1) for axis, index in zip(runs, indices, strict=True)}


def _met(some: Pieces, others: Pieces) -> Pieces:
    """Pieces of the same box, cut where either is, and the ranks of both."""
    met = ((tuple(map(both, one, other)), [*ranks, *more]) for one, ranks in some for other, more in others)
    return [(box, ranks) for box, ranks in met if all(box)]


def _in_order(topology: ParallelTopology, ranks: Sequence[int]) -> Ranks:
    ordered = tuple(sorted(ranks, key=topology.position))
    return Ranks(0, ((len(ordered), 1),), Placement(ordered))


def _rules(given: object) -> tuple[AnyRule, ...]:
    rules = tuple(cast("Iterable[object]", given)) if isinstance(given, Iterable) else (given,)
    for rule in rules:
        if not isinstance(rule, Rule | Padded | Sharded):
            raise TopologyError(
                f"{quoted(rule)} is no rule: expected a list of them, as in [Fused('qkv', ['q', 'k', 'v'])]"
            )
    return cast("tuple[AnyRule, ...]", rules)


def _padded(weights: Weights, rules: Sequence[Padded]) -> Weights:
    """The weights, padded as the rules say."""
    by_name = {weight.name: weight for weight in weights.weights}
    for rule in rules:
        if rule.weight not in by_name:
            raise unknown(rule, rule.weight, by_name)
        by_name[rule.weight] = replace(by_name[rule.weight], pad_to=rule.to, pad_whole_to=rule.whole_to)
    return replace(weights, weights=by_name.values()) if rules else weights
