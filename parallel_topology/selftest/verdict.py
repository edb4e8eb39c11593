"""What the reports of all ranks say together: times per group, slow ranks, broken ranks. No torch, no communication."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from statistics import median_low

from parallel_topology.topology.topology import ParallelTopology

SLOW = 3.0
"""Slow is what takes so many times as long as the median of its kind."""


@dataclass(frozen=True)
class Timing:
    """What one rank measured of one collective on one of its groups.

    Attributes:
        family, group: as in `"tp"` and `"tp[1]"`.
        check: the collective.
        latency: seconds of a call with next to no data.
        seconds: of a call with `size` bytes; None where no data counts.
        size: bytes, as nccl-tests count them.
        bus_factor: bus bandwidth / algorithm bandwidth.
    """

    family: str
    group: str
    check: str
    latency: float
    seconds: float | None = None
    size: int = 0
    bus_factor: float = 0.0


@dataclass(frozen=True)
class Link:
    """A one-way trip of `size` bytes between two ranks that are neighbours in a group."""

    family: str
    ranks: tuple[int, int]
    seconds: float


@dataclass(frozen=True)
class Wrong:
    """A collective that gave this rank wrong values, and from whom, where that can be seen."""

    group: str
    check: str
    sources: tuple[int, ...]


@dataclass
class RankReport:
    """What one rank found.

    Attributes:
        where: backend and device.
        error: what ended the test on this rank before its end.
    """

    rank: int
    where: str = ""
    timings: list[Timing] = field(default_factory=list[Timing])
    links: list[Link] = field(default_factory=list[Link])
    wrong: list[Wrong] = field(default_factory=list[Wrong])
    error: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """One collective on one group: that of its slowest member.

    Attributes:
        latency: seconds.
        algorithm_bandwidth, bus_bandwidth: bytes a second; None where no data counts.
        times_median: how many times as long it takes as the median of the same axis's groups.
    """

    group: str
    ranks: tuple[int, ...]
    check: str
    latency: float
    algorithm_bandwidth: float | None
    bus_bandwidth: float | None
    times_median: float


@dataclass(frozen=True)
class Verdict:
    """What the test found.

    Attributes:
        where: backend and device, of the first rank that reported.
        slow_groups: group -> how many times as long as the median of its axis's groups it takes, in the median of all
            collectives: one alone may have met with bad luck.
        slow_ranks: rank -> how many times as long as the median rank it takes, even to its fastest neighbour.
        broken: rank -> what happened to it, or what it met.
        missing: the broken ranks that did not report: those that the others waited for.
        wrong: sentences, one for each collective on each group that gave wrong values.
        suspects: the ranks that can explain the most of these; none if all ranks can.
        unseen: sentences on what this test cannot tell.
    """

    where: str
    groups: list[GroupResult]
    slow_groups: dict[str, float]
    slow_ranks: dict[int, float]
    broken: dict[int, str]
    missing: list[int]
    wrong: list[str]
    suspects: list[int]
    unseen: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every collective worked and gave the right values; slow is not broken."""
        return not self.broken and not self.wrong


def judge(topology: ParallelTopology, reports: Mapping[int, RankReport], ends: Mapping[int, str]) -> Verdict:
    """Put the reports together.

    Args:
        reports: by rank, of those that reported.
        ends: what is known of how the others ended.
    """
    missing = list(filterfalse(reports.__contains__, topology.world))
    broken = dict.fromkeys(missing, "did not report: dead or stuck")
    broken |= {rank: end for rank, end in ends.items() if rank in broken}
    broken |= {rank: f"failed: {report.error}" for rank, report in sorted(reports.items()) if report.error is not None}
    wrong, suspects = _wrong(reports)
    groups = _groups(reports)
    return Verdict(
        where=next((report.where for report in reports.values()), ""),
        groups=groups,
        slow_groups=_slow_groups(groups),
        slow_ranks=_slow_ranks(reports),
        broken=broken,
        missing=missing,
        wrong=wrong,
        suspects=suspects,
        unseen=_unseen(topology),
    )


def _unseen(topology: ParallelTopology) -> list[str]:
    """What no comparison can show: each is compared with others of its kind."""
    if topology.world_size == 1:
        return ["anything: one rank communicates with nobody"]
    said: list[str] = []
    if topology.world_size == 2:
        said.append("a slow rank: each waits for the other, so that both take as long")
    alone = [axis for axis in topology.axes if 1 < topology.sizes[axis] == topology.world_size]
    if topology.world_size > 1 and alone:
        said.append(f"whether {', '.join(alone)} is slow: there is one group of it, and none to compare with")
    return said


def _groups(reports: Mapping[int, RankReport]) -> list[GroupResult]:
    members: defaultdict[tuple[str, str, str], dict[int, Timing]] = defaultdict(dict)
    for rank, report in sorted(reports.items()):
        for timing in report.timings:
            members[timing.family, timing.group, timing.check][rank] = timing
    slowest = {key: max(timings.values(), key=_cost) for key, timings in members.items()}
    peers: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for (family, _, check), timing in slowest.items():
        peers[family, check].append(_cost(timing))
    results: list[GroupResult] = []
    for (family, group, check), timing in slowest.items():
        speed = timing.size / timing.seconds if timing.seconds else None
        results.append(
            GroupResult(
                group=group,
                ranks=tuple(sorted(members[family, group, check])),
                check=check,
                latency=max(one.latency for one in members[family, group, check].values()),
                algorithm_bandwidth=speed,
                bus_bandwidth=speed * timing.bus_factor if speed is not None else None,
                times_median=_cost(timing) / median_low(peers[family, check]),
            )
        )
    return results


def _slow_groups(results: list[GroupResult]) -> dict[str, float]:
    times: defaultdict[str, list[float]] = defaultdict(list)
    for one in results:
        times[one.group].append(one.times_median)
    return {group: factor for group, factors in times.items() if (factor := median_low(factors)) >= SLOW}


def _cost(timing: Timing) -> float:
    return timing.latency if timing.seconds is None else timing.seconds


def _slow_ranks(reports: Mapping[int, RankReport]) -> dict[int, float]:
    """A rank is slow when, along every axis, even its fastest link is slow beside those of the axis's other ranks.

    A slow rank makes all its links slow, and so all its neighbours have a slow link; but these have others too.
    """
    fastest: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for report in reports.values():
        for link in report.links:
            of_family = fastest[link.family]
            for rank in link.ranks:
                of_family[rank] = min(link.seconds, of_family.get(rank, link.seconds))
    times: dict[int, float] = {}
    for of_family in fastest.values():
        usual = median_low(of_family.values())
        for rank, seconds in of_family.items():
            times[rank] = min(seconds / usual, times.get(rank, seconds / usual))
    return {rank: factor for rank, factor in sorted(times.items()) if factor >= SLOW}


def _wrong(reports: Mapping[int, RankReport]) -> tuple[list[str], list[int]]:
    """A sentence for each collective with wrong values, and the ranks that are in the most of them."""
    found: defaultdict[tuple[str, str], dict[int, Wrong]] = defaultdict(dict)
    for rank, report in sorted(reports.items()):
        for one in report.wrong:
            found[one.group, one.check][rank] = one
    sentences: list[str] = []
    counts: Counter[int] = Counter()
    for (group, check), seen in found.items():
        sources = sorted({source for one in seen.values() for source in one.sources})
        origin = f" from {_ranks(sources)}" if sources else ""
        sentences.append(f"{check} on {group}: wrong values{origin} at {_ranks(sorted(seen))}")
        counts.update(sources or list(seen))
    most = max(counts.values(), default=0)
    suspects = sorted(rank for rank, count in counts.items() if count == most)
    return sentences, suspects if len(suspects) < len(reports) else []


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
