"""Succession: what follows on a manager, operation after operation; the store decides, for one successor at most.

An operation binds the ranks to another topology. It has three keys below those that only this manager has, and whoever
first knows writes each of them, once:

    agreed    all that are to go on have come: ranks of this manager, and newcomers in places that nobody has
    built     all of these have built what they need
    outcome   it is committed, on all ranks, or not at all

The next operation begins where one of them is a no, so only one can ever be committed. A rank that was left out, frozen
or cut off meanwhile, finds that, or finds that the manager is no more; either way it cannot go on by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist

from parallel_topology.errors import DisagreementError, RebindError
from parallel_topology.meeting.control import Control, Patience, append, delete, lines, read
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.operations import (
    CALLED_OFF,
    LONGEST,
    REPLACED,
    Operations,
    committed_key,
    no,
    say_ready,
    withdraw_if_over,
)
from parallel_topology.topology.wording import shown_ranks

T = TypeVar("T")
SILENCE = 0.3
"""Seconds after the deadline in which a store that answers may still decide."""
_THOROUGHLY = 20
"""Every so many looks a rank looks on other hosts, too, for ranks that have ended."""


class Refused(Exception):  # noqa: N818 (it never leaves the package)
    """An operation came to nothing; says on which rank, and why.

    Attributes:
        called_off: by that rank, which may go on with another one.
    """

    def __init__(self, why: str, *, called_off: bool = False) -> None:
        super().__init__(why)
        self.called_off = called_off


class Invite:
    """How places are given to newcomers; `meeting.lobby` does."""

    def fill(self, store: dist.Store, number: int, places: Sequence[int], seconds: float) -> None:
        """Call newcomers to these places of an operation, if there are any."""


@dataclass(frozen=True)
class Proposal:
    """What a rank asks for.

    Attributes:
        topology: as its text.
        members: the ranks that go on in it.
        objection: why this rank may not, empty if it may, and of which kind that is. Asked at the last moment.
        invite: gives places to newcomers.
        suspects: ranks that were missed before; who is to leave is not waited for if it is one of these, else for half
            of the time, and a newcomer may have its place.
    """

    topology: str
    members: Sequence[int]
    objection: Callable[[], tuple[str, str]] = lambda: ("", "")
    invite: Invite = field(default_factory=Invite)
    suspects: Collection[int] = ()


@dataclass(frozen=True)
class Agreement:
    """What all agreed on.

    Attributes:
        number: of the operation.
        members: of the new topology.
        newcomers: place -> who has it that was not in this manager.
        absent: ranks of this manager that did not say that they agree, as they are gone or silent.
    """

    number: int
    members: Sequence[int]
    newcomers: Mapping[int, str]
    absent: Sequence[int]


class Succession:
    """One rank's part in the operations on one manager."""

    def __init__(
        self,
        control: Control,
        keys: str,
        rank: int,
        ranks: Sequence[int],
        *,
        ended: Callable[[Sequence[int], bool], Collection[int]],
        sign: str = "",
        went_on: Callable[[dist.Store], str] = lambda store: "",
    ) -> None:
        """`keys` are the manager's alone, and `sign` is a key that is there as long as it is not over on all ranks;
        there is none where a rank is alone. `went_on` says who has gone on since, as far as it knows, and
        `ended(ranks, thoroughly)` which of these are known to have ended; thoroughly, it may take a while.
        """
        self.keys = keys
        self._control = self._home = control
        self._rank = rank
        self._ranks = list(ranks)
        self._ended = ended
        self._sign = sign
        self._went_on = went_on
        self._operations = Operations(keys)

    def over(self, control: Control) -> Succession:
        """The same, on another way to the store, which nothing else waits for."""
        other = copy(self)
        other._control = control
        return other

    def agree(self, proposal: Proposal, deadline: Deadline) -> Agreement:
        """Ask for another topology, or say why not, and wait until it is decided for all.

        Asking for what is being decided is taking part in that; asking for something else, after this rank took part,
        is asking for it instead.

        Raises:
            DisagreementError: the ranks ask for different topologies.
            Refused: a rank objects or did not come.
            RebindError: this rank was left out.
            RendezvousError: the store is gone, or does not answer.
        """

        if not self._sign and self._operations.last < 0:
            self._home.at_end(self.clear)

        def ask(store: dist.Store) -> Agreement:
            self._require_ours(store, f"it asked for {proposal.topology}")
            number = self._operations.last = self._open(store, proposal.topology, deadline)
            why, kind = proposal.objection()
            vote = [self._rank, why[:LONGEST], "", kind]
            append(store, self._operations.key(number, "votes"), json.dumps(vote))
            weigh = partial(self._weigh, store, number, proposal, deadline)
            found = self._wait(store, number, "agreed", weigh, deadline, before=f"it asked for {proposal.topology}")
            newcomers = {int(place): str(who) for place, who in found["newcomers"].items()}
            if self._rank in newcomers:
                raise self._left_out(store, f"it asked for {proposal.topology}")
            return Agreement(number, proposal.members, newcomers, [int(rank) for rank in found["absent"]])

        return self.ask(ask, deadline)

    def ready(self, agreement: Agreement, objection: str, deadline: Deadline) -> None:
        """Say that this rank has built what it needs, or why not; a rank that is to leave says nothing. Wait for all.

        Raises:
            Refused: a rank could not, or has ended; says which and why.
            RendezvousError: the store is gone, or does not answer.
        """

        def ask(store: dist.Store) -> None:
            if self._rank in agreement.members or objection:
                say_ready(store, self.keys, agreement.number, self._rank, objection)
            count = partial(self._count, store, agreement, deadline)
            self._wait(store, agreement.number, "built", count, deadline, before="all had built")

        self.ask(ask, deadline)

    def commit(self, number: int, newcomers: Iterable[str], deadline: Deadline) -> None:
        """Let it be so for all ranks, unless it was called off; and say that this one has gone over.

        Newcomers are each told under a key of their own, as what this manager has in the store may be gone soon.

        Raises:
            Refused: it was; says by whom and why.
            RebindError: this rank was left out.
            RendezvousError: the store is gone, or does not answer.
        """

        def ask(store: dist.Store) -> None:
            said = json.dumps({"why": "", "by": self._rank})
            found = store.compare_set(self._operations.key(number, "outcome"), "", said).decode(errors="replace")
            _require(json.loads(found))
            if found == said and self._is_over(store):  # long ago, without this rank
                delete(store, self._operations.key(number, "outcome"))
                raise self._left_out(store, "it committed")
            for who in newcomers if found == said else ():  # the first one tells them
                store.set(committed_key(who), "")
            append(store, self._operations.key(number, "over"), str(self._rank))

        self.ask(ask, deadline)

    def called_off(self, number: int, deadline: Deadline, *, only: bool) -> str:
        """Why an operation came to nothing; empty if it did not. `only`: if a rank called it off, and not else."""
        refused = self.ask(lambda store: self._operations.refusal(store, number), deadline)
        return refused["why"] if refused is not None and (not only or refused["kind"] in (CALLED_OFF, REPLACED)) else ""

    def is_replaced(self, number: int | None, deadline: Deadline) -> bool:
        """Whether an operation, the last one this rank took part in if none is given, came to nothing as another rank
        asks for another topology, or has closed its manager."""
        number = self._operations.last if number is None else number
        refused = self.ask(lambda store: self._operations.refusal(store, number), deadline) if number >= 0 else None
        return refused is not None and refused["kind"] == REPLACED

    def wait_until_all_are_over(self, agreement: Agreement, deadline: Deadline, given_up: Callable[[], bool]) -> bool:
        """Wait until all ranks of this manager that agreed have gone over, or have ended; whether they have in time."""
        wanted = set(self._ranks).difference(agreement.absent)

        def ask(store: dist.Store) -> bool:
            looks, look = Patience(len(self._ranks)), 0
            while not deadline.passed() and not given_up():
                lacking = wanted.difference(map(int, lines(store, self._operations.key(agreement.number, "over"))))
                look += 1
                late = look % _THOROUGHLY == 0
                if not lacking or self._gone(store, sorted(lacking), late).issuperset(lacking):
                    return True
                if late and self._is_over(store):
                    return True
                looks.pause(deadline)
            return False

        return self.ask(ask, deadline)

    def call_off(
        self, number: int | None, why: str, deadline: Deadline, until: Deadline, *, kind: str = CALLED_OFF
    ) -> bool:
        """Let an operation, the last one this rank took part in if none is given, come to nothing; whether that is so,
        as it may have been committed. Who asks for it before `until` hears of that, and begins no other one."""
        number = self._operations.last if number is None else number
        if number < 0:
            return True
        said = f"rank {self._rank}: {why}"
        return self.ask(lambda store: self._operations.refuse(store, number, said, until, kind=kind), deadline)

    def leave(self, store: dist.Store) -> None:
        """Tell the others that this rank has closed its manager."""
        append(store, f"{self.keys}/next/left", str(self._rank))

    def clear(self, store: dist.Store) -> None:
        """Take all away; the last one to leave does."""
        self._operations.clear(store)

    def ask(self, act: Callable[[dist.Store], T], deadline: Deadline) -> T:
        """What `act` does at the store.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        return self._control.answer(act, deadline, grace=SILENCE)

    # Which operation

    def _open(self, store: dist.Store, topology: str, deadline: Deadline) -> int:
        """The number of the operation for this topology: the one that is under way, or a new one.

        Raises:
            Refused, DisagreementError: it came to nothing just before this rank came.
        """
        operations = self._operations
        mine = json.dumps([self._rank, topology])
        while True:
            number = max(operations.counted(store), operations.last)  # before the look at what ended: it may end now
            if (missed := operations.missed(store, topology)) is not None:
                operations.last, refused = missed
                _require(refused)
            by, asked = json.loads(store.compare_set(operations.key(number, "asked"), "", mine))
            if operations.refusal(store, number) is not None:
                operations.go_on(store, number)
            elif asked == topology:
                return number
            elif not self._refuse_for(store, number, topology, by, asked, deadline):
                raise self._left_out(store, f"it asked for {topology}")

    def _refuse_for(
        self, store: dist.Store, number: int, topology: str, by: int, asked: str, deadline: Deadline
    ) -> bool:
        """What is under way is something else: end it for this, if this rank had asked for it, too."""
        operations = self._operations
        if number == operations.last:
            return operations.refuse(store, number, f"rank {self._rank} asks for {topology} instead", deadline)
        why = f"rank {by} asks for {asked}, rank {self._rank} for {topology}"
        if not operations.refuse(store, number, why, deadline, kind="disagreement"):
            return False
        operations.last = number
        raise DisagreementError(f"the ranks disagree, and stay what they are: {why}")

    def _is_over(self, store: dist.Store) -> bool:
        """Whether all others have left this manager, and what it had in the store was taken away."""
        return bool(self._sign) and not store.check([self._sign])

    def _require_ours(self, store: dist.Store, before: str) -> None:
        """Raises: RebindError: this manager is over on all other ranks, so what was decided here is nobody's."""
        if self._is_over(store):
            error = self._left_out(store, before)
            self.clear(store)  # what this rank has put there since all was taken away
            raise error

    def _left_out(self, store: dist.Store, before: str) -> RebindError:
        who = self._operations.gone_over(store) or self._went_on(store) or "the others went on"
        return RebindError(
            f"rank {self._rank} was left out: {who} without it, or with another in its place, before {before}; abort "
            "this manager, and join theirs with joining=True"
        )

    # What is decided

    def _wait(
        self, store: dist.Store, number: int, step: str, weigh: Callable[[bool], dict[str, Any] | None],
        deadline: Deadline, *, before: str,
    ) -> dict[str, Any]:  # fmt: skip
        """What was decided; decided here, if this rank is the first to know.

        Args:
            weigh: what it comes to, or nothing yet; told whether it may look thoroughly.
            before: what had not happened yet when this rank was left out, if it was.

        Raises:
            RebindError: it was: what was decided here is nobody's.
        """
        key, looks = self._operations.key(number, step), Patience(len(self._ranks))
        look = 0
        while (decided := read(store, key)) is None:
            look += 1
            if (verdict := weigh(look % _THOROUGHLY == 0)) is not None:
                decided = store.compare_set(key, "", json.dumps(verdict))
                withdraw_if_over(store, self.keys, number, step)
                break
            if look % _THOROUGHLY == 0:
                self._require_ours(store, before)
            looks.pause(deadline)
        self._require_ours(store, before)
        found: dict[str, Any] = json.loads(decided)
        if found["why"]:
            self._operations.go_on(store, number)
        _require(found)
        return found

    def _weigh(
        self, store: dist.Store, number: int, proposal: Proposal, deadline: Deadline, late: bool
    ) -> dict[str, Any] | None:
        said: dict[int, tuple[str, str]] = {}
        newcomers: dict[int, str] = {}
        for line in lines(store, self._operations.key(number, "votes")):
            who, objection, newcomer, kind = json.loads(line)
            if newcomer:
                newcomers.setdefault(who, newcomer)
            else:
                said[who] = objection, kind
        for rank, (why, kind) in said.items():
            if why:
                return no(f"rank {rank}: {why}", deadline, kind)
        silent = [rank for rank in self._ranks if rank not in said]
        gone = self._gone(store, silent, late) if silent else set[int]()
        lacking = [rank for rank in proposal.members if rank not in said and rank not in newcomers]
        if not lacking:
            patient = deadline.left() > deadline.seconds / 2  # the rest is for building
            if not patient or gone.union(proposal.suspects, proposal.members).issuperset(silent):
                places = {str(place): who for place, who in newcomers.items() if place not in said}
                return {"why": "", "newcomers": places, "absent": silent}
            return None
        if deadline.passed():
            return no(self._did_not_come(lacking, gone, deadline), deadline)
        free = [rank for rank in lacking if rank not in self._ranks or rank in gone or rank in proposal.suspects]
        if free and self._rank == next(rank for rank in self._ranks if rank in said):
            proposal.invite.fill(store, number, free, deadline.left())
        return None

    def _did_not_come(self, lacking: Sequence[int], gone: Collection[int], deadline: Deadline) -> str:
        dead = [rank for rank in lacking if rank in gone]
        new = [rank for rank in lacking if rank not in self._ranks]
        silent = [rank for rank in lacking if rank not in dead and rank not in new]
        within = f"within {deadline.seconds:g} s"
        parts = [f"{shown_ranks(silent)} did not come {within}"] if silent else []
        parts += [f"{shown_ranks(dead)} ended, and nobody came in {_its(dead)} place {within}"] if dead else []
        parts += [f"nobody came to be {shown_ranks(new)} {within}"] if new else []
        return "; ".join(parts)

    def _count(self, store: dist.Store, agreement: Agreement, deadline: Deadline, late: bool) -> dict[str, Any] | None:
        said: dict[int, str] = dict(
            json.loads(line) for line in lines(store, self._operations.key(agreement.number, "ready"))
        )
        for rank, why in said.items():
            if why:
                return no(f"rank {rank}: {why}", deadline)
        missing = [rank for rank in agreement.members if rank not in said]
        if not missing:
            return {"why": ""}
        ours = [rank for rank in missing if rank in self._ranks and rank not in agreement.newcomers]
        if gone := self._gone(store, ours, late) if ours else set[int]():
            return no(f"{shown_ranks(sorted(gone))} ended", deadline)
        if deadline.passed():
            return no(f"{shown_ranks(missing)} did not build within {deadline.seconds:.3g} s", deadline)
        return None

    def _gone(self, store: dist.Store, ranks: Sequence[int], late: bool) -> set[int]:
        """Which of these have ended, or closed this manager."""
        left = {int(rank) for rank in lines(store, f"{self.keys}/next/left")}
        return set(self._ended(ranks, late)) | left.intersection(ranks)


def _require(decided: Mapping[str, Any]) -> None:
    if decided["why"] and decided["kind"] == "disagreement":
        raise DisagreementError(f"the ranks disagree, and stay what they are: {decided['why']}")
    if decided["why"]:
        raise Refused(decided["why"], called_off=decided["kind"] in (CALLED_OFF, REPLACED))


def _its(ranks: Sequence[int]) -> str:
    return "its" if len(ranks) == 1 else "their"
