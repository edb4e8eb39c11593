"""A rank that dies or freezes at each step of a change: the others all go on, or none does and each names it.

After each death the others go on without it, and another process takes its place, so that this also shows that no step
leaves anything behind that is in the way of the next one.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, await_start
from tests.waiting import LATE

TIMEOUT = 6.0
SIGNALS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}
SUCCESSION, ELASTIC, NEWCOMER, MANAGER = (
    f"parallel_topology.{name}"
    for name in ("meeting.succession", "groups.elastic", "groups.newcomer", "groups.manager")
)
POINTS = {
    "asks": (SUCCESSION, "Succession._open", ""),
    "has asked": (SUCCESSION, "Succession._wait", "agreed"),
    "builds": (ELASTIC, "Change.build", ""),
    "has built": (SUCCESSION, "Succession.ready", ""),
    "has said so": (SUCCESSION, "Succession._wait", "built"),
    "commits": (SUCCESSION, "Succession.commit", ""),
    "goes over": (MANAGER, "GroupManager._hand_over", ""),
}
NEWCOMERS_POINTS = {
    "is called": (NEWCOMER, "answer", ""),
    "has answered": (NEWCOMER, "agreed", ""),
    "builds": (MANAGER, "GroupManager._build", ""),
    "has built": (NEWCOMER, "say_ready", ""),
    "has said so": (NEWCOMER, "Newcomer._is_committed", ""),
    "is told that it is in": (NEWCOMER, "delete", ""),
}
Told = Mapping[int, Future[Outcome]]


class Engine:
    """Ranks of `tp3`, or `tp2`, as processes.

    Attributes:
        found: what the last change came to.
    """

    found: Mapping[int, Outcome]

    def __init__(self, ranks: int) -> None:
        self.store = StoreSeat()
        self.seats = {rank: ProcessSeat(rank, self.store.port) for rank in range(ranks)}
        await_start(self.seats.values())
        self.all_well(self.tell(range(ranks), "make", 0, f"tp{ranks}", {"timeout": TIMEOUT, "operation_timeout": 1.0}))

    def tell(self, ranks: Any, what: str, *arguments: Any) -> Told:
        return {rank: self.seats[rank].tell(what, *arguments) for rank in ranks}

    def all_well(self, told: Told) -> dict[int, Outcome]:
        found = {rank: one.result(60) for rank, one in told.items()}
        assert {rank: outcome for rank, outcome in found.items() if outcome.error} == {}
        return found

    def all_or_none(self, told: Told, lost: int) -> bool:
        """Whether all went on; else each named who is lost, in time."""
        self.found = found = {rank: one.result(60) for rank, one in told.items()}
        for outcome in found.values():
            assert outcome.seconds < TIMEOUT + LATE, found
            assert outcome.ours, found
            assert not outcome.error or re.search(rf"ranks? ([0-9], )*{lost}\b", outcome.text), found
        assert len({bool(outcome.error) for outcome in found.values()}) == 1, found
        return not any(outcome.error for outcome in found.values())

    def add_up(self, ranks: list[int]) -> None:
        for outcome in self.all_well(self.tell(ranks, "sum", 0, "world", 1)).values():
            assert outcome.value == [sum(rank + 1 for rank in ranks)]

    def replace(self, lost: int, others: list[int], topology: str) -> None:
        """The others go on without it; it cannot; and a new process takes its place."""
        without = ",".join(map(str, others))
        self.all_well(self.tell(others, "rebind", 0, f"dp{len(others)}@{without}"))
        self.add_up(others)
        self.seats[lost].leave()
        self.seats[lost] = ProcessSeat(lost, self.store.port)
        await_start([self.seats[lost]])
        joining = self.tell([lost], "join", 0, {"timeout": 60.0})
        self.all_well(self.tell(others, "rebind", 0, topology))
        assert self.all_well(joining)[lost].value == lost
        self.add_up(sorted([*others, lost]))

    def require_left_out(self, lost: int) -> None:
        """What was frozen wakes up, and whatever it holds, cannot go on by itself."""
        self.seats[lost].signal(signal.SIGCONT)
        outcome = self.tell([lost], "rebind", 0, f"dp1@{lost}")[lost].result(60)
        assert outcome.error in {"RebindError", "ClosedError"}, outcome

    def leave(self) -> None:
        for seat in (*self.seats.values(), self.store):
            seat.leave()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Generator[Engine]:
    made = Engine(request.param)
    yield made
    made.leave()


def _lost_at_each_step(engine: Engine, what: str, how: str, points: Mapping[str, tuple[str, str, str]]) -> None:
    for turn, (point, where) in enumerate(points.items()):
        lost = turn % 2  # also the first one, which leads
        others = [rank for rank in range(3) if rank != lost]
        engine.all_well(engine.tell([lost], "lose_at", *where, SIGNALS[how]))
        if what == "prepare":
            engine.all_well(engine.tell(others, "prepare", 0, "pp3"))
            engine.tell([lost], "prepare", 0, "pp3")
        call: tuple[Any, ...] = (0, "pp3") if what == "rebind" else (0,)
        told = {rank: engine.seats[rank].tell("rebind" if what == "rebind" else "commit", *call) for rank in range(3)}
        del told[lost]
        went_on = engine.all_or_none(told, lost)
        if point not in ("has said so", "commits"):  # from when all have built until it is committed, it may be either
            assert went_on == (point == "goes over"), (point, engine.found)
        engine.replace(lost, others, "tp3")


@pytest.mark.parametrize("engine", [3], indirect=True)
@pytest.mark.parametrize("what", ["rebind", "prepare"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_is_lost_at_each_step(engine: Engine, what: str, how: str):
    _lost_at_each_step(engine, what, how, POINTS)


@pytest.mark.parametrize("engine", [3], indirect=True)
def test_a_rank_is_killed_when_it_has_built(engine: Engine):
    _lost_at_each_step(engine, "rebind", "killed", {"has built": POINTS["has built"]})


@pytest.mark.parametrize("engine", [2], indirect=True)
@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_newcomer_is_lost_at_each_step(engine: Engine, how: str):
    for where in NEWCOMERS_POINTS.values():
        engine.seats[2] = ProcessSeat(2, engine.store.port)
        engine.all_well(engine.tell([2], "lose_at", *where, SIGNALS[how]))
        engine.tell([2], "join", 0, {"timeout": 60.0})
        went_on = engine.all_or_none(engine.tell([0, 1], "rebind", 0, "tp3"), 2)
        engine.all_well(engine.tell([0, 1], "rebind", 0, "tp2" if went_on else "pp2"))
        engine.add_up([0, 1])
        engine.seats.pop(2).leave()
        engine.all_well(engine.tell([0, 1], "rebind", 0, "tp2"))


@pytest.mark.parametrize("engine", [3], indirect=True)
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_who_was_frozen_at_any_step_cannot_go_on_by_itself(engine: Engine):
    for turn, where in enumerate(POINTS.values()):
        lost = turn % 2
        others = [rank for rank in range(3) if rank != lost]
        engine.all_well(engine.tell([lost], "lose_at", *where, signal.SIGSTOP))
        told = engine.tell(range(3), "rebind", 0, "pp3")
        engine.all_or_none({rank: told[rank] for rank in others}, lost)
        engine.all_well(engine.tell(others, "rebind", 0, f"dp2@{','.join(map(str, others))}"))
        engine.require_left_out(lost)
        engine.add_up(others)
        engine.replace(lost, others, "tp3")
