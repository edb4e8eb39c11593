"""One rank's part of the self-test: call everything on every group, look at what comes back, and at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from parallel_topology.errors import ParallelTopologyError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager
from parallel_topology.selftest.collectives import CHECKS, DTYPES, Check, Pattern
from parallel_topology.selftest.verdict import Link, RankReport, Timing, Wrong

LATENCY_CALLS = 20
BANDWIDTH_CALLS = 5
ITEM = torch.float32.itemsize


def run_rank(rank: int, make: Callable[[], GroupManager], size: int) -> RankReport:
    """Build a manager, test all its groups and close it. What fails ends the test here and is in the report.

    Args:
        size: bytes of the large messages, as nccl-tests count them.
    """
    report = RankReport(rank)
    try:
        with make() as groups:
            report.where = f"{groups.backend} on {groups.device.type}"
            for family in groups.plan.families.values():
                if family.creates:
                    _test_group(groups[family.name], family.name, size, report)
            groups.world.barrier()  # nobody closes while another is still inside a collective
    except ParallelTopologyError as error:
        report.error = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return report


def _test_group(group: ParallelGroup, family: str, size: int, report: RankReport) -> None:
    name = group.label.partition("/")[2]
    for check in CHECKS:
        group.barrier()
        look = _Look(check, group, name, report)
        for dtype in DTYPES[1:]:
            look.at(_pattern(check, group, group.size * ITEM, dtype))
        latency = _clock(look, group.size * ITEM, LATENCY_CALLS)
        if check.bus_factor is None:
            report.timings.append(Timing(family, name, check.name, latency))
        else:
            seconds = _clock(look, size, BANDWIDTH_CALLS)
            factor = check.bus_factor(group.size)
            report.timings.append(Timing(family, name, check.name, latency, seconds, _whole(size, group), factor))
    report.links += _links(group, family, size)


class _Look:
    """Looks at what every call of one collective on one group gives, and reports the first that is wrong."""

    def __init__(self, check: Check, group: ParallelGroup, name: str, report: RankReport) -> None:
        self.check = check
        self.group = group
        self._name = name
        self._report = report
        self._is_wrong = False

    def at(self, pattern: Pattern, begin: Tensor | None = None, expected: Tensor | None = None) -> float:
        """One call: its seconds. What is looked at, and made, is not counted."""
        tensor = pattern.of(self.group.rank) if begin is None else begin.copy_(pattern.of(self.group.rank))
        _finish(self.group.device)
        begun = time.perf_counter()
        received = self.check.call(self.group, tensor)
        _finish(self.group.device)
        seconds = time.perf_counter() - begun
        expected = self.check.expected(pattern, self.group) if expected is None else expected
        if not self._is_wrong and not (received.dtype == expected.dtype and torch.equal(received, expected)):
            self._is_wrong = True
            self._report.wrong.append(Wrong(self._name, self.check.name, self._origin(received, expected)))
        return seconds

    def _origin(self, received: Tensor, expected: Tensor) -> tuple[int, ...]:
        sources = self.check.sources(self.group)
        if sources and received.shape == expected.shape:
            parts = zip(sources, received.chunk(len(sources)), expected.chunk(len(sources)), strict=True)
            sources = [source for source, got, wanted in parts if not torch.equal(got, wanted)]
        return tuple(self.group.ranks[source] for source in sources)


def _pattern(check: Check, group: ParallelGroup, size: int, dtype: torch.dtype = torch.float32) -> Pattern:
    return Pattern(_elements(check, group, size), group.device, dtype)


def _clock(look: _Look, size: int, calls: int) -> float:
    """Median seconds of a call, after one that may set up connections."""
    pattern = _pattern(look.check, look.group, size)
    tensor, expected = pattern.of(look.group.rank), look.check.expected(pattern, look.group)
    look.at(pattern, tensor, expected)
    return median(look.at(pattern, tensor, expected) for _ in range(calls))


def _links(group: ParallelGroup, family: str, size: int) -> list[Link]:
    """To and fro between neighbours, each pair by itself: in rounds in which no member has two neighbours."""
    edges = [(position, (position + 1) % group.size) for position in range(group.size if group.size > 2 else 1)]
    rounds = [edges[::2], edges[1::2]]
    if group.size % 2:  # the last member's edge to the first meets that of the first to the second
        rounds = [edges[:-1:2], edges[1:-1:2], edges[-1:]]
    tensor = torch.zeros(_whole(size, group) // ITEM, device=group.device)
    links: list[Link] = []
    for edges in filter(None, rounds):
        group.barrier()
        for here, there in edges:
            if group.rank == here:
                seconds = _median(lambda other=there: _ping(group, tensor, other), group, BANDWIDTH_CALLS) / 2
                links.append(Link(family, (group.ranks[here], group.ranks[there]), seconds))
            elif group.rank == there:
                _median(lambda other=here: _pong(group, tensor, other), group, BANDWIDTH_CALLS)
    return links


def _ping(group: ParallelGroup, tensor: Tensor, other: int) -> None:
    group.send(tensor, dst=other)
    group.recv(tensor, src=other)


def _pong(group: ParallelGroup, tensor: Tensor, other: int) -> None:
    group.recv(tensor, src=other)
    group.send(tensor, dst=other)


def _median(call: Callable[[], object], group: ParallelGroup, calls: int) -> float:
    call()  # the first one may set up connections
    seconds: list[float] = []
    for _ in range(calls):
        _finish(group.device)
        begun = time.perf_counter()
        call()
        _finish(group.device)
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _elements(check: Check, group: ParallelGroup, size: int) -> int:
    """Of one member's tensor."""
    elements = _whole(size, group) // ITEM
    return elements // group.size if check.split else elements


def _whole(size: int, group: ParallelGroup) -> int:
    """`size` rounded up, so that it is made of elements and divides over the members."""
    step = ITEM * group.size
    return -(-size // step) * step
