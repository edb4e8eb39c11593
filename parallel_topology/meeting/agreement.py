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
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch.distributed as dist

from parallel_topology.errors import DisagreementError, GroupTimeoutError, ParallelTopologyError, RendezvousError
from parallel_topology.meeting import completion
from parallel_topology.meeting.cards import (
    BYTES_A_RANK,
    MAX_BYTES,
    Answer,
    Called,
    Entry,
    UnreadableError,
    differences,
    read_object,
)
from parallel_topology.meeting.control import (
    Patience,
    absent,
    append,
    delete,
    keys_under,
    lines,
    read,
    read_all,
    wait_for,
    write_all,
)
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.token import Seals, digest
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line

AGAIN, OVER, GONE = "again", "over", "gone"
_OF_MANAGERS = (*completion.KEYS, "witness/failed", "next/number", "next/past", "next/left")
"""Keys that a manager puts below its own, whose names are always the same."""
PATIENCE = 0.5
"""Seconds in which who holds a wrong token, or shows no card at all, may be replaced by the rank that it is not."""
FIRST_LOOK = 1.0
"""Seconds the answers to a call are waited for before somebody is looked for who came in another's place."""

_present: set[str] = set()
"""Nonces of meetings that threads of this process are in: two threads of one rank meet one after the other."""
_placing = tuple(threading.Lock() for _ in range(64))
"""Held by a thread that puts a card at its rank's place, or clears that: a store cannot compare and delete at once."""


@dataclass(frozen=True)
class Agreed:
    """What the ranks found out about each other.

    Attributes:
        number: how many managers of this name are, or were, over this store, this one included.
        hosts: for each position of the topology, which host it is on, numbered in order of appearance.
        built: for each position, what it says of what it has built.
    """

    number: int
    hosts: Sequence[int]
    built: Sequence[str]


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
        settled: whether they did follow on it, as it was committed.
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
    settled: bool = False
    round: str = ""
    _nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    _turn: int = 0
    _before: str = ""
    _calls: list[str] = field(default_factory=list[str])
    _formers: list[str] = field(default_factory=list[str])
    _told: list[str] = field(default_factory=list[str])
    _left: bool = False
    _absent: Sequence[int] = ()

    @property
    def place(self) -> str:
        """Under which all keys are. By the first rank, so that managers of one name on different parts of a job do not
        meet; not by all ranks, so that those who disagree about how many there are do."""
        return f"{self.name}@{self._first}"

    @property
    def leads(self) -> bool:
        """Whether this is the first rank."""
        return self.rank == self._first

    @property
    def keys(self) -> str:
        """Under which the keys are that are this manager's alone."""
        return f"{self.place}/{self.round}/keys"

    @property
    def _spot(self) -> str:
        """Where the cards are."""
        return self.at or self.place

    @property
    def _first(self) -> int:
        plain = self.world.plain()
        return min(self.world) if plain is None else plain[0]  # without counting them where they count up by steps

    def agree(self, store: dist.Store) -> Agreed:
        """Wait for all ranks of `world` and compare their cards.

        Raises:
            DisagreementError: the cards differ; raised on every rank, naming which ranks hold what.
            GroupTimeoutError: ranks did not come in time; names them.
            RendezvousError: the store failed or holds garbage, or a rank does not have the token.
        """
        _present.add(self._nonce)
        try:
            self._require_time(store)
            self._enter(store)
            return self._lead(store) if self.rank == self._first else self._follow(store)
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
            _present.discard(self._nonce)

    def withdraw(self, store: dist.Store) -> None:
        """Take this rank's card away and end the round it is in, so that whoever tries again meets."""
        _present.discard(self._nonce)
        for mine in (self._entry.text(), self._called_to):
            store.compare_set(self._came(self.rank), mine, f"{GONE} {time.time()}")
        if self.round:
            store.compare_set(f"{self._in_round}/end", "", AGAIN)
        store.set(self._call_key(self._entry), OVER)  # wakes what may still wait there
        self._end(store)

    def tidy(self, store: dist.Store) -> None:
        """Take away what this rank put into the store for the agreement, once all have been through it."""
        delete(store, *self._calls, self._call_key(self._entry))
        if self.round:
            delete(store, f"{self._in_round}/ack/{self.rank}")
        for former in self._formers:
            delete(store, f"{self.place}/{former}/call", f"{self.place}/{former}/end")

    @property
    def sign(self) -> str:
        """A key that is in the store as long as not all have left; it goes before all others."""
        return f"{self._in_round}/call"

    @property
    def _met(self) -> str:
        return f"{shown_ranks(list(self.world))} as {self._topology(self.card)}"

    def went_on(self, store: dist.Store) -> str:
        """Who has met here since, in words; empty if nobody has."""
        met = (read(store, f"{self.place}/met") or b"").decode(errors="replace")[:200]
        return "" if met == self._met else met.replace(" as ", " went on to ", 1)

    def without(self, ranks: Sequence[int]) -> None:
        """These will not leave, as they are gone: nobody needs them to have left to take away what is left over."""
        self._absent = ranks

    def leave(self, store: dist.Store) -> bool:
        """Take away what is left once the manager has ended; whether this rank was the last to leave, which takes what
        all shared."""
        with _at_place(self._came(self.rank)):
            if read(store, self._came(self.rank)) == self._called_to.encode():
                delete(store, self._came(self.rank))
        delete(store, *self._told)
        return self._end(store)

    def _end(self, store: dist.Store) -> bool:
        """Leave the round; whether nobody needs what is left of it: then that is taken away."""
        self.tidy(store)
        if not self.round or self._left:
            return False
        self._left = True
        if self.rank == self._first:  # before it counts itself out, so that the last one takes this away, too
            if self.settled or not self.at:  # else those before it may still be in use
                self._sweep(store)
            append(store, f"{self.place}/ended", self.round)
        members = max(len(self.world) - len(self._absent), 1)
        if store.add(f"{self._in_round}/left", 1) < members and store.check([f"{self._in_round}/call"]):
            return False
        if read(store, f"{self._spot}/open") == self.round.encode():
            delete(store, f"{self._spot}/open")
        for rank in self._absent:
            if read(store, self._came(rank)) == self._called_to.encode():
                delete(store, self._came(rank))
        self._clear(store, [self.round])
        return True

    def _sweep(self, store: dist.Store) -> None:
        """Take away what is left of managers that the first rank has left, as others may have died and never will. Who
        only leaves late finds no call there, and takes away what it has put there since."""
        ended = set(lines(store, f"{self.place}/ended")) - {self.round}
        if ended:
            delete(store, f"{self.place}/ended")
            self._clear(store, ended)

    def _clear(self, store: dist.Store, rounds: Collection[str]) -> None:
        """Take away all of these rounds, and with the last manager what the place has for all."""
        delete(store, *(f"{self.place}/{one}/call" for one in rounds))  # `sign`
        lived = delete(store, *(f"{self.place}/{one}/live" for one in rounds))
        acks = [f"ack/{rank}" for rank in self.world]
        keys = [f"keys/{key}" for key in _OF_MANAGERS]
        known = ("end", "left", *acks, *keys)  # what a store that cannot list its keys is asked for
        delete(store, *(f"{self.place}/{one}/{key}" for one in rounds for key in known))
        delete(store, *keys_under(store, [f"{self.place}/{one}/" for one in rounds]))
        if lived and store.add(f"{self.place}/live", -lived) <= 0:
            delete(store, *(f"{self.place}/{key}" for key in ("live", "number", "met", "ended")))

    # The first rank calls.

    def _lead(self, store: dist.Store) -> Agreed:
        self._end_former(store)
        while True:
            entries, refusal = self._gather(store)
            self._require_time(store)
            call = self._call(store, entries)
            answers = {} if refusal else self._answers(store, call, entries)
            if answers is not None:
                self._require_time(store)
                verdict = self._verdict(store, call, entries, answers, refusal)
                sealed = json.dumps({"verdict": verdict, "seal": self._seal("verdict", call, verdict)})
                if store.compare_set(f"{self._in_round}/end", "", sealed).decode(errors="replace") == sealed:
                    store.compare_set(self._came(self.rank), self._entry.text(), self._called_to)
                    return self._conclude(call, sealed.encode())
            store.compare_set(f"{self._in_round}/end", "", AGAIN)
            self._formers.append(self.round)

    def _end_former(self, store: dist.Store) -> None:
        """Send away those that wait for a first rank that died after it had called them."""
        former = read(store, f"{self._spot}/open")
        if former is not None:
            store.compare_set(f"{self.place}/{former.decode()}/end", "", AGAIN)

    def _gather(self, store: dist.Store) -> tuple[dict[int, Entry], str]:
        """The newest card of each rank; or those there are, and why another is refused."""
        if not wait_for(store, [self._came(rank) for rank in self.world], self.deadline):
            raise GroupTimeoutError(self._missing(store))
        looks = Patience(len(self.world))
        entries: dict[int, Entry] = {}
        since: dict[int, float] = {}
        patience = self._soon(PATIENCE).seconds
        while True:
            wanted = [rank for rank in self.world if rank not in entries]
            texts = read_all(store, [self._came(rank) for rank in wanted])
            for rank, text in zip(wanted, texts, strict=True):
                if _is_free(text):
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
        told = {f"{self._in_round}/call": call, f"{self._spot}/open": self.round}
        self._told = [self._call_key(entry) for entry in entries.values() if entry.rank != self.rank]
        told |= dict.fromkeys(self._told, self.round)
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
        strangers = [rank for rank in self.world if not self._proved(call, rank, answers[rank])]
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
                if Entry.read(read(store, self._came(rank)) or b"", rank).nonce != entries[rank].nonce:
                    return True
        return False

    def _verdict(
        self, store: dist.Store, call: str, entries: dict[int, Entry], answers: dict[int, Answer], refusal: str
    ) -> str:
        """What all agreed on, or why they did not."""
        strangers = [rank for rank, answer in sorted(answers.items()) if not self._proved(call, rank, answer)]
        refusal = refusal or (str(self._stranger(strangers[0])) if strangers else "")
        complaint = "" if refusal else differences(list(entries.values()))
        agreed = not refusal and not complaint
        hosts: dict[str, int] = {}
        members = [entries[rank] for rank in self.world] if agreed else []
        number = 0
        if agreed:
            number = store.add(f"{self.place}/number", 1)
            store.add(f"{self.place}/live", 1)
            # whoever takes the first one away counts it out
            write_all(store, {f"{self._in_round}/live": "1", f"{self.place}/met": self._met})
        return json.dumps({
            "refusal": refusal, "complaint": complaint, "number": number, "card": self.card if agreed else "",
            "hosts": [hosts.setdefault(member.host, len(hosts)) for member in members],
            "answers": [[answers[rank].proof, answers[rank].built] for rank in self.world] if agreed else [],
        })  # fmt: skip

    # The others come when they are called.

    def _follow(self, store: dist.Store) -> Agreed:
        while True:
            entry = self._entry
            key, mine = self._call_key(entry), entry.text()
            if not wait_for(store, [key], self.deadline):
                raise GroupTimeoutError(self._missing(store))
            self._calls.append(key)
            called = (read(store, key) or OVER.encode())[:64].decode(errors="replace")
            if called == OVER:
                raise GroupTimeoutError(f"{self.name}: rank {self.rank} was told to give up")
            self.round = called
            call = (read(store, f"{self._in_round}/call") or b"").decode(errors="replace")
            called_to = self._require_called(call, mine)
            self._require_time(store)
            answer = self._answer(call, called_to)
            self._require_time(store)
            store.set(f"{self._in_round}/ack/{self.rank}", answer.text())
            store.compare_set(self._came(self.rank), mine, self._called_to)
            if not wait_for(store, [f"{self._in_round}/end"], self.deadline):
                raise GroupTimeoutError(self._missing(store))
            sealed = read(store, f"{self._in_round}/end") or AGAIN.encode()
            if sealed != AGAIN.encode():
                return self._conclude(call, sealed)
            delete(store, f"{self._in_round}/ack/{self.rank}")
            self._turn += 1
            if store.compare_set(self._came(self.rank), self._called_to, self._entry.text()).decode() != (
                self._entry.text()
            ):
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
        """Put the card at this rank's place; another one there is replaced, unless a thread of this process waits."""
        key, mine = self._came(self.rank), self._entry.text()
        looks = Patience(1)
        while True:
            with _at_place(key):
                before = store.compare_set(key, "", mine)
                if before.decode(errors="replace") == mine:
                    return
                other = None
                with suppress(UnreadableError):
                    other = Entry.read(before)
                if other is None or other.process != self.process or other.nonce not in _present:
                    self._before = other.process if other else ""
                    store.set(key, mine)
                    return
            if self.deadline.passed():
                raise GroupTimeoutError(
                    f"{self.name}: another thread of rank {self.rank} was in a meeting of this name for "
                    f"{self.deadline.seconds:g} s"
                )
            looks.pause(self.deadline)

    def _conclude(self, call: str, sealed: bytes) -> Agreed:
        """What follows from a verdict."""
        try:
            outer = read_object(sealed, {"verdict": str, "seal": str}, most=self._longest)
            found = read_object(
                outer["verdict"].encode(),
                {"refusal": str, "complaint": str, "number": int, "card": str, "hosts": list, "answers": list},
                most=self._longest,
            )
        except UnreadableError as error:
            raise RendezvousError(f"{self.name}: what should be the verdict of rank {self._first}: {error}") from None
        if not self._fits(outer["seal"], "verdict", call, outer["verdict"]):
            raise self._stranger(self._first)
        if found["refusal"]:
            raise RendezvousError(found["refusal"])
        if found["complaint"]:
            raise DisagreementError(found["complaint"])
        answers = [Answer.of(one) for one in found["answers"]]
        if found["card"] != self.card or len(answers) != len(self.world):
            raise RendezvousError(f"{self.name}: the verdict is not of this meeting")
        for rank, answer in zip(self.world, answers, strict=True):
            if not self._proved(call, rank, answer):
                raise self._stranger(rank)
        return Agreed(number=found["number"], hosts=found["hosts"], built=[answer.built for answer in answers])

    def _answer(self, call: str, called: Called) -> Answer:
        """Build, and prove to hold the token; that also says that nobody changed what is said of what was built."""
        built = self.build(called) if set(called.hosts) == set(self.world) else ""  # else they disagree
        return Answer(self._seal("proof", call, str(self.rank), built), built)

    def _proved(self, call: str, rank: int, answer: Answer) -> bool:
        return self._fits(answer.proof, "proof", call, str(rank), answer.built)

    @property
    def _longest(self) -> int:
        """Most bytes of a verdict."""
        return MAX_BYTES + BYTES_A_RANK * len(self.world)

    def _seal(self, *parts: str) -> str:
        return Seals(self.token).of(self.name, *parts)

    def _fits(self, seal: object, *parts: str) -> bool:
        return Seals(self.token).fits(seal, self.name, *parts)

    def _stranger(self, rank: int) -> RendezvousError:
        return RendezvousError(
            f"{self.name}: what came as rank {rank} does not hold the same token as rank {self.rank}, and is refused; "
            "give all ranks the same token=, or look for a stranger on this network"
        )

    def _missing(self, store: dist.Store, silent: Sequence[int] = ()) -> str:
        """Who did not come, as far as the store says so at once."""
        soon = Deadline(0.2)
        keys = {self._came(rank): rank for rank in self.world}
        lacking = {keys[key] for key in absent(store, list(keys), soon)}
        there = [rank for rank in self.world if rank not in lacking]
        for rank, text in zip(there, read_all(store, [self._came(rank) for rank in there]), strict=True):
            if _is_free(text) and text != self._called_to.encode() and not self._gave_up_now(text):
                lacking.add(rank)
        lacking = (lacking | set(silent)) - {self.rank}
        count = len(self.world)
        topology = self._topology(self.card)
        present = f"rank {self.rank} waited with {count - len(lacking)} of {count} present for {topology}"
        twice = f"; rank {self.rank} has joined 2 times, before in {self._before}" if self._before else ""
        met = read(store, f"{self.place}/met")
        if met is not None and self.rank != self._first:
            twice += f"; who met here last: {met[:200].decode(errors='replace')}"
        if not lacking:
            return (
                f"{self.name}: rank {self._first} gave no verdict within {self.deadline.seconds:g} s, though all ranks "
                f"had come{twice}"
            )
        missing = shown_ranks([rank for rank in self.world if rank in lacking])
        return f"{self.name}: {missing} did not come within {self.deadline.seconds:g} s; {present}{twice}"

    def _soon(self, seconds: float) -> Deadline:
        """Some seconds from now, and at most a small part of what is left."""
        return Deadline(min(seconds, self.deadline.left() / 8))

    def _gave_up_now(self, text: bytes) -> bool:
        """Whether a rank came and gave up while this one waited; by wall clocks, which differ a little."""
        with suppress(ValueError):
            word, when = text.decode(errors="replace").split()
            return word == GONE and time.time() - float(when) < self.deadline.seconds
        return False

    @property
    def _entry(self) -> Entry:
        return Entry(self.rank, self._nonce, self._turn, self.host, self.process, self.address, self.card, self.memory)

    @property
    def _called_to(self) -> str:
        """What stands at a rank's place once it has been called."""
        return f"@{self.round}"

    @property
    def _in_round(self) -> str:
        return f"{self.place}/{self.round}"

    @staticmethod
    def _topology(card: str) -> str:
        return str(json.loads(card).get("topology", ""))

    def _came(self, rank: int) -> str:
        return f"{self._spot}/came/{rank}"

    def _call_key(self, entry: Entry) -> str:
        return f"{self.place}/called/{entry.nonce}/{entry.turn}"


@contextmanager
def _at_place(key: str) -> Generator[None]:
    """While no other thread of this process is at a place; but a store that froze under one does not hold up others."""
    lock = _placing[hash(key) % len(_placing)]
    held = lock.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if held:
            lock.release()


def _is_free(text: bytes) -> bool:
    """Whether nobody waits who put this where a rank's card stands: it went away, or was called."""
    return not text or text.startswith((GONE.encode(), b"@"))
