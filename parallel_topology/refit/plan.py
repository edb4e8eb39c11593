"""RefitPlan: which elements go from whom to whom when the weights of a model go from one layout to another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

from parallel_topology.errors import RankError, TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.refit.patterns import Met, Patterns
from parallel_topology.refit.sides import Side, stored
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted, require_each
from parallel_topology.weights.place import Box, both
from parallel_topology.weights.storage import Storage
from parallel_topology.weights.weight import Weight
from parallel_topology.weights.weights import Weights


class Move(NamedTuple):
    """A box of one logical tensor, from one rank to another or from a rank's old memory to its new one.

    Attributes:
        weight: the name of the logical tensor, as in `Weights.on`.
        ranges: of the logical tensor, one a dim.
        source, target: global ranks.
        hop: 0 from a rank that held it; 1 from one of the target's host that has just received it.
    """

    weight: str
    ranges: Box
    source: int
    target: int
    hop: int = 0


class RefitPlan:
    """What each rank sends, receives and keeps when `weights` go from the layout `source` to the layout `target`.

    >>> weights = Weights([Weight("w", "8/tp 4")])
    >>> plan = RefitPlan(weights, ParallelTopology(tp=2), ParallelTopology(tp=4))
    >>> for move in plan.moves(1):
    ...     print(*move)
    w (range(2, 4), range(0, 4)) 0 1 0
    w (range(4, 6), range(0, 4)) 1 2 0
    w (range(6, 8), range(0, 4)) 1 3 0
    >>> plan.bytes_moved, plan.lower_bound
    (48, 48)

    A rank's question costs as many steps as it has moves and the parts that it meets have replicas, whatever the world.
    Ranks are global, in one numbering for both sides, which may have all, some or none of them in common.

    Args:
        weights: the logical tensors.
        source: the layout that has them.
        target: the layout that gets them.
        source_as: what the source has otherwise: a `Storage` that says in which tensors it keeps them, or `Weights` of
            the same names and shapes that are cut, padded or put on stages in another way, or in another dtype.
        target_as: likewise. What the target does not have is left where it is.
        hosts: where the ranks are; then a rank takes what it lacks from its own host, where that has it.
        without: ranks that are gone: their copies are not read, and they get none.
        only: the target's ranks that get something, as those that came in later, also in another's place: they have
            nothing. All if it is left out.

    Attributes:
        patterns: the boxes that both sides have in common.
        remembered: what was derived of it, so that each refit need not do so again: a rank's messages, and the proof.

    Raises:
        TopologyError: the sides have other tensors, a layout does not divide them, or nobody is left who has one.
        RankError: `hosts` lacks a rank.
    """

    def __init__(
        self,
        weights: Weights,
        source: ParallelTopology,
        target: ParallelTopology,
        *,
        source_as: Weights | Storage | None = None,
        target_as: Weights | Storage | None = None,
        hosts: Hosts | None = None,
        without: Iterable[int] = (),
        only: Iterable[int] | None = None,
    ) -> None:
        self.weights = require_kind(weights, Weights, "weights")
        require_kind(source, ParallelTopology, "source")
        require_kind(target, ParallelTopology, "target")
        self.source = Side("source", stored(source_as or weights), source)
        self.target = Side("target", stored(target_as or weights), target)
        self.hosts = hosts
        self.without = frozenset(require_each(0, "without", without))
        self.only = None if only is None else frozenset(require_each(0, "only", only))
        self.remembered: dict[Any, Any] = {}
        if hosts is not None:
            require_kind(hosts, Hosts, "hosts").require(source)
            hosts.require(target)
        self.patterns = Patterns(self.source, self.target, hosts, self.without, self.only)

    # One rank's questions

    def moves(self, rank: int) -> list[Move]:
        """The moves that a rank takes part in, those from its own memory to its own memory included.

        Raises:
            RankError: the rank is in neither layout.
        """
        arriving = self._arriving(rank) if self._among(rank) and self.gets(rank) else ()
        leaving = self._leaving(rank) if self.gives(rank) else ()
        return [*arriving, *leaving]

    def bytes_sent(self, rank: int) -> int:
        """The bytes that a rank sends to others."""
        return sum(self.nbytes(move) for move in self.moves(rank) if move.source == rank != move.target)

    def bytes_received(self, rank: int) -> int:
        """The bytes that a rank receives from others."""
        return sum(self.nbytes(move) for move in self.moves(rank) if move.target == rank != move.source)

    def bytes_kept(self, rank: int) -> int:
        """The bytes that a rank has already."""
        return sum(self.nbytes(move) for move in self.moves(rank) if move.target == rank == move.source)

    def lower_bound_on(self, rank: int) -> int:
        """The bytes that a rank needs and has not: less cannot reach it."""
        if not (self._among(rank) and self.gets(rank)):
            return 0
        needs = (
            len(layers) * self.patterns.volume(weight, need.ranges)
            for weight, kinds in self.patterns.kinds()
            for layers in kinds
            if (need := self.target.held(weight, layers[0], rank)) is not None
        )
        return sum(needs) - (self._has_already(rank) if self.gives(rank) else 0)

    # One host's

    def bytes_into(self, host: int) -> int:
        """The bytes that come to the ranks of a host from other hosts.

        Raises:
            TopologyError: the plan was made without `hosts=`.
        """
        hosts = self._hosts()
        here = [rank for rank in hosts.ranks_of(host) if self.gets(rank)]
        arriving = (move for rank in here for move in self._arriving(rank) if move.target == rank)
        return sum(self.nbytes(move) for move in arriving if hosts.host_of(move.source) != host)

    def lower_bound_into(self, host: int) -> int:
        """The bytes that a rank of a host needs and no rank of it has: less cannot reach it.

        Raises:
            TopologyError: the plan was made without `hosts=`.
        """
        here = {*self._hosts().ranks_of(host)}
        return sum(
            len(layers) * self.patterns.volume(weight, met.box)
            for weight, kinds in self.patterns.kinds()
            for layers in kinds
            for met in self.patterns.met(weight, layers[0])
            if not here.isdisjoint(met.handing.needing) and here.isdisjoint(met.handing.having)
        )

    def nbytes(self, move: Move) -> int:
        """The bytes of a move on its way, in the narrower one of both sides' dtypes."""
        return self.patterns.volume(self.target.weights.named(move.weight), move.ranges)

    def dtype(self, name: str) -> str:
        """In which dtype a logical tensor travels."""
        return self.patterns.dtype(self.target.weights.named(name))

    # The whole

    @cached_property
    def bytes_moved(self) -> int:
        """The bytes that go from one rank to another, over all ranks."""
        return sum(
            len(layers) * met.handing.moved * self.patterns.volume(weight, met.box)
            for weight, kinds in self.patterns.kinds()
            for layers in kinds
            for met in self.patterns.met(weight, layers[0])
        )

    @cached_property
    def bytes_total(self) -> int:
        """The bytes that the target's ranks need, over all of them."""
        return sum(
            len(layers) * self.patterns.volume(weight, box) * len(self.patterns.getting(ranks))
            for weight, kinds in self.patterns.kinds()
            for layers in kinds
            for box, ranks in self.target.placed(weight, layers[0]).holders()
        )

    @cached_property
    def lower_bound(self) -> int:
        """The sum over the ranks of what each needs and has not: what a plan without multicast has to move."""
        mine, theirs = self.source.world, self.target.world
        few, other = (mine, theirs) if mine.size < theirs.size else (theirs, mine)
        both = [] if _apart(mine, theirs) else [rank for rank in few if rank in other and self.gets(rank)]
        return self.bytes_total - sum(self._has_already(rank) for rank in both if self.gives(rank))

    def explain(self, name: str) -> str:
        """In words, how a logical tensor lies on both sides, and how each box of it goes over.

        Raises:
            TopologyError: there is no tensor of this name.
        """
        from parallel_topology.refit.facts import explained

        return explained(self, name)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal where both layouts, all weights, and where the ranks are, are equal."""
        parts = [self.source.topology, self.target.topology, self.hosts, sorted(self.without)]
        parts += [] if self.only is None else [sorted(self.only)]
        parts += [repr(self.source.storage), repr(self.target.storage)]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]

    def verify(self) -> None:
        """Prove that every element that the target needs is written once, from a rank that holds it; see `proof`.

        What has been proven is not proven again.

        Raises:
            RefitError: it is not.
        """
        from parallel_topology.refit.proof import prove

        if "proven" not in self.remembered:
            prove(self)
            self.remembered["proven"] = True

    @cached_property
    def ranks(self) -> list[int]:
        """All ranks of both sides that are left."""
        return sorted({*self.source.world, *self.target.world} - self.without)

    @cached_property
    def span(self) -> int:
        """More than any rank's number."""
        return 1 + max(_last(side.world) for side in (self.source, self.target))

    @cached_property
    def order(self) -> dict[str, int]:
        """The names of the tensors that move, layer after layer: what is before the layers, they, and what is after."""
        weights = self.target.weights
        names = [weight.name for weight in weights.weights if weight.layer is False and weight.stage != "last"]
        inside = [weight for weight in weights.weights if weight.layer is not False]
        for layer in range(weights.layers):
            names += [weight.full_name(layer) for weight in inside if weight.layers(range(layer, layer + 1))]
        names += [weight.name for weight in weights.weights if weight.stage == "last"]
        return {name: number for number, name in enumerate(names)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RefitPlan) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:  # what was derived of it is derived again, if it is needed
        make, given = self._made()
        return partial(make, without=self.without), given

    def left_without(self, lost: Iterable[int]) -> RefitPlan:
        """The same for those that are left when ranks are lost."""
        make, given = self._made()
        return make(*given, without={*self.without, *require_each(0, "lost", lost)})

    def _made(self) -> tuple[partial[RefitPlan], tuple[Any, ...]]:
        """What makes this one, but for who is gone."""
        sides = {"source_as": self.source.storage, "target_as": self.target.storage}
        make = partial(RefitPlan, **sides, hosts=self.hosts, only=self.only)
        return make, (self.weights, self.source.topology, self.target.topology)

    def __repr__(self) -> str:
        return f"RefitPlan({len(self.order)} tensors, {self.source.topology} -> {self.target.topology})"

    # Private

    def _arriving(self, rank: int) -> Iterator[Move]:
        known: dict[tuple[str, int], list[Met]] = {}
        for weight, order, layer in self._tensors(self.target, rank):
            key = weight.name, self.source.stage(layer)
            if key not in known:
                known[key] = list(self.patterns.needed(weight, layer, rank))
            name = weight.full_name(layer)
            for met in known[key]:
                turn = met.turn(order, layer)
                source, hop = met.handing.source_of(rank, turn)
                yield Move(name, met.box, source, rank, hop)
                if met.handing.flows and self.hosts is not None:
                    for target, hop in met.handing.handed_on_by(rank, turn):
                        yield Move(name, met.box, rank, target, hop)

    def _leaving(self, rank: int) -> Iterator[Move]:
        known: dict[tuple[str, int], list[Met]] = {}
        for weight, order, layer in self._tensors(self.source, rank):
            key = weight.name, self.target.stage(layer)
            if key not in known:
                known[key] = list(self.patterns.had(weight, layer, rank))
            name = weight.full_name(layer)
            for met in known[key]:
                for target, hop in met.handing.given_by(rank, met.turn(order, layer)):
                    yield Move(name, met.box, rank, target, hop)

    def _tensors(self, side: Side, rank: int) -> Iterator[tuple[Weight, int, int | None]]:
        """(weight, its number, layer) of what a rank has on a side, if it moves."""
        own = side.names_on(rank)
        for order, weight in enumerate(self.target.weights.weights):
            if weight.layer is False:
                if weight.name in own:
                    yield weight, order, None
            else:
                for layer in weight.layers(range(self.target.weights.layers)):
                    if weight.full_name(layer) in own:
                        yield weight, order, layer

    def _has_already(self, rank: int) -> int:
        """The bytes of what a rank needs that it has."""
        total = 0
        for weight, kinds in self.patterns.kinds():
            for layer, *others in kinds:
                need = self.target.held(weight, layer, rank)
                have = self.source.held(self.patterns.origin(weight), layer, rank) if need else None
                if need is not None and have is not None:
                    total += (1 + len(others)) * self.patterns.volume(
                        weight, tuple(map(both, need.ranges, have.ranges))
                    )
        return total

    def _hosts(self) -> Hosts:
        if self.hosts is None:
            raise TopologyError("this plan knows no hosts: expected RefitPlan(..., hosts=Hosts.parse('2x8'))")
        return self.hosts

    def gets(self, rank: int) -> bool:
        """Whether a rank gets something, or keeps what it has for its new tensors."""
        return rank in self.target.world and rank not in self.without and (self.only is None or rank in self.only)

    def gives(self, rank: int) -> bool:
        """Whether a rank has what the source says."""
        return rank in self.source.world and self._has_anything(rank)

    def _has_anything(self, rank: int) -> bool:
        return rank not in self.without and (self.only is None or rank not in self.only)

    def _among(self, rank: int) -> bool:
        if rank in self.target.world or rank in self.source.world:
            return True
        raise RankError(
            f"rank {quoted(rank)} is in neither layout: the source is on {self.source.world}, "
            f"the target on {self.target.world}"
        )


def _apart(first: Ranks, second: Ranks) -> bool:
    """Whether two worlds are seen at once to have no rank in common: two runs."""
    if first.plain() is None or second.plain() is None:
        return False
    return _last(first) < _first(second) or _last(second) < _first(first)


def _first(ranks: Ranks) -> int:
    plain = ranks.plain()
    return min(ranks) if plain is None else plain[0] + sum(min(0, (size - 1) * step) for size, step in plain[1])


def _last(ranks: Ranks) -> int:
    plain = ranks.plain()
    return max(ranks) if plain is None else plain[0] + sum(max(0, (size - 1) * step) for size, step in plain[1])
