"""Elastic chaos: ranks leave, come, are killed or frozen while changes are made, prepared, committed and called off.

A model says who should be in: all that are there agree with it after each step, what they add up is right, all go on or
none does, and whoever was left out cannot go on. The short runs are always the same; `-m slow` tries others.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from parallel_topology import torch_private
from parallel_topology.meeting.rendezvous import join_store
from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, ThreadSeat
from tests.waiting import LATE, eventually

CREATION, OPERATION = 8.0, 2.0
MOST = 5
GONE = {"CollectiveError", "GroupTimeoutError"}
picks = st.integers(0, 11)
"""Which of some, counted round."""
axes = st.sampled_from(["tp", "dp", "pp"])


class ElasticChaos(RuleBasedStateMachine):
    """Ranks as threads: one that is killed aborts its manager, one that is frozen takes part in nothing.

    Model:
        _members: the ranks of the manager.
        _lost: those of them that were killed or are frozen, and how.
        _broken: an operation has failed since the manager was made.
        _prepared: the ranks of what is prepared.
        _called_off: it came to nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seats: dict[int, Any] = {}
        self._spares: list[tuple[Any, Future[Outcome]]] = []
        self._left_out: list[tuple[int, Any]] = []
        self._members = [0, 1, 2]
        self._lost: dict[int, str] = {}
        self._broken = False
        self._prepared: list[int] | None = None
        self._called_off = False
        self._open()
        self._seats = {rank: self._seat(rank) for rank in self._members}
        told = {"timeout": CREATION, "operation_timeout": OPERATION}
        self._all_well(self._tell(self._members, "make", 0, "tp3", told), 60)

    def _open(self) -> None:
        self._store: dist.Store = dist.HashStore()

    def _seat(self, rank: int) -> Any:
        return ThreadSeat(rank, self._store)

    def _kill(self, seat: Any) -> None:
        self._all_well([seat.tell("abort", 0)])

    def _freeze(self, seat: Any) -> None:
        pass

    def _wake(self, seat: Any) -> None:
        pass

    # What may happen

    @rule()
    def add_up(self) -> None:
        told = self._tell(self._there, "sum", 0, "world", 3)
        if not self._lost and not self._broken:
            for outcome in self._all_well(told):
                assert outcome.value == [sum(rank + 1 for rank in self._members)], (self._members, outcome)
        else:
            self._broken = True
            for outcome in self._outcomes(told, OPERATION):
                assert outcome.error in GONE, outcome

    @precondition(lambda self: len(self._there) > 1)
    @rule(who=picks, how=st.sampled_from(["killed", "frozen"]))
    def lose(self, who: int, how: str) -> None:
        rank = self._there[who % len(self._there)]
        self._lost[rank] = how
        (self._kill if how == "killed" else self._freeze)(self._seats[rank])

    @precondition(lambda self: "frozen" in self._lost.values())
    @rule()
    def wake(self) -> None:
        rank = next(rank for rank, how in self._lost.items() if how == "frozen")
        self._wake(self._seats[rank])
        del self._lost[rank]

    @precondition(lambda self: self._left_out)
    @rule()
    def who_was_left_out_cannot_go_on(self) -> None:
        rank, seat = self._left_out.pop()
        self._wake(seat)
        (outcome,) = self._outcomes([seat.tell("rebind", 0, f"dp1@{rank}")], CREATION)
        assert outcome.error == "RebindError", outcome
        assert "was left out" in outcome.text
        self._all_well([seat.tell("end")])

    @precondition(lambda self: len(self._spares) < 2)
    @rule()
    def stand_by(self) -> None:
        seat = self._seat(9)
        self._spares.append((seat, seat.tell("join", 0, {"timeout": 120.0})))

    @rule(axis=axes)
    def change_layout_without_the_lost(self, axis: str) -> None:
        self._rebind(self._there, axis)

    @precondition(lambda self: len(self._there) > 1)
    @rule(axis=axes, who=picks)
    def leave(self, axis: str, who: int) -> None:
        going = self._there[who % len(self._there)]
        self._rebind([rank for rank in self._there if rank != going], axis)

    @precondition(lambda self: len(self._there) < MOST)
    @rule(axis=axes)
    def grow(self, axis: str) -> None:
        number = next(rank for rank in range(MOST + 1) if rank not in self._members)
        self._rebind([*self._there, number], axis)

    @precondition(lambda self: self._lost)
    @rule(axis=axes)
    def replace_the_lost(self, axis: str) -> None:
        self._rebind(self._members, axis)

    @precondition(lambda self: not self._lost and len(self._members) > 1)
    @rule(axis=axes, going=st.booleans(), waited=st.booleans())
    def prepare(self, axis: str, going: bool, waited: bool) -> None:
        self._prepared = self._members[: len(self._members) - going]
        self._called_off = False
        self._all_well(self._tell(self._members, "prepare", 0, _text(axis, self._prepared)))
        if waited:
            assert eventually(lambda: {one.value[0] for one in self._statuses()} == {"ready"}), self._statuses()

    @precondition(lambda self: self._prepared is not None and not self._called_off)
    @rule(who=picks)
    def cancel(self, who: int) -> None:
        rank = self._there[who % len(self._there)]
        self._all_well(self._tell([rank], "cancel", 0))
        self._called_off = True

    @precondition(lambda self: self._prepared is not None)
    @rule()
    def commit(self) -> None:
        wanted, self._prepared = self._prepared or [], None
        outcomes = self._outcomes(self._tell(self._there, "commit", 0), CREATION)
        went_on = [not outcome.error for outcome in outcomes]
        assert all(went_on) or not any(went_on), outcomes
        if self._called_off or not self._lost:
            assert went_on[0] is not self._called_off, outcomes
        if went_on[0]:
            self._go_on(wanted)

    def teardown(self) -> None:
        try:
            for _, seat in self._left_out:
                self._wake(seat)
            for rank, how in self._lost.items():
                if how == "frozen":
                    self._wake(self._seats[rank])
            seats = [*self._seats.values(), *(seat for _, seat in self._left_out)]
            self._all_well([seat.tell("end") for seat in seats if self._is_alive(seat)])
            self._require_nothing_left()
        finally:
            self._leave()
            super().teardown()

    # Helpers

    @property
    def _there(self) -> list[int]:
        return [rank for rank in self._members if rank not in self._lost]

    def _tell(self, ranks: Sequence[int], what: str, *arguments: Any) -> list[Future[Outcome]]:
        return [self._seats[rank].tell(what, *arguments) for rank in ranks]

    def _statuses(self) -> list[Outcome]:
        return self._all_well(self._tell(self._there, "status", 0))

    def _rebind(self, ranks: Sequence[int], axis: str) -> None:
        """All that are there ask for it; spares take the places that nobody has, and there are enough of these."""
        new = [rank for rank in ranks if rank not in self._there]
        if set(new) & {rank for rank, how in self._lost.items() if how == "frozen"}:
            assert eventually(self._is_missed)
        while len(self._spares) < len(new):
            self.stand_by()
        told = self._tell(self._there, "rebind", 0, _text(axis, ranks))
        self._all_well(told, CREATION)
        assert eventually(lambda: sum(came.done() for _, came in self._spares) == len(new)), self._spares
        came = {came.result().value: seat for seat, came in self._spares if came.done()}
        self._spares = [spare for spare in self._spares if not spare[1].done()]
        assert sorted(came) == sorted(new)
        self._prepared = None
        self._go_on(ranks, came)

    def _is_missed(self) -> bool:
        """Whether who is frozen is; on a busy machine the store may be asked in vain."""
        self._broken = True
        found = self._outcomes(self._tell(self._there, "sum", 0, "world", 3), OPERATION)
        assert {outcome.error for outcome in found} <= GONE, found
        return not any("the store does not answer" in outcome.text for outcome in found)

    def _go_on(self, ranks: Sequence[int], came: dict[int, Any] | None = None) -> None:
        """These are in from now on; of what was before nothing is left."""
        lost, self._lost = self._lost, {}
        for rank in self._members:
            if rank in lost and (rank not in ranks or rank in (came or {})):
                if lost[rank] == "frozen":
                    self._left_out.append((rank, self._seats[rank]))
            elif rank in lost:
                self._lost[rank] = lost[rank]
        self._seats |= came or {}
        self._members = list(ranks)
        self._broken = bool(self._lost)
        wanted = {str(sorted(ranks))}
        found = {str(sorted(outcome.value)) for outcome in self._all_well(self._tell(self._there, "members", 0))}
        assert found == wanted, (found, wanted)
        self.add_up()

    def _all_well(self, told: Sequence[Future[Outcome]], deadline: float = CREATION) -> list[Outcome]:
        outcomes = self._outcomes(told, deadline)
        assert [outcome for outcome in outcomes if outcome.error] == []
        return outcomes

    def _outcomes(self, told: Sequence[Future[Outcome]], deadline: float) -> list[Outcome]:
        outcomes = [one.result(deadline + LATE) for one in told]
        assert [outcome for outcome in outcomes if not outcome.ours] == []
        return outcomes

    def _is_alive(self, seat: Any) -> bool:
        return True

    def _require_nothing_left(self) -> None:
        lines = self._store.get("lobby/engine/here").splitlines() if self._store.check(["lobby/engine/here"]) else []
        assert len(lines) == len(self._spares)

        def left() -> list[str]:
            return [
                key
                for key in torch_private.list_keys(self._store)
                if self._store.get(key) and not key.startswith("lobby/") and not _is_farewell(self._store, key)
            ]

        assert eventually(lambda: not left()), left()

    def _leave(self) -> None:
        for seat, _ in self._spares:  # a thread that waits is called to nothing
            del seat


class ElasticChaosOnProcesses(ElasticChaos):
    """Ranks as processes, over a store in another one."""

    def _open(self) -> None:
        self._host = StoreSeat()
        self._store = join_store("127.0.0.1", self._host.port, 10)
        self._all: list[ProcessSeat] = []

    def _seat(self, rank: int) -> Any:
        seat = ProcessSeat(rank, self._host.port)
        self._all.append(seat)
        return seat

    def _kill(self, seat: Any) -> None:
        seat.signal(signal.SIGKILL)

    def _freeze(self, seat: Any) -> None:
        seat.signal(signal.SIGSTOP)

    def _wake(self, seat: Any) -> None:
        seat.signal(signal.SIGCONT)

    def _is_alive(self, seat: Any) -> bool:
        return seat.process.is_alive()

    def _require_nothing_left(self) -> None:
        pass  # who was killed takes nothing away

    def _leave(self) -> None:
        for seat in self._all:
            seat.leave()
        self._host.leave()


def _text(axis: str, ranks: Sequence[int]) -> str:
    return f"{axis}{len(ranks)}@{','.join(map(str, ranks))}"


def _is_farewell(store: dist.Store, key: str) -> bool:
    """What who gave up leaves until somebody meets there."""
    return key.endswith("/ended") or ("/came/" in key and store.get(key).startswith(b"gone"))


def run(machine: type[ElasticChaos], **told: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None, database=None, phases=[Phase.generate], print_blob=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            **told,
        ),
    )  # fmt: skip


def walk(chaos: ElasticChaos) -> None:
    """Through all rules, in an order in which each matters."""
    try:
        chaos.stand_by()
        chaos.grow("dp")
        chaos.leave("tp", 0)
        chaos.lose(1, "frozen")
        chaos.replace_the_lost("pp")
        chaos.who_was_left_out_cannot_go_on()
        chaos.lose(0, "frozen")
        chaos.wake()
        chaos.add_up()
        chaos.prepare("dp", going=False, waited=True)
        chaos.cancel(1)
        chaos.add_up()
        chaos.commit()
        chaos.prepare("dp", going=True, waited=True)
        chaos.commit()
        chaos.prepare("tp", going=False, waited=True)
        chaos.lose(0, "killed")
        chaos.commit()
        chaos.replace_the_lost("tp")
        chaos.prepare("pp", going=False, waited=False)
        chaos.change_layout_without_the_lost("dp")
    finally:
        chaos.teardown()


def test_a_walk_on_threads():
    walk(ElasticChaos())


@pytest.mark.slow
def test_a_walk_on_processes():
    walk(ElasticChaosOnProcesses())


def test_a_little_of_it():
    run(ElasticChaos, max_examples=2, stateful_step_count=10, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_threads():
    run(ElasticChaos, max_examples=15, stateful_step_count=25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_processes():
    for _ in range(4):  # few lives a run: hypothesis compares lives that began alike
        run(ElasticChaosOnProcesses, max_examples=2, stateful_step_count=20)
