"""Chaos: managers of several topologies made, used, ended, broken and made again, in any order, with what must hold.

No wait ends later than a second after its deadline; no value is wrong; no error is anybody else's; what is closed says
so; and in the end nothing is left. The short run is always the same; `-m slow` tries others for minutes, on threads and
on processes that are killed and frozen.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from parallel_topology import ParallelTopology, torch_private
from parallel_topology.meeting.rendezvous import join_store
from tests.groups.seats import CREATION, OPERATION, Outcome, ProcessSeat, StoreSeat, ThreadSeat, await_start
from tests.ports import free_port, kept
from tests.waiting import LATE, eventually

RANKS = 4
TOPOLOGIES = ("tp4", "tp2-pp2", "tp2-pp2/expert:ep4", "pp2-tp2", "cp2-tp2", "tp2@2", "tp2@3,0", "tp3@0", "tp3@3,1,2")
SAME_RANKS = ("tp4", "pp4", "tp2-pp2", "pp2-tp2", "cp2-dp2/expert:ep4")
topologies, names = st.sampled_from(TOPOLOGIES), st.sampled_from(["a", "b"])
picks = st.integers(0, 11)
"""Which of some, counted round."""
GONE = {"CollectiveError", "GroupTimeoutError"}
"""What those see who wait for somebody that is gone or does not come."""


@dataclass
class Made:
    """A manager, as all its ranks see it."""

    key: int
    topology: ParallelTopology
    name: str
    checked: bool
    apart: bool = False  # over a store of its own
    dead: tuple[int, ...] = ()

    @property
    def ranks(self) -> list[int]:
        """Those that are not dead."""
        return [rank for rank in self.topology.world if rank not in self.dead]

    def axes(self) -> list[str]:
        """The groups it has of more than one member."""
        return [name for name, family in self.topology.plan().families.items() if family.size > 1]


class Chaos(RuleBasedStateMachine):
    """Ranks as threads of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._keys = count()
        self._whole: list[Made] = []
        self._broken: list[Made] = []
        self._closed: list[Made] = []
        self._open()

    def _open(self) -> None:
        self._store: dist.Store = dist.HashStore()
        self._seats: list[Any] = [ThreadSeat(rank, self._store) for rank in range(RANKS)]
        self._begin()
        self._before = held()

    def _begin(self) -> None:
        """Make what stays: the store that rank 0 runs for a launcher's job."""
        self._port = free_port()
        self._end(self._make_at("tp4", self._port, True), ["close"] * RANKS)
        self._whole.clear()
        self._closed.clear()

    @initialize(life=st.integers(0, 2**32))
    def begin_unlike_any_other(self, life: int) -> None:
        """hypothesis compares lives that began alike, and what these draw depends on what ranks did."""

    # Making

    @rule(topology=topologies, name=names, checked=st.booleans(), slow=picks, late=st.sampled_from([0.0, 0.2]))
    def make(self, topology: str, name: str, checked: bool, slow: int, late: float) -> None:
        self._make(topology, name, checked, slow, late)

    @rule(topology=topologies, other=topologies)
    def make_two_at_once(self, topology: str, other: str) -> None:
        first, second = self._new(topology, "a"), self._new(other, "b")
        told = {(made.key, rank): self._tell_make(made, rank) for made in (first, second) for rank in made.ranks}
        self._all_well(told, CREATION)
        self._whole += [first, second]

    @rule(topology=topologies, name=names, absent=picks)
    def make_without_one_and_again(self, topology: str, name: str, absent: int) -> None:
        made = self._new(topology, name)
        missing = made.ranks[absent % len(made.ranks)]
        told = {rank: self._tell_make(made, rank, timeout=1.0) for rank in made.ranks if rank != missing}
        for outcome in self._outcomes(told, 1.0).values():
            assert outcome.error == "GroupTimeoutError", outcome
            assert f"rank {missing}" in outcome.text, outcome
        self._make(topology, name)

    @rule(topology=topologies, name=names, other=picks, what=st.sampled_from(["verify", "check_calls"]))
    def make_with_other_arguments(self, topology: str, name: str, other: int, what: str) -> None:
        made = self._new(topology, name)
        odd = made.ranks[other % len(made.ranks)]
        changed = {"verify": {"verify": False}, "check_calls": {"check_calls": True}}[what]
        told = {rank: self._tell_make(made, rank, **(changed if rank == odd else {})) for rank in made.ranks}
        for outcome in self._outcomes(told, CREATION).values():
            assert outcome.error == "DisagreementError", outcome

    @rule(topology=topologies, name=names, other=picks, told=st.sampled_from(["theirs", None]))
    def make_with_a_token_that_one_does_not_hold(self, topology: str, name: str, other: int, told: str | None) -> None:
        made = self._new(topology, name)
        odd = made.ranks[other % len(made.ranks)]
        answers = {
            rank: self._tell_make(made, rank, timeout=1.0, token=told if rank == odd else "ours") for rank in made.ranks
        }
        for outcome in self._outcomes(answers, 1.0).values():
            assert outcome.error in {"RendezvousError", "GroupTimeoutError"}, outcome
        answers = {rank: self._tell_make(made, rank, token="ours") for rank in made.ranks}
        self._all_well(answers, CREATION)
        self._whole.append(made)

    @rule(topology=st.sampled_from(SAME_RANKS), launched=st.booleans())
    def make_at_a_port(self, topology: str, launched: bool) -> None:
        self._make_at(topology, self._port if launched else free_port(), launched)

    # Using

    @precondition(lambda self: self._whole)
    @rule(
        which=picks, axis=picks, size=st.sampled_from([1, 1000, 300_000]), slow=picks, late=st.sampled_from([0.0, 0.2])
    )
    def add_up(self, which: int, axis: int, size: int, slow: int, late: float) -> None:
        self._add_up(self._pick(which), axis, size, slow, late)

    @precondition(lambda self: self._whole)
    @rule(which=picks, other=picks)
    def add_up_in_two_at_once(self, which: int, other: int) -> None:
        used = {made.key: made for made in (self._pick(which), self._pick(other))}
        told = {
            (made.key, rank): self._seats[rank].tell("sum", made.key, "world", 10)
            for made in used.values()
            for rank in made.ranks
        }
        for (key, _), outcome in self._all_well(told, OPERATION).items():
            assert outcome.value == [sum(rank + 1 for rank in used[key].ranks)], outcome

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks)
    def gather(self, which: int, axis: int) -> None:
        made = self._pick(which)
        for rank, members, outcome in self._each(made, "ranks", axis):
            assert outcome.value == members, (rank, outcome)

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks)
    def gather_objects(self, which: int, axis: int) -> None:
        for rank, members, outcome in self._each(self._pick(which), "objects", axis):
            assert outcome.value == [{"rank": one, "text": "x" * one * 5000} for one in members], (rank, outcome)

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks)
    def tell_objects(self, which: int, axis: int) -> None:
        for rank, members, outcome in self._each(self._pick(which), "told", axis, 1):
            assert outcome.value == ["from", members[1]], (rank, outcome)

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks, size=st.sampled_from([0, 1, 5000, 300_000]))
    def send_round(self, which: int, axis: int, size: int) -> None:
        for rank, members, outcome in self._each(self._pick(which), "ring", axis, size):
            before = members[members.index(rank) - 1]
            assert outcome.value == ([before] if size else []), (rank, outcome)

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks)
    def refuse_a_message(self, which: int, axis: int) -> None:
        for rank, members, outcome in self._each(self._pick(which), "refuse", axis):
            expected = ["WireError", "MismatchError", [7.0, 7.0]] if members.index(rank) == 1 else []
            assert outcome.value == expected, (rank, outcome)

    @precondition(lambda self: any(made.checked for made in self._whole))
    @rule(which=picks, odd=picks)
    def call_with_another_size(self, which: int, odd: int) -> None:
        checked = [made for made in self._whole if made.checked]
        made = checked[which % len(checked)]
        other = made.ranks[odd % len(made.ranks)]
        told = {
            rank: self._seats[rank].tell("differ", made.key, "world", 5 if rank == other else 3) for rank in made.ranks
        }
        for outcome in self._outcomes(told, OPERATION).values():
            assert outcome.error == "MismatchError", outcome
        self._add_up(made)

    @precondition(lambda self: self._whole)
    @rule(which=picks, axis=picks, waited=st.booleans())
    def begin_and_perhaps_wait(self, which: int, axis: int, waited: bool) -> None:
        made = self._pick(which)
        list(self._each(made, "begin", axis))
        told = {rank: self._seats[rank].tell("finish" if waited else "forget") for rank in made.ranks}
        name = made.axes()[axis % len(made.axes())]
        for rank, outcome in self._all_well(told, OPERATION).items():
            if waited:
                assert outcome.value == [sum(one + 1 for one in made.topology.group(name, rank=rank))], outcome
        if not waited:  # operations of a group go in order
            self._add_up(made, axis)

    @precondition(lambda self: self._whole)
    @rule(which=picks, absent=st.none() | picks)
    def count_survivors(self, which: int, absent: int | None) -> None:
        made = self._pick(which)
        here = [rank for rank in made.ranks if absent is None or rank != made.ranks[absent % len(made.ranks)]]
        told = {rank: self._seats[rank].tell("survivors", made.key, 0.7) for rank in here}
        for outcome in self._all_well(told, 0.7).values():
            assert outcome.value == [rank for rank in made.topology.world if rank in here], outcome

    # Rebinding

    @precondition(lambda self: self._of_all())
    @rule(which=picks, topology=st.sampled_from(SAME_RANKS))
    def rebind(self, which: int, topology: str) -> None:
        self._rebind(self._of_all()[which % len(self._of_all())], topology)

    @precondition(lambda self: self._of_all())
    @rule(which=picks, topology=st.sampled_from(SAME_RANKS), unwilling=picks)
    def one_will_not_be_rebound(self, which: int, topology: str, unwilling: int) -> None:
        made = self._of_all()[which % len(self._of_all())]
        odd = unwilling % RANKS
        told = {
            rank: self._seats[rank].tell("rebind", made.key, "tp2" if rank == odd else topology) for rank in made.ranks
        }
        for rank, outcome in self._outcomes(told, CREATION).items():
            assert outcome.error == "DisagreementError", (rank, outcome)
        self._add_up(made)

    @precondition(lambda self: self._of_all())
    @rule(which=picks, topology=st.sampled_from(SAME_RANKS), absent=picks)
    def one_does_not_come_to_be_rebound(self, which: int, topology: str, absent: int) -> None:
        made = self._of_all()[which % len(self._of_all())]
        here = [rank for rank in made.ranks if rank != absent % RANKS]
        told = {rank: self._seats[rank].tell("rebind", made.key, topology) for rank in here}
        for outcome in self._outcomes(told, CREATION).values():
            assert outcome.error == "RebindError", outcome
            assert f"rank {absent % RANKS}" in outcome.text, outcome
        self._add_up(made)
        self._rebind(made, topology)

    # Breaking and ending

    @precondition(lambda self: self._whole)
    @rule(which=picks, absent=picks)
    def one_does_not_take_part(self, which: int, absent: int) -> None:
        made = self._break(which)
        missing = made.ranks[absent % len(made.ranks)]
        told = {rank: self._seats[rank].tell("sum", made.key, "world", 3) for rank in made.ranks if rank != missing}
        for outcome in self._outcomes(told, OPERATION).values():
            assert outcome.error in GONE, outcome
            assert f"{missing}" in outcome.text, outcome

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks, how=st.sampled_from(["close", "abort"]))
    def one_ends_while_the_others_wait_for_it(self, which: int, who: int, how: str) -> None:
        made = self._break(which)
        leaving = made.ranks[who % len(made.ranks)]
        told = {rank: self._seats[rank].tell("sum", made.key, "world", 3) for rank in made.ranks if rank != leaving}
        told[-1] = self._seats[leaving].tell(how, made.key)
        outcomes = self._outcomes(told, OPERATION)
        assert outcomes.pop(-1).error == ""
        for outcome in outcomes.values():
            assert outcome.error in GONE, outcome

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks, after=st.sampled_from([0.0, 0.05, 0.3]))
    def abort_frees_a_thread_that_waits(self, which: int, who: int, after: float) -> None:
        made = self._break(which)
        rank = made.ranks[who % len(made.ranks)]
        waiting = self._seats[rank].tell("wait_in_vain", made.key, "world")
        ending = self._seats[rank].tell("abort", made.key, after)
        outcomes = self._outcomes({"waiting": waiting, "ending": ending}, after)
        assert outcomes["waiting"].error == "ClosedError", outcomes
        assert outcomes["ending"].value < LATE, outcomes

    @precondition(lambda self: self._whole)
    @rule(which=picks, ends=st.lists(st.sampled_from(["close", "abort"]), min_size=RANKS, max_size=RANKS))
    def end(self, which: int, ends: list[str]) -> None:
        made = self._whole.pop(which % len(self._whole))
        self._end(made, ends)

    @precondition(lambda self: self._broken)
    @rule(which=picks, ends=st.lists(st.sampled_from(["close", "abort"]), min_size=RANKS, max_size=RANKS))
    def end_what_is_broken(self, which: int, ends: list[str]) -> None:
        self._end(self._broken.pop(which % len(self._broken)), ends)

    @precondition(lambda self: self._closed)
    @rule(which=picks, what=st.sampled_from(["ranks", "objects", "wait_in_vain", "survivors", "rebind"]))
    def use_after_the_end(self, which: int, what: str) -> None:
        made = self._closed[which % len(self._closed)]
        argument = {"survivors": 1.0, "rebind": str(made.topology)}.get(what, "world")
        told = {rank: self._seats[rank].tell(what, made.key, argument) for rank in made.ranks}
        for outcome in self._outcomes(told, 0).values():
            assert outcome.error == "ClosedError", outcome

    def teardown(self) -> None:
        try:
            self._all_well({rank: seat.tell("end") for rank, seat in enumerate(self._seats)}, CREATION)
            self._require_nothing_left()
        finally:
            for seat in self._seats:
                seat.leave()
            super().teardown()

    def _require_nothing_left(self) -> None:
        assert eventually(lambda: self._keys_left() == []), self._keys_left()
        self._store = dist.HashStore()
        self._seats = []
        assert eventually(lambda: more(held(), self._before) == []), more(held(), self._before)

    def _keys_left(self) -> list[str]:
        return [key for key in torch_private.list_keys(self._store) if not self._is_a_word_of_farewell(key)]

    # Helpers

    def _is_a_word_of_farewell(self, key: str) -> bool:
        """What who gave up leaves until somebody meets there: a word for each rank and name, and which round it was."""
        if key.endswith("/ended"):
            return True
        return "/came/" in key and self._store.get(key).startswith(b"gone")

    def _new(self, topology: str, name: str, checked: bool = False) -> Made:
        return Made(next(self._keys), ParallelTopology.parse(topology), name, checked)

    def _tell_make(self, made: Made, rank: int, late: float = 0.0, **options: Any) -> Future[Outcome]:
        told = {"name": made.name, "check_calls": made.checked} | options
        return self._seats[rank].tell("make", made.key, str(made.topology), told, late)

    def _make(self, topology: str, name: str, checked: bool = False, slow: int = 0, late: float = 0.0) -> Made:
        made = self._new(topology, name, checked)
        odd = made.ranks[slow % len(made.ranks)]
        self._all_well({rank: self._tell_make(made, rank, late * (rank == odd)) for rank in made.ranks}, CREATION)
        self._whole.append(made)
        return made

    def _make_at(self, topology: str, port: int, launched: bool) -> Made:
        made = self._new(topology, "default")
        made.apart = True
        told = {rank: self._seats[rank].tell("make_at", made.key, topology, port, launched) for rank in made.ranks}
        self._all_well(told, CREATION)
        self._whole.append(made)
        return made

    def _rebind(self, made: Made, topology: str) -> None:
        self._all_well({rank: self._seats[rank].tell("rebind", made.key, topology) for rank in made.ranks}, CREATION)
        made.topology = ParallelTopology.parse(topology)
        self._add_up(made)

    def _end(self, made: Made, ends: list[str]) -> None:
        self._all_well({rank: self._seats[rank].tell(ends[rank], made.key) for rank in made.ranks}, 0)
        self._closed.append(made)

    def _add_up(self, made: Made, axis: int = 0, size: int = 7, slow: int = 0, late: float = 0.0) -> None:
        name = made.axes()[axis % len(made.axes())]
        odd = made.ranks[slow % len(made.ranks)]
        told = {rank: self._seats[rank].tell("sum", made.key, name, size, late * (rank == odd)) for rank in made.ranks}
        for rank, outcome in self._all_well(told, OPERATION).items():
            assert outcome.value == [sum(one + 1 for one in made.topology.group(name, rank=rank))], outcome

    def _each(self, made: Made, what: str, axis: int, *arguments: Any) -> list[tuple[int, list[int], Outcome]]:
        """Each rank, the members of its group, and what came of this, which went well."""
        name = made.axes()[axis % len(made.axes())]
        told = {rank: self._seats[rank].tell(what, made.key, name, *arguments) for rank in made.ranks}
        outcomes = self._all_well(told, OPERATION)
        return [(rank, list(made.topology.group(name, rank=rank)), outcomes[rank]) for rank in made.ranks]

    def _pick(self, which: int) -> Made:
        return self._whole[which % len(self._whole)]

    def _of_all(self) -> list[Made]:
        """Whole managers of all ranks in their order."""
        return [made for made in self._whole if made.ranks == list(range(RANKS))]

    def _break(self, which: int) -> Made:
        made = self._whole.pop(which % len(self._whole))
        self._broken.append(made)
        return made

    def _all_well(self, told: dict[Any, Future[Outcome]], deadline: float) -> dict[Any, Outcome]:
        outcomes = self._outcomes(told, deadline)
        assert {key: outcome for key, outcome in outcomes.items() if outcome.error} == {}
        return outcomes

    def _outcomes(self, told: dict[Any, Future[Outcome]], deadline: float) -> dict[Any, Outcome]:
        """How all ended, which they have soon after this many seconds."""
        wait_for_all(told.values(), deadline + LATE)
        assert [key for key, one in told.items() if not one.done()] == [], f"still running after {deadline:g} s"
        outcomes = {key: one.result() for key, one in told.items()}
        assert {key: outcome for key, outcome in outcomes.items() if not outcome.ours} == {}
        return outcomes


class ChaosOnProcesses(Chaos):
    """Ranks as processes, over a store in another one: any of them may be killed or frozen."""

    def _open(self) -> None:
        self._host = StoreSeat()
        self._store = join_store("127.0.0.1", self._host.port, CREATION)
        self._seats = [ProcessSeat(rank, self._host.port) for rank in range(RANKS)]
        await_start(self._seats)
        self._end(self._make("tp4", "first"), ["close"] * RANKS)
        self._begin()
        self._used = {seat: outcome.value for seat, outcome in self._all_held().items()}

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks, after=st.sampled_from([0.0, 0.05]))
    def kill(self, which: int, who: int, after: float) -> None:
        made = self._pick(which)
        rank = made.ranks[who % len(made.ranks)]
        others = [one for one in made.ranks if one != rank]
        told = {one: self._seats[one].tell("sum", made.key, "world", 3) for one in others}
        time.sleep(after)
        self._seats[rank].signal(signal.SIGKILL)
        for outcome in self._outcomes(told, OPERATION).values():
            assert outcome.error in GONE, outcome
            assert f"{rank}" in outcome.text, outcome
        for one in list(self._whole):
            if rank in one.ranks:
                self._whole.remove(one)
                self._broken.append(one)
        for one in (*self._broken, *self._closed):
            one.dead += (rank,)
        self._seats[rank].leave()
        self._seats[rank] = ProcessSeat(rank, self._host.port)
        await_start([self._seats[rank]])

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks, after=st.sampled_from([0.0, 0.05, 0.3]))
    def ctrl_c_in_a_wait(self, which: int, who: int, after: float) -> None:
        made = self._break(which)
        rank = made.ranks[who % len(made.ranks)]
        self._press_ctrl_c(rank, after, "wait_in_vain", made.key, "world")

    @rule(topology=topologies, name=names, who=picks, after=st.sampled_from([0.0, 0.05, 0.3]))
    def ctrl_c_while_a_manager_is_made(self, topology: str, name: str, who: int, after: float) -> None:
        made = self._new(topology, name)
        rank = made.ranks[who % len(made.ranks)]
        self._press_ctrl_c(rank, after, "make", made.key, topology, {"name": name})
        self._make(topology, name)

    def _press_ctrl_c(self, rank: int, after: float, *told: Any) -> None:
        waiting = self._seats[rank].tell("interrupted", after, *told)
        assert self._all_well({rank: waiting}, after)[rank].value < LATE

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks, how_long=st.sampled_from([0.1, 0.5]))
    def freeze_for_a_moment(self, which: int, who: int, how_long: float) -> None:
        made = self._pick(which)
        seat = self._seats[made.ranks[who % len(made.ranks)]]
        seat.signal(signal.SIGSTOP)
        told = {rank: self._seats[rank].tell("sum", made.key, "world", 9) for rank in made.ranks}
        time.sleep(how_long)
        seat.signal(signal.SIGCONT)
        for outcome in self._all_well(told, OPERATION).values():
            assert outcome.value == [sum(rank + 1 for rank in made.ranks)], outcome

    @precondition(lambda self: self._whole)
    @rule(which=picks, who=picks)
    def freeze(self, which: int, who: int) -> None:
        made = self._break(which)
        frozen = made.ranks[who % len(made.ranks)]
        self._seats[frozen].signal(signal.SIGSTOP)
        told = {rank: self._seats[rank].tell("sum", made.key, "world", 9) for rank in made.ranks}
        late = told.pop(frozen)
        for outcome in self._outcomes(told, OPERATION).values():
            assert outcome.error in GONE, outcome
        self._seats[frozen].signal(signal.SIGCONT)
        outcome = self._outcomes({frozen: late}, OPERATION)[frozen]
        assert outcome.error in GONE or outcome.value == [sum(rank + 1 for rank in made.ranks)], outcome

    @rule(topology=topologies, name=names, absent=picks)
    def the_store_freezes(self, topology: str, name: str, absent: int) -> None:
        self._host.signal(signal.SIGSTOP)
        try:
            self._without_a_store(topology, name, absent)
        finally:
            self._host.signal(signal.SIGCONT)
        self._make(topology, name)
        for made in self._whole:
            told = {rank: self._seats[rank].tell("survivors", made.key, 2.0) for rank in made.ranks}
            for outcome in self._all_well(told, 2.0).values():
                assert outcome.value == list(made.topology.world), outcome

    @rule(topology=topologies, name=names, absent=picks)
    def the_store_is_killed(self, topology: str, name: str, absent: int) -> None:
        self._host.signal(signal.SIGKILL)
        self._without_a_store(topology, name, absent)
        for made in (*self._whole, *self._broken):
            self._end(made, ["close", "abort", "close", "abort"])
        self._whole, self._broken = [], []
        self._host = StoreSeat()
        self._store = join_store("127.0.0.1", self._host.port, CREATION)
        self._all_well({seat: seat.tell("meet_at", self._host.port) for seat in self._seats}, CREATION)
        self._make(topology, name)

    def _without_a_store(self, topology: str, name: str, absent: int) -> None:
        """What is made serves on, errors come in time, and nothing new is made."""
        for made in self._whole:
            self._add_up(made)
        new = self._new(topology, name)
        told = {rank: self._tell_make(new, rank, timeout=1.0) for rank in new.ranks}
        for outcome in self._outcomes(told, 1.0).values():
            assert outcome.error == "RendezvousError", outcome
        for made in [one for one in self._whole if not one.apart][:1]:
            told = {rank: self._seats[rank].tell("survivors", made.key, 0.5) for rank in made.ranks}
            for outcome in self._outcomes(told, 0.5).values():
                assert outcome.error == "RendezvousError", outcome
            missing = made.ranks[absent % len(made.ranks)]
            told = {rank: self._seats[rank].tell("sum", made.key, "world", 3) for rank in made.ranks if rank != missing}
            for outcome in self._outcomes(told, OPERATION).values():
                assert outcome.error in GONE, outcome
            self._break(self._whole.index(made))

    def _all_held(self) -> dict[Any, Outcome]:
        return self._all_well({seat: seat.tell("held") for seat in self._seats}, CREATION)

    def _require_nothing_left(self) -> None:
        def grown() -> dict[int, list[str]]:
            found = self._all_held()
            return {
                rank: grown
                for rank, seat in enumerate(self._seats)
                if seat in self._used and (grown := more(found[seat].value, self._used[seat]))
            }

        assert eventually(lambda: not grown()), grown()

    def teardown(self) -> None:
        super().teardown()
        self._host.leave()


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) - kept(), len(os.listdir("/proc/self/task"))


def more(now: Sequence[int], before: Sequence[int]) -> list[str]:
    """Of what there is more now."""
    return [
        f"{one - other} {what}"
        for what, one, other in zip(("descriptors", "threads"), now, before, strict=True)
        if one > other
    ]


def run(machine: type[Chaos], **told: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            phases=[Phase.generate],
            print_blob=False,
            **told,
        ),
    )


def test_a_little_chaos():
    run(Chaos, max_examples=2, stateful_step_count=8, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_chaos_on_threads():
    run(Chaos, max_examples=12, stateful_step_count=30)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_chaos_on_processes():
    for _ in range(5):  # few lives a run: of more, hypothesis makes others that begin alike
        run(ChaosOnProcesses, max_examples=2, stateful_step_count=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_40_cycles_of_make_kill_and_abort_leave_nothing_behind():
    """Of two processes one is killed each time, and a new one comes; 500 cycles without a death are in test_end."""
    host = StoreSeat()
    store = join_store("127.0.0.1", host.port, CREATION)
    lasting, seen = ProcessSeat(0, host.port), list[tuple[int, int, int]]()
    try:
        for cycle in range(40):
            mortal = ProcessSeat(1, host.port)
            made = [seat.tell("make", cycle, "tp2", {"timeout": 30.0, "name": "a"}) for seat in (lasting, mortal)]
            assert [one.result(60).error for one in made] == ["", ""]
            waiting = lasting.tell("sum", cycle, "world", 9)
            mortal.signal(signal.SIGKILL)
            assert waiting.result(60).error in GONE
            assert lasting.tell("end").result(60).error == ""
            mortal.leave()
            seen.append((*lasting.tell("held").result(60).value, store.num_keys()))
    finally:
        lasting.leave()
        host.leave()
    early, late = zip(*seen[5:10], strict=True), zip(*seen[-5:], strict=True)
    assert all(min(after) <= max(before) for before, after in zip(early, late, strict=True)), seen
