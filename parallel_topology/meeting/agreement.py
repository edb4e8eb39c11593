"""Agreement before creation: every rank shows the others what it is about to build, and all build it or none does.

Each rank puts a card where its rank's place is; the newest there counts, so whatever dead ranks, earlier tries or
earlier jobs left in the store is replaced by who comes. The topology's first rank calls those it finds to a round,
under a name that was never used. Who is called builds what needs no others, and answers where that listens, with a
proof of the token, where there is one, over the fresh nonces of all and over what it says. When all have answered, the
first rank gives a verdict, which holds every rank's answer, and each rank checks them. If somebody does not answer, and
another comes in its place, all are called again; who gives up takes its card away.

A rank spends a handful of store operations, however large the world; the first one some for each card besides. All that
is read is JSON of bounded size, never pickle.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch.distributed as dist

from parallel_topology.errors import GroupTimeoutError, ParallelTopologyError, RendezvousError
from parallel_topology.meeting.cards import Answer, Called, Entry, UnreadableError, differences
from parallel_topology.meeting.control import Patience, absent, delete, read, read_all, wait_for, write_all
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.places import Places, called_to, gave_up_within, is_free, present
from parallel_topology.meeting.remains import Remains
from parallel_topology.meeting.token import digest
from parallel_topology.meeting.verdict import Agreed, Trust, agreement, complaint, refusal
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line

AGAIN, OVER = "again", "over"
PATIENCE = 0.5
"""Seconds in which who holds a wrong token, or shows no card at all, may be replaced by the rank that it is not."""
FIRST_LOOK = 1.0
"""Seconds the answers to a call are waited for before somebody is looked for who came in another's place."""


@dataclass
class Meeting:
    """One rank's part in one agreement. Its methods wait in the store: they run where the deadline can overtake them.

    Attributes:
        name: of the manager; ranks of one name meet.
        world: the ranks that are to come.
        rank: this one.
        host, process, address, memory: as in `Entry`.
        card: what is to be equal on all ranks, as JSON.
        token: if given, a rank without it is refused.
        deadline: for all of it.
        build: builds what needs no others, and says of it what they need to know, as JSON; in each round anew.
        at: where those meet who follow on a manager together, so that nobody meets who was called to something that
            has come to nothing since; whose keys these are takes them away.
    """

    name: str
    world: Ranks
    rank: int
    host: str
    process: str
    address: str
    card: str
    token: str | None = field(repr=False)
    deadline: Deadline
    memory: str = ""
    build: Callable[[Called], str] = lambda _: ""
    at: str = ""
    round: str = ""
    _nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    _turn: int = 0
    _before: str = ""
    _places: Places = field(init=False, repr=False)
    _remains: Remains = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._places = Places.of(self.name, self.world, self.at)
        self._remains = Remains(self._places, self.world, self.rank)

    @property
    def leads(self) -> bool:
        """Whether this is the first rank."""
        return self.rank == self._places.first

    @property
    def keys(self) -> str:
        """Under which the keys are that are this manager's alone."""
        return f"{self._in_round}/keys"

    def agree(self, store: dist.Store) -> Agreed:
        """Wait for all ranks of `world` and compare their cards.

        Raises:
            DisagreementError: the cards differ; raised on every rank, naming which ranks hold what.
            GroupTimeoutError: ranks did not come in time; names them.
            RendezvousError: the store failed or holds garbage, or a rank does not have the token.
        """
        present.add(self._nonce)
        try:
            self._require_time(store)
            self._enter(store)
            return self._lead(store) if self.leads else self._follow(store)
        except BaseException as error:
            with suppress(*STORE_ERRORS):
                self.withdraw(store)
            if isinstance(error, (ParallelTopologyError, UnreadableError)) or not isinstance(error, STORE_ERRORS):
                raise
            raise RendezvousError(
                f"{self.name}: the store failed, or holds what is not ours, while rank {self.rank} waited for the "
                f"others: {type(error).__name__}: {first_line(error)}"
            ) from error
        finally:
            present.discard(self._nonce)

    def withdraw(self, store: dist.Store) -> None:
        """Take this rank's card away and end the round it is in, so that whoever tries again meets."""
        present.discard(self._nonce)
        self._places.give_up(store, self.rank, self._entry.text(), called_to(self.round))
        if self.round:
            store.compare_set(f"{self._in_round}/end", "", AGAIN)
        self._remains.calls.append(self._called)
        store.set(self._called, OVER)  # wakes what may still wait there
        self._end(store)

    @property
    def sign(self) -> str:
        """A key that is in the store as long as not all have left; it goes before all others."""
        return f"{self._in_round}/call"

    @property
    def _met(self) -> str:
        return f"{shown_ranks(list(self.world))} as {self._topology(self.card)}"

    def went_on(self, store: dist.Store) -> str:
        """Who has met here since, in words; empty if nobody has."""
        met = (read(store, f"{self._places.root}/met") or b"").decode(errors="replace")[:200]
        return "" if met == self._met else met.replace(" as ", " went on to ", 1)

    def without(self, ranks: Sequence[int]) -> None:
        """These will not leave, as they are gone: nobody needs them to have left to take away what is left over."""
        self._remains.absent = ranks

    def leave(self, store: dist.Store) -> bool:
        """Take away what is left once the manager has ended; whether this rank was the last to leave, which takes what
        all shared."""
        self._places.clear(store, self.rank, self.round)
        delete(store, *self._remains.told)
        return self._end(store)

    def _end(self, store: dist.Store) -> bool:
        return self._remains.leave(store, self.round)

    # The first rank calls.

    def _lead(self, store: dist.Store) -> Agreed:
        self._remains.look(store)
        self._end_former(store)
        while True:
            entries, refused = self._gather(store)
            self._require_time(store)
            call = self._call(store, entries)
            answers = {} if refused else self._answers(store, call, entries)
            if answers is not None:
                self._require_time(store)
                verdict = self._verdict(store, call, entries, answers, refused)
                sealed = self._trust.sealed(call, verdict)
                if store.compare_set(f"{self._in_round}/end", "", sealed).decode(errors="replace") == sealed:
                    store.compare_set(self._places.came(self.rank), self._entry.text(), called_to(self.round))
                    return self._conclude(call, sealed.encode())
            store.compare_set(f"{self._in_round}/end", "", AGAIN)
            self._remains.formers.append(self.round)

    def _end_former(self, store: dist.Store) -> None:
        """Send away those that wait for a first rank that died after it had called them."""
        former = read(store, f"{self._places.spot}/open")
        if former is not None:
            store.compare_set(f"{self._places.root}/{former.decode()}/end", "", AGAIN)

    def _gather(self, store: dist.Store) -> tuple[dict[int, Entry], str]:
        """The newest card of each rank; or those there are, and why another is refused."""
        if not wait_for(store, [self._places.came(rank) for rank in self.world], self.deadline):
            raise GroupTimeoutError(self._missing(store))
        looks = Patience(len(self.world))
        entries: dict[int, Entry] = {}
        since: dict[int, float] = {}
        patience = self._soon(PATIENCE).seconds
        while True:
            wanted = [rank for rank in self.world if rank not in entries]
            texts = read_all(store, [self._places.came(rank) for rank in wanted])
            for rank, text in zip(wanted, texts, strict=True):
                if is_free(text):
                    since.pop(rank, None)
                    continue
                try:
                    entries[rank] = Entry.read(text, rank)
                except UnreadableError as error:
                    if time.monotonic() - since.setdefault(rank, time.monotonic()) >= patience:
                        return entries, f"{self.name}: what came as rank {rank} shows no card: {error}"
            if len(entries) == len(self.world):
                return entries, ""
            if self.deadline.passed():
                raise GroupTimeoutError(self._missing(store))
            looks.pause(self.deadline)

    def _call(self, store: dist.Store, entries: dict[int, Entry]) -> str:
        """Call those that are there to a new round; what they are told."""
        self.round = secrets.token_hex(8)
        there = [entries[rank] for rank in self.world if rank in entries]
        members = [[entry.rank, entry.nonce, digest(entry.text())] for entry in there]
        first = {entry.host: entry for entry in reversed(there)}  # of each host
        numbers = {host: number for number, host in enumerate(first)}
        call = json.dumps({"members": members, "on": [numbers[entry.host] for entry in there],
                           "hosts": [[entry.address, entry.memory] for entry in first.values()]})  # fmt: skip
        told = {f"{self._in_round}/call": call, f"{self._places.spot}/open": self.round}
        called = [self._places.called(entry) for entry in entries.values() if entry.rank != self.rank]
        self._remains.told = called
        told |= dict.fromkeys(called, self.round)
        write_all(store, told)
        return call

    def _answers(self, store: dist.Store, call: str, entries: dict[int, Entry]) -> dict[int, Answer] | None:
        """Each rank's; None if the round cannot come off, because somebody came in another's place or gave up."""
        keys = {rank: f"{self._in_round}/ack/{rank}" for rank in self.world if rank != self.rank}
        mine = self._answer(call, Called.read(call))  # meanwhile the others build, too
        looks = Patience(len(self.world))
        complete = wait_for(store, list(keys.values()), self._soon(FIRST_LOOK))
        while not complete:
            silent = [int(key.rpartition("/")[2]) for key in absent(store, list(keys.values()), Deadline(1))]
            if self._replaced(store, entries, silent) or store.check([f"{self._in_round}/end"]):
                return None
            if self.deadline.passed():
                raise GroupTimeoutError(self._missing(store, silent))
            looks.pause(self.deadline)
            complete = store.check(list(keys.values()))
        came = dict(zip(keys, read_all(store, list(keys.values())), strict=True))
        answers = {rank: Answer.read(text) for rank, text in came.items()} | {self.rank: mine}
        strangers = self._trust.strangers(call, answers)
        patience = self._soon(PATIENCE)
        while strangers and not patience.passed():
            if self._replaced(store, entries, strangers):
                return None
            looks.pause(patience)
        return answers

    def _replaced(self, store: dist.Store, entries: dict[int, Entry], ranks: Sequence[int]) -> bool:
        """Whether another card than the one that was called stands where one of `ranks` is."""
        for rank in ranks:
            with suppress(UnreadableError):
                if Entry.read(read(store, self._places.came(rank)) or b"", rank).nonce != entries[rank].nonce:
                    return True
        return False

    def _verdict(
        self, store: dist.Store, call: str, entries: dict[int, Entry], answers: dict[int, Answer], refused: str
    ) -> str:
        """What all agreed on, or why they did not."""
        strangers = self._trust.strangers(call, answers)
        if refused or strangers:
            return refusal(refused or str(self._trust.stranger(strangers[0])))
        if differ := differences(list(entries.values())):
            return complaint(differ)
        number = store.add(f"{self._places.root}/number", 1)
        store.add(f"{self._places.root}/live", 1)
        # whoever takes the first one away counts it out
        write_all(store, {f"{self._in_round}/live": "1", f"{self._places.root}/met": self._met})
        hosts = [entries[rank].host for rank in self.world]
        return agreement(number, self.card, hosts, [answers[rank] for rank in self.world])

    # The others come when they are called.

    def _follow(self, store: dist.Store) -> Agreed:
        while True:
            entry = self._entry
            key, mine = self._called, entry.text()
            self._remains.calls.append(key)
            if not wait_for(store, [key], self.deadline):
                raise GroupTimeoutError(self._missing(store))
            called = (read(store, key) or OVER.encode())[:64].decode(errors="replace")
            if called == OVER:
                raise GroupTimeoutError(f"{self.name}: rank {self.rank} was told to give up")
            self.round = called
            call = (read(store, f"{self._in_round}/call") or b"").decode(errors="replace")
            told = self._require_called(call, mine)
            self._require_time(store)
            answer = self._answer(call, told)
            self._require_time(store)
            store.set(f"{self._in_round}/ack/{self.rank}", answer.text())
            store.compare_set(self._places.came(self.rank), mine, called_to(self.round))
            if not wait_for(store, [f"{self._in_round}/end"], self.deadline):
                raise GroupTimeoutError(self._missing(store))
            sealed = read(store, f"{self._in_round}/end") or AGAIN.encode()
            if sealed != AGAIN.encode():
                return self._conclude(call, sealed)
            delete(store, f"{self._in_round}/ack/{self.rank}")
            self._turn += 1
            place, mine = self._places.came(self.rank), self._entry.text()
            if store.compare_set(place, called_to(self.round), mine).decode() != mine:
                self._enter(store)

    def _require_time(self, store: dist.Store) -> None:
        """A store that was frozen lets those go on who were given up long ago: nobody is to meet them."""
        if self.deadline.passed():
            raise GroupTimeoutError(self._missing(store))

    def _require_called(self, call: str, mine: str) -> Called:
        """What the call says, if it is for the card `mine`."""
        try:
            called = Called.read(call)
            if [self.rank, self._nonce, digest(mine)] in called.members:
                return called
        except (ValueError, RecursionError, TypeError, KeyError):
            pass
        raise RendezvousError(f"{self.name}: rank {self.rank} was called to a meeting that is not its own")

    # What all do.

    def _enter(self, store: dist.Store) -> None:
        self._before = self._places.enter(store, self._entry, self.name, self.deadline) or self._before

    def _conclude(self, call: str, sealed: bytes) -> Agreed:
        return self._trust.conclude(call, sealed, self.card, self.world, self._places.first)

    def _answer(self, call: str, called: Called) -> Answer:
        """Build, and say what."""
        built = self.build(called) if set(called.hosts) == set(self.world) else ""  # else they disagree
        return self._trust.answer(call, built)

    @property
    def _trust(self) -> Trust:
        return Trust(self.name, self.rank, self.token)

    def _missing(self, store: dist.Store, silent: Sequence[int] = ()) -> str:
        """Who did not come, as far as the store says so at once."""
        soon = Deadline(0.2)
        keys = {self._places.came(rank): rank for rank in self.world}
        lacking = {keys[key] for key in absent(store, list(keys), soon)}
        there = [rank for rank in self.world if rank not in lacking]
        for rank, text in zip(there, read_all(store, [self._places.came(rank) for rank in there]), strict=True):
            ours = text == called_to(self.round).encode() or gave_up_within(text, self.deadline.seconds)
            if is_free(text) and not ours:
                lacking.add(rank)
        lacking = (lacking | set(silent)) - {self.rank}
        count = len(self.world)
        topology = self._topology(self.card)
        waited = f"rank {self.rank} waited with {count - len(lacking)} of {count} present for {topology}"
        twice = f"; rank {self.rank} has joined 2 times, before in {self._before}" if self._before else ""
        met = read(store, f"{self._places.root}/met")
        if met is not None and not self.leads:
            twice += f"; who met here last: {met[:200].decode(errors='replace')}"
        if not lacking:
            return (
                f"{self.name}: rank {self._places.first} gave no verdict within {self.deadline.seconds:g} s, though "
                f"all ranks had come{twice}"
            )
        missing = shown_ranks([rank for rank in self.world if rank in lacking])
        return f"{self.name}: {missing} did not come within {self.deadline.seconds:g} s; {waited}{twice}"

    def _soon(self, seconds: float) -> Deadline:
        """Some seconds from now, and at most a small part of what is left."""
        return Deadline(min(seconds, self.deadline.left() / 8))

    @property
    def _entry(self) -> Entry:
        return Entry(self.rank, self._nonce, self._turn, self.host, self.process, self.address, self.card, self.memory)

    @property
    def _in_round(self) -> str:
        return f"{self._places.root}/{self.round}"

    @staticmethod
    def _topology(card: str) -> str:
        return str(json.loads(card).get("topology", ""))

    @property
    def _called(self) -> str:
        return self._places.called(self._entry)
