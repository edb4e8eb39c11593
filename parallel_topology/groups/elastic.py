"""Elastic: how a manager is followed by one of another topology, on all ranks or on none.

The ranks agree that they are to be bound to it (leavers too, and newcomers take places), all build, all say that they
have built, and then it is committed: `meeting.succession` decides each step for all. Until then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from parallel_topology.errors import (
    LiveGraphError,
    ParallelTopologyError,
    RebindError,
    RendezvousError,
    TopologyError,
)
from parallel_topology.groups.holdings import Holdings
from parallel_topology.groups.joining import LAST_WORDS
from parallel_topology.groups.newcomer import told_of
from parallel_topology.meeting.control import FAREWELL, Control
from parallel_topology.meeting.creation import Former, WorldCreator
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.lobby import Call, Invitations, Lobby
from parallel_topology.meeting.operations import CALLED_OFF, meeting_place
from parallel_topology.meeting.succession import Agreement, Proposal, Refused
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import shown_ranks

M = TypeVar("M")


@dataclass(frozen=True)
class Predecessor(Generic[M]):
    """What a change needs of the manager that is to be followed.

    Attributes:
        held: by it.
        build: makes the successor, and connects its groups if it is told to; its ranks meet where it is told. Not for
            ranks that leave.
        lost: which ranks of a successor are known to have ended.
        abandon: ends a successor that came to nothing.
    """

    held: Holdings
    build: Callable[[ParallelTopology, Deadline, bool, str], M]
    lost: Callable[[M], Collection[int]]
    abandon: Callable[[M], object]


class Change(Generic[M]):
    """One rank's part in one operation.

    Attributes:
        topology: that it is about.
        agreement: what all agreed on, once they have.
        successor: once this rank has built it; None where it leaves.
        cancelled: which rank called it off, and why, once this one has failed by that.
    """

    def __init__(
        self,
        of: Predecessor[M],
        topology: ParallelTopology,
        deadline: Deadline,
        *,
        connects: bool = False,
        after: Callable[[Deadline], object] | None = None,
    ) -> None:
        """`connects`: the new groups connect at once, not when they are first used. `after`: waits until this rank has
        given up what it was building before, as the others would take that for its part in this."""
        self.topology = topology
        self.agreement: Agreement | None = None
        self.successor: M | None = None
        self.cancelled = ""
        self._of = of
        self._held = held = of.held
        self._succession, self._control = held.succession, None
        if connects and held.succession is not None and held.store is not None:
            self._control = Control(held.store)  # what is built in the background is in nobody's way
            self._succession = held.succession.over(self._control)
        self._deadline = deadline
        self._members = list(topology.world)
        self._connects = connects
        self._cancelled = "", ""  # why, and of which kind that is
        self._after = after

    @property
    def stays(self) -> bool:
        """Whether this rank is in the new topology."""
        return self._held.rank in self.topology.world

    @property
    def can_wait_for_all(self) -> bool:
        """Whether there may be others that have not gone over."""
        return self._succession is not None and self.agreement is not None

    def wait_for_all(self, given_up: Callable[[], bool]) -> bool:
        """Wait until all have gone over, or have ended; whether they have in time."""
        if self._held.succession is None or self.agreement is None:
            return True
        deadline = Deadline(self._held.options.seconds)
        return self._held.succession.wait_until_all_are_over(self.agreement, deadline, given_up)

    @property
    def newcomers(self) -> tuple[int, ...]:
        """The ranks that were not in the manager, as far as it is agreed."""
        return tuple(sorted(self.agreement.newcomers)) if self.agreement else ()

    def agree(self) -> None:
        """Raises: ParallelTopologyError: this rank may not.
        DisagreementError: the ranks ask for different topologies.
        RebindError: another rank may not, or did not come, or this one was left out.
        RendezvousError: the store is gone, or does not answer.
        """
        if self._after is not None:
            self._after(self._deadline)
        objection = objection_to(self._held, self.topology)
        succession = self._succession
        if succession is not None:
            missed = set(self._held.witness.missed) if self._held.witness else set[int]()
            lobby = Lobby(self._held.options.name, self._held.options.token)
            invite = Invitations(lobby, self._call)
            try:
                self.agreement = succession.agree(
                    Proposal(
                        str(self.topology),
                        self._members,
                        lambda: (_said(objection), "") if objection else self._cancelled,
                        invite,
                        missed,
                    ),
                    self._deadline,
                )
            except (Refused, RendezvousError) as error:
                if objection is None:
                    raise self._failed(error) from None
            except Exception:
                raise
            except BaseException:  # Ctrl-C: the others are not to wait for this rank
                with suppress(RendezvousError):
                    self.call_off("was interrupted")
                raise
        if objection is not None:
            raise objection

    def build(self) -> None:
        """Build the successor, and wait until all have; what this rank raises itself comes first.

        Raises:
            RebindError: another rank could not build; says which and why. Or as of `commit`.
            ParallelTopologyError: what building raises.
        """
        failure: BaseException | None = None
        try:
            if self.stays:
                at = meeting_place(self._keys, self.agreement.number) if self.agreement is not None else ""
                self.successor = self._of.build(self.topology, self._deadline, self._connects, at)
        except BaseException as error:  # also an interrupt: the others are told
            failure = error
        try:
            if self._succession is not None and self.agreement is not None:
                late = Deadline(max(self._deadline.left(), LAST_WORDS))
                self._succession.ready(self.agreement, _said(failure), late)
        except (Refused, RendezvousError) as error:
            self.abandon()
            if failure is None:
                raise (self._unknown(error) if isinstance(error, RendezvousError) else self._failed(error)) from None
        except BaseException:
            self.abandon()
            raise
        if failure is not None:
            raise failure

    def commit(self) -> None:
        """From now on the successor is what counts, on all ranks.

        Raises:
            RebindError: it was called off, as a rank has ended, say; says by whom and why. Or the store does not
                answer: then it names those that may have gone on.
        """
        lost = self._of.lost(self.successor) if self.successor is not None else ()
        try:
            if lost and self.call_off(f"{shown_ranks(sorted(lost))} ended", self._deadline.seconds):
                raise Refused(f"{shown_ranks(sorted(lost))} ended")
            if self._succession is not None:
                number = self.agreement.number if self.agreement is not None else 0
                newcomers = self.agreement.newcomers.values() if self.agreement is not None else ()
                self._succession.commit(number, newcomers, Deadline(self._deadline.seconds))
        except (Refused, RendezvousError) as error:
            self.abandon()
            raise (self._unknown(error) if isinstance(error, RendezvousError) else self._failed(error)) from None
        except RebindError:
            self.abandon()
            raise

    def _unknown(self, error: RendezvousError) -> RebindError:
        """This rank has built what it had to, but cannot ask what the others did."""
        mine = self._held.rank
        others = shown_ranks([rank for rank in self.topology.world if rank != mine])
        return RebindError(
            f"rebind from {self._held.plan.topology} to {self.topology}: {error}, so rank {mine}, which has ended what "
            f"it built, does not know whether {others} went on: rebind again when the store can be reached, which "
            "says so; if they did, join them with joining=True"
        )

    def call_off(self, why: str, seconds: float = FAREWELL, *, kind: str = CALLED_OFF) -> bool:
        """Let it come to nothing on all ranks; False if it is committed. Before this rank has agreed, it will object.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        self._cancelled = why, kind  # before it is known which operation this is: either is seen by the other
        if self._succession is None:
            return True
        number = self.agreement.number if self.agreement is not None else None
        return self._succession.call_off(number, why, Deadline(seconds), self._deadline, kind=kind)

    def stop(self) -> None:
        """It was called off: what this rank is building for it is given up as soon as that can be."""
        if self.agreement is not None:
            self._deadline.expire()

    def called_off(self, *, only: bool) -> str:
        """Why it came to nothing; empty if it did not. `only`: if a rank called it off, and not else."""
        if self._succession is None or self.agreement is None:
            return ""
        return self._succession.called_off(self.agreement.number, Deadline(FAREWELL), only=only)

    def is_replaced(self) -> bool:
        """Whether it came to nothing as another rank asks for another topology, or has closed its manager.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        number = self.agreement.number if self.agreement is not None else None
        return self._succession is not None and self._succession.is_replaced(number, Deadline(FAREWELL))

    def end(self) -> None:
        """Nothing more happens at the store."""
        if self._control is not None:
            self._control.close()

    def abandon(self) -> None:
        """End what was built."""
        successor, self.successor = self.successor, None
        if successor is not None:
            self._of.abandon(successor)

    def _failed(self, error: Exception) -> ParallelTopologyError:
        if isinstance(error, RendezvousError):
            return error
        if isinstance(error, Refused) and error.called_off:
            self.cancelled = str(error)
        before = self._held.plan.topology
        return RebindError(f"rebind from {before} to {self.topology}: {error}; all ranks keep {before}")

    @property
    def _keys(self) -> str:
        return self._succession.keys if self._succession is not None else ""

    def _call(self, number: int, place: int, seconds: float) -> Call:
        told = {**told_of(self._held.options, self._held.backend), "connects": self._connects}
        return Call(self._keys, number, str(self.topology), place, seconds, told)


def objection_to(held: Holdings, topology: ParallelTopology) -> ParallelTopologyError | None:
    """Why a rank may not be bound to `topology`; None if it may."""
    before, rank = held.plan.topology, held.rank
    new = [one for one in topology.world if one not in before.world]
    said = f"rebind from {before} to {topology}"
    if new and isinstance(held.creator, WorldCreator):
        return TopologyError(f"{said}: {shown_ranks(new)} cannot come into torch's default group")
    if held.succession is None and list(topology.world) != [rank]:
        return TopologyError(f"{said}: rank {rank} is alone, without a store where others could meet it")
    if rank not in topology.world and held.hosted is not None:
        return TopologyError(f"{said}: rank {rank} hosts the store, so it cannot leave")
    if graphs := held.live_graphs():
        return LiveGraphError(f"rebind: CUDA graphs are alive that captured collectives: {graphs}; reset them first")
    return None


def former_of(held: Holdings) -> Former:
    """What the groups of a manager have, for those that follow on them."""
    families = held.plan.families
    groups = {
        name: (group.ranks, group.links.communicators)
        for name, group in held.groups.items()
        if families[name].shares is None
    }
    return Former(groups, held.is_broken())


def _said(objection: BaseException | None) -> str:
    return f"{type(objection).__name__}: {objection}" if objection is not None else ""
