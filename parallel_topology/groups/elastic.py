"""Elastic: how a manager is followed by one of another topology, on all ranks or on none.

The ranks agree that they are to be bound to it (leavers too, and newcomers take places), all build, all say that they
have built, and then it is committed: `meeting.succession` decides each step for all. Until then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from parallel_topology.errors import ParallelTopologyError, RebindError, RendezvousError
from parallel_topology.groups.joining import LAST_WORDS
from parallel_topology.meeting.control import FAREWELL
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.lobby import Call, Invitations, Lobby
from parallel_topology.meeting.succession import Agreement, Proposal, Refused, Succession
from parallel_topology.meeting.witness import Witness
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import shown_ranks

M = TypeVar("M")


@dataclass(frozen=True)
class Predecessor(Generic[M]):
    """What a change needs of the manager that is to be followed.

    Attributes:
        topology, rank: the manager's.
        succession: its own; None where it is alone and has no store.
        witness: its own; it knows who was missed.
        lobby: where newcomers wait.
        told: what newcomers are told of the options.
        objection: why this rank may not be bound to a topology; None if it may.
        build: makes the successor, and connects its groups if it is told to; not for ranks that leave.
        lost: which ranks of a successor are known to have ended.
        abandon: ends a successor that came to nothing.
    """

    topology: ParallelTopology
    rank: int
    succession: Succession | None
    witness: Witness | None
    lobby: Lobby
    told: Mapping[str, Any]
    objection: Callable[[ParallelTopology], ParallelTopologyError | None]
    build: Callable[[ParallelTopology, Deadline, bool], M]
    lost: Callable[[M], Collection[int]]
    abandon: Callable[[M], object]


class Change(Generic[M]):
    """One rank's part in one operation.

    Attributes:
        topology: that it is about.
        agreement: what all agreed on, once they have.
        successor: once this rank has built it; None where it leaves.
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
        self._of = of
        self._deadline = deadline
        self._members = list(topology.world)
        self._connects = connects
        self._after = after

    @property
    def stays(self) -> bool:
        """Whether this rank is in the new topology."""
        return self._of.rank in self.topology.world

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
        objection = self._of.objection(self.topology)
        succession = self._of.succession
        if succession is not None:
            missed = set(self._of.witness.missed) if self._of.witness else set[int]()
            invite = Invitations(self._of.lobby, self._call)
            said = _said(objection)
            try:
                self.agreement = succession.agree(
                    Proposal(str(self.topology), self._members, said, invite, missed), self._deadline
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
            RebindError: another rank could not build; says which and why.
            ParallelTopologyError: what building raises.
        """
        failure: BaseException | None = None
        try:
            if self.stays:
                self.successor = self._of.build(self.topology, self._deadline, self._connects)
        except BaseException as error:  # also an interrupt: the others are told
            failure = error
        try:
            if self._of.succession is not None and self.agreement is not None:
                late = Deadline(max(self._deadline.left(), LAST_WORDS))
                self._of.succession.ready(self.agreement, _said(failure), late)
        except (Refused, RendezvousError) as error:
            self.abandon()
            if failure is None:
                raise self._failed(error) from None
        except BaseException:
            self.abandon()
            raise
        if failure is not None:
            raise failure

    def commit(self) -> None:
        """From now on the successor is what counts, on all ranks.

        Raises:
            RebindError: it was called off, as a rank has ended, say; says by whom and why.
        """
        lost = self._of.lost(self.successor) if self.successor is not None else ()
        try:
            if lost and self.call_off(f"{shown_ranks(sorted(lost))} ended", self._deadline.seconds):
                raise Refused(f"{shown_ranks(sorted(lost))} ended")
            if self._of.succession is not None:
                number = self.agreement.number if self.agreement is not None else 0
                newcomers = self.agreement.newcomers.values() if self.agreement is not None else ()
                self._of.succession.commit(number, newcomers, Deadline(self._deadline.seconds))
        except (Refused, RendezvousError) as error:
            self.abandon()
            raise self._failed(error) from None

    def call_off(self, why: str, seconds: float = FAREWELL) -> bool:
        """Let it come to nothing on all ranks; False if it is committed.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        if self._of.succession is None:
            return True
        number = self.agreement.number if self.agreement is not None else None
        return self._of.succession.call_off(number, why, Deadline(seconds), self._deadline)

    def stop(self) -> None:
        """It was called off: what this rank is building for it is given up as soon as that can be."""
        if self.agreement is not None:
            self._deadline.expire()

    def called_off(self, *, only: bool) -> str:
        """Why it came to nothing; empty if it did not. `only`: if a rank called it off, and not else."""
        if self._of.succession is None or self.agreement is None:
            return ""
        return self._of.succession.called_off(self.agreement.number, Deadline(FAREWELL), only=only)

    def abandon(self) -> None:
        """End what was built."""
        successor, self.successor = self.successor, None
        if successor is not None:
            self._of.abandon(successor)

    def _failed(self, error: Exception) -> ParallelTopologyError:
        if isinstance(error, RendezvousError):
            return error
        before = self._of.topology
        return RebindError(f"rebind from {before} to {self.topology}: {error}; all ranks keep {before}")

    def _call(self, number: int, place: int, seconds: float) -> Call:
        keys = self._of.succession.keys if self._of.succession is not None else ""
        return Call(keys, number, str(self.topology), place, seconds, {**self._of.told, "connects": self._connects})


def _said(objection: BaseException | None) -> str:
    return f"{type(objection).__name__}: {objection}" if objection is not None else ""
