"""Weight: one logical tensor of a model, and how it is cut. Says nothing of a topology but the names of its axes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, cast, get_args

from parallel_topology.errors import TopologyError
from parallel_topology.topology.shares import Uneven
from parallel_topology.topology.whole import quoted, require
from parallel_topology.weights.division import Division, divided
from parallel_topology.weights.dtypes import checked_dtype
from parallel_topology.weights.notation import axes_of, format_weight, parse_weight

Stage = Literal["all", "first", "last", "tied"]
"""Where along the pipeline: on every stage, on the first or last, or one copy on each of these two."""


@dataclass(frozen=True, init=False, repr=False)
class Weight:
    """One logical tensor of a model, whole as if there were one rank, and the axes that cut it.

    >>> embed = Weight("embed", "1000/tp 64", stage="first", pad_to=128)
    >>> embed.shape, embed.cut, str(embed)
    ((1000, 64), {0: 'tp'}, '1000/tp 64')
    >>> embed == Weight("embed", (1000, 64), cut={0: "tp"}, stage="first", pad_to=128)
    True

    Args:
        name: of a weight in every layer, `{}` stands for the layer's number; without it `.3` is appended.
        shape: the logical shape; as a text with the axes that cut each dim, over the first one, then each part over
            the next, as in `"1000/tp/cp 64"`.
        cut: dim -> axes, where they do not stand in the shape.
        layer: whether there is one in every layer; or the layers that have one, as in `range(3, 61)`.
        stage: where along the pipeline, for what is in no layer.
        units: the cut dim is so many heads, say, that are never split. Fewer than parts are each held by equally many.
            Of several cut dims the first one; or dim -> units.
        pad_to: dim 0 is padded so that each part of it is a multiple of this.
        pad_whole_to: dim 0 is padded to a multiple of this, however many parts there are.
        uneven: what to do with a dim that does not divide, as for `shares.shard`; or, for one dim cut over one axis,
            the size of each part, in units where it has some.
        dtype: its name in torch; None for the model's.

    Raises:
        TopologyError: one of them cannot be.
    """

    name: str
    shape: tuple[int, ...]
    cut: Mapping[int, str]
    layer: bool | Sequence[int]
    stage: Stage
    units: Mapping[int, int]
    pad_to: int | None
    pad_whole_to: int | None
    uneven: Uneven | tuple[int, ...]
    dtype: str | None

    def __init__(
        self,
        name: str,
        shape: str | Iterable[int],
        *,
        cut: Mapping[int, str | Iterable[str]] | None = None,
        layer: bool | Iterable[int] = False,
        stage: Stage = "all",
        units: int | Mapping[int, int] | None = None,
        pad_to: int | None = None,
        pad_whole_to: int | None = None,
        uneven: Uneven | Iterable[int] = "error",
        dtype: object = None,
    ) -> None:
        put = self.__dict__
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"name={quoted(name)}: expected the name of a weight, as in 'embed'")
        put["name"] = name
        try:
            sizes, axes = _shaped(shape, cut)
            put |= {"shape": sizes, "cut": axes, "layer": _layers(layer), "stage": stage}
            if stage not in get_args(Stage):
                raise TopologyError(f"stage={quoted(stage)}: expected one of {', '.join(get_args(Stage))}")
            if put["layer"] is not False and stage != "all":
                raise TopologyError(f"both layer= and stage={stage!r} were given; expected one of them")
            put["units"] = _units(units, sizes, axes)
            put["pad_to"] = None if pad_to is None else require(1, "pad_to", pad_to)
            put["pad_whole_to"] = None if pad_whole_to is None else require(1, "pad_whole_to", pad_whole_to)
            put["uneven"] = _uneven(uneven, sizes, axes, put["units"])
            if pad_to is not None or pad_whole_to is not None:
                _require_padding_fits(self)
            put["dtype"] = None if dtype is None else checked_dtype(dtype)
        except TopologyError as error:
            raise TopologyError(f"weight {name!r}: {error}") from None

    @property
    def elements(self) -> int:
        """Of the logical tensor, in one layer."""
        return prod(self.shape)

    def axes(self, dim: int) -> tuple[str, ...]:
        """The axes that cut a dim, the first one first."""
        axes = self.cut.get(dim)
        return tuple(axes.split("/")) if axes else ()

    def full_name(self, layer: int | None) -> str:
        """The name in one layer; None is for what is in no layer."""
        return numbered(self.name, layer)

    def layers(self, among: range) -> Collection[int]:
        """Those of the layers that have one."""
        if isinstance(self.layer, bool):
            return among if self.layer else ()
        if isinstance(self.layer, range) and self.layer.step == 1:
            return range(max(among.start, self.layer.start), min(among.stop, self.layer.stop))
        return [layer for layer in self.layer if layer in among]

    def division(self, dim: int, sizes: Mapping[str, int]) -> Division:
        """How a dim is divided, where its axes have these sizes, those of 1 left out.

        Raises:
            TopologyError: it does not divide; the message says what would.
        """
        multiple = None
        if dim == 0:
            multiple = self.pad_whole_to if self.pad_to is None else self.pad_to * prod(sizes.values())
        uneven = self.uneven if dim in self.cut else "error"
        try:
            return divided(self.shape[dim], sizes, units=self.units.get(dim), multiple=multiple, uneven=uneven)
        except TopologyError as error:
            raise TopologyError(f"weight {self.name!r}, dim {dim} of {list(self.shape)}: {error}") from None

    def __hash__(self) -> int:
        return hash((self.name, str(self)))

    def __str__(self) -> str:
        return format_weight(self.shape, self.cut)

    def __repr__(self) -> str:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("name", "shape", "cut")}
        given["units"] = next(iter(self.units.values()), None) if self._is_plain_units() else self.units
        said = "".join(f", {name}={value!r}" for name, value in given.items() if value != _DEFAULTS[name])
        return f"Weight({self.name!r}, {str(self)!r}{said})"

    def _is_plain_units(self) -> bool:
        return tuple(self.units) in ((), (min(self.cut, default=0),))


def numbered(name: str, layer: int | None) -> str:
    """A name in one layer, whose number stands for `{}` or is appended; None is for what is in no layer."""
    if layer is None:
        return name
    return name.replace("{}", str(layer)) if "{}" in name else f"{name}.{layer}"


_DEFAULTS: dict[str, Any] = {
    "layer": False,
    "stage": "all",
    "units": None,
    "pad_to": None,
    "pad_whole_to": None,
    "uneven": "error",
    "dtype": None,
}


def _shaped(shape: object, cut: Mapping[int, str | Iterable[str]] | None) -> tuple[tuple[int, ...], dict[int, str]]:
    """The shape and the cuts, from the text or from both arguments."""
    written: dict[int, str] = {}
    if isinstance(shape, str):
        shape, written = parse_weight(shape)
    if not isinstance(shape, Iterable):
        raise TopologyError(f"shape={quoted(shape)}: expected sizes, as in '1000/tp 64' or (1000, 64)")
    sizes = tuple(require(1, "a dim", size) for size in cast("Iterable[object]", shape))
    if cut is not None and written:
        raise TopologyError(f"both {format_weight(sizes, written)!r} and cut={quoted(cut)} say axes; expected one")
    given = _by_dim("cut", cut or {}, sizes)
    axes = written or {dim: axes_of(names) for dim, names in sorted(given.items())}
    named = [axis for names in axes.values() for axis in names.split("/")]
    if twice := [axis for axis in named if named.count(axis) > 1]:
        raise TopologyError(f"axis {twice[0]!r} cuts {named.count(twice[0])} times; expected each axis once")
    return sizes, axes


def _by_dim(what: str, given: object, shape: tuple[int, ...]) -> dict[int, Any]:
    """What is given by dim; negative ones count from the last."""
    if not isinstance(given, Mapping):
        raise TopologyError(f"{what}={quoted(given)}: expected dim -> value, as in {{0: ...}}")
    found: dict[int, Any] = {}
    given = cast("Mapping[object, object]", given)
    for dim, value in given.items():
        number = require(-len(shape), f"a dim of {what}", dim)
        if number >= len(shape) or number % len(shape) in found:
            raise TopologyError(f"{what}={quoted(given)}: expected dims of {list(shape)}, each once")
        found[number % len(shape)] = value
    return found


def _layers(given: object) -> bool | Sequence[int]:
    if isinstance(given, bool) or (isinstance(given, range) and given.step == 1 and given.start >= 0):
        return given
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TopologyError(f"layer={quoted(given)}: expected True, or the layers, as in range(3, 61)")
    layers = tuple(sorted({require(0, "a layer", layer) for layer in cast("Iterable[object]", given)}))
    if layers and len(layers) == layers[-1] - layers[0] + 1:
        return range(layers[0], layers[-1] + 1)
    return layers


def _units(given: object, shape: tuple[int, ...], cut: Mapping[int, str]) -> dict[int, int]:
    """Dim -> units, of dims that have some."""
    if given is None:
        return {}
    by_dim = cast("object", given) if isinstance(given, Mapping) else {min(cut, default=0): given}
    units = {dim: require(1, "units", value) for dim, value in _by_dim("units", by_dim, shape).items()}
    for dim, count in units.items():
        if shape[dim] % count:
            raise TopologyError(f"units={count}: expected a number that divides dim {dim} of {list(shape)}")
    return units


def _require_padding_fits(weight: Weight) -> None:
    what = "pad_whole_to" if weight.pad_to is None else "pad_to"
    if weight.pad_to is not None and weight.pad_whole_to is not None:
        raise TopologyError("both pad_to= and pad_whole_to= were given; expected one of them")
    if not weight.shape or 0 in weight.units:
        raise TopologyError(f"{what}= pads dim 0: expected one, and that it is not made of units")
    if isinstance(weight.uneven, tuple):
        raise TopologyError(f"both {what}= and the sizes of parts were given; expected one of them")


def _uneven(
    given: object, shape: tuple[int, ...], cut: Mapping[int, str], units: Mapping[int, int]
) -> Uneven | tuple[int, ...]:
    """The rule, or the sizes of the parts of the one dim that is cut."""
    if isinstance(given, str) and given in get_args(Uneven):
        return cast("Uneven", given)
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TopologyError(f"uneven={quoted(given)}: expected one of {', '.join(get_args(Uneven))}, or sizes of parts")
    sizes = tuple(require(0, "the size of a part", size) for size in cast("Iterable[object]", given))
    if len(cut) != 1 or "/" in (axes := next(iter(cut.values()))):
        raise TopologyError(
            f"uneven={sizes}: expected one dim that is cut over one axis, not {format_weight(shape, cut)!r}"
        )
    dim = next(iter(cut))
    total = units.get(dim, shape[dim])
    if sum(sizes) != total:
        what = "units" if dim in units else "elements"
        raise TopologyError(f"uneven={sizes}: parts over {axes} make {sum(sizes)}; expected {total} {what}")
    return sizes
