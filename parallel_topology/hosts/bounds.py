"""What makes hosts: checks of where each begins and of which ranks are there, and the form that equal ones share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias, TypeVar

from parallel_topology.errors import TopologyError
from parallel_topology.topology import whole

Bounds: TypeAlias = range | tuple[int, ...]
"""Where each host begins, and at the end where the last one ends; a range if they are of one size."""

_Item = TypeVar("_Item")
_EXPECTED = "expected where each host begins, ascending, and at the end where the last one ends, as in (0, 4, 8)"


def bounds_of(starts: Iterable[int]) -> Bounds:
    """Where each host begins and the last ends, a range if they are of one size."""
    if isinstance(starts, range):
        if starts[1:] and starts.step > 0 and starts.start >= 0 and whole.whole(starts[-1]) is not None:
            return range(starts.start, starts[-1] + 1, starts.step)
        raise TopologyError(f"hosts that begin at {whole.quoted(starts)}: {_EXPECTED}")
    given = tuple(each("where hosts begin", starts))
    bounds = tuple(number for number in map(whole.whole, given) if number is not None)
    sizes = {end - start for start, end in pairwise(bounds)}
    if len(bounds) < max(2, len(given)) or bounds[0] < 0 or min(sizes) < 1:
        raise TopologyError(f"hosts that begin at {whole.quoted(given)}: {_EXPECTED}")
    return range(bounds[0], bounds[-1] + 1, *sizes) if len(sizes) == 1 else bounds


def placed_in(bounds: Bounds, ranks: Iterable[int]) -> tuple[int, ...]:
    """The ranks that are cut into hosts at `bounds`."""
    placed = tuple(whole.require(0, "a rank", rank) for rank in each("the ranks", ranks))
    if (bounds[0], bounds[-1]) != (0, len(placed)):
        raise TopologyError(
            f"hosts that begin at {whole.quoted(bounds)} for {len(placed)} ranks: expected places from 0 on, and "
            f"{len(placed)} at the end"
        )
    if len(set(placed)) != len(placed):
        raise TopologyError(f"ranks {whole.quoted(placed)}: expected each rank once")
    return placed


def moved(bounds: Bounds, by: int) -> Bounds:
    if isinstance(bounds, range):
        return range(bounds.start + by, bounds.stop + by, bounds.step)
    return tuple(bound + by for bound in bounds)


def each(what: str, values: Iterable[_Item]) -> Iterator[_Item]:
    """The values, of a list or of an iterator; for what is neither, an error in our words."""
    try:
        return iter(values)
    except TypeError:
        raise TopologyError(f"{what}: {whole.quoted(values)}; expected a list of them") from None
