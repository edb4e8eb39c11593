"""Whole numbers as people give them: ints and NumPy's, or digits in a text; never bools, floats, or what has no end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral
from operator import index
from typing import cast

from parallel_topology.errors import TopologyError

DIGITS = 100
"""The most digits that a number here may have: nobody has more ranks, and Python, which refuses to write numbers of
more than 4,300 digits (or 640, its lowest setting), still writes the product of several."""

_TOO_LARGE = 10**DIGITS


def whole(value: object) -> int | None:
    """The int that `value` is, which integers of NumPy are too; None for bools, floats, texts and numbers too long."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            return None
        value = index(value)
    return value if -_TOO_LARGE < value < _TOO_LARGE else None


def require(least: int, what: str, value: object) -> int:
    """`value` as an int of at least `least`.

    Raises:
        TopologyError: it is not one; the message begins with `what`.
    """
    number = whole(value)
    if number is None or number < least:
        raise TopologyError(f"{what}={quoted(value)}: expected a whole number of at least {least}")
    return number


def require_each(least: int, what: str, values: object) -> tuple[int, ...]:
    """`values` as ints of at least `least`.

    Raises:
        TopologyError: they are not that, or no values; the message begins with `what`.
    """
    if not isinstance(values, Iterable):
        raise TopologyError(f"{what}={quoted(values)}: expected whole numbers, as in [8, 8, 7]")
    return tuple(require(least, f"one of {what}", value) for value in cast("Iterable[object]", values))


def from_digits(text: str) -> int:
    """The number that a text of digits stands for.

    Raises:
        TopologyError: it has more than `DIGITS` digits.
    """
    if len(text) > DIGITS:
        raise TopologyError(f"the number {quoted(text)}: expected at most {DIGITS} digits")
    return int(text)


def number_in(text: str) -> int | None:
    """The whole number that a text is, -1 too; None for other text, and for one of too many digits."""
    return int(text) if re.fullmatch(rf"-?[0-9]{{1,{DIGITS}}}", text) else None


def quoted(value: object) -> str:
    """Its `repr`, cut if it is long; in place of an int that Python refuses to write, its type."""
    try:
        text = repr(value)
    except ValueError:  # "Exceeds the limit (4300 digits) for integer string conversion"
        return f"<{type(value).__name__} with more digits than can be written>"
    return text if len(text) <= 200 else f"{text[:100]}...{text[-20:]} ({len(text)} characters)"
