"""Traffic: what a step sends inside hosts and across them, by axes and phase; and the order that sends least across."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from parallel_topology.errors import UnknownAxisError
from parallel_topology.hosts.crossings import Crossings, messages
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.topology.layout import Groups, Ranks
from parallel_topology.topology.modes import coalesce, offset
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.flows import Flow, Phase, flows
from parallel_topology.weights.memory import Serving, Training
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
    return carried(flows(model, topology, use), topology, Crossings(hosts))


def carried(sent: Iterable[Flow], topology: ParallelTopology, crossings: Crossings) -> Traffic:
    """Flows on the hosts, in the order of `topology`, which may be another than that they were found for.

    Raises:
        TopologyError: the hosts do not hold all ranks of the topology.
    """
    crossings.hosts.require(topology)
    found: dict[tuple[str, Phase], list[Fraction]] = {}
    for flow in sent:
        groups, whole = _groups(topology, flow)
        share = Fraction(crossings.of(groups, flow.pattern), groups.size * messages(groups[0].size, flow.pattern))
        nbytes = flow.nbytes * groups.size * whole
        sums = found.setdefault((topology.group_name(*flow.axes), flow.phase), [Fraction(), Fraction()])
        sums[0] += nbytes * (1 - share)
        sums[1] += nbytes * share
    return Traffic(tuple(Sent(*key, *sums) for key, sums in found.items()))


def _groups(topology: ParallelTopology, flow: Flow) -> tuple[Groups, Fraction]:
    """The groups of a flow on its stage; where no factorization has both, all groups, and its part of them."""
    pipeline = pipeline_axis(topology)
    stages = topology.size(pipeline)
    if flow.stage is None or stages == 1:
        return topology.groups(*flow.axes), Fraction(1)
    try:
        layout = topology.factorization(*flow.axes, pipeline)
    except UnknownAxisError:
        return topology.groups(*flow.axes), Fraction(1, stages)
    world = topology.world
    inside = coalesce(mode for axis, modes in layout.modes.items() if axis in flow.axes for mode in modes)
    outside = coalesce(
        mode for axis, modes in layout.modes.items() if axis != pipeline and axis not in flow.axes for mode in modes
    )
    start = world.start + offset(layout.modes[pipeline], flow.stage)
    return Groups(Ranks(start, outside), inside, world.placement), Fraction(1)
