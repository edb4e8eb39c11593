"""Storage: how one side keeps the weights of a model. Which tensors a rank has, and where in them elements lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted
from parallel_topology.topology.wording import listed
from parallel_topology.weights.dtypes import bytes_of
from parallel_topology.weights.place import Box, Place, alone
from parallel_topology.weights.placed import Placed
from parallel_topology.weights.rules import INDEX, Along, Form, Kept, Node, Padded, Rule
from parallel_topology.weights.weight import Weight, numbered
from parallel_topology.weights.weights import Weights

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

    >>> from parallel_topology.weights import Fused
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

    Raises:
        TopologyError: a rule takes what is not there, or what does not fit together; or two tensors have one name.
    """

    weights: Weights
    rules: tuple[Rule | Padded, ...]

    if TYPE_CHECKING:
        _made: dict[str, Node]  # by name, what is a tensor in the end
        _homes: dict[str, Node]  # name of a weight -> that in which it is in the end
        _names: dict[str, tuple[Node, int | None]]  # name of a tensor that is not split -> what it is, and the layer
        _known: dict[tuple[str, tuple[Box, ...]], Kept]  # name and parts -> places, of the tensors asked for last

    def __init__(self, weights: Weights, rules: Iterable[Rule | Padded] = ()) -> None:
        put = self.__dict__
        put["rules"] = _rules(rules)
        put["weights"] = weights = _padded(weights, [rule for rule in self.rules if isinstance(rule, Padded)])
        made = {weight.name: Node(_form(weight, weights)) for weight in weights.weights}
        for rule in self.rules:
            if isinstance(rule, Rule):
                made = _applied(rule, made)
        put["_made"] = made
        put["_homes"] = {weight: node for node in made.values() for weight in node.form.weights}
        put["_names"] = _all_names(made.values())
        put["_known"] = {}

    # What a rank has

    def tensors(self, topology: ParallelTopology, rank: int) -> dict[str, Stored]:
        """The tensors of a rank: name or name.layer -> shape and dtype, those of its stage alone.

        Raises:
            RankError, UnknownAxisError, TopologyError: as for `Weights.on`; or a cut goes through a rule's groups.
        """
        position = topology.position(rank)
        here = {placed.weight.name: (placed, layers) for placed, layers in self.weights.here(topology, position)}
        found: dict[str, Stored] = {}
        for name, node in self._made.items():
            of = node.form.weights
            if of[0] in here:
                kept = self._kept(node, {weight: here[weight][0] for weight in of}, position)
                dtype = node.form.dtype
                for layer in here[of[0]][1]:
                    for index, one in kept.items():
                        nbytes = bytes_of(prod(one.shape), dtype)
                        found[_full_name(name, layer, index)] = Stored(one.shape, dtype, nbytes)
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
        wanted = _asked(ranges, weight.shape, f"weight {name!r}")
        node = self._homes[weight.name]
        found: list[Place] = []
        for index, one in self._at(topology, rank, node, layer).items():
            tensor = _full_name(node.form.name, layer, index)
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
        wanted = _asked(ranges, one.shape, f"tensor {tensor!r}")
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
        return self.weights.placed(topology, name).holders(ranges)

    # Private

    def _at(self, topology: ParallelTopology, rank: int, node: Node, layer: int | None) -> Kept:
        """What a rank has of a form in one layer."""
        placed = {name: self.weights.placed(topology, numbered(name, layer)) for name in node.form.weights}
        position = topology.position(rank)
        if not next(iter(placed.values())).has(position):
            return {}
        return self._kept(node, placed, position)

    def _kept(self, node: Node, placed: Mapping[str, Placed], position: int) -> Kept:
        parts = {name: one.parts(position) for name, one in placed.items()}
        key = node.form.name, tuple(parts.values())
        known = self._known.get(key)
        if known is None:
            own = {name: alone(name, part, placed[name].within(part)) for name, part in parts.items()}
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known.setdefault(key, node.kept(own))
        return known

    def _named(self, tensor: str) -> tuple[Node, int | None, int | None]:
        """What a tensor's name stands for: what it is, the layer, and the index."""
        if tensor in self._names:
            return (*self._names[tensor], None)
        for node in self._made.values():
            if node.form.split:
                for layer, index in _read(node.form, tensor):
                    return node, layer, index
        few = listed([_shown(node.form) for node in self._made.values()][:16])
        raise TopologyError(f"no tensor is named {quoted(tensor)}: there are {few}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}


def _rules(given: object) -> tuple[Rule | Padded, ...]:
    rules = tuple(cast("Iterable[object]", given)) if isinstance(given, Iterable) else (given,)
    for rule in rules:
        if not isinstance(rule, Rule | Padded):
            raise TopologyError(
                f"{quoted(rule)} is no rule: expected a list of them, as in [Fused('qkv', ['q', 'k', 'v'])]"
            )
    return cast("tuple[Rule | Padded, ...]", rules)


def _padded(weights: Weights, rules: Sequence[Padded]) -> Weights:
    """The weights, padded as the rules say."""
    by_name = {weight.name: weight for weight in weights.weights}
    for rule in rules:
        if rule.weight not in by_name:
            raise _unknown(rule, rule.weight, by_name)
        by_name[rule.weight] = replace(by_name[rule.weight], pad_to=rule.to)
    return replace(weights, weights=by_name.values()) if rules else weights


def _form(weight: Weight, weights: Weights) -> Form:
    dims = tuple(
        (
            Along(
                size,
                weight.axes(dim),
                weight.units.get(dim),
                weight.uneven if dim in weight.cut else "error",
                weight.pad_to if dim == 0 else None,
            ),
        )
        for dim, size in enumerate(weight.shape)
    )
    layers = None if weight.layer is False else tuple(weight.layers(range(weights.layers)))
    return Form(weight.name, (weight.name,), dims, layers, weight.stage, weight.dtype or weights.dtype)


def _applied(rule: Rule, made: Mapping[str, Node]) -> dict[str, Node]:
    """With what the rule makes, in the place of the first part that it takes."""
    parts: list[Node] = []
    for name in rule.takes:
        if name not in made:
            raise _unknown(rule, name, made)
        parts.append(made[name])
    node = Node(rule.form([part.form for part in parts]), rule, tuple(parts))
    if rule.name in made and rule.name not in rule.takes:
        raise TopologyError(f"{rule}: there is a tensor {rule.name!r} already; expected another name")
    first, *others = rule.takes
    return {
        rule.name if name == first else name: node if name == first else one
        for name, one in made.items()
        if name not in others
    }


def _unknown(rule: object, name: str, known: Iterable[str]) -> TopologyError:
    return TopologyError(f"{rule}: there is no {name!r} here; expected one of {listed(known)}")


def _all_names(made: Iterable[Node]) -> dict[str, tuple[Node, int | None]]:
    """The names of the tensors that are not split; all names differ."""
    found: dict[str, tuple[Node, int | None]] = {}
    split: list[Form] = []
    for node in made:
        if node.form.split:
            split.append(node.form)
            continue
        for layer in (None,) if node.form.layers is None else node.form.layers:
            name = numbered(node.form.name, layer)
            if name in found:
                raise _same_name(name)
            found[name] = node, layer
    for name in found:
        if any(True for form in split for _ in _read(form, name)):
            raise _same_name(name)
    return found


def _same_name(name: str) -> TopologyError:
    return TopologyError(f"two tensors have the name {name!r}; expected each to have one of its own")


def _full_name(name: str, layer: int | None, index: int | None) -> str:
    return numbered(name if index is None else name.replace(INDEX, str(index)), layer)


def _read(form: Form, name: str) -> Iterator[tuple[int | None, int]]:
    """The layer and index of which this is the name; none or one."""
    pattern = re.escape(form.name if form.layers is None or "{}" in form.name else form.name + ".{}")
    number = "(0|[1-9][0-9]{0,17})"
    pattern = pattern.replace(re.escape(INDEX), f"(?P<index>{number})")
    pattern = pattern.replace(re.escape("{}"), f"(?P<layer>{number})", 1).replace(re.escape("{}"), "(?P=layer)")
    if found := re.fullmatch(pattern, name):
        layer = int(found["layer"]) if form.layers is not None else None
        if form.layers is None or layer in form.layers:
            yield layer, int(found["index"])


def _shown(form: Form) -> str:
    return form.name if form.layers is None or "{}" in form.name else form.name + ".{}"


def _asked(ranges: Sequence[range] | None, shape: tuple[int, ...], of: str) -> Box:
    """The ranges that are asked for, all if they are left out."""
    if ranges is None:
        return tuple(map(range, shape))
    given = tuple(ranges)
    if len(given) != len(shape):
        raise TopologyError(f"{len(given)} ranges for {of} of {list(shape)}; expected one a dim")
    for one in given:
        if not isinstance(one, range) or one.step != 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"{quoted(one)} of {of}: expected a range of step 1")
    return given
