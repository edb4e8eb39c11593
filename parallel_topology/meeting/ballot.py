"""Ballot: all ranks say yes, or it is no for all of them; decided once, in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist

from parallel_topology.errors import RendezvousError
from parallel_topology.meeting.control import Control, Patience, append, delete, lines, read
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line

SILENCE = 0.3
"""Seconds after the deadline in which a store that answers may still decide."""
KEPT = 2
"""Ballots whose votes stay in the store besides the one that is under way."""
_LONGEST = 2000
"""Characters of an objection that the others are told."""


class Ballots:
    """The questions of one manager to all its ranks, one after the other.

    The store counts them, and goes on when one is decided. A rank that came too late for one is in time for the next.
    An objection does not wait for all; who comes later hears it.
    """

    def __init__(self, control: Control, keys: str, rank: int, ranks: Sequence[int]) -> None:
        self._control = control
        self._keys = keys
        self._rank = rank
        self._ranks = ranks
        self._number = -1  # the last one it took part in

    def decide(self, objection: str, deadline: Deadline) -> str:
        """Vote, and what holds for all: nothing for yes, else why not. Who objects does not wait for the others.

        The first who knows decides: yes when all have said so, no at the first objection, or when time is up.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """

        def ask(store: dist.Store) -> str:
            counted = f"{self._keys}/ballots"
            count = int(read(store, counted) or 0)
            self._number = next(filter(partial(self._still_holds, store), range(self._number + 1, count)), count)
            why = self._vote(store, f"{self._keys}/ballot/{self._number}/asked", objection, deadline)
            store.compare_set(counted, str(self._number) if self._number else "", str(self._number + 1))
            if self._rank == self._ranks[0]:
                delete(store, *self._keys_of(self._number - KEPT))
            return why

        return self._ask(ask, deadline)

    def confirm(self, objection: str, deadline: Deadline) -> str:
        """As `decide`, on what came of the question that all said yes to."""
        key = f"{self._keys}/ballot/{self._number}/done"
        return self._ask(lambda store: self._vote(store, key, objection, deadline), deadline)

    def clear(self, store: dist.Store) -> None:
        """Take the votes away; the last one to leave does."""
        number = int(read(store, f"{self._keys}/ballots") or 0)
        delete(
            store, f"{self._keys}/ballots", *(key for back in range(KEPT + 1) for key in self._keys_of(number - back))
        )

    def _ask(self, act: Callable[[dist.Store], str], deadline: Deadline) -> str:
        try:
            return self._control.ask(act, deadline, grace=SILENCE)
        except Overtaken:
            raise RendezvousError(f"the store does not answer within {deadline.seconds:g} s") from None
        except STORE_ERRORS as error:
            raise RendezvousError(f"the store is gone: {first_line(error)}") from error

    def _vote(self, store: dist.Store, key: str, objection: str, deadline: Deadline) -> str:
        append(store, f"{key}/votes", json.dumps([self._rank, objection[:_LONGEST]]))
        looks = Patience(len(self._ranks))
        while True:
            if (decided := read(store, f"{key}/decided")) is not None:
                break
            votes: dict[int, str] = dict(json.loads(line) for line in lines(store, f"{key}/votes"))
            missing = [rank for rank in self._ranks if rank not in votes]
            verdict: dict[str, Any] = {"why": next((f"rank {rank}: {why}" for rank, why in votes.items() if why), "")}
            verdict["until"] = time.time() + deadline.left()
            if not verdict["why"] and missing and deadline.passed():
                verdict["why"] = f"{shown_ranks(missing)} did not come within {deadline.seconds:g} s"
            if verdict["why"] or not missing:
                decided = store.compare_set(f"{key}/decided", "", json.dumps(verdict))
                break
            looks.pause(deadline)
        return str(json.loads(decided)["why"])

    def _still_holds(self, store: dist.Store, number: int) -> bool:
        """Whether a ballot that this rank missed was decided so lately that it is the one that it comes for; by wall
        clocks, which differ a little."""
        decided = read(store, f"{self._keys}/ballot/{number}/asked/decided")
        return decided is not None and time.time() < float(json.loads(decided)["until"])

    def _keys_of(self, number: int) -> list[str]:
        ballot = f"{self._keys}/ballot/{number}"
        return [f"{ballot}/{question}/{part}" for question in ("asked", "done") for part in ("votes", "decided")]
