"""A layout as lines of text."""

from __future__ import annotations

from parallel_topology.topology import ParallelTopology


def grid(topology: ParallelTopology) -> list[str]:
    """The ranks as a table: a row per index of the slowest axis, a column per coordinate of the others.

    >>> print("\\n".join(grid(ParallelTopology(tp=2, pp=2))))
           tp0  tp1
    pp0      0    1
    pp1      2    3
    """
    *inner, outer = topology.axes
    columns = list(topology.groups(*inner)[0]) if inner else [topology.world[0]]
    heads = [_label(topology.coordinate(rank), inner) for rank in columns]
    width = max(map(len, [*heads, str(max(topology.world))]))
    margin = len(f"{outer}{topology.size(outer) - 1}") + 2
    lines = [" " * margin + "".join(head.rjust(width + 2) for head in heads)] if inner else []
    for index, row in enumerate(topology.groups(*inner) if inner else ([rank] for rank in topology.world)):
        lines.append(f"{outer}{index}".ljust(margin) + "".join(str(rank).rjust(width + 2) for rank in row))
    return [line.rstrip() for line in lines]


def _label(coordinate: dict[str, int], axes: list[str]) -> str:
    return " ".join(f"{axis}{coordinate[axis]}" for axis in axes)
