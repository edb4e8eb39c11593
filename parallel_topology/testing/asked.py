"""What a test asks for: a topology, as a number, a text or a value; and seconds."""

from __future__ import annotations

from typing import Any

from parallel_topology.testing.failures import RanksUsageError
from parallel_topology.topology.topology import ParallelTopology


def topology_of(given: Any) -> ParallelTopology:
    """A number is that many ranks along `tp`.

    Raises:
        TopologyError: the text cannot be read, or the number is none of ranks.
        RanksUsageError: it is something else.
    """
    if isinstance(given, ParallelTopology):
        return given
    if isinstance(given, str):
        return ParallelTopology.parse(given)
    if type(given) is int:
        return ParallelTopology(tp=given)
    raise RanksUsageError(f"{given!r} is no topology: expected a number of ranks, a text such as 'tp2-pp2', or one")
