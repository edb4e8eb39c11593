"""Which groups cross hosts (`Spans`), and which hosts strided ranks lie on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from types import MappingProxyType
from typing import TYPE_CHECKING

from parallel_topology.topology.layout import Groups, Modes, Ranks, coalesce

if TYPE_CHECKING:
    from parallel_topology.hosts.hosts import Hosts


@dataclass(frozen=True)
class Spans:
    """How the groups along some axes lie on hosts. Nothing is counted before it is asked for.

    >>> from parallel_topology import Hosts, ParallelTopology
    >>> spans = Hosts.parse("7,5").spans(ParallelTopology(tp=2, pp=6), "tp")
    >>> print(spans)
    tp: 6 groups of 2, 1 across hosts (up to 2 hosts); tp group 3 = [6, 7] spans hosts 0 and 1

    On hosts of one size, when ranks count up, counting is in closed form: its cost does not grow with the world.
    Elsewhere every group is looked at.

    Attributes:
        name: the axes, joined by `-` in the topology's order.
        groups: the groups along them.
        hosts: the placement.
    """

    name: str
    groups: Groups
    hosts: Hosts

    @cached_property
    def histogram(self) -> Mapping[int, int]:
        """Number of hosts -> how many groups span that many, ascending."""
        counts: Counter[int] = Counter()
        begun = self._begun()
        if begun is None:
            counts.update(_size(self.hosts.hosts_of(group)) for group in self.groups)
        else:
            modes, size, begins = begun
            for begin, groups in begins.items():
                counts[_size(hosts_from(begin, modes, size))] += groups
        return MappingProxyType(dict(sorted(counts.items())))

    def alike(self) -> Iterator[tuple[list[int], int]]:
        """The host of each member of a group, in its order, and how many groups lie like it but for whole hosts."""
        begun = self._begun()
        if begun is None:
            for group in self.groups:
                yield list(map(self.hosts.host_of, group)), 1
        else:
            modes, size, begins = begun
            for begin, groups in begins.items():
                yield [place // size for place in Ranks(begin, modes)], groups

    def _begun(self) -> tuple[Modes, int, dict[int, int]] | None:
        """Modes of each group, ranks of each host, and where in a host groups begin -> how many; None without a rule.

        How a group lies on hosts depends only on where in a host it begins.
        """
        plain = self.groups.plain() if is_uniform(self.hosts) else None
        if plain is None:
            return None
        start, outer, modes = plain
        first, size = self.hosts.starts[0], self.hosts.starts[1] - self.hosts.starts[0]
        return modes, size, _residues(start - first, outer, size)

    @property
    def widest(self) -> int:
        """The most hosts that a group spans."""
        return max(self.histogram)

    @property
    def crossing(self) -> int:
        """How many groups span more than one host."""
        return self.groups.size - self.histogram.get(1, 0)

    @property
    def inside(self) -> bool:
        """Whether each group is inside one host."""
        return self.widest == 1

    def crossing_numbers(self) -> Iterator[int]:
        """The numbers of the groups that span more than one host, one by one."""
        return (number for number, group in enumerate(self.groups) if _size(self.hosts.hosts_of(group)) > 1)

    def __str__(self) -> str:
        total = self.groups.size
        what = f"{self.name}: {total:,} group{'s' * (total > 1)} of {self.groups[0].size:,}"
        if self.inside:
            return f"{what}, inside hosts"
        number = next(self.crossing_numbers())
        group = self.groups[number]
        example = f"{self.name} group {number} = {group!r} spans hosts {_enumerated(self.hosts.hosts_of(group))}"
        return f"{what}, {self.crossing:,} across hosts (up to {self.widest:,} hosts); {example}"


def is_uniform(hosts: Hosts) -> bool:
    """Whether arithmetic is enough to say which host a rank is on."""
    return isinstance(hosts.starts, range) and hosts.ranks is None


def is_run(modes: Modes) -> bool:
    """Whether ranks of these modes count up without a gap."""
    return not modes or (len(modes) == 1 and modes[0][1] == 1)


def _size(hosts: Sequence[int]) -> int:
    if isinstance(hosts, range):
        return hosts.stop - hosts.start  # a run of hosts
    return hosts.size if isinstance(hosts, Ranks) else len(hosts)


def hosts_from(start: int, modes: Modes, size: int) -> Sequence[int]:
    """The hosts of strided ranks, without looking at each; `start` counts from the first rank of the first host.

    Steps of at most a host's size skip no host: together they reach one run of hosts, which longer steps repeat.
    """
    inner = tuple(mode for mode in modes if mode[1] <= size)
    outer = tuple(sorted((mode for mode in modes if mode[1] > size), key=lambda mode: mode[1]))
    reach = extent(inner)
    first, run = start // size, (start + reach) // size - start // size + 1
    if all(stride % size == 0 and stride // size >= run for _, stride in outer):  # the runs do not overlap
        return Ranks(first, coalesce(((run, 1), *((steps, stride // size) for steps, stride in outer))))
    begins = Ranks(start, outer)
    return sorted({host for at in begins for host in range(at // size, (at + reach) // size + 1)})


def extent(modes: Modes) -> int:
    """How far the last rank is from the first."""
    return sum((size - 1) * stride for size, stride in modes)


def _residues(start: int, modes: Modes, host: int) -> dict[int, int]:
    """Where in a host of that size a group begins -> how many groups do; modes are those of the groups' starts."""
    found = {start % host: 1}
    for size, stride in modes:
        period = host // gcd(stride, host)
        spread: Counter[int] = Counter()
        for step in range(min(size, period)):
            times = (size - step - 1) // period + 1
            for begin, count in found.items():
                spread[(begin + step * stride) % host] += count * times
        found = dict(spread)
    return found


def _enumerated(hosts: Sequence[int]) -> str:
    """`0, 1 and 2`"""
    size = _size(hosts)
    shown = ", ".join(map(str, hosts[: min(size - 1, 8)]))
    return f"{shown}{' and' if size <= 9 else ', ...'} {hosts[-1]}"
