"""Where elements of logical weights lie in one rank's tensor: boxes of both, and how boxes move when tensors are fused.

Pure arithmetic: which weights there are, and who holds them, is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted

Box = tuple[range, ...]
"""One range a dim."""

ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, slots=True)
class Place:
    """A box of a logical weight, and the box of a rank's tensor that keeps its elements.

    Attributes:
        weight: name of the logical tensor, as in `"q.0"`.
        ranges: of the logical tensor, one a dim.
        tensor: name of the rank's own tensor, as in `"qkv.0"`.
        local: of the rank's tensor, one a dim; the step is more than 1 where others' elements stand between.
        dims: for each dim of the rank's tensor, the logical dim that runs along it. Of others there is one index.
    """

    weight: str
    ranges: Box
    tensor: str
    local: Box
    dims: tuple[int, ...]

    def within(self, ranges: Sequence[range]) -> Place | None:
        """What of it is in these ranges of the logical tensor; None if nothing is."""
        met = tuple(both(own, asked) for own, asked in zip(self.ranges, ranges, strict=True))
        if met == self.ranges:
            return self
        if not all(met):
            return None
        local = tuple(
            along[met[dim].start - self.ranges[dim].start : met[dim].stop - self.ranges[dim].start]
            for along, dim in zip(self.local, self.dims, strict=True)
        )
        return Place(self.weight, met, self.tensor, local, self.dims)

    def at(self, local: Sequence[range]) -> Place | None:
        """What of it is in these ranges of the rank's tensor; None if nothing is."""
        found: Place | None = self
        for dim, asked in enumerate(local):
            found = found and found.cut(dim, asked)
        return found

    def view(self, tensor: ArrayT) -> ArrayT:
        """The elements as they stand in the logical tensor: a view of the rank's tensor, PyTorch's or NumPy's.

        >>> import numpy
        >>> kept = numpy.arange(6).reshape(2, 3)
        >>> Place("w", (range(2), range(2)), "w", (range(2), range(0, 3, 2)), (1, 0)).view(kept)
        array([[0, 3],
               [2, 5]])
        """
        array: Any = tensor
        part = array[(*(slice(one.start, one.stop, one.step) for one in self.local), ...)]
        order = list(self.dims)
        for to in range(len(order)):
            at = order.index(min(order[to:]))
            if at != to:
                part = part.swapaxes(to, at)
                order[to], order[at] = order[at], order[to]
        there = set(self.dims)
        return part[(*(slice(None) if dim in there else None for dim in range(len(self.ranges))), ...)]

    def named(self, weight: str, tensor: str) -> Place:
        return Place(weight, self.ranges, tensor, self.local, self.dims)

    def cut(self, dim: int, asked: range) -> Place | None:
        """What is within a range, of step 1, along one dim of the rank's tensor."""
        own = self.local[dim]
        if asked.start <= own[0] and own[-1] < asked.stop:
            return self
        first = max(0, -(-(asked.start - own.start) // own.step))
        last = min(len(own), -(-(asked.stop - own.start) // own.step))
        if first >= last:
            return None
        logical = self.ranges[self.dims[dim]]
        ranges = _with(self.ranges, self.dims[dim], range(logical.start + first, logical.start + last))
        return Place(self.weight, ranges, self.tensor, _with(self.local, dim, own[first:last]), self.dims)

    def moved(self, dim: int, offset: int, scale: int = 1) -> Place:
        """The same elements, where index `i` along a dim of the rank's tensor has become `i * scale + offset`."""
        own = self.local[dim]
        step = own.step * scale
        start = own.start * scale + offset
        moved = range(start, start + (len(own) - 1) * step + 1, step)
        return Place(self.weight, self.ranges, self.tensor, _with(self.local, dim, moved), self.dims)


@dataclass(frozen=True, slots=True)
class Arranged:
    """One rank's tensor: its shape, and the places of all elements that are no padding.

    Attributes:
        starts: where each dim begins in the logical one; None where several weights run along it.
    """

    shape: tuple[int, ...]
    places: tuple[Place, ...]
    starts: tuple[int | None, ...]

    def swapped(self, one: int, other: int) -> Arranged:
        """With two dims exchanged."""
        order = list(range(len(self.shape)))
        order[one], order[other] = other, one
        return self._with_dims(order, self.places)

    def without_first(self) -> Iterator[Arranged]:
        """A tensor for each index of dim 0, which they do not have."""
        rest = range(1, len(self.shape))
        for index in range(self.shape[0]):
            there = (place.cut(0, range(index, index + 1)) for place in self.places)
            yield self._with_dims(rest, [place for place in there if place])

    def window(self, dim: int, kept: range) -> Arranged:
        """What is left of it in a range of one dim."""
        there = (place.cut(dim, kept) for place in self.places)
        places = tuple(place.moved(dim, -kept.start) for place in there if place)
        start = self.starts[dim]
        starts = _with(self.starts, dim, None if start is None else start + kept.start)
        return Arranged(_with(self.shape, dim, len(kept)), places, starts)

    def _with_dims(self, order: Sequence[int], places: Sequence[Place]) -> Arranged:
        moved = tuple(
            Place(
                place.weight,
                place.ranges,
                place.tensor,
                tuple(place.local[dim] for dim in order),
                tuple(place.dims[dim] for dim in order),
            )
            for place in places
        )
        return Arranged(tuple(self.shape[dim] for dim in order), moved, tuple(self.starts[dim] for dim in order))


def asked(ranges: Sequence[range] | None, shape: tuple[int, ...], of: str) -> Box:
    """The ranges that are asked for, all if they are left out.

    Raises:
        TopologyError: not one range a dim.
    """
    if ranges is None:
        return tuple(map(range, shape))
    if not isinstance(ranges, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"ranges={quoted(ranges)} for {of} of {list(shape)}: expected a range for each dim")
    given = tuple(ranges)
    if len(given) != len(shape):
        raise TopologyError(f"{len(given)} ranges for {of} of {list(shape)}; expected one a dim")
    for one in given:
        if not isinstance(one, range) or one.step != 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"{quoted(one)} of {of}: expected a range of step 1")
    return given


def alone(weight: str, parts: Box, ranges: Box) -> Arranged:
    """A weight that has a tensor of its own: these parts, of which `ranges` are no padding."""
    place = Place(weight, ranges, weight, tuple(range(len(one)) for one in ranges), tuple(range(len(parts))))
    there = (place,) if all(ranges) else ()
    return Arranged(tuple(map(len, parts)), there, tuple(part.start for part in parts))


def joined(parts: Sequence[Arranged], dim: int) -> Arranged:
    """One after the other along a dim."""
    places: list[Place] = []
    total = 0
    for part in parts:
        places += [place.moved(dim, total) for place in part.places]
        total += part.shape[dim]
    return Arranged(_with(parts[0].shape, dim, total), tuple(places), _with(parts[0].starts, dim, None))


def interleaved(parts: Sequence[Arranged], dim: int, widths: Sequence[int]) -> Arranged:
    """A block of each in turn along a dim, of so many indices each."""
    total, before = sum(widths), 0
    places: list[Place] = []
    for part, width in zip(parts, widths, strict=True):
        if width == 1:  # no more than a step
            places += [place.moved(dim, before, total) for place in part.places]
        else:
            for block in range(part.shape[dim] // width):
                there = (place.cut(dim, range(block * width, (block + 1) * width)) for place in part.places)
                places += [place.moved(dim, block * (total - width) + before) for place in there if place]
        before += width
    shape = _with(parts[0].shape, dim, parts[0].shape[dim] // widths[0] * total)
    return Arranged(shape, tuple(places), _with(parts[0].starts, dim, None))


def both(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


ItemT = TypeVar("ItemT")


def _with(items: tuple[ItemT, ...], at: int, item: ItemT) -> tuple[ItemT, ...]:
    return (*items[:at], item, *items[at + 1 :])
