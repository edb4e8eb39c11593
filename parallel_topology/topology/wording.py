"""How messages write sizes, names and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod


def product(sizes: Mapping[str, int]) -> str:
    """`tp 2 x pp 3 = 6`"""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items()) + f" = {prod(sizes.values())}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def shown_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1, 2`; cut after 16."""
    shown = ", ".join(map(str, ranks[:16])) + (f", ... ({len(ranks):,} ranks)" if len(ranks) > 16 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def shown_bytes(count: int) -> str:
    """`512 B`, `1.5 KiB`, `80.0 GiB`: in the largest unit of 1,024 that it is one of."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"
