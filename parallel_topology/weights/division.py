"""How one dim is divided over axes, one after the other: who has which part, and whose parts meet a range.

Nothing here knows a topology: an axis is how many parts there are, and an index says which.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Literal, TypeAlias

from parallel_topology.errors import TopologyError
from parallel_topology.topology.shares import Uneven

Kind: TypeAlias = Literal["even", "chunk", "tensor_split", "repeat", "given"]
Run: TypeAlias = tuple[int, int]
"""(first index along an axis, how many indices from there on have the same part)"""


@dataclass(frozen=True, slots=True)
class Step:
    """A cut over one axis.

    Attributes:
        count: parts along the axis.
        kind: how what is there is divided; under `repeat` it is fewer units than parts, and each is held several times.
        starts: under `given`, where each part begins, and at the end where the last one ends.
    """

    count: int
    kind: Kind
    starts: tuple[int, ...] = ()

    def part(self, length: int, index: int) -> tuple[int, int]:
        """(start, length) of one part of `length` units."""
        if self.kind == "even":
            each = length // self.count
            return index * each, each
        if self.kind == "repeat":
            return index * length // self.count, 1
        if self.kind == "given":
            return self.starts[index], self.starts[index + 1] - self.starts[index]
        if self.kind == "chunk":
            each = -(-length // self.count)
            start = min(index * each, length)
            return start, min(each, length - start)
        each, extra = divmod(length, self.count)
        return index * each + min(index, extra), each + (index < extra)

    def index(self, length: int, unit: int) -> int:
        """The first index whose part has `unit`, of `length` units."""
        if self.kind == "repeat":
            return unit * self.count // length
        if self.kind == "given":
            return bisect_right(self.starts, unit) - 1
        if self.kind in ("even", "chunk"):
            return unit // -(-length // self.count)
        each, extra = divmod(length, self.count)
        long = extra * (each + 1)
        return unit // (each + 1) if unit < long else extra + (unit - long) // each


@dataclass(frozen=True, slots=True)
class Division:
    """One dim, cut by several steps.

    Attributes:
        size: of the logical dim.
        padded: what is divided: `size` and the padding behind it.
        width: elements of a unit, which is never split.
        steps: one an axis.
    """

    size: int
    padded: int
    width: int
    steps: tuple[Step, ...]

    def part(self, indices: tuple[int, ...]) -> range:
        """What is held at these indices along the axes, padding included."""
        start, length = 0, self.padded // self.width
        for step, index in zip(self.steps, indices, strict=True):
            first, length = step.part(length, index)
            start += first
        return range(start * self.width, (start + length) * self.width)

    @property
    def parts(self) -> int:
        """How many there are."""
        return prod(step.count for step in self.steps)

    @property
    def held(self) -> int:
        """What all parts have together, padding included: more than there is, where units are held several times."""
        if any(step.kind == "repeat" for step in self.steps):  # then each has one unit
            return self.parts * self.width
        return self.padded

    def within(self, part: range) -> range:
        """A part without its padding."""
        return range(min(part.start, self.size), min(part.stop, self.size))

    def meeting(self, wanted: range) -> Iterator[tuple[range, tuple[Run, ...]]]:
        """The parts that meet a range: what they have of it, and who has it, a run for each step."""
        wanted = self.within(wanted)
        if wanted:
            units = range(wanted.start // self.width, -(-wanted.stop // self.width))
            for start, stop, runs in self._meeting(self.steps, 0, self.padded // self.width, units):
                found = range(max(start * self.width, wanted.start), min(stop * self.width, wanted.stop))
                yield found, runs

    def _meeting(
        self, steps: tuple[Step, ...], start: int, length: int, wanted: range
    ) -> Iterator[tuple[int, int, tuple[Run, ...]]]:
        if not steps:
            yield start, start + length, ()
            return
        step = steps[0]
        first, last = max(wanted.start, start) - start, min(wanted.stop, start + length) - start - 1
        run = step.count // length if step.kind == "repeat" else 1
        for index in range(step.index(length, first), step.index(length, last) + 1, run):
            begin, size = step.part(length, index)
            if size:
                for low, high, runs in self._meeting(steps[1:], start + begin, size, wanted):
                    yield low, high, ((index, run), *runs)


def divided(
    size: int, axes: Mapping[str, int], *, units: int | None, multiple: int | None, uneven: Uneven | tuple[int, ...]
) -> Division:
    """A dim of `size` over `axes` (name -> parts), in their order.

    Args:
        units: what is never split is one of so many; fewer than parts are each held equally often.
        multiple: the dim is padded to a multiple of it, so that each part has a multiple.
        uneven: what to do with what does not divide; or the size of each part, in units.

    Raises:
        TopologyError: it does not divide.
    """
    padded = size if multiple is None else -(-size // multiple) * multiple
    width = 1 if units is None else size // units
    steps: list[Step] = []
    left: int | None = padded // width  # units that each part has; None once they are not equally many
    for axis, count in axes.items():
        if isinstance(uneven, tuple):
            steps.append(_given(uneven, axis, count))
        elif units is not None and left and left < count and count % left == 0:
            steps.append(Step(count, "repeat"))
            left = 1
        elif left is not None and left % count == 0:
            steps.append(Step(count, "even"))
            left //= count
        elif uneven == "error":
            raise _left_over(left or 0, axis, count, units is not None)
        else:
            steps.append(Step(count, uneven))
            left = None
    return Division(size, padded, width, tuple(steps))


def _given(sizes: tuple[int, ...], axis: str, count: int) -> Step:
    if len(sizes) != count:
        raise TopologyError(f"{len(sizes)} sizes were given for {axis} {count}: {sizes}; expected one a part")
    return Step(count, "given", (0, *accumulate(sizes)))


def _left_over(length: int, axis: str, count: int, units: bool) -> TopologyError:
    what = "units that are never split" if units else "elements"
    below = length // count * count
    sizes = f"{below} or {below + count}" if below else f"{count}"
    most = 64 * count
    parts = sorted({one for one in range(1, min(length, most) + 1) if length % one == 0})
    fewer = max((one for one in parts if one < count), default=None)
    more = min((one for one in parts if one > count), default=length * (count // length + 1) if units else None)
    would = " or ".join(str(number) for number in (fewer, more) if number is not None)
    return TopologyError(
        f"{length} {what} over {axis} {count} leave {length % count} over; expected {sizes}, {axis} {would}, "
        f"or uneven='chunk' or 'tensor_split'{'' if units else ', or pad_to= where it is dim 0'}"
    )
