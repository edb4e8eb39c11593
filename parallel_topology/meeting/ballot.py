"""Ballot: all ranks say yes, or it is no for all of them; decided once, in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch.distributed as dist

from parallel_topology.errors import RendezvousError
from parallel_topology.meeting.control import Control, Patience, append, delete, lines, read
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line

SILENCE = 0.3
"""Seconds after the deadline in which a store that answers may still decide."""
_LONGEST = 2000
"""Characters of an objection that the others are told."""


class Ballots:
    """The questions of one manager to all its ranks, one after the other; every rank counts them by itself."""

    def __init__(self, control: Control, keys: str, rank: int, ranks: Sequence[int]) -> None:
        self._control = control
        self._keys = keys
        self._rank = rank
        self._ranks = ranks
        self._number = 0

    def decide(self, objection: str, deadline: Deadline) -> str:
        """Vote, and what holds for all: nothing for yes, else why not. Who objects does not wait for the others.

        The first who knows decides: yes when all have said so, no at the first objection, or when time is up.

        Raises:
            RendezvousError: the store is gone, or does not answer.
        """
        self._number += 1
        key = f"{self._keys}/ballot/{self._number}"
        try:
            return self._control.ask(lambda store: self._vote(store, key, objection, deadline), deadline, grace=SILENCE)
        except Overtaken:
            raise RendezvousError(f"the store does not answer within {deadline.seconds:g} s") from None
        except STORE_ERRORS as error:
            raise RendezvousError(f"the store is gone: {first_line(error)}") from error

    def clear(self, store: dist.Store) -> None:
        """Take the votes away; the last one to leave does."""
        numbers = range(1, self._number + 2)
        delete(store, *(f"{self._keys}/ballot/{number}/{part}" for number in numbers for part in ("votes", "decided")))

    def _vote(self, store: dist.Store, key: str, objection: str, deadline: Deadline) -> str:
        append(store, f"{key}/votes", json.dumps([self._rank, objection[:_LONGEST]]))
        looks = Patience(len(self._ranks))
        while True:
            if (decided := read(store, f"{key}/decided")) is not None:
                break
            votes: dict[int, str] = dict(json.loads(line) for line in lines(store, f"{key}/votes"))
            missing = [rank for rank in self._ranks if rank not in votes]
            verdict = {"why": next((f"rank {rank}: {why}" for rank, why in votes.items() if why), "")}
            if not verdict["why"] and missing and deadline.passed():
                verdict["why"] = f"{shown_ranks(missing)} did not come within {deadline.seconds:g} s"
            if verdict["why"] or not missing:
                decided = store.compare_set(f"{key}/decided", "", json.dumps(verdict))
                break
            looks.pause(deadline)
        return str(json.loads(decided)["why"])
