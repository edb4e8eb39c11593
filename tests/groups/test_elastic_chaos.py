"""Elastic chaos: ranks leave, come, are killed or frozen while changes are made, prepared, committed and called off.

A model says who should be in: all that are there agree with it after each step, what they add up is right, all go on or
none does, and whoever was left out cannot go on. The short runs are always the same; `-m slow` tries others.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from parallel_topology import torch_private
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.rendezvous import join_store
from parallel_topology.meeting.succession import Agreement, Refused, Succession
from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, ThreadSeat, await_start
from tests.waiting import LATE, eventually

CREATION, OPERATION = 8.0, 2.0
MOST = 5
GONE = {"CollectiveError", "GroupTimeoutError"}
picks = st.integers(0, 11)
"""Which of some, counted round."""
axes = st.sampled_from(["tp", "dp", "pp"])
ways = st.sampled_from(["killed", "frozen"])


@dataclass
class Spare:
    """A process that waits for a place, or has been called to one.

    Attributes:
        came: done when it is in.
        how: "killed" or "frozen", if it is.
    """

    seat: Any
    came: Future[Outcome]
    how: str = ""


@dataclass
class Prepared:
    """What is prepared.

    Attributes:
        text: the topology.
        ranks: its ranks.
        told: the ranks that prepare it.
        places: those of its ranks that newcomers are to have.
        ready: it was seen to be ready on all.
        cancelled: by a rank.
        fails: it cannot come to anything, as a rank of it was killed, say.
        may_fail: it might not, as a rank was lost before it was seen to be ready, say.
    """

    text: str
    ranks: list[int]
    told: list[int]
    places: list[int]
    ready: bool = False
    cancelled: bool = False
    fails: bool = False
    may_fail: bool = False


@dataclass
class LeftOut:
    """A rank that was frozen while the others went on without it.

    Attributes:
        rank: that it was; None for a newcomer, which does not know yet.
        behind: whether it was to commit what the others had committed before they went on.
        came: as in `Spare`, where it was frozen as a newcomer.
    """

    rank: int
    seat: Any
    behind: bool
    came: Future[Outcome] | None = None


@dataclass
class Model:
    """Who should be in.

    Attributes:
        members: the ranks of the manager.
        lost: those of them that were killed or are frozen, and how.
        behind: those of these that have not committed what the others have.
        coming: those of these that have not heard yet that they are in.
        broken: an operation has failed since the manager was made.
    """

    members: list[int]
    lost: dict[int, str] = field(default_factory=dict[int, str])
    behind: set[int] = field(default_factory=set[int])
    coming: dict[int, Future[Outcome]] = field(default_factory=dict[int, "Future[Outcome]"])
    broken: bool = False

    @property
    def there(self) -> list[int]:
        return [rank for rank in self.members if rank not in self.lost]


class ElasticChaos(RuleBasedStateMachine):
    """Ranks as threads: one that is killed aborts its manager, one that is frozen takes part in nothing."""

    kills = False
    """Whether a rank can be killed without a word, also while it waits for a place."""

    def __init__(self) -> None:
        super().__init__()
        self._spares: list[Spare] = []
        self._left_out: list[LeftOut] = []
        self._prepared: Prepared | None = None
        self._is = Model([0, 1, 2])
        self._open()
        self._seats: dict[int, Any] = {rank: self._seat(rank) for rank in self._is.members}
        told = {"timeout": CREATION, "operation_timeout": OPERATION}
        await_start(self._seats.values())
        self._all_well(self._tell(self._is.members, "make", 0, "tp3", told), 60)

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

    @initialize(life=st.integers(0, 2**32))
    def begin_unlike_any_other(self, life: int) -> None:
        """hypothesis compares lives that began alike, and what these draw depends on what ranks did."""

    # What may happen

    @rule()
    def add_up(self) -> None:
        told, right = self._tell(self._is.there, "sum", 0, "world", 3), [sum(rank + 1 for rank in self._is.members)]
        if not self._is.lost and not self._is.broken:
            for outcome in self._all_well(told):
                assert outcome.value == right, (self._is, outcome)
        else:
            self._is.broken = True
            for outcome in self._outcomes(told, OPERATION):  # who was frozen may come to what the others called then
                assert outcome.error in GONE or outcome.value == right, outcome

    @precondition(lambda self: len(self._is.there) > 1)
    @rule(who=picks, how=ways)
    def lose(self, who: int, how: str) -> None:
        rank = _pick(self._is.there, who)
        self._is.lost[rank] = how
        prepared = self._prepared
        if prepared is not None and rank in prepared.told:
            said = not self.kills  # who closes its manager calls off what is prepared
            prepared.fails |= prepared.ready and how == "killed" and (said or rank in prepared.ranks)
            prepared.may_fail |= not prepared.ready
        (self._kill if how == "killed" else self._freeze)(self._seats[rank])

    @precondition(lambda self: "frozen" in self._is.lost.values())
    @rule()
    def wake(self) -> None:
        rank = next(rank for rank, how in self._is.lost.items() if how == "frozen")
        self._wake(self._seats[rank])
        del self._is.lost[rank]
        if rank in self._is.coming:
            (came,) = self._all_well([self._is.coming.pop(rank)])
            assert came.value == rank
        if rank in self._is.behind:
            self._is.behind.discard(rank)
            self._all_well(self._tell([rank], "commit", 0))

    @precondition(lambda self: self._left_out)
    @rule()
    def who_was_left_out_cannot_go_on(self) -> None:
        left = self._left_out.pop()
        self._wake(left.seat)
        if left.came is not None:
            self._all_well([left.came])
        if left.behind:
            self._outcomes([left.seat.tell("commit", 0)], CREATION)
        (outcome,) = self._outcomes([left.seat.tell("rebind", 0, f"dp1@{left.rank}")], CREATION)
        assert outcome.error == "RebindError" or (left.behind and outcome.error == "ClosedError"), outcome
        assert "was left out" in outcome.text or left.behind, outcome
        self._all_well([left.seat.tell("end")])

    @precondition(lambda self: len(self._waiting) < 2)
    @rule()
    def stand_by(self) -> None:
        seat = self._seat(9)
        await_start([seat])
        self._spares.append(Spare(seat, seat.tell("join", 0, {"timeout": 120.0})))

    @precondition(lambda self: self.kills and self._waiting and not self._frozen_spares)
    @rule(how=ways)
    def lose_a_spare(self, how: str) -> None:
        spare = self._waiting[0]
        spare.how = how
        if self._prepared is not None and self._prepared.places:
            self._prepared.may_fail = True
        (self._kill if how == "killed" else self._freeze)(spare.seat)
        if how == "killed":
            self._spares.remove(spare)

    @precondition(lambda self: self._frozen_spares)
    @rule()
    def wake_a_spare(self) -> None:
        (spare,) = self._frozen_spares
        spare.how = ""
        self._wake(spare.seat)

    @rule(axis=axes)
    def change_layout_without_the_lost(self, axis: str) -> None:
        self._rebind(self._is.there, axis)

    @precondition(lambda self: len(self._is.there) > 1)
    @rule(axis=axes, who=picks)
    def leave(self, axis: str, who: int) -> None:
        going = _pick(self._is.there, who)
        self._rebind([rank for rank in self._is.there if rank != going], axis)

    @precondition(lambda self: len(self._is.there) < MOST)
    @rule(axis=axes)
    def grow(self, axis: str) -> None:
        self._rebind([*self._is.there, self._new_number()], axis)

    @precondition(lambda self: self._is.lost)
    @rule(axis=axes)
    def replace_the_lost(self, axis: str) -> None:
        self._rebind(self._is.members, axis)

    @rule(axis=axes, goes=st.booleans(), grows=st.booleans(), replaces=st.booleans(), waited=st.booleans())
    def prepare(self, axis: str, goes: bool, grows: bool, replaces: bool, waited: bool) -> None:
        """Without the lost or with newcomers in their places, perhaps without one more, perhaps with one more; where
        nobody is there to come in, it may still come."""
        there = self._is.there
        stay = there[:-1] if goes and len(there) > 1 else there
        lost = [rank for rank in self._is.lost if replaces]
        new = [self._new_number()] if grows and len(stay) + len(lost) < MOST else []
        ranks = [*stay, *lost, *new]
        text = _text(axis, ranks)
        if self._prepared is not None and self._prepared.text == text and not self._prepared.cancelled:
            return
        self._require_missed(lost)
        may_fail = len(self._waiting) < len(lost) + len(new)
        self._prepared = Prepared(text, ranks, there, [*lost, *new], may_fail=may_fail)
        self._all_well(self._tell(there, "prepare", 0, text))
        if waited:
            while len(self._waiting) < len(self._prepared.places):
                self.stand_by()
            assert eventually(lambda: {one.value[0] for one in self._statuses()} == {"ready"}), self._statuses()
            self._prepared.ready, self._prepared.may_fail = True, False

    @precondition(lambda self: self._prepared is not None)
    @rule(who=picks)
    def cancel(self, who: int) -> None:
        assert self._prepared is not None
        if there := self._told():
            self._all_well(self._tell([_pick(there, who)], "cancel", 0))
            self._prepared.cancelled = True

    @precondition(lambda self: self._prepared is not None)
    @rule(what=st.sampled_from(["commit", "commit", "rebind"]))
    def commit(self, what: str) -> None:
        """`rebind` to what is prepared is the same, unless it was called off: that begins anew."""
        prepared = self._prepared
        assert prepared is not None
        if not (there := self._told()):
            return
        fails = prepared.fails or prepared.cancelled
        lacking = len(self._spares) < len(prepared.places)
        if what == "rebind" and (fails or lacking or set(there) != set(self._is.there)):
            return
        self._prepared = None
        outcomes = self._outcomes(self._tell(there, what, 0, *([prepared.text] if what == "rebind" else [])), CREATION)
        went_on = [not outcome.error for outcome in outcomes]
        assert all(went_on) or not any(went_on), outcomes
        if fails or lacking:
            assert not went_on[0], (prepared, outcomes)
        elif not prepared.may_fail:
            assert went_on[0], (prepared, outcomes)
        if went_on[0]:
            self._is.behind |= {rank for rank in prepared.told if rank in self._is.lost}
            self._go_on(prepared.ranks, prepared.places, prepared.told)

    def teardown(self) -> None:
        try:
            for left in self._left_out:
                self._wake(left.seat)
            for rank, how in self._is.lost.items():
                if how == "frozen":
                    self._wake(self._seats[rank])
            came = [*self._is.coming.values(), *(left.came for left in self._left_out if left.came is not None)]
            self._all_well(came)
            seats = [*self._seats.values(), *(left.seat for left in self._left_out)]
            self._all_well([seat.tell("end") for seat in seats if self._is_alive(seat)])
            self._require_nothing_left()
        finally:
            self._leave()
            super().teardown()

    # Helpers

    @property
    def _waiting(self) -> list[Spare]:
        """The spares that can come in."""
        return [spare for spare in self._spares if not spare.how]

    @property
    def _frozen_spares(self) -> list[Spare]:
        return [spare for spare in self._spares if spare.how]

    def _new_number(self) -> int:
        return next(rank for rank in range(MOST + 1) if rank not in self._is.members)

    def _tell(self, ranks: Collection[int], what: str, *arguments: Any) -> list[Future[Outcome]]:
        return [self._seats[rank].tell(what, *arguments) for rank in ranks]

    def _told(self) -> list[int]:
        """Those that are there of the ranks that have prepared something."""
        return [rank for rank in self._prepared.told if rank in self._is.there] if self._prepared else []

    def _statuses(self) -> list[Outcome]:
        return self._all_well(self._tell(self._told(), "status", 0))

    def _require_missed(self, ranks: Collection[int]) -> None:
        """Who is frozen is to have been missed, so that others may have its place."""
        if "frozen" in {self._is.lost.get(rank) for rank in ranks}:
            assert eventually(self._is_missed)

    def _rebind(self, ranks: Sequence[int], axis: str) -> None:
        """All that are there ask for it; spares take the places that nobody has, and there are enough of these."""
        new = [rank for rank in ranks if rank not in self._is.there]
        self._require_missed(new)
        while len(self._waiting) < len(new):
            self.stand_by()
        text = _text(axis, ranks)
        if self._prepared is not None and self._prepared.text == text and not self._prepared.cancelled:
            text = _text("cp", ranks)  # else it would be committed
        self._prepared = None
        self._all_well(self._tell(self._is.there, "rebind", 0, text), CREATION)
        self._go_on(ranks, new, self._is.there)

    def _is_missed(self) -> bool:
        """Whether who is frozen is; on a busy machine the store may be asked in vain."""
        self._is.broken = True
        found = self._outcomes(self._tell(self._is.there, "sum", 0, "world", 3), OPERATION)
        assert {outcome.error for outcome in found} <= GONE, found
        return not any("the store does not answer" in outcome.text for outcome in found)

    def _go_on(self, ranks: Sequence[int], places: Collection[int], told: Collection[int]) -> None:
        """These are in from now on, newcomers in these places, as those that were told went over; of what was before
        nothing is left."""
        before = self._is
        frozen = self._frozen_spares

        def came() -> list[Spare]:
            return [spare for spare in self._spares if spare.came.done()]

        if not eventually(lambda: len(came()) == len(places), within=8):
            assert len(came()) == len(places) - len(frozen), (places, self._spares)
        new = {spare.came.result().value: spare.seat for spare in came()}
        self._spares = [spare for spare in self._spares if not spare.came.done()]
        unheard = set(places).difference(new)
        assert set(new) <= set(places)
        slow = [rank for rank, how in before.lost.items() if how == "frozen" and (rank not in ranks or rank in places)]
        for rank in (*slow, *(rank for rank in before.there if rank not in told)):
            left = LeftOut(rank, self._seats[rank], rank in before.behind, before.coming.get(rank))
            self._left_out.append(left)
        stayed = {rank: how for rank, how in before.lost.items() if rank in ranks and rank not in places}
        self._is = Model(list(ranks), stayed, before.behind.intersection(stayed))
        for rank, spare in zip(sorted(unheard), frozen, strict=False):  # it was frozen when it had built
            self._spares.remove(spare)
            new[rank] = spare.seat
            self._is.lost[rank], self._is.coming[rank] = "frozen", spare.came
        self._seats = {rank: seat for rank, seat in (self._seats | new).items() if rank in ranks}
        self._is.broken = bool(self._is.lost)
        wanted = {str(sorted(ranks))}
        found = {str(sorted(outcome.value)) for outcome in self._all_well(self._tell(self._is.there, "members", 0))}
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
        def waiting() -> int:
            key = "lobby/engine/here"
            return len(self._store.get(key).splitlines()) if self._store.check([key]) else 0

        assert eventually(lambda: waiting() == len(self._spares)), (waiting(), self._spares)

        def left() -> list[str]:
            return [
                key
                for key in torch_private.list_keys(self._store)
                if self._store.get(key) and not key.startswith("lobby/") and not _is_farewell(self._store, key)
            ]

        assert eventually(lambda: not left()), left()

    def _leave(self) -> None:
        pass


class ElasticChaosOnProcesses(ElasticChaos):
    """Ranks as processes, over a store in another one."""

    kills = True

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


def _pick(some: Sequence[int], who: int) -> int:
    return some[who % len(some)]


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
        chaos.prepare("dp", goes=False, grows=False, replaces=False, waited=True)
        chaos.cancel(1)
        chaos.add_up()
        chaos.commit("commit")
        chaos.prepare("dp", goes=True, grows=False, replaces=False, waited=True)
        chaos.commit("commit")
        chaos.prepare("tp", goes=False, grows=False, replaces=False, waited=True)
        chaos.lose(0, "killed")
        chaos.commit("commit")
        chaos.replace_the_lost("tp")
        chaos.prepare("pp", goes=False, grows=False, replaces=False, waited=False)
        chaos.change_layout_without_the_lost("dp")
    finally:
        chaos.teardown()


def walk_prepared(chaos: ElasticChaos) -> None:
    """What is prepared meets losses and newcomers."""
    try:
        chaos.stand_by()
        chaos.prepare("dp", goes=False, grows=True, replaces=False, waited=True)
        chaos.cancel(1)
        chaos.prepare("dp", goes=False, grows=True, replaces=False, waited=False)
        chaos.commit("rebind")
        chaos.lose(1, "killed")
        chaos.prepare("tp", goes=False, grows=False, replaces=True, waited=False)
        chaos.stand_by()
        chaos.commit("commit")
        chaos.replace_the_lost("pp")
        chaos.lose(1, "frozen")
        chaos.prepare("dp", goes=True, grows=True, replaces=True, waited=True)
        chaos.lose(0, "frozen")
        chaos.commit("commit")
        chaos.wake()
        chaos.who_was_left_out_cannot_go_on()
        chaos.change_layout_without_the_lost("tp")
        chaos.lose(0, "frozen")
        chaos.prepare("dp", goes=False, grows=False, replaces=False, waited=True)
        chaos.wake()
        chaos.commit("commit")
        chaos.who_was_left_out_cannot_go_on()
        if chaos.kills:
            for how in ("killed", "frozen"):
                chaos.stand_by()
                chaos.prepare("dp", goes=False, grows=True, replaces=False, waited=True)
                chaos.lose_a_spare(how)
                chaos.commit("commit")
                chaos.change_layout_without_the_lost("tp")
    finally:
        chaos.teardown()


@pytest.mark.parametrize("way", [walk, walk_prepared])
def test_a_walk_on_threads(way: Callable[[ElasticChaos], None]):
    way(ElasticChaos())


@pytest.mark.slow
@pytest.mark.parametrize("way", [walk, walk_prepared])
def test_a_walk_on_processes(way: Callable[[ElasticChaos], None]):
    way(ElasticChaosOnProcesses())


def test_a_little_of_it():
    run(ElasticChaos, max_examples=2, stateful_step_count=10, derandomize=True)


def swap_on_some_ranks_only(patch: pytest.MonkeyPatch) -> None:
    """Rank 1 goes over whatever was decided."""
    commit = Succession.commit

    def faulty(self: Any, number: int, newcomers: Iterable[str], deadline: Deadline) -> None:
        with suppress(Refused) if self._rank == 1 else nullcontext():
            commit(self, number, newcomers, deadline)

    patch.setattr(Succession, "commit", faulty)


def decide_twice(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether the others went on long ago."""
    made = Succession.__init__
    patch.setattr(Succession, "__init__", lambda self, *told, **named: made(self, *told, **{**named, "sign": ""}))


def count_leavers(patch: pytest.MonkeyPatch) -> None:
    """Who is to leave has to have built, too."""
    ready = Succession.ready

    def faulty(self: Any, agreement: Agreement, objection: str, deadline: Deadline) -> None:
        ready(self, replace(agreement, members=sorted({*agreement.members, *self._ranks})), objection, deadline)

    patch.setattr(Succession, "ready", faulty)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [swap_on_some_ranks_only, decide_twice, count_leavers])
def test_a_random_run_finds_what_is_wrong(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, Flaky)):
        run(ElasticChaos, max_examples=40, stateful_step_count=25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_threads():
    run(ElasticChaos, max_examples=15, stateful_step_count=25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_processes():
    for _ in range(4):  # few lives a run: of more, hypothesis makes others that begin alike
        run(ElasticChaosOnProcesses, max_examples=2, stateful_step_count=20)
