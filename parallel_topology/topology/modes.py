"""Mixed-radix arithmetic on plain ints: an enumeration as sizes and strides, fastest first.

Element `i` of an axis with the single mode (4, 2) adds `2 * i`. Nothing here enumerates anything. The form is that of
CuTe layouts (https://docs.nvidia.com/cutlass/media/docs/cpp/cute/01_layout.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Mode: TypeAlias = tuple[int, int]
"""(size, stride)"""
Modes: TypeAlias = tuple[Mode, ...]
"""Fastest-varying first, whatever the strides are."""


def coalesce(modes: Iterable[Mode]) -> Modes:
    """The same enumeration in the fewest modes: sizes of 1 dropped, contiguous neighbours merged.

    >>> coalesce([(2, 1), (1, 7), (3, 2)])
    ((6, 1),)
    """
    merged: list[Mode] = []
    for size, stride in modes:
        if size == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return tuple(merged)


def offset(modes: Modes, index: int) -> int:
    """What element `index` of the enumeration adds to the start."""
    total = 0
    for size, stride in modes:
        index, digit = divmod(index, size)
        total += digit * stride
    return total


def locate(modes: Modes, distance: int) -> int | None:
    """The inverse of `offset`: which element adds `distance`, or None if none does."""
    if len(modes) == 1:  # most groups
        size, stride = modes[0]
        index, rest = divmod(distance, stride)
        return index if rest == 0 and 0 <= index < size else None
    weights: list[tuple[int, int, int]] = []
    weight = 1
    for size, stride in modes:
        weights.append((stride, size, weight))
        weight *= size
    index = 0
    for stride, size, weight in sorted(weights, reverse=True):
        digit, distance = divmod(distance, stride)
        if not 0 <= digit < size:
            return None
        index += digit * weight
    return index if distance == 0 else None


def compose(outer: Modes, start: int, modes: Modes) -> tuple[int, Modes] | None:
    """What positions `start + offset(modes, i)` are under `outer`; None where a step carries from mode to mode of it.

    >>> compose(((4, 10), (4, 100)), 1, ((2, 2), (2, 4)))
    (10, ((2, 20), (2, 100)))
    """
    first, weight = 0, 1
    room: list[int] = []  # how far each digit of `outer` can count from the start
    for size, stride in outer:
        digit = start // weight % size
        first += digit * stride
        room.append(size - 1 - digit)
        weight *= size
    cut: list[Mode] = []
    for steps, step in modes:
        left, weight = steps, 1
        for number, (size, stride) in enumerate(outer):
            if left == 1:
                break
            if step < weight * size:  # it counts in this digit, until that is full
                unit, rest = divmod(step, weight)
                part = min(left, size // unit) if unit else 0
                if rest or not part or left % part or (part < left and size % unit):
                    return None
                room[number] -= (part - 1) * unit
                if room[number] < 0:
                    return None
                cut.append((part, unit * stride))
                left, step = left // part, step * part
            weight *= size
        if left > 1:
            return None
    return first, coalesce(cut)


def nested(modes: Modes) -> bool:
    """Whether each step is longer than all shorter ones together reach: then nothing is hit twice, and all is found."""
    reach = 0
    for size, stride in sorted(modes, key=lambda mode: mode[1]):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


def strided(numbers: Sequence[int]) -> Modes | None:
    """The modes that list these numbers from the first one on, if there are such, and nested ones.

    >>> strided([1, 3, 9, 11])
    ((2, 2), (2, 8))
    """
    modes: list[Mode] = []
    first, step = numbers[0], 1
    while step < len(numbers):
        stride, size = numbers[step] - first, 1
        while step * size < len(numbers) and numbers[step * size] == first + size * stride:
            size += 1
        if size == 1 or stride < 1 or len(numbers) % (step * size):
            return None
        modes.append((size, stride))
        step *= size
    found = coalesce(modes)
    if not nested(found) or any(number - first != offset(found, place) for place, number in enumerate(numbers)):
        return None
    return found
