"""Lobby: where those wait who are to join a manager, with nothing but its name, until they are called to a place.

A line of one key says who is there, and each waits for a key of its own, so that waiting costs nothing. Who gives
places calls them in turn; whoever does not answer at once is taken for gone, and the next one is called.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from parallel_topology.communicators.presence import is_gone, started
from parallel_topology.errors import GroupTimeoutError, RendezvousError
from parallel_topology.meeting.cards import UnreadableError, read_object
from parallel_topology.meeting.control import append, delete, drop_lines, lines, read, read_when_there, wait_for
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.operations import key_of, withdraw_if_over
from parallel_topology.meeting.options import host_identity
from parallel_topology.meeting.succession import Invite
from parallel_topology.meeting.token import Seals

ANSWER = 1.0
"""Seconds after which who does not answer a call is taken for gone, if there is somebody else."""
LAST_WORDS = 1.0
"""Seconds after the deadline in which who waited may still take its name away."""
_GONE = "gone"
_FIELDS: Mapping[str, Any] = {
    "keys": str, "number": int, "topology": str, "place": int, "seconds": (int, float), "told": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What a newcomer is told.

    Attributes:
        keys: of the manager it comes to.
        number: of the operation.
        topology: its text.
        place: the rank that the newcomer is to be.
        seconds: within which it has to be decided.
        told: what else those that are there hold, as they choose.
    """

    keys: str
    number: int
    topology: str
    place: int
    seconds: float
    told: Mapping[str, Any]


@dataclass
class Lobby:
    """Those of one manager's name.

    Attributes:
        name: the manager's.
        token: if given, who does not hold it is neither called nor believed.
    """

    name: str
    token: str | None = field(repr=False)

    @property
    def _here(self) -> str:
        return f"lobby/{self.name}/here"

    def key(self, who: str) -> str:
        """Where one of those that wait is called."""
        return f"lobby/{self.name}/{who}/call"

    def wait(self, store: dist.Store, deadline: Deadline, who: str) -> Call:
        """Wait until `who`, which nobody else is, is called; the call stays, so that nobody calls once more, until
        `forget` takes it away.

        Raises:
            GroupTimeoutError: nobody called in time.
            RendezvousError: what called does not hold the token.
        """
        entry = json.dumps([who, host_identity(), os.getpid(), started(os.getpid())])
        append(store, self._here, json.dumps([entry, self._seal(entry)]))
        came = wait_for(store, [self.key(who)], deadline)
        if not came and not self.withdraw(store, who):
            came = True  # it was called while it went away
        if not came:
            raise GroupTimeoutError(
                f"{self.name}: nobody called to a place within {deadline.seconds:g} s: those that are there have to "
                f"rebind to a topology with a rank that none of them has"
            )
        text = read(store, self.key(who)) or b""
        try:
            outer = read_object(text, {"call": str, "seal": str})
            call = Call(**read_object(outer["call"].encode(), _FIELDS))
        except UnreadableError as error:
            raise RendezvousError(f"{self.name}: what should be a call to a place: {error}") from None
        if not Seals(self.token).fits(outer["seal"], self.name, who, outer["call"]):
            raise RendezvousError(f"{self.name}: what called does not hold the same token, and is not believed")
        return call

    def withdraw(self, store: dist.Store, who: str) -> bool:
        """Wait no more; False if somebody has called."""
        self._forget(store, who)
        if store.compare_set(self.key(who), "", _GONE).decode(errors="replace") != _GONE:
            return False
        delete(store, self.key(who))
        return True

    def waiting(self, store: dist.Store) -> list[tuple[str, str, int, int]]:
        """Who is there: identity, host, process, and when that began."""
        found: list[tuple[str, str, int, int]] = []
        for line in lines(store, self._here):
            with suppress(ValueError, TypeError, RecursionError):
                entry, seal = json.loads(line)
                if Seals(self.token).fits(seal, self.name, "lobby", entry):
                    who, host, process, since = json.loads(entry)
                    found.append((str(who), str(host), int(process), int(since)))
        return found

    def call(self, store: dist.Store, who: str, call: Call) -> bool:
        """Call one that waits, who then waits no more; whether it had not gone away."""
        self._forget(store, who)
        text = json.dumps(vars(call))
        said = json.dumps({"call": text, "seal": Seals(self.token).of(self.name, who, text)})
        return store.compare_set(self.key(who), "", said).decode(errors="replace") == said

    def forget(self, store: dist.Store, who: str) -> None:
        """Take one away that has ended."""
        self._forget(store, who)
        delete(store, self.key(who))

    def _seal(self, entry: str) -> str:
        return Seals(self.token).of(self.name, "lobby", entry)

    def _forget(self, store: dist.Store, who: str) -> None:
        drop_lines(store, self._here, lambda line: who in line)


@dataclass
class Invitations(Invite):
    """What one rank gives away in one operation; who was called stands in the store, as another rank may have called.

    Attributes:
        lobby: where newcomers wait.
        call: number, place and seconds -> what a newcomer is told.
    """

    lobby: Lobby
    call: Callable[[int, int, float], Call]
    _seen: dict[str, float] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]

    def fill(self, store: dist.Store, number: int, places: Sequence[int], seconds: float) -> None:
        key = key_of(self.call(number, places[0], seconds).keys, number, "called")
        held = (read(store, key) or b"").decode(errors="replace")
        called = {place: one for place, *one in map(json.loads, held.splitlines())}  # the newest counts
        here = host_identity()
        free = [place for place in places if place not in called or not self._may_come(store, here, *called[place])]
        for who, host, process, since in self.lobby.waiting(store) if free else ():
            if host == here and is_gone(process, since):
                self.lobby.forget(store, who)
                continue
            if not free:
                break
            mine = secrets.token_hex(4)  # or two that call the same one would both take themselves for the first
            wanted = held + json.dumps([free[0], who, host, process, since, mine]) + "\n"
            if store.compare_set(key, held, wanted).decode(errors="replace") != wanted:
                return  # another rank calls, too: who is left is seen at the next look
            held = wanted
            if self.lobby.call(store, who, self.call(number, free[0], seconds)):
                free.pop(0)

    def _may_come(self, store: dist.Store, here: str, who: str, host: str, process: int, since: int, _: str) -> bool:
        """Whether one that was called may still answer."""
        seen = self._seen.setdefault(who, time.monotonic())
        ended = host == here and is_gone(process, since)
        if not ended and (time.monotonic() - seen < ANSWER or not self.lobby.waiting(store)):
            return True
        delete(store, self.lobby.key(who))
        return False


def answer(store: dist.Store, call: Call, who: str) -> bool:
    """A newcomer takes the place that it was called to; False if another one was called to it, too, and has it."""
    key = key_of(call.keys, call.number, "votes")
    append(store, key, json.dumps([call.place, "", who, ""]))
    withdraw_if_over(store, call.keys, call.number, "votes")
    votes: list[tuple[int, str, str, str]] = [json.loads(line) for line in lines(store, key)]
    return who == next((one for place, _, one, _ in votes if one and place == call.place), who)


def agreed(store: dist.Store, call: Call, who: str, deadline: Deadline) -> dict[int, str] | None:
    """Place -> who has it, if a newcomer has the one that it took; None if that came to nothing, or another has it."""
    key = key_of(call.keys, call.number, "agreed")
    found = read_when_there(store, key, deadline)
    decided = json.loads(found or b'{"why": "it was not decided"}')
    if decided["why"] or decided["newcomers"].get(str(call.place)) != who:
        return None
    return {int(place): str(one) for place, one in decided["newcomers"].items()}
