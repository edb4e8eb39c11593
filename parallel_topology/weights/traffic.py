"""Traffic: what a step sends inside hosts and across them, by axes and phase; and the order that sends least across."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from parallel_topology.errors import UnknownAxisError
from parallel_topology.hosts.crossings import Crossings, Pattern, messages
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Groups, Ranks
from parallel_topology.topology.modes import coalesce, offset
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.flows import Flow, Phase, flows
from parallel_topology.weights.memory import Serving, Training, require_all
from parallel_topology.weights.model import Model
from parallel_topology.weights.placed import pipeline_axis


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes of a step that all ranks together send along some axes for one phase.

    Attributes:
        axes: the name of the groups, as in `"tp"` or `"cp-dp"`.
        phase: forward, backward, gradients or parameters.
        inside, across: to ranks of the same host, and of others.
    """

    axes: str
    phase: Phase
    inside: Fraction
    across: Fraction


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that all ranks together send in one step.

    Attributes:
        sent: by axes and phase, in the order in which they are met.
    """

    sent: tuple[Sent, ...]

    @property
    def inside(self) -> Fraction:
        """To ranks of the same host."""
        return sum((one.inside for one in self.sent), Fraction())

    @property
    def across(self) -> Fraction:
        """To ranks of other hosts."""
        return sum((one.across for one in self.sent), Fraction())

    def along(self, axes: str) -> tuple[Fraction, Fraction]:
        """(inside, across) of the groups of one name, of all phases."""
        found = [one for one in self.sent if one.axes == axes]
        return sum((one.inside for one in found), Fraction()), sum((one.across for one in found), Fraction())


def traffic_on(model: Model, topology: ParallelTopology, hosts: Hosts, use: Training | Serving) -> Traffic:
    """What is sent in one step, by the formulas of `flows`: of serving, for one token of each sequence.

    Volumes are in closed form. What of it crosses hosts is, too, on hosts of one size where ranks count up; elsewhere
    every group is looked at, as by `Hosts.spans`.

    Raises:
        UnknownAxisError, TopologyError: as for `flows`; or the hosts do not hold all ranks.
    """
    require_all(model, topology, use)
    require_kind(hosts, Hosts, "hosts").require(topology)
    crossings = Crossings(hosts)
    found: dict[tuple[str, Phase], list[Flow]] = {}
    for flow in flows(model, topology, use):
        found.setdefault((topology.group_name(*flow.axes), flow.phase), []).append(flow)
    sent: list[Sent] = []
    for (axes, phase), those in found.items():
        volume = Volume(those)
        across = volume.across(topology, crossings)
        sent.append(Sent(axes, phase, volume.total(topology) - across, across))
    return Traffic(tuple(sent))


class Volume:
    """Flows of one layout, summed, to be put on hosts in several orders of its axes."""

    def __init__(self, sent: Iterable[Flow]) -> None:
        self._sent: dict[tuple[str, ...], dict[tuple[Pattern, tuple[int, ...] | None], Fraction]] = {}
        for flow in sent:
            along = self._sent.setdefault(flow.axes, {})
            before = along.get((flow.pattern, flow.stages), Fraction())
            along[flow.pattern, flow.stages] = before + flow.nbytes

    def total(self, topology: ParallelTopology) -> Fraction:
        """Bytes that all ranks send; the same in each order."""
        count, found = topology.size(pipeline_axis(topology)), Fraction()
        for axes, those in self._sent.items():
            groups = Fraction(topology.world_size, topology.size(*axes))
            for (_, stages), nbytes in those.items():
                found += nbytes * groups * (1 if stages is None else Fraction(len(stages), count))
        return found

    def across(self, topology: ParallelTopology, crossings: Crossings) -> Fraction:
        """Those of them that go to another host, in the order of `topology`."""
        found, plain = Fraction(), topology.world.placement is None
        for axes, those in self._sent.items():
            along = _Along(topology, axes)
            begun: dict[tuple[int, ...] | None, Counter[int]] = {}  # where groups begin -> how many stages' do
            for (pattern, stages), nbytes in those.items():
                if stages not in begun:
                    starts = map(along.start, stages or (0,))
                    begun[stages] = Counter(map(crossings.place, starts) if plain else starts)  # the place is all then
                crossing = sum(count * crossings.of(along.groups(at), pattern) for at, count in begun[stages].items())
                if crossing:
                    found += nbytes * Fraction(crossing, along.parts * messages(along.size, pattern))
        return found


class _Along:
    """The groups along some axes, stage by stage; where no factorization has both, each stage has a part of all.

    Attributes:
        size: ranks in each.
        parts: how many stages share all groups then, else 1.
    """

    def __init__(self, topology: ParallelTopology, axes: tuple[str, ...]) -> None:
        pipeline = pipeline_axis(topology)
        self._world, self._stages, self.parts = topology.world, (), 1
        layout = topology.factorization(*axes)
        if pipeline not in axes and (stages := topology.size(pipeline)) > 1:
            try:
                layout = topology.factorization(*axes, pipeline)
                self._stages = layout.modes[pipeline]
            except UnknownAxisError:
                self.parts = stages
        fixed = {pipeline} if self._stages else set[str]()
        self.size = topology.size(*axes)
        self._inside = coalesce(mode for axis, modes in layout.modes.items() if axis in axes for mode in modes)
        self._outside = coalesce(
            mode for axis, modes in layout.modes.items() if axis not in axes and axis not in fixed for mode in modes
        )

    def start(self, stage: int) -> int:
        """Where the groups of a stage begin."""
        return self._world.start + offset(self._stages, stage)

    def groups(self, start: int) -> Groups:
        return Groups(Ranks(start, self._outside), self._inside, self._world.placement)
