"""Witness: when an operation fails, ranks tell each other through the store where they were, and errors name them."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from parallel_topology.communicators.links import Call
from parallel_topology.meeting.control import Control, Patience, append, delete, lines, read
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.meeting.vigil import LEAD, Vigil
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS

GRACE = 0.4
"""Seconds a failed rank looks for the others' reports, at most: those that took part fail at about the same time.
Before a timeout they have all said where they are, and the time counts from when this one did."""
THOROUGHLY = 4
"""After so many looks, a few milliseconds, ranks on other hosts are looked for, too, once."""
SILENCE = 0.5
"""Seconds more after which a store that does not answer is not waited for; a busy machine's takes its time."""
EARLY = 0.05
"""Seconds before its time is up at which a rank decides who is there."""
PAST = 10.0
"""Seconds after which a report belongs to an earlier failure, whose groups its rank may have left; of wall clocks."""


class Witness:
    """One manager's reports, under keys of its own: all failures of all groups are lines of one key.

    So a failing rank's cost at the store does not depend on how many are silent.

    Attributes:
        ended: which of some ranks are known to have ended; those are not waited for. Thoroughly, it may take a while.
        missed: ranks that did not report the last failure, or did not answer when all were asked who is there.
        failed: whether an operation has failed at this rank.
        among: makes a manager of some of the ranks, beside this one.
        vigil: told of the operations in which this rank waits.
    """

    def __init__(self, control: Control, keys: str, rank: int) -> None:
        self.ended: Callable[[Sequence[int], bool], Collection[int]] = lambda ranks, thoroughly: ()
        self.missed: set[int] = set()
        self.failed = False
        self.among: Callable[[Sequence[int]], Any] = lambda ranks: None
        self._begun: dict[str, int] = {}  # what is to be concluded -> how often it has begun
        self.vigil = Vigil(self._announce)
        self._control = control
        self._keys = keys
        self._rank = rank
        self._seen: dict[str, int] = {}  # group -> how many lines were there at its last failure: they speak of that
        self._failed: dict[str, int] = {}  # group -> number of the last collective that failed: so do lines up to it
        self._lock = threading.Lock()

    def report(self, group: str, ranks: Sequence[int], call: Call) -> str:
        """Say that this rank failed in `call` on `group`, and find out who else did; for half a second at most.

        Returns:
            A sentence that names the ranks that reported, with their operation where it is another, and those that
            did not: dead, or somewhere else.
        """
        self.failed = True
        operation = call.operation
        mine = self._line(group, call)
        deadline = Deadline(max(GRACE - self.vigil.take(group), 0))
        try:
            where = self._control.ask(
                lambda store: self._exchange(store, mine, ranks, deadline), Deadline(GRACE), grace=SILENCE
            )
        except Overtaken:
            return "the store does not answer, so the others cannot be asked"
        except STORE_ERRORS:
            return "the store is gone too, so the others cannot be asked"
        others = [rank for rank in ranks if rank != self._rank]
        silent = [rank for rank in others if rank not in where]
        self.missed = set(silent)
        there = [rank for rank in others if where.get(rank) == operation]
        parts = [f"{shown_ranks(there)} failed in it too"] if there else []
        parts += [f"rank {rank} was in {where[rank]}" for rank in others if where.get(rank, operation) != operation]
        dead = [rank for rank in silent if rank in self.ended(silent, False)] if silent else []
        silent = [rank for rank in silent if rank not in dead]
        parts += [f"{shown_ranks(dead)} did not report: dead"] if dead else []
        parts += [f"{shown_ranks(silent)} did not report: dead, elsewhere or still waiting"] if silent else []
        return "; ".join(parts)

    def _line(self, group: str, call: Call | None) -> str:
        return json.dumps([group, self._rank, *(call or (None, None)), time.time()])

    def _announce(self, group: str, call: Call | None) -> None:
        """Say where this rank waits, before its time is up, or that it does so no longer."""
        with suppress(Overtaken, *STORE_ERRORS):
            line = self._line(group, call)
            self._control.ask(lambda store: append(store, f"{self._keys}/failed", line), Deadline(GRACE))

    def _exchange(self, store: dist.Store, mine: str, ranks: Sequence[int], deadline: Deadline) -> dict[int, str]:
        """Rank -> where it failed, of those that reported a failure on the same group.

        They are all waited for that can still report this one: who stopped looking before this rank began reported an
        earlier one, and who has ended reports nothing more.
        """
        key = f"{self._keys}/failed"
        append(store, key, mine)
        group, _, _, number, _ = json.loads(mine)
        with self._lock:
            seen, before = self._seen.get(group, 0), self._failed.get(group, 0)
        looks, look, ended = Patience(len(ranks)), 0, set[int]()
        while True:
            look += 1
            told = lines(store, key)
            began = told.index(mine)
            where: dict[int, str] = {}
            new: set[int] = set()
            for at, line in enumerate(told[seen:], seen):
                report = _read_report(line)
                if report is None or report[0] != group:
                    continue
                _, rank, call, when = report
                age = time.time() - when
                if call is None:
                    new -= {rank} if at < began else set()
                elif call.number is not None and call.number <= before:
                    continue  # it came late: of a collective that failed here, too, and was told of
                elif age < PAST:
                    where[rank] = call.operation
                    new |= {rank} if age < GRACE + LEAD else set()  # older, it has stopped looking, or ended meanwhile
            lacking = [rank for rank in ranks if rank not in new]
            if lacking and not deadline.passed():
                ended.update(self.ended(lacking, look == THOROUGHLY))
            if deadline.passed() or ended.issuperset(lacking):
                break
            looks.pause(deadline)
        append(store, key, self._line(group, None))
        with self._lock:
            self._seen[group] = max(self._seen.get(group, 0), len(told))
            self._failed[group] = max(self._failed.get(group, 0), number or 0)
        return where

    def present(self, ranks: Sequence[int], timeout: float) -> list[int]:
        """Which ranks answer: the same list for all of them that ask within `timeout` seconds of each other.

        The first whose time is up, or who sees all, decides it for all, in the store. Whoever did not ask misses
        nothing: the next time is another one.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        deadline = Deadline(timeout)
        here = self._control.answer(lambda store: self._count(store, ranks, deadline), deadline, grace=SILENCE)
        self.missed = set(ranks) - set(here)
        return here

    def begin(self, what: str) -> int:
        """The number of something that all ranks of a group do together, as this one counts."""
        self._begun[what] = number = self._begun.get(what, 0) + 1
        return number

    def concluded(
        self, what: str, number: int, ranks: Sequence[int], timeout: float, outcome: str = ""
    ) -> tuple[str, list[int]]:
        """What came of it: the same for all of these ranks, as the first who knows decides, in the store.

        Args:
            number: that all have agreed on, or, before they have, this one's.
            outcome: what this rank knows came of it; empty if it failed here.

        Returns:
            The outcome that one of them knew, and nobody; or none, and those who ask: as of `present`.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        deadline, key = Deadline(timeout), self._conclusion(what, number)
        me = f"{self._rank} {secrets.token_hex(4)}"
        self._begun[what] = number

        def find_out(store: dist.Store) -> bytes:
            if not outcome:
                return self._decided(store, key, ranks, deadline, me)
            if self._rank == ranks[0]:  # all have come to this one, so they know of those before
                delete(store, *self._of(what, number - 1))
            return bytes(store.compare_set(f"{key}/decided", "", json.dumps([me, [], outcome])))

        _, here, known = json.loads(self._control.answer(find_out, deadline, grace=SILENCE))
        return known, here

    def _conclusion(self, what: str, number: int) -> str:
        return f"{self._keys}/concluded/{what}/{number}"

    def _of(self, what: str, number: int) -> list[str]:
        """The keys of a conclusion and the one before it."""
        both = (self._conclusion(what, one) for one in (number - 1, number))
        return [f"{one}/{key}" for one in both for key in ("here", "decided")]

    def _count(self, store: dist.Store, ranks: Sequence[int], deadline: Deadline) -> list[int]:
        me = f"{self._rank} {secrets.token_hex(4)}"
        while True:
            number = int(read(store, f"{self._keys}/counts") or 0)
            by, found, _ = json.loads(self._decided(store, f"{self._keys}/count/{number}", ranks, deadline, me))
            if by == me:
                delete(store, f"{self._keys}/count/{number - 2}/here", f"{self._keys}/count/{number - 2}/decided")
            # By each that was counted, so that the next one is another count, whoever comes first or dies here.
            store.compare_set(f"{self._keys}/counts", str(number) if number else "", str(number + 1))
            if self._rank in found:
                return found
            if deadline.passed():  # else it was decided just before this rank came
                return [self._rank]

    def _decided(self, store: dist.Store, key: str, ranks: Sequence[int], deadline: Deadline, me: str) -> bytes:
        """Who decided, who was there then, and what was known: by the first who sees all here, or whose time is up."""
        append(store, f"{key}/here", me)
        looks = Patience(len(ranks))
        while True:
            decided = read(store, f"{key}/decided")
            if decided is not None:
                return decided
            here = {int(line.split()[0]) for line in lines(store, f"{key}/here")}
            lacking = [rank for rank in ranks if rank not in here]
            if deadline.left() < EARLY or set(self.ended(lacking, False)).issuperset(lacking):
                snapshot = json.dumps([me, [rank for rank in ranks if rank in here], ""])
                return bytes(store.compare_set(f"{key}/decided", "", snapshot))
            looks.pause(deadline)

    def clear(self, store: dist.Store) -> None:
        """Take away what all share; the last one to leave does."""
        number = int(read(store, f"{self._keys}/counts") or 0)
        kept = range(number - 2, number + 1)
        counts = [f"{self._keys}/count/{one}/{key}" for one in kept for key in ("here", "decided")]
        concluded = [key for what, number in self._begun.items() for key in self._of(what, number)]
        delete(store, f"{self._keys}/failed", f"{self._keys}/counts", *counts, *concluded)


def _read_report(line: str) -> tuple[str, int, Call | None, float] | None:
    """Group, rank, call and time; no call where the rank stopped looking. None for what is not ours."""
    try:
        group, rank, operation, number, when = json.loads(line)
        call = None if operation is None else Call(str(operation)[:200], None if number is None else int(number))
        return str(group), int(rank), call, float(when)
    except (ValueError, TypeError, RecursionError):
        return None
