"""Simulated views: code that communicates runs for every rank in turn, alone, and what it called is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from parallel_topology.communicators.links import Links
from parallel_topology.errors import GroupArgumentError, TopologyError
from parallel_topology.groups.declared import DeclaredView
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.testing.asked import topology_of
from parallel_topology.testing.calls import Call, check_complete
from parallel_topology.testing.simulated_communicator import SimulatedCommunicator
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology


class SimulatedGroup(ParallelGroup):
    """A `ParallelGroup` whose collectives check their arguments and record the call, but reach nobody.

    Results have the right shape, dtype and device and, on tensors that hold values, values as if all members had
    this member's: `all_reduce` and `recv` leave the tensor as it is, `all_gather` repeats it. Where members' shapes may
    differ, what would come from the others is zero.
    """

    def __init__(self, name: str, ranks: Ranks, rank: int, *, label: str, calls: list[Call], channel: str) -> None:
        super().__init__(name, ranks, rank, label=label, device=torch.device("cpu"), links=Links())
        self.communicators = (SimulatedCommunicator(self, calls, channel),)

    def _admit(self, operation: str, tensor: Tensor) -> None:
        """Nothing moves, so a tensor may be fake, or on no device."""
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            super()._admit(operation, tensor)

    def broadcast_object(
        self, value: Any = None, src: int | None = None, *, src_rank: int | None = None, **how: Any
    ) -> Any:
        """`value`, recorded as a broadcast of no bytes; a member that has none must be the source."""
        source = self._peer("src", src, src_rank, 0)
        if value is None and source != self.rank:
            raise self._unknown("broadcast_object")
        self.broadcast(torch.empty(0, dtype=torch.uint8, device="cpu"), source)
        return value

    def broadcast_objects(
        self, values: Iterable[Any] | None = None, src: int | None = None, *, src_rank: int | None = None, **how: Any
    ) -> Iterator[Any]:
        """`values`, each recorded as a broadcast of no bytes; a member that has none must not take them."""
        source = self._peer("src", src, src_rank, 0)
        if values is None:
            raise self._unknown("broadcast_objects")
        return (self.broadcast_object(value, source) for value in values)

    def scatter_object(
        self, values: Sequence[Any] | None = None, src: int | None = None, *, src_rank: int | None = None, **how: Any
    ) -> Any:
        """This member's of `values`, recorded as a scatter of no bytes."""
        source = self._peer("src", src, src_rank, 0)
        if values is None:
            raise self._unknown("scatter_object")
        nothing = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.scatter(nothing, nothing if source == self.rank else None, source)
        return values[self.rank]

    def gather_object(
        self, value: Any, dst: int | None = None, *, dst_rank: int | None = None, **how: Any
    ) -> list[Any] | None:
        """As if all members gave `value`; recorded as a gather of no bytes."""
        target = self._peer("dst", dst, dst_rank, 0)
        self.gather(torch.empty(0, dtype=torch.uint8, device="cpu"), target)
        return [value] * self.size if target == self.rank else None

    def recv_any(self, tensor: Tensor, **how: Any) -> NoReturn:
        """Raises: GroupArgumentError: who sends is not known."""
        raise self._unknown("recv_any")

    def recv_object(self, src: int | None = None, **how: Any) -> NoReturn:
        """Raises: GroupArgumentError: nobody sent anything."""
        raise self._unknown("recv_object")

    def irecv_tensors(self, src: int | None = None, **how: Any) -> NoReturn:
        """Raises: GroupArgumentError: nobody sent anything."""
        raise self._unknown("recv_tensors")

    def _unknown(self, operation: str) -> GroupArgumentError:
        return GroupArgumentError(
            f"{operation} on {self.label}: a simulated group cannot know what comes: give the code its input"
        )


class SimulatedManager(DeclaredView[SimulatedGroup]):
    """Stands in for a `GroupManager` of one rank, with `SimulatedGroup`s. No store, no peers, any world size.

    Attributes:
        calls: what was called so far on any of its groups, in order.
    """

    _declaring = "simulate(..., groups=[{axes!r}])"

    world: SimulatedGroup  # pyright: ignore[reportIncompatibleVariableOverride] (it is set once and never replaced)

    def __init__(
        self,
        topology: ParallelTopology,
        rank: int,
        *,
        groups: Iterable[tuple[str, ...]] = (),
        isolated: Mapping[str, tuple[str, ...]] | None = None,
        name: str = "engine",
    ) -> None:
        topology.position(rank)
        self.topology = topology
        self.rank = rank
        self.name = name
        self.plan = topology.plan(groups=groups, isolated=isolated)
        self.backend = "simulated"
        self.local_rank = 0
        self.device = torch.device("cpu")
        self.closed = False
        self.calls: list[Call] = []
        self._groups = {}
        self._absent = {}
        for family in self.plan.families.values():
            ranks = topology.group(*family.axes, rank=rank)
            number = topology.groups(*family.axes).index(ranks)
            label = f"{name}/{family.name}" if family.name == "world" else f"{name}/{family.name}[{number}]"
            channel = f"{name}/{family.shares or family.name}"
            self._groups[family.name] = SimulatedGroup(
                family.name, ranks, ranks.index(rank), label=label, calls=self.calls, channel=channel
            )
        self.__dict__.update(self._groups)

    def require(self, topology: ParallelTopology) -> None:
        """As `GroupManager.require`.

        Raises:
            TopologyError: this view is of another topology; names both.
        """
        if topology != self.topology:
            raise TopologyError(f"{self.name} was built for {self.topology}, but {topology} is required")

    def close(self) -> None:
        """From now on every collective raises `ClosedError`."""
        self.closed = True
        for group in (*self._groups.values(), *self._absent.values()):
            group.links.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _alone(self, name: str) -> SimulatedGroup:
        label = f"{self.name}/{name}"
        group = SimulatedGroup(name, Ranks(self.rank, ()), 0, label=label, calls=self.calls, channel=label)
        group.links.closed = self.closed
        return group

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SimulatedManager records in place and cannot be pickled; send its topology instead")


@dataclass(frozen=True)
class Simulation:
    """What every rank returned and called.

    Attributes:
        topology: whose ranks these are.
        results: global rank -> what `fn` returned.
        calls: global rank -> its calls, in order.
    """

    topology: ParallelTopology
    results: dict[int, Any]
    calls: dict[int, list[Call]]

    def on(self, rank: int, *, group: str | None = None, operation: str | None = None) -> list[Call]:
        """One rank's calls, those on one group or of one operation if named.

        Raises:
            RankError: `rank` is not in the topology.
        """
        self.topology.position(rank)
        return [
            call
            for call in self.calls.get(rank, [])
            if group in (None, call.group) and operation in (None, call.operation)
        ]

    def count(self, rank: int) -> Counter[tuple[str, str]]:
        """How often one rank called each (operation, group).

        Raises:
            RankError: `rank` is not in the topology.
        """
        return Counter((call.operation, call.group) for call in self.on(rank))

    def bytes(self, rank: int, **which: Any) -> int:
        """Bytes that one rank put into its calls; `which` as for `on`. Not what a ring puts on the wire."""
        return sum(call.bytes for call in self.on(rank, **which))

    def check(self, *, buffered_sends: bool = False) -> None:
        """Whether real ranks that make these calls would all come to the end; every `send` needs its `recv`.

        Args:
            buffered_sends: whether a `send` returns before the other side receives.

        Raises:
            MismatchError: calls that meet differ in operation, shape, dtype, source or reduction.
            DeadlockError: ranks that wait for each other, or for a call that another rank never makes.
            TopologyError: only some of the ranks were simulated, so that nothing can be said of all.
        """
        if len(self.calls) != self.topology.world_size:
            raise TopologyError(
                f"{len(self.calls)} of the {self.topology.world_size} ranks of {self.topology} were simulated: "
                "simulate all of them to check their calls against each other"
            )
        check_complete(self.calls, buffered_sends=buffered_sends)


def simulate(
    topology: ParallelTopology | str | int,
    fn: Callable[..., Any],
    *args: Any,
    ranks: Iterable[int] | None = None,
    check: bool | None = None,
    **options: Any,
) -> Simulation:
    """Call `fn(groups, *args)` for each rank in turn, each with a `SimulatedManager`; nothing communicates.

    Put `torch.device("meta")` or `FakeTensorMode` around it, and no tensor takes memory. What is received is not
    what would be sent: code that branches on received values takes one branch on every rank.

    Args:
        topology: or its compact notation, or a number of ranks along `tp`.
        ranks: global ranks, if not all.
        check: whether the calls are checked against each other before this returns; all ranks' are, unless told not
            to.
        options: as for `SimulatedManager`.

    Raises:
        MismatchError: the ranks' calls do not fit together.
        DeadlockError: the ranks would wait for each other.
        RankError: one of `ranks` is not in the topology.
    """
    topology = topology_of(topology)
    results: dict[int, Any] = {}
    calls: dict[int, list[Call]] = {}
    for rank in topology.world if ranks is None else ranks:
        groups = SimulatedManager(topology, rank, **options)
        try:
            results[rank] = fn(groups, *args)
        except BaseException as error:
            error.add_note(f"on simulated rank {rank} of {topology} {topology.coordinate(rank)}")
            raise
        calls[rank] = groups.calls
    simulation = Simulation(topology, results, calls)
    if check if check is not None else ranks is None:
        simulation.check()
    return simulation
