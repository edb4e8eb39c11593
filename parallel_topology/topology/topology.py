"""ParallelTopology: how the ranks of a job are divided over named axes, as an immutable value. No torch, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainSerializer, WithJsonSchema, model_validator

from parallel_topology.errors import RankError, TopologyError, UnknownAxisError
from parallel_topology.topology.diff import Diff
from parallel_topology.topology.layout import Groups, Layout, Placement, Ranks, coalesce
from parallel_topology.topology.notation import format_strides, format_topology, parse_topology
from parallel_topology.topology.plan import Plan
from parallel_topology.topology.rank_view import RankView
from parallel_topology.topology.validation import checked, in_order, places, require_free, with_inferred
from parallel_topology.topology.views import build_views, require_same_groups
from parallel_topology.topology.wording import listed, product

if TYPE_CHECKING:
    from parallel_topology.hosts.hosts import Hosts

# Rooms above this one are looked up late, when `reordered_for`, `_repr_html_` or `_repr_svg_` asks for them.

_STRIDES = {"type": "string", "description": "a first rank and steps from it, as in 0+2x1+512x4"}
Size = Annotated[int, Field(strict=True, ge=1)]


class ParallelTopology(BaseModel):
    """The ranks of one model-parallel job, divided over named axes. Immutable, hashable and comparable.

    >>> topology = ParallelTopology(tp=2, pp=4)
    >>> topology.groups("tp")
    [0, 1] [2, 3] [4, 5] [6, 7]
    >>> topology.at(5).pp.next_rank
    7

    Args:
        order: the axes, fastest-varying first, joined by `-`, each declared axis once; or the name of a system
            whose order to use (`parallel_topology.ORDERS`), where axes not given have size 1.
            Without it the axes stand as in `tp-cp-dp-pp`.
        first_rank: the global rank of position 0, when the topology is a part of a larger job.
        ranks: instead of `first_rank`, the global rank of every position; or a first one and steps from it, as in
            `"0+2x1+512x4"`, which is what becomes of more than 16 that have such a form.
        views: further factorizations of the same ranks: name -> axes, as in `{"expert": "etp1-ep8-pp2"}`.
        world_size: checked against the product of the sizes; needed when one size is -1, "what is left over".
        sizes: every other keyword is an axis and its size.

    Raises:
        TopologyError: a size below 1, an order that misses, repeats or invents an axis, a product that is not
            `world_size`, ranks that repeat, a view that does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)
    __pydantic_extra__: dict[str, Size]  # pyright: ignore[reportIncompatibleVariableOverride] (pydantic's own idiom)

    order: str = (
        ""  # always written out by the constructor; the default only says in the schema that it may be left out
    )
    first_rank: Annotated[int, Field(strict=True, ge=0)] = 0
    ranks: Annotated[
        Annotated[InstanceOf[Ranks], PlainSerializer(format_strides, when_used="json"), WithJsonSchema(_STRIDES)]
        | tuple[int, ...]
        | None,
        Field(union_mode="left_to_right"),  # the other mode tries to make a tuple of strides first
    ] = None
    views: Annotated[
        tuple[tuple[str, str], ...],
        PlainSerializer(dict, return_type=dict[str, str]),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    ] = ()

    if TYPE_CHECKING:  # derived once, kept in __dict__: pydantic's private attributes take microseconds to read
        _sizes: dict[str, int]
        _layouts: dict[str, Layout]  # "" is the base
        _placement: Placement | None
        _text: str  # the canonical form: two topologies are equal when their texts are

    def __init__(
        self,
        *,
        order: str | None = None,
        first_rank: int = 0,
        ranks: Sequence[int] | str | None = None,
        views: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        world_size: int | None = None,
        **sizes: int,
    ) -> None:
        views = dict(views)
        named = in_order(with_inferred(checked(sizes), world_size), order, views.values())
        if world_size is not None and world_size != prod(named.values()):
            raise TopologyError(f"world_size {world_size} is not {product(named)}")
        first_rank, placed = places(first_rank, ranks, named)
        base = Layout.of(named)
        view_texts, layouts = build_views(views, base)
        for axis in {axis for layout in layouts.values() for axis in layout.modes} - named.keys():
            require_free(axis)
        super().__init__(
            order="-".join(named), first_rank=first_rank, ranks=placed, views=tuple(view_texts.items()), **named
        )
        vars(self).update(
            _sizes=named,
            _layouts={"": base, **layouts},
            _placement=None if placed is None else Placement(placed),
            _text=format_topology(named, first_rank, placed, view_texts.items()),
        )
        require_same_groups({name or "the base": layout for name, layout in self._layouts.items()}, self.world)

    @model_validator(mode="wrap")
    @classmethod
    def _from_text(cls, value: Any, handler: Any) -> Any:
        """So that a configuration file may say `topology: tp2-pp4`."""
        return cls.parse(value) if isinstance(value, str) else handler(value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The topology that the compact notation stands for; `str(topology)` gives the text back.

        >>> ParallelTopology.parse("tp2-pp4") == ParallelTopology(tp=2, pp=4)
        True

        Raises:
            TopologyError: the text cannot be read (the message shows where), or makes no topology.
        """
        return cls(**parse_topology(text))

    # What it is

    @property
    def axes(self) -> tuple[str, ...]:
        """The base axes, fastest first."""
        return tuple(self._sizes)

    @property
    def all_axes(self) -> tuple[str, ...]:
        """The base axes, then those that only views have."""
        return tuple(dict.fromkeys(axis for layout in self._layouts.values() for axis in layout.modes))

    @property
    def sizes(self) -> dict[str, int]:
        """Base axis -> size, fastest first."""
        return dict(self._sizes)

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._layouts[""].size

    @property
    def world(self) -> Ranks:
        """All global ranks, by position."""
        return Ranks(self.first_rank, coalesce([(self.world_size, 1)]), self._placement)

    @property
    def fingerprint(self) -> str:
        """16 hex digits, equal for equal topologies in every process and version: SHA-256 of `str(topology)`."""
        return hashlib.sha256(self._text.encode()).hexdigest()[:16]

    def view(self, name: str) -> ParallelTopology:
        """A view as a topology of its own, over the same ranks.

        Raises:
            UnknownAxisError: there is no view of this name.
        """
        if name not in dict(self.views):
            raise UnknownAxisError(f"{self} has no view {name!r}; it has {listed(dict(self.views))}")
        layout = self._layouts[name]
        sizes: dict[str, Any] = {axis: layout.axis_size(axis) for axis in layout.modes}
        walked = coalesce(mode for modes in layout.modes.values() for mode in modes)
        return ParallelTopology(order="-".join(sizes), ranks=Ranks(self.first_rank, walked, self._placement), **sizes)

    def filling(self, world_size: int, *, axis: str) -> Self:
        """This topology with `axis` as large as it takes to fill `world_size` ranks.

        >>> str(ParallelTopology(tp=8, pp=4).filling(256, axis="dp"))
        'tp8-dp8-pp4'

        Raises:
            TopologyError: the other sizes do not divide `world_size`; the message names the remainder.
        """
        order = self.order if axis in self._sizes else None
        return self.model_copy(update={axis: -1, "order": order, "world_size": world_size})

    def reordered_for(self, hosts: Hosts, *, keep: Sequence[str | tuple[str, ...]] = ("tp",)) -> Self:
        """This topology in the order that keeps the groups along `keep` inside hosts and crosses them least else.

        >>> from parallel_topology import Hosts
        >>> ParallelTopology(pp=2, tp=4, order="pp-tp").reordered_for(Hosts.parse("2x4"))
        ParallelTopology.parse('tp4-pp2')

        Raises:
            TopologyError: no order does, or `hosts` are not those of these ranks.
        """
        from parallel_topology.hosts.reorder import orders_inside

        order = next(orders_inside(self, hosts, keep), None)
        if order is None:
            raise TopologyError(
                f"no order of {self} keeps {keep} inside the hosts {hosts}; "
                "keep fewer axes, or give sizes that divide the ranks of a host"
            )
        return self.model_copy(update={"order": order})

    def subtopology(self, *axes: str, **fixed: int) -> ParallelTopology:
        """A part as a topology of its own: the ranks at a fixed coordinate, along `axes` or all axes not fixed.

        >>> ParallelTopology(tp=2, dp=2, pp=2).subtopology(pp=1)
        ParallelTopology.parse('tp2-dp2@4')
        >>> ParallelTopology(tp=2, dp=2, pp=2).subtopology("pp", tp=1, dp=0)
        ParallelTopology.parse('pp2@1,5')

        Raises:
            UnknownAxisError: an axis that is not there.
            RankError: the coordinate leaves open an axis that is not in `axes`.
            TopologyError: an axis is both kept and fixed, or none is left.
        """
        if both := [axis for axis in axes if axis in fixed]:
            raise TopologyError(f"axis {both[0]!r} is both kept and fixed; expected one of them")
        layout = self._layout_of([*axes, *fixed])
        kept = [axis for axis in layout.modes if (axis in axes if axes else axis not in fixed)]
        if not kept:
            raise TopologyError(f"no axis is left of {self} at {fixed}; expected at least one that is not fixed")
        first = self.rank(**dict.fromkeys(kept, 0), **fixed)
        sizes: dict[str, Any] = {axis: layout.axis_size(axis) for axis in kept}
        return ParallelTopology(order="-".join(kept), ranks=self.group(*kept, rank=first), **sizes)

    def diff(self, other: ParallelTopology) -> Diff:
        """What changes for each rank when `other` takes this topology's place."""
        return Diff(self, other)

    def plan(
        self,
        *,
        groups: Iterable[tuple[str, ...]] = (),
        isolated: Mapping[str, tuple[str, ...]] | None = None,
        separate: Iterable[str] = (),
    ) -> Plan:
        """Every process group that a `GroupManager` with the same arguments would create, before anything runs.

        Args:
            groups: combinations of axes besides the single axes.
            isolated: name -> axes of groups that share their communicator with no other group of the same ranks.
            separate: names of other groups that share with none, as those do that have `GroupOptions` of their own.

        Raises:
            UnknownAxisError: an axis or name that is not there.
            TopologyError: a name of `isolated` is taken.
        """
        return Plan(self, groups, isolated or {}, tuple(separate))

    # Ranks and coordinates

    def coordinate(self, rank: int) -> dict[str, int]:
        """Axis -> index of a global rank, the base axes in their order.

        Raises:
            RankError: `rank` is not in this world.
        """
        position = self.position(rank)
        base = self._layouts[""]
        return {axis: base.index(axis, position) for axis in base.modes}

    def rank(self, **coordinate: int) -> int:
        """The global rank at a coordinate. Axes of size 1 may be left out.

        Raises:
            UnknownAxisError: an axis that is not there.
            RankError: an axis is missing, or an index is outside its axis.
        """
        layout = self._layout_of(coordinate)
        for axis, index in coordinate.items():
            size = layout.axis_size(axis)
            if type(index) is not int or not 0 <= index < size:
                raise RankError(f"{axis}={index!r} is outside axis {axis!r} of {self}: expected 0..{size - 1}")
        missing = [axis for axis in layout.modes if axis not in coordinate and layout.axis_size(axis) > 1]
        if missing:
            raise RankError(f"the coordinate {coordinate} of {self} lacks {', '.join(missing)}")
        return self.world[layout.position(coordinate)]

    def position(self, rank: int) -> int:
        """Where a global rank stands in this topology, 0 .. world_size - 1.

        Raises:
            RankError: `rank` is not in this world.
        """
        if type(rank) is int:
            if self._placement is None:
                if 0 <= rank - self.first_rank < self.world_size:
                    return rank - self.first_rank
            elif rank in self._placement.position_of:
                return self._placement.position_of[rank]
        raise RankError(f"rank {rank!r} is not in the world of {self}: expected one of {self.world}")

    def at(self, rank: int) -> RankView:
        """The topology as one global rank sees it.

        Raises:
            RankError: `rank` is not in this world.
        """
        self.position(rank)
        return RankView(self, rank)

    # Groups

    def groups(self, *axes: str) -> Groups:
        """All groups along one axis or several together: the ranks that differ only along them.

        The order of the arguments does not matter: members stand in the topology's order.

        Raises:
            UnknownAxisError: an axis that is not there, or axes of different views.
        """
        return self._layout_of(axes).groups(frozenset(axes), self.first_rank, self._placement)

    def group(self, *axes: str, rank: int) -> Ranks:
        """The group along `axes` that holds `rank`, without looking at any other group.

        Raises:
            UnknownAxisError: an axis that is not there, or axes of different views.
            RankError: `rank` is not in this world.
        """
        layout = self._layout_of(axes)
        return layout.group(frozenset(axes), self.position(rank), self.first_rank, self._placement)

    def group_name(self, *axes: str) -> str:
        """The axes in the topology's order, joined by `-`: the name of the groups along them."""
        layout = self._layout_of(axes)
        return "-".join(axis for axis in layout.modes if axis in axes)

    def size(self, *axes: str) -> int:
        """The number of ranks in each group along `axes`."""
        layout = self._layout_of(axes)
        return prod(layout.axis_size(axis) for axis in set(axes))

    # Value behaviour

    if TYPE_CHECKING:

        def __getattr__(self, axis: str) -> int: ...

    else:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                return super().__getattr__(name)
            if name in self._sizes:
                return self._sizes[name]
            return self.size(name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParallelTopology):
            return NotImplemented
        return self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"ParallelTopology.parse({self._text!r})"

    def _repr_html_(self) -> str | None:
        """A picture in a notebook; None, and so the text, of worlds that are too large for one."""
        from parallel_topology.render import html, scene

        return html.frame(self) if self.world_size <= scene.MOST_DRAWN else None

    def _repr_svg_(self) -> str | None:
        """For notebooks that show no HTML. They keep it in their file, so it is not of the largest worlds."""
        from parallel_topology.render import scene, svg

        return svg.svg(self) if self.world_size <= scene.MOST_SAVED else None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some arguments changed, checked like any other topology."""
        if not update:
            return self
        return type(self)(**{**self.model_dump(), **update})

    # Private

    def _layout_of(self, axes: Iterable[str]) -> Layout:
        wanted = tuple(axes)
        if not wanted:
            raise UnknownAxisError(f"no axis was named; {self} has {listed(self.all_axes)}")
        for layout in self._layouts.values():
            if all(axis in layout.modes for axis in wanted):
                return layout
        known = self.all_axes
        for axis in wanted:
            if axis not in known:
                raise UnknownAxisError(f"{self} has no axis {axis!r}; it has {listed(known)}")
        raise UnknownAxisError(f"{' and '.join(map(repr, wanted))} stand in no common factorization of {self}")
