"""Operations: which one is under way on a manager, and what came of those before.

An operation binds the ranks of a manager to another topology. It has a number, keys of its own below those that only
this manager has, and three steps, each of which whoever first knows writes once. The next one begins where a step is a
no, so one at most can ever be committed. What came to nothing is remembered as long as a rank may come for it that was
not there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import Any

import torch.distributed as dist

from parallel_topology.meeting.control import append, delete, drop_lines, lines, read
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.topology.wording import shown_ranks

KEPT = 2
"""Operations that came to nothing whose keys stay in the store, as ranks may still be about to read them."""
CALLED_OFF, REPLACED = "called off", "replaced"
"""How a rank let an operation come to nothing: nobody is to have it; or this rank asks for another topology instead, or
has closed its manager, and whoever wants this one is to ask afresh."""
LONGEST = 2000
"""Characters of an objection that the others are told."""
STEPS = ("agreed", "built", "outcome")
_KEYS = ("asked", "votes", "called", "ready", "over", *STEPS)


class Operations:
    """Those on one manager, as one rank knows them. All of it happens at the store.

    Attributes:
        keys: the manager's alone.
        last: the last operation that this rank took part in; -1 for none.
    """

    def __init__(self, keys: str) -> None:
        self.keys = keys
        self.last = -1

    def key(self, number: int, name: str) -> str:
        """Where one of an operation's keys is."""
        return key_of(self.keys, number, name)

    def counted(self, store: dist.Store) -> int:
        """How many came to nothing: the number of the one that is under way."""
        return int(read(store, self._number_key) or 0)

    def missed(self, store: dist.Store, topology: str) -> tuple[int, dict[str, Any]] | None:
        """An operation that came to nothing without this rank, so lately that it is the one that it comes for, and why;
        by wall clocks, which differ a little."""
        for number, asked, refused in self._ended(store):
            right = asked == topology or refused["kind"] == "disagreement"
            if number > self.last and right and time.time() < refused["until"]:
                return number, refused
        return None

    def refusal(self, store: dist.Store, number: int) -> dict[str, Any] | None:
        """Why an operation came to nothing; None if it did not."""
        for step in STEPS:
            found = read(store, self.key(number, step))
            if found is None:
                return None
            decided: dict[str, Any] = json.loads(found)
            if decided["why"]:
                return decided
        return None

    def is_over(self, store: dist.Store, number: int) -> bool:
        """Whether an operation came to nothing, perhaps long ago."""
        return read(store, self.key(number, "asked")) is None or self.refusal(store, number) is not None

    def refuse(self, store: dist.Store, number: int, why: str, deadline: Deadline, *, kind: str = "") -> bool:
        """Let an operation come to nothing; whether that is so, as it may have been committed. Who asks for it before
        `deadline` hears of that, and begins no other one."""
        said = no(why, deadline, kind)
        for step in STEPS:
            if json.loads(store.compare_set(self.key(number, step), "", json.dumps(said)))["why"]:
                self.go_on(store, number)
                return True
        return False

    def go_on(self, store: dist.Store, number: int) -> None:
        """An operation came to nothing: the next one may begin."""
        store.compare_set(self._number_key, str(number) if number else "", str(number + 1))
        self._remember(store, number - KEPT)
        self._delete(store, number - KEPT)

    def gone_over(self, store: dist.Store) -> str:
        """Who went on to what, in words, if that still stands there."""
        number = self.counted(store)
        ranks = {int(rank) for rank in lines(store, self.key(number, "over"))}
        asked = read(store, self.key(number, "asked"))
        return f"{shown_ranks(sorted(ranks))} went on to {json.loads(asked)[1]}" if ranks and asked is not None else ""

    def clear(self, store: dist.Store) -> None:
        """Take all away; the last one to leave does."""
        number = self.counted(store)
        for back in range(KEPT + 1):
            self._delete(store, number - back)
        delete(store, self._number_key, self._past_key, f"{self.keys}/next/left")

    @property
    def _number_key(self) -> str:
        return f"{self.keys}/next/number"

    @property
    def _past_key(self) -> str:
        return f"{self.keys}/next/past"

    def _ended(self, store: dist.Store) -> Generator[tuple[int, str, dict[str, Any]]]:
        """Those that came to nothing: number, topology, why."""
        for line in lines(store, self._past_key):
            yield tuple(json.loads(line))
        counted = self.counted(store)
        for number in range(max(counted - KEPT, 0), counted):
            refused, asked = self.refusal(store, number), read(store, self.key(number, "asked"))
            if refused is not None and asked is not None:
                yield number, json.loads(asked)[1], refused

    def _remember(self, store: dist.Store, number: int) -> None:
        """Of an operation whose keys are about to go; and no longer of those that nobody comes for any more."""
        refused, asked = self.refusal(store, number), read(store, self.key(number, "asked"))
        if refused is not None and asked is not None:
            append(store, self._past_key, json.dumps([number, json.loads(asked)[1], refused]))
        drop_lines(store, self._past_key, lambda line: time.time() >= json.loads(line)[2]["until"])

    def _delete(self, store: dist.Store, number: int) -> None:
        if number < 0:
            return
        ranks = {json.loads(line)[0] for line in lines(store, self.key(number, "votes"))}
        spot = meeting_place(self.keys, number)
        delete(store, *(self.key(number, name) for name in _KEYS))
        delete(store, f"{spot}/open", *(f"{spot}/came/{rank}" for rank in ranks))


def key_of(keys: str, number: int, name: str) -> str:
    """Where an operation's key is."""
    return f"{keys}/next/{number}/{name}"


def meeting_place(keys: str, number: int) -> str:
    """Where those meet who follow on a manager in an operation."""
    return key_of(keys, number, "meeting")


def committed_key(who: str) -> str:
    """Where a newcomer is told that what it has built is committed."""
    return f"committed/{who}"


def no(why: str, deadline: Deadline, kind: str = "") -> dict[str, Any]:
    """What is written where a step is refused."""
    return {"why": why[: 2 * LONGEST], "kind": kind, "until": time.time() + deadline.left()}


def say_ready(store: dist.Store, keys: str, number: int, rank: int, objection: str) -> None:
    """A rank of the new topology has built what it needs, or says why not."""
    append(store, key_of(keys, number, "ready"), json.dumps([rank, objection[:LONGEST]]))
    withdraw_if_over(store, keys, number, "ready")


def withdraw_if_over(store: dist.Store, keys: str, number: int, name: str) -> None:
    """Take away what was written too late: the operation has come to nothing, and its keys were taken away before."""
    if read(store, key_of(keys, number, "asked")) is None:
        delete(store, key_of(keys, number, name))
