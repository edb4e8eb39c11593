"""The shape notation: `1000/tp 64` is a tensor of [1000, 64] whose dim 0 is cut over `tp`.

- weight = [ dim { " " dim } ]
- dim = size { "/" axis }: cut over the first axis, then each part over the next
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.notation import is_axis_name
from parallel_topology.topology.whole import from_digits, quoted

_SIZE = re.compile("[0-9]+")


def parse_weight(text: str) -> tuple[tuple[int, ...], dict[int, str]]:
    """The shape, and for each dim that is cut the axes, joined by `/`.

    >>> parse_weight("1000/tp/cp 64")
    ((1000, 64), {0: 'tp/cp'})

    Raises:
        TopologyError: a dim cannot be read; the message shows which.
    """
    shape: list[int] = []
    cut: dict[int, str] = {}
    for dim, part in enumerate(text.split()):
        size, slash, axes = part.partition("/")
        if not _SIZE.fullmatch(size) or (slash and not all(map(is_axis_name, axes.split("/")))):
            raise TopologyError(
                f"cannot read {part!r} in {quoted(text)}: expected a size, and the axes that cut it, as in '1000/tp 64'"
            )
        shape.append(from_digits(size))
        if axes:
            cut[dim] = axes
    return tuple(shape), cut


def format_weight(shape: Sequence[int], cut: Mapping[int, str]) -> str:
    return " ".join(f"{size}/{cut[dim]}" if dim in cut else str(size) for dim, size in enumerate(shape))


def axes_of(given: object) -> str:
    """Axes as a cut writes them: from `"tp"`, `"tp/cp"` or `("tp", "cp")`.

    Raises:
        TopologyError: they are no axes.
    """
    names = given.split("/") if isinstance(given, str) else given
    texts = [str(name) for name in cast("Iterable[object]", names)] if isinstance(names, Iterable) else []
    if not texts or not all(map(is_axis_name, texts)):
        raise TopologyError(f"a cut over {quoted(given)}: expected an axis, or several, as in 'tp' or ('tp', 'cp')")
    return "/".join(texts)


def axes_over(what: str, given: object) -> tuple[str, ...]:
    """Axes over which tensors are cut once more: one, several, or none.

    Raises:
        TopologyError: they are no axes, or one is named twice.
    """
    names = (given,) if isinstance(given, str) else given
    over = tuple(cast("Iterable[object]", names)) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) and is_axis_name(name) for name in over):
        raise TopologyError(f"{what}: over {quoted(given)}: expected an axis, or several, as in 'dp' or ('dp', 'cp')")
    if len({*over}) < len(over):
        raise TopologyError(f"{what}: over {quoted(given)}: expected each axis once")
    return cast("tuple[str, ...]", over)
