"""ParallelTopology: how the ranks of a job are divided over named axes, as an immutable value. No torch, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, PlainSerializer, ValidationError, model_validator

from parallel_topology.errors import RankError, TopologyError, UnknownAxisError
from parallel_topology.topology.diff import Diff
from parallel_topology.topology.frozen import FrozenDict
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Groups, Layout, Placement, Ranks
from parallel_topology.topology.modes import coalesce, offset
from parallel_topology.topology.notation import format_strides, format_topology, parse_topology
from parallel_topology.topology.orders import DEFAULT_ORDER
from parallel_topology.topology.plan import Plan
from parallel_topology.topology.rank_view import RankView
from parallel_topology.topology.schema import numbers_read, topology_schema
from parallel_topology.topology.validation import (
    checked,
    checked_views,
    checked_world_size,
    in_order,
    places,
    require_free,
    with_axis,
    with_inferred,
)
from parallel_topology.topology.views import View, build_views, require_same_groups, unsized
from parallel_topology.topology.whole import quoted, whole
from parallel_topology.topology.wording import listed, product

if TYPE_CHECKING:
    from parallel_topology.hosts.hosts import Hosts

_CONVENTIONAL = frozenset(DEFAULT_ORDER)

# Rooms above this one are looked up late, when `reordered_for`, `_repr_html_` or `_repr_svg_` asks for them.


def _dumped(ranks: tuple[int, ...] | Ranks | None) -> tuple[int, ...] | str | None:
    return format_strides(ranks) if isinstance(ranks, Ranks) else ranks


class ParallelTopology(BaseModel):
    """The ranks of one model-parallel job, divided over named axes. Immutable, hashable and comparable.

    >>> topology = ParallelTopology(tp=2, pp=4)
    >>> topology.groups("tp")
    [0, 1] [2, 3] [4, 5] [6, 7]
    >>> topology.at(5).pp.next_rank
    7

    The conventional axes `tp`, `cp`, `dp` and `pp` answer also when they were not given: size 1, every rank alone in
    its group. They are no part of the topology for that: not of its text, its axes or its plan.

    >>> topology.dp, topology.at(5).dp.is_last, topology.axes
    (1, True, ('tp', 'pp'))

    Args:
        order: the axes, fastest-varying first, joined by `-`, each declared axis once; or the name of a system
            whose order to use (`parallel_topology.ORDERS`), where axes not given have size 1.
            Without it the axes stand as in `tp-cp-dp-pp`.
        first_rank: the global rank of position 0, when the topology is a part of a larger job.
        ranks: instead of `first_rank`, the global rank of every position; or a first one and steps from it, as in
            `"0+2x1+512x4"`, which is what becomes of more than 16 that have such a form.
        views: further factorizations of the same ranks: name -> axes, as in `{"expert": "etp1-ep8-pp2"}`. One size of
            a view may be left out, and in `expert`, as in Megatron, the axis `edp`: it is inferred, and stands in the
            topology's text, unless another factorization has an axis of that name.
        world_size: checked against the product of the sizes; needed when one size is -1, "what is left over".
        sizes: every other keyword is an axis and its size.

    Raises:
        TopologyError: a size below 1, an order that misses, repeats or invents an axis, a product that is not
            `world_size`, ranks that repeat, a view that does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True, arbitrary_types_allowed=True)

    order: str
    first_rank: int
    ranks: Annotated[tuple[int, ...] | Ranks | None, PlainSerializer(_dumped, when_used="json")]
    views: Mapping[str, str]

    if TYPE_CHECKING:  # derived once, kept in __dict__: pydantic's private attributes take microseconds to read
        _sizes: Mapping[str, int]
        _views: Mapping[str, View]
        _layouts: Mapping[str, Layout]  # "" is the base
        _placement: Placement | None
        _all_axes: tuple[str, ...]
        _absent: frozenset[str]  # the conventional axes that were not given
        _text: str  # the canonical form: two topologies are equal when their texts are

    def __init__(
        self,
        /,
        *,
        order: str | None = None,
        first_rank: int = 0,
        ranks: Sequence[int] | str | None = None,
        views: Mapping[str, str] = FrozenDict(),
        world_size: int | None = None,
        **sizes: int,
    ) -> None:
        if self.__dict__:
            raise _frozen(type(self), "__init__", sizes)
        given = checked_views(views)
        world_size = checked_world_size(world_size)
        named = in_order(with_inferred(checked(sizes), world_size), order, given.values())
        if world_size is not None and world_size != prod(named.values()):
            raise TopologyError(f"world_size {world_size} is not {product(named)}")
        first_rank, placed = places(first_rank, ranks, named)
        base = Layout.of(named)
        built = build_views(given, base)
        layouts = {"": base, **{name: view.layout for name, view in built.items()}}
        known = tuple(dict.fromkeys(axis for layout in layouts.values() for axis in layout.modes))
        for axis in set(known) - named.keys():
            require_free(axis)
        texts = {name: view.text for name, view in built.items()}
        # Everything is checked here, so that nothing is left for pydantic to validate: it is told what it would find.
        fields = {"order": "-".join(named), "first_rank": first_rank, "ranks": placed, "views": FrozenDict(texts)}
        set_attribute = object.__setattr__
        set_attribute(
            self,
            "__dict__",
            {
                **fields,
                "_sizes": FrozenDict(named),
                "_views": FrozenDict(built),
                "_layouts": FrozenDict(layouts),
                "_placement": None if placed is None else Placement(placed),
                "_all_axes": known,
                "_absent": _CONVENTIONAL - set(known),
                "_text": format_topology(named, first_rank, placed, texts.items()),
            },
        )
        set_attribute(self, "__pydantic_extra__", FrozenDict(named))
        set_attribute(self, "__pydantic_fields_set__", {*fields, *named})
        set_attribute(self, "__pydantic_private__", None)
        if built:
            require_same_groups({name or "the base": layout for name, layout in layouts.items()}, self.world)

    @model_validator(mode="wrap")
    @classmethod
    def _from_configuration(cls, value: Any, handler: Any) -> Any:
        """So that a configuration file may say `topology: tp2-pp4`, and the environment `TOPOLOGY__TP=2`."""
        if isinstance(value, str):
            return cls.parse(value)
        return handler(numbers_read(value))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The topology that the compact notation stands for; `str(topology)` gives the text back.

        >>> ParallelTopology.parse("tp2-pp4") == ParallelTopology(tp=2, pp=4)
        True

        Raises:
            TopologyError: the text cannot be read (the message shows where), or makes no topology.
        """
        sizes, arguments = parse_topology(text)
        for axis in sizes:
            require_free(axis)  # or it would be taken for another argument
        return cls(order="-".join(sizes), **sizes, **arguments)

    # What it is

    @property
    def axes(self) -> tuple[str, ...]:
        """The base axes, fastest first."""
        return tuple(self._sizes)

    @property
    def all_axes(self) -> tuple[str, ...]:
        """The base axes, then those that only views have."""
        return self._all_axes

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
        if not isinstance(name, str) or name not in dict(self.views):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownAxisError(f"{self} has no view {quoted(name)}; it has {listed(dict(self.views))}")
        layout = self._layouts[name]
        sizes: dict[str, Any] = {axis: layout.axis_size(axis) for axis in layout.modes}
        walked = coalesce(mode for modes in layout.modes.values() for mode in modes)
        return ParallelTopology(order="-".join(sizes), ranks=Ranks(self.first_rank, walked, self._placement), **sizes)

    def filling(self, world_size: int, *, axis: str) -> Self:
        """This topology with `axis` as large as it takes to fill `world_size` ranks.

        The axes keep their order; a new one stands where the default order has it. Sizes of views that were left out
        are inferred again; where none was, as in a topology that was read from its text, `edp` is.

        >>> str(ParallelTopology(tp=8, pp=4, views={"expert": "ep8-pp4"}).filling(64, axis="dp"))
        'tp8-dp2-pp4/expert:ep8-edp2-pp4'

        Raises:
            TopologyError: the other sizes do not divide `world_size`; the message names the remainder. Or a view has
                all its sizes written out, and no `edp`, so that none can grow.
        """
        require_free(require_kind(axis, str, "axis"))
        new = f"-{axis}" if axis not in self._sizes else ""  # walks go over every axis
        views = {
            name: (unsized(view) or view.text) + (new if "~" in view.text else "") for name, view in self._views.items()
        }
        order = "-".join(with_axis(self.axes, axis))
        return self.model_copy(update={axis: -1, "order": order, "world_size": world_size, "views": views})

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
        if both := [axis for axis in axes if isinstance(axis, str) and axis in fixed]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"axis {both[0]!r} is both kept and fixed; expected one of them")
        layout = self._resolved((*axes, *fixed))[0]
        kept = [axis for axis in layout.modes if (axis in axes if axes else axis not in fixed)]
        if not kept:
            raise TopologyError(f"no axis is left of {self} at {fixed}; expected at least one that is not fixed")
        first = self.rank(**dict.fromkeys(kept, 0), **fixed)
        sizes: dict[str, Any] = {axis: layout.axis_size(axis) for axis in kept}
        return ParallelTopology(order="-".join(kept), ranks=self.group(*kept, rank=first), **sizes)

    def diff(self, other: ParallelTopology) -> Diff:
        """What changes for each rank when `other` takes this topology's place.

        Raises:
            TopologyError: `other` is no topology.
        """
        return Diff(self, require_kind(other, ParallelTopology, "other"))

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
        return Plan(self, groups, {} if isolated is None else isolated, separate)

    # Ranks and coordinates

    def coordinate(self, rank: int) -> dict[str, int]:
        """Axis -> index of a global rank, the base axes in their order.

        Raises:
            RankError: `rank` is not in this world.
        """
        position = self.position(rank)
        base = self._layouts[""]
        return {axis: base.index(axis, position) for axis in base.modes}

    def rank(self, /, **coordinate: int) -> int:
        """The global rank at a coordinate. Axes of size 1 may be left out.

        Raises:
            UnknownAxisError: an axis that is not there.
            RankError: an axis is missing, or an index is outside its axis.
        """
        layout, _ = self._resolved(tuple(coordinate))
        position = 0
        for axis, given in coordinate.items():
            modes, index = layout.modes.get(axis, ()), whole(given)
            if index is None or not 0 <= index < prod(size for size, _ in modes):
                most = layout.axis_size(axis) - 1 if modes else 0
                raise RankError(f"{axis}={quoted(given)} is outside axis {axis!r} of {self}: expected 0..{most}")
            position += offset(modes, index)
        if missing := [axis for axis in layout.modes if axis not in coordinate and layout.axis_size(axis) > 1]:
            raise RankError(f"the coordinate {coordinate} of {self} lacks {', '.join(missing)}")
        return self._placement.ranks[position] if self._placement else self.first_rank + position

    def position(self, rank: int) -> int:
        """Where a global rank stands in this topology, 0 .. world_size - 1.

        Raises:
            RankError: `rank` is not in this world.
        """
        number = rank if type(rank) is int else whole(rank)
        if number is not None:
            if self._placement is None:
                if 0 <= number - self.first_rank < self.world_size:
                    return number - self.first_rank
            elif number in self._placement.position_of:
                return self._placement.position_of[number]
        raise RankError(f"rank {quoted(rank)} is not in the world of {self}: expected one of {self.world}")

    def at(self, rank: int) -> RankView:
        """The topology as one global rank sees it.

        Raises:
            RankError: `rank` is not in this world.
        """
        self.position(rank)
        return RankView(self, int(rank))

    # Groups

    def groups(self, *axes: str) -> Groups:
        """All groups along one axis or several together: the ranks that differ only along them.

        The order of the arguments does not matter: members stand in the topology's order. Axes together may also be
        written as their group is named, `"tp-pp"`, and all of them as `"world"`.

        Raises:
            UnknownAxisError: an axis that is not there, axes of different views, or one that is named twice.
        """
        layout, names = self._resolved(axes)
        return layout.groups(names, self.first_rank, self._placement)

    def group(self, *axes: str, rank: int) -> Ranks:
        """The group along `axes` that holds `rank`, without looking at any other group.

        Raises:
            UnknownAxisError: as for `groups`.
            RankError: `rank` is not in this world.
        """
        layout, names = self._resolved(axes)
        return layout.group(names, self.position(rank), self.first_rank, self._placement)

    def group_name(self, *axes: str) -> str:
        """The axes in the topology's order, joined by `-`: the name of the groups along them.

        Conventional axes that were not given fall away beside others.
        """
        if axes == ("world",):
            return "world"
        layout, names = self._resolved(axes)
        return "-".join(axis for axis in layout.modes if axis in names) or "-".join(
            axis for axis in DEFAULT_ORDER if axis in names
        )

    def size(self, *axes: str) -> int:
        """The number of ranks in each group along `axes`."""
        layout, names = self._resolved(axes)
        return prod(layout.axis_size(axis) for axis in names if axis in layout.modes)

    def factorization(self, *axes: str) -> Layout:
        """The base, or else the first view, that has all these axes: how it numbers the positions.

        Raises:
            UnknownAxisError: as for `groups`.
        """
        return self._resolved(axes)[0] if axes else self._layouts[""]

    # Value behaviour

    if TYPE_CHECKING:

        def __getattr__(self, axis: str) -> int: ...

    else:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                return super().__getattr__(name)
            size = self._sizes.get(name)
            return self.size(name) if size is None else size

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _frozen(type(self), name, value)

    def __delattr__(self, name: str) -> NoReturn:
        raise _frozen(type(self), name, None)

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
        return type(self)(**{**self._arguments(), **update}) if update else self

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> NoReturn:
        """Refused: it would make a topology that nobody checked."""
        raise TopologyError(
            "model_construct would skip every check: use ParallelTopology(...), which costs microseconds"
        )

    def copy(self, **changes: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride] (deprecated in pydantic)
        """Like `model_copy`; pydantic's would check nothing."""
        return self.model_copy(**changes)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object = None) -> Self:
        return self

    @property
    def model_fields_set(self) -> set[str]:
        """The names of all fields and axes: each was given, or found out."""
        return {*type(self).model_fields, *self._sizes}

    def __setstate__(self, state: object) -> NoReturn:
        raise _frozen(type(self), "__setstate__", state)

    def __reduce__(self) -> tuple[Any, ...]:
        views = {name: view.text if view.inferred is None else unsized(view) for name, view in self._views.items()}
        return _remade, (type(self), {**self._arguments(), "views": views})

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return topology_schema(takes_text=handler.mode == "validation")

    # Private

    def _arguments(self) -> dict[str, Any]:
        """What makes this topology, as keyword arguments."""
        return {
            "order": self.order,
            "first_rank": self.first_rank,
            "ranks": self.ranks,
            "views": self.views,
            **self._sizes,
        }

    def _resolved(self, axes: tuple[str, ...]) -> tuple[Layout, frozenset[str]]:
        """The factorization that has the axes, and their single names."""
        try:
            names = frozenset(axes)
        except TypeError:  # a list is no name
            names = frozenset[str]()
        if names and len(names) == len(axes):  # most questions
            for layout in self._layouts.values():
                if names <= layout.modes.keys():
                    return layout, names
        single = self._single(axes)
        names = frozenset(single)
        there = names - self._absent
        for layout in self._layouts.values():
            if there <= layout.modes.keys():
                return layout, names
        known = self.all_axes
        for axis in single:
            if axis in there and axis not in known:
                raise UnknownAxisError(f"{self} has no axis {axis!r}; it has {listed(known)}")
        apart = " and ".join(repr(axis) for axis in single if axis in there)
        raise UnknownAxisError(f"{apart} stand in no common factorization of {self}")

    def _single(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """The axes one by one, as `"tp-pp"` and `"world"` name several."""
        for axis in axes:
            if not isinstance(axis, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UnknownAxisError(f"{quoted(axis)} names no axis of {self}: expected names, as in 'tp', 'pp'")
        names = self.axes if axes == ("world",) else tuple(name for axis in axes for name in axis.split("-"))
        if not names:
            raise UnknownAxisError(f"no axis was named; {self} has {listed(self.all_axes)}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UnknownAxisError(f"axis {twice!r} of {self} was named {names.count(twice)} times; expected it once")
        return names


def _remade(kind: type[ParallelTopology], arguments: dict[str, Any]) -> ParallelTopology:
    return kind(**arguments)


def _frozen(kind: type[ParallelTopology], name: str, value: object) -> ValidationError:
    """What pydantic raises for a field of a frozen model, for every name."""
    return ValidationError.from_exception_data(
        kind.__name__, [{"type": "frozen_instance", "loc": (name,), "input": value}]
    )
