"""Remains: what one rank's part in a meeting has left in the store, and who takes away what all shared."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence

import torch.distributed as dist

from parallel_topology.meeting import completion
from parallel_topology.meeting.control import append, delete, drop_lines, keys_under, lines, read
from parallel_topology.meeting.operations import Operations
from parallel_topology.meeting.places import Places
from parallel_topology.topology.layout import Ranks

_OF_MANAGERS = (*completion.KEYS, "witness/failed")
"""Keys that a manager puts below its own, whose names are always the same."""


class Remains:
    """Of one rank.

    Attributes:
        calls: keys at which it waited to be called.
        formers: rounds that it called, and that did not come off.
        told: keys at which it called others.
        absent: ranks that will not leave, as they are gone: nobody needs them to have left.
    """

    def __init__(self, places: Places, world: Ranks, rank: int) -> None:
        self.calls: list[str] = []
        self.formers: list[str] = []
        self.told: list[str] = []
        self.absent: Sequence[int] = ()
        self._places = places
        self._world = world
        self._rank = rank
        self._left = False
        self._ended: list[str] = []
        self._mark = secrets.token_hex(8)

    def tidy(self, store: dist.Store, round_: str) -> None:
        """Take away what this rank put into the store for the agreement, once all have been through it."""
        delete(store, *self.calls)
        if round_:
            delete(store, f"{self._root}/{round_}/ack/{self._rank}")
        for former in self.formers:
            delete(store, f"{self._root}/{former}/call", f"{self._root}/{former}/end")

    def look(self, store: dist.Store) -> None:
        """See which managers the first rank has left by now, before it meets the others once more. Of those, nobody
        waits any longer for what stands in the store; of one that it leaves later, some still may."""
        self._ended = lines(store, f"{self._root}/ended")

    def leave(self, store: dist.Store, round_: str) -> bool:
        """Leave a round; whether nobody needs what is left of it: then that is taken away."""
        self.tidy(store, round_)
        if not round_ or self._left:
            return False
        self._left = True
        if self._rank == self._places.first:  # before it counts itself out, so that the last one takes this away, too
            self._sweep(store)
            append(store, f"{self._root}/ended", round_)
        here = f"{self._root}/{round_}"
        if self._count_out(store, here) < len(self._world) and store.check([f"{here}/call"]):
            return False
        if read(store, f"{self._places.spot}/open") == round_.encode():
            delete(store, f"{self._places.spot}/open")
        for rank in self.absent:
            self._places.clear(store, rank, round_)
        self._clear(store, [round_])
        return True

    def _count_out(self, store: dist.Store, here: str) -> int:
        """How many have left, this rank and those that never will included; each once, as who seems to be gone may
        leave all the same, before the others know or after."""
        absent = self.absent if self.absent and self._is_first_at(store, f"{here}/out/absent") else ()
        new = [rank for rank in {*absent, self._rank} if self._is_first_at(store, f"{here}/out/{rank}")]
        return store.add(f"{here}/left", len(new))

    def _is_first_at(self, store: dist.Store, key: str) -> bool:
        return store.compare_set(key, "", self._mark).decode(errors="replace") == self._mark

    def _sweep(self, store: dist.Store) -> None:
        """Take away what is left of managers that the first rank left long ago, as others may have died and never will.
        Who only leaves late finds no call there, and takes away what it has put there since."""
        if self._ended:
            drop_lines(store, f"{self._root}/ended", self._ended.__contains__)
            self._clear(store, self._ended)

    def _clear(self, store: dist.Store, rounds: Collection[str]) -> None:
        """Take away all of these rounds, and with the last manager what the place has for all."""
        root = self._root
        delete(store, *(f"{root}/{one}/call" for one in rounds))  # `Meeting.sign`
        lived = delete(store, *(f"{root}/{one}/live" for one in rounds))
        for one in rounds:
            Operations(f"{root}/{one}/keys").clear(store)
        there = keys_under(store, [f"{root}/{one}/" for one in rounds])
        delete(store, *(there or (f"{root}/{one}/{key}" for one in rounds for key in self._known())))
        if lived and store.add(f"{root}/live", -lived) <= 0:
            delete(store, *(f"{root}/{key}" for key in ("live", "number", "met", "ended")))

    def _known(self) -> Iterator[str]:
        """Of a round: what a store that cannot list its keys is asked for."""
        yield from ("end", "left", "out/absent")
        yield from (f"{what}/{rank}" for what in ("ack", "out") for rank in self._world)
        yield from (f"keys/{key}" for key in _OF_MANAGERS)

    @property
    def _root(self) -> str:
        return self._places.root
