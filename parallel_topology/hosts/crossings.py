"""How many of the messages that groups exchange go from host to host: for a pattern, not for an axis's sake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.spans import Spans
from parallel_topology.topology.layout import Groups

Pattern = Literal["ring", "pairs", "chain", "ends"]
"""Who sends to whom in a group.

ring: each member to the next, around the group; hosts are entered once each, as NCCL arranges its rings.
pairs: each member to each other one.
chain: each member to the next one in the group's order, the last one to nobody.
ends: the last member to the first one.
"""


@dataclass(frozen=True)
class Crossings:
    """How many of a pattern's messages cross `hosts`, counted once for groups that lie alike.

    >>> from parallel_topology import ParallelTopology
    >>> crossings, groups = Crossings(Hosts.parse("2x4")), ParallelTopology(pp=8).groups("pp")
    >>> [crossings.of(groups, pattern) for pattern in ("ring", "pairs", "chain", "ends")]
    [2, 32, 1, 1]
    """

    hosts: Hosts
    _known: dict[object, int] = field(default_factory=dict[object, int], repr=False, compare=False)

    def of(self, groups: Groups, pattern: Pattern) -> int:
        """How many cross, of all groups together.

        On hosts of one size, when ranks count up, the cost grows with the size of a host and, but for `ring`, of one
        group, not with the world. Elsewhere every group is looked at.
        """
        plain = groups.plain()
        if plain is None:
            return self._counted(groups, pattern)
        start, outer, modes = plain
        key = self.place(start), outer, modes, pattern
        if key not in self._known:
            self._known[key] = self._counted(groups, pattern)
        return self._known[key]

    def place(self, rank: int) -> int:
        """The first rank from which groups lie as they do from this one: whole hosts further on, all is the same."""
        starts = self.hosts.starts
        if isinstance(starts, range) and self.hosts.ranks is None:
            return starts[0] + (rank - starts[0]) % starts.step
        return rank

    def _counted(self, groups: Groups, pattern: Pattern) -> int:
        spans = Spans("groups", groups, self.hosts)
        if pattern == "ring":
            return sum(count * number for count, number in spans.histogram.items() if count > 1)
        return sum(_across(hosts, pattern) * number for hosts, number in spans.alike())


def messages(size: int, pattern: Pattern) -> int:
    """How many messages a group of `size` has in all."""
    if size < 2:
        return 0
    return {"ring": size, "pairs": size * (size - 1), "chain": size - 1, "ends": 1}[pattern]


def _across(hosts: Sequence[int], pattern: Pattern) -> int:
    """How many cross in one group whose members are on these hosts."""
    if pattern == "pairs":
        return len(hosts) ** 2 - sum(count * count for count in Counter(hosts).values())
    if pattern == "chain":
        return sum(one != other for one, other in pairwise(hosts))
    return int(hosts[0] != hosts[-1])
