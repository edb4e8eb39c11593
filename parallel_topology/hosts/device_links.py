"""Device links: how the devices of a host are joined, as `nvidia-smi topo -m` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.hosts import Hosts

_KINDS = ("NV", "PIX", "PXB", "PHB", "NODE", "SYS")
"""From the nearest to the farthest, as nvidia-smi's legend explains them: NV18 is 18 bonded NVLinks, PIX at most one
PCIe bridge, PXB several, PHB the host bridge of a processor, NODE those of a NUMA node, SYS across NUMA nodes."""
_ESCAPES = re.compile(r"\x1b?\[[0-9;]*m")  # also where a page has lost the escape itself
_DEVICE = re.compile(r"GPU([0-9]{1,4})")
_KIND = re.compile(r"NV[0-9]{1,4}|PIX|PXB|PHB|NODE|SYS")
_EXPECTED = "expected the output of `nvidia-smi topo -m`"


@dataclass(frozen=True)
class DeviceLinks:
    """The kind of link between any two devices of a host, by local rank.

    >>> links = DeviceLinks.parse('''
    ...         GPU0    GPU1    GPU2    CPU Affinity
    ... GPU0     X      NV18    SYS     0-51
    ... GPU1    NV18     X      SYS     0-51
    ... GPU2    SYS     SYS      X      52-103
    ... ''')
    >>> links.between(0, 2), links.among([0, 1]), links.among([0, 1, 2])
    ('SYS', ('NV18',), ('NV18', 'SYS'))

    Attributes:
        devices: how many there are.
        kinds: (a device, a later one) -> the kind of link.
    """

    devices: int
    kinds: Mapping[tuple[int, int], str]

    @classmethod
    def parse(cls, text: str) -> DeviceLinks:
        """Read what `nvidia-smi topo -m` printed; NICs, affinities and the legend are passed over.

        Raises:
            TopologyError: it is something else, or a matrix with a hole.
        """
        lines = [_ESCAPES.sub("", line).split() for line in text.splitlines()]
        heads: list[str] = next((line for line in lines if line[:1] == ["GPU0"]), list[str]())
        devices = next((n for n, head in enumerate(heads) if head != f"GPU{n}"), len(heads))
        if not devices:
            raise TopologyError(f"no line of it begins with GPU0; {_EXPECTED}")
        rows: dict[int, list[str]] = {}
        for line in lines[lines.index(heads) + 1 :]:
            if line and (name := _DEVICE.fullmatch(line[0])):
                rows[int(name[1])] = line[1 : devices + 1]
        kinds: dict[tuple[int, int], str] = {}
        for one, other in combinations(range(devices), 2):
            there = rows.get(one, [])
            found = there[other] if other < len(there) else ""
            if not _KIND.fullmatch(found):
                raise TopologyError(f"it says {found!r} of GPU{one} and GPU{other}, a kind not known; {_EXPECTED}")
            kinds[one, other] = found
        return cls(devices, kinds)

    def between(self, one: int, other: int) -> str:
        """The kind of link between two different local ranks.

        Raises:
            TopologyError: there are not so many devices.
        """
        pair = (min(one, other), max(one, other))
        if pair not in self.kinds:
            raise TopologyError(f"the links are of {self.devices} devices; there is none between {one} and {other}")
        return self.kinds[pair]

    def among(self, local_ranks: Sequence[int]) -> tuple[str, ...]:
        """The kinds of links between these, each once, the nearest first."""
        return _sorted(self.between(one, other) for one, other in combinations(local_ranks, 2))

    def inside(self, hosts: Hosts, groups: Iterable[Sequence[int]]) -> tuple[str, ...]:
        """The kinds of links that members of these groups have on their hosts, the nearest first.

        All hosts are taken to be joined alike, and a rank to have the device of its local rank's number. Looks at every
        group.

        Raises:
            TopologyError: a host has more ranks than there are devices.
        """
        together: set[tuple[int, ...]] = set()
        for group in groups:
            on: dict[int, list[int]] = {}
            for rank in group:
                on.setdefault(hosts.host_of(rank), []).append(hosts.local_rank_of(rank))
            together |= {tuple(members) for members in on.values() if len(members) > 1}
        return _sorted(kind for members in together for kind in self.among(members))


def _sorted(kinds: Iterable[str]) -> tuple[str, ...]:
    """Each once; of NVLinks those of more lanes first."""

    def distance(kind: str) -> tuple[int, int]:
        name = kind.rstrip("0123456789")
        return _KINDS.index(name), -int(kind.removeprefix(name) or 0)

    return tuple(sorted(set(kinds), key=distance))
