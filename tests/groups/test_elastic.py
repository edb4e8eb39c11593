"""Managers that lose ranks, gain ranks or change their topology while they serve; on threads, and on processes that are
killed and frozen."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    ClosedError,
    CollectiveError,
    GroupArgumentError,
    GroupManager,
    GroupTimeoutError,
    ParallelTopology,
    TopologyError,
    torch_private,
)
from parallel_topology.communicators.communicator import Communicator
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.meeting.lobby import Call, answer
from parallel_topology.meeting.operations import key_of
from parallel_topology.meeting.rendezvous import join_store
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.testing.threads import run_threads
from parallel_topology.weights import Weight, Weights
from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, ThreadSeat, await_start
from tests.ports import free_port
from tests.waiting import FAR, LATE, SOON, eventually, soon

Told = Mapping[int, Future[Outcome]]


def total(groups: GroupManager) -> int:
    return int(groups.world.all_reduce(torch.tensor([groups.rank + 1])).item())


class World:
    """Ranks that are told what to do, and a manager of them, 0."""

    def __init__(self, kind: str) -> None:
        self._processes = kind == "processes"
        self._host = StoreSeat() if self._processes else None
        self._store: dist.Store = join_store("127.0.0.1", self._host.port, 10) if self._host else dist.HashStore()
        self.seats: dict[int, Any] = {}

    def seat(self, rank: int) -> Any:
        if rank not in self.seats:
            self.seats[rank] = ProcessSeat(rank, self._host.port) if self._host else ThreadSeat(rank, self._store)
        return self.seats[rank]

    def make(self, topology: str, **options: Any) -> None:
        """With deadlines that nobody is to wait for, unless told otherwise."""
        ranks, options = ParallelTopology.parse(topology).world, {"timeout": FAR, "operation_timeout": FAR} | options
        await_start(map(self.seat, ranks))
        self.require_well({rank: self.seat(rank).tell("make", 0, topology, options) for rank in ranks})

    def tell(self, ranks: Any, what: str, *arguments: Any) -> dict[int, Future[Outcome]]:
        return {rank: self.seat(rank).tell(what, *arguments) for rank in ranks}

    def lose(self, rank: int, how: str) -> None:
        """It is killed or frozen; as a thread it aborts its manager."""
        if self._processes:
            self.seats[rank].signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        else:
            self.require_well({rank: self.seats[rank].tell("abort", 0)})

    def require_well(self, told: Told) -> dict[int, Outcome]:
        found = outcomes(told)
        for rank, outcome in found.items():
            assert outcome.error == "", (rank, outcome)
        return found

    def add_up(self, ranks: Any, expected: int | None = None) -> None:
        for outcome in self.require_well(self.tell(ranks, "sum", 0, "world", 1)).values():
            assert outcome.value == [sum(rank + 1 for rank in ranks) if expected is None else expected]

    def has_stopped(self, rank: int) -> bool:
        """Whether its process is frozen."""
        with open(f"/proc/{self.seats[rank].process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    def keys(self) -> list[str]:
        """Of the store."""
        return torch_private.list_keys(self._store)

    def waiting(self) -> int:
        """How many newcomers wait."""
        key = "lobby/engine/here"
        return len(self._store.get(key).splitlines()) if self._store.check([key]) else 0

    def await_state(self, ranks: Any, state: str) -> list[Any]:
        """Wait until the standby is so on all of these; the statuses."""
        found: list[Any] = []

        def is_so() -> bool:
            found[:] = [one.value for one in self.require_well(self.tell(ranks, "status", 0)).values()]
            return all(one[0] == state for one in found)

        assert eventually(is_so), found
        return found

    def leave(self) -> None:
        told = {rank: seat.tell("end") for rank, seat in self.seats.items()}
        if not self._processes:
            outcomes(told)
        for seat in self.seats.values():
            seat.leave()
        if self._host:
            self._host.leave()


def outcomes(told: Told, within: float = FAR) -> dict[int, Outcome]:
    return {rank: one.result(within) for rank, one in told.items()}


@pytest.fixture
def ranks(world: str) -> Generator[World]:
    made = World(world)
    yield made
    made.leave()


@pytest.fixture
def processes() -> Generator[World]:
    made = World("processes")
    yield made
    made.leave()


class TestFewerAndMore:
    @pytest.mark.ranks("tp4", world=["threads", "processes"])
    def test_some_leave(self, groups: GroupManager):
        successor = groups.rebind(ParallelTopology(tp=3))
        assert groups.closed
        if groups.rank == 3:
            assert successor is groups
            with pytest.raises(ClosedError):
                successor.tp.barrier()
        else:
            with successor:
                assert total(successor) == 6
                assert successor.newcomers == ()

    @pytest.mark.ranks("tp4", world=["threads", "processes"])
    def test_the_first_leaves(self, groups: GroupManager):
        successor = groups.rebind(ParallelTopology(tp=2, ranks=(3, 1)))
        if groups.rank in (1, 3):
            with successor:
                assert total(successor) == 6
        else:
            assert successor.closed

    def test_newcomers_take_places_and_what_the_others_hold(self):
        store = dist.HashStore()

        def body(position: int) -> tuple[int, int, tuple[int, ...]]:
            if position < 2:
                groups = GroupManager(
                    ParallelTopology(tp=2), rank=position, store=store, timeout=20, name="actor", check_calls=True,
                    operation_timeout=15, groups=[("tp",)], options={"tp": {"timeout": 12}}, verify=False,
                )  # fmt: skip
                groups = groups.rebind(ParallelTopology(tp=2, pp=2))
            else:
                groups = GroupManager(store=store, name="actor", timeout=20, joining=True)
            with groups:
                assert str(groups.topology) == "tp2-pp2"
                assert groups.name == "actor"
                assert groups.tp.links.timeout.total_seconds() == 12
                found = groups.rank, total(groups), groups.newcomers
                groups.world.barrier()
            return found

        found = run_threads(["rank"] * 4, body, timeout=30)
        assert sorted(found) == [(rank, 10, (2, 3)) for rank in range(4)]
        assert [key for key in torch_private.list_keys(store) if store.get(key)] == []

    def test_two_that_were_called_to_one_place(self):
        store = dist.HashStore()
        call = Call("keys", 0, "tp3", 2, 20, {})
        store.set(key_of("keys", 0, "asked"), "[0, 'tp3']")
        assert answer(store, call, "a")
        assert not answer(store, call, "b")  # it goes back, where another place may be found for it
        assert answer(store, replace(call, place=1), "b")

    def test_one_rank_grows_and_shrinks(self):
        store = dist.HashStore()

        def body(position: int) -> int:
            if position == 0:
                groups = GroupManager(ParallelTopology(tp=1), rank=0, store=store, timeout=20)
                groups = groups.rebind(ParallelTopology(tp=2))
            else:
                groups = GroupManager(store=store, timeout=20, joining=True)
            found = total(groups)
            left = groups.rebind(ParallelTopology(dp=1))
            assert left.closed == (position == 1)
            left.close()
            return found

        assert run_threads(["rank"] * 2, body, timeout=30) == [3, 3]

    @pytest.mark.parametrize("how", ["connect", "from_env"])
    def test_one_rank_that_opened_no_store_hosts_one_when_it_is_to_grow(self, how: str):
        port = free_port()
        url, env = f"tcp://127.0.0.1:{port}", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        last = threading.Barrier(2)

        alone = ParallelTopology(tp=1)

        def meet(**told: Any) -> GroupManager:
            if how == "from_env":
                return GroupManager.from_env(env=env, timeout=20, **told)
            return GroupManager.connect(url, timeout=20, rank=0 if "topology" in told else None, **told)

        def body(position: int) -> list[int]:
            found: list[int] = []
            groups: Any = meet(topology=alone) if position == 0 else None
            for _ in range(2):
                groups = groups.rebind(ParallelTopology(tp=2)) if position == 0 else meet(joining=True)
                found.append(total(groups))
                groups = groups.rebind(alone)
            assert groups.closed == (position == 1)
            if position == 0 and how == "connect":
                with pytest.raises(TopologyError, match="rank 0 hosts the store, so it cannot leave"):
                    groups.rebind(ParallelTopology(tp=1, first_rank=1))
            last.wait(20)
            groups.close()
            return found

        assert run_threads(["rank"] * 2, body, timeout=60) == [[3, 3], [3, 3]]

    def test_one_rank_that_stays_alone_opens_no_store(self):
        port = free_port()
        with GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=1), rank=0) as groups:
            groups = groups.rebind(ParallelTopology(dp=1))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)

    def test_nobody_comes_to_a_new_place(self, ranks: World):
        ranks.make("tp2", timeout=2.5)
        for outcome in outcomes(ranks.tell([0, 1], "rebind", 0, "tp3")).values():
            assert outcome.error == "RebindError"
            assert "nobody came to be rank 2 within 2.5 s; all ranks keep tp2" in outcome.text
            assert outcome.seconds < 2.5 + LATE
        ranks.add_up([0, 1])

    def test_nobody_calls_a_newcomer(self):
        with (
            soon(0.5 + LATE),
            pytest.raises(GroupTimeoutError, match=r"nobody called to a place within 0\.5 s"),
        ):
            GroupManager(store=dist.HashStore(), timeout=0.5, joining=True)

    def test_a_newcomer_whose_time_is_up_leaves_nothing_behind(self):
        """Also not of what it was called to before, which came to nothing."""
        store = dist.HashStore()

        def body(position: int) -> None:
            if position:
                with pytest.raises(GroupTimeoutError, match="nobody called to a place"):
                    GroupManager(store=store, joining=True, timeout=8)
                return
            groups = GroupManager(ParallelTopology(tp=1), rank=0, store=store, timeout=20)
            standby = groups.prepare(ParallelTopology(tp=2))
            assert eventually(lambda: standby.status.state == "ready")
            standby.cancel()
            groups.close()

        run_threads(["rank"] * 2, body, timeout=30)
        assert [key for key in torch_private.list_keys(store) if store.get(key)] == []

    def test_a_newcomer_that_builds_what_was_called_off_waits_again_at_once(self, processes: World):
        """It waits for another newcomer, which has frozen before it builds."""
        ranks = processes
        where = ("parallel_topology.groups.manager", "GroupManager._build", "", signal.SIGSTOP)
        ranks.require_well(ranks.tell([8], "lose_at", *where))
        spares = ranks.tell([7, 8], "join", 0, {"timeout": 60})
        ranks.make("tp2", timeout=60.0)
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "tp4"))
        assert eventually(lambda: ranks.has_stopped(8))
        ranks.require_well(ranks.tell([0], "cancel", 0))
        ranks.await_state([1], "cancelled")
        with soon():
            ranks.require_well(ranks.tell([0, 1], "rebind", 0, "tp3"))
        assert spares[7].result(FAR).value == 2

    def test_what_a_newcomer_may_not_say(self):
        store: Any = dist.HashStore()
        with pytest.raises(GroupArgumentError, match="takes topology and rank from those that are there"):
            GroupManager(ParallelTopology(tp=2), rank=0, store=store, joining=True)
        with pytest.raises(GroupArgumentError, match="joining=True takes verify, options from those that are there"):
            GroupManager(store=store, joining=True, verify=False, options={"tp": {"timeout": 1}})


class TestAfterADeath:
    @pytest.mark.parametrize("lost", [0, 2])
    def test_the_others_go_on_without_it(self, ranks: World, lost: int):
        ranks.make("tp4")
        here = [rank for rank in range(4) if rank != lost]
        told = ranks.tell(here, "sum", 0, "world", 1)
        ranks.lose(lost, "killed")
        for outcome in outcomes(told).values():
            assert outcome.error == "CollectiveError", outcome
            assert f"{lost}" in outcome.text
        with soon():
            ranks.require_well(ranks.tell(here, "rebind", 0, f"tp3@{','.join(map(str, here))}"))
        ranks.add_up(here)

    def test_a_spare_takes_its_place(self, ranks: World):
        spare = ranks.tell([7], "join", 0, {"timeout": FAR})
        ranks.make("tp2-pp2")
        told = ranks.tell([0, 2, 3], "sum", 0, "world", 1)
        ranks.lose(1, "killed")
        assert {outcome.error for outcome in outcomes(told).values()} == {"CollectiveError"}
        ranks.require_well(ranks.tell([0, 2, 3], "rebind", 0, "tp2-pp2"))
        assert ranks.require_well(spare)[7].value == 1
        ranks.add_up([0, 2, 3, 7], 10)

    def test_a_spare_takes_its_place_and_gets_its_weights_from_the_copies_that_are_left(self):
        store, topology = dist.HashStore(), ParallelTopology(tp=2, dp=2)
        weights = Weights([Weight("w", "6/tp 4")], dtype="float32")
        whole = torch.arange(24.0).reshape(6, 4)

        def shard(rank: int) -> torch.Tensor:
            rows, _ = weights.on(topology, rank)["w"].ranges
            return whole[rows.start : rows.stop]

        def body(position: int) -> int:
            if position == 4:
                groups = GroupManager(store=store, timeout=30, joining=True)
            else:
                groups = GroupManager(topology, rank=position, store=store, timeout=30)
                groups.world.barrier()
                if position == 1:
                    groups.abort()
                    return -1
                with pytest.raises(CollectiveError):
                    groups.world.all_reduce(torch.ones(1))
                groups = groups.rebind(topology)
            assert groups.newcomers == (1,)
            is_new = groups.rank in groups.newcomers
            mine = torch.zeros(3, 4) if is_new else shard(groups.rank).clone()
            plan = RefitPlan(weights, topology, topology, only=groups.newcomers)
            refit(plan, groups.world, {} if is_new else {"w": mine}, {"w": mine} if is_new else {})
            assert torch.equal(mine, shard(groups.rank))
            groups.world.barrier()
            groups.close()
            return groups.rank

        assert run_threads(["rank"] * 5, body, timeout=60) == [0, -1, 2, 3, 1]

    def test_a_frozen_one_is_left_out_and_cannot_go_on(self, processes: World):
        ranks = processes
        ranks.make("tp4", operation_timeout=1)
        ranks.lose(3, "frozen")

        def missed() -> bool:
            """On a busy machine the others may not be told in time who did not report."""
            found = outcomes(ranks.tell([0, 1, 2], "sum", 0, "world", 1)).values()
            assert {outcome.error for outcome in found} <= {"GroupTimeoutError", "CollectiveError"}, found
            return all("3 did not report" in outcome.text for outcome in found)

        assert eventually(missed)
        with soon():
            ranks.require_well(ranks.tell([0, 1, 2], "rebind", 0, "tp3"))
        ranks.add_up([0, 1, 2])
        ranks.seats[3].signal(signal.SIGCONT)
        outcome = outcomes(ranks.tell([3], "rebind", 0, "tp1@3"))[3]
        assert outcome.error == "RebindError", outcome
        assert "rank 3 was left out: " in outcome.text
        assert "went on" in outcome.text

    def test_one_that_dies_while_it_waits_gets_no_place(self, processes: World):
        spares = processes.tell([7, 8], "join", 0, {"timeout": FAR})
        processes.make("tp2")
        assert eventually(lambda: processes.waiting() == 2)
        processes.lose(7, "killed")
        processes.require_well(processes.tell([0, 1], "rebind", 0, "tp3"))
        assert spares[8].result(FAR).value == 2
        processes.add_up([0, 1, 8], 6)

    def test_two_ranks_call_newcomers_and_no_place_is_given_twice(self, processes: World):
        processes.require_well(processes.tell([8], "held"))  # it has started
        slow = processes.tell([7], "join", 0, {"timeout": FAR})
        processes.make("tp2", timeout=20)
        assert eventually(lambda: processes.waiting() == 1)
        processes.lose(7, "frozen")
        told = processes.tell([1], "rebind", 0, "tp4")
        assert eventually(lambda: processes.waiting() == 0)  # rank 1 has called it
        quick = processes.tell([8], "join", 0, {"timeout": FAR})
        told |= processes.tell([0], "rebind", 0, "tp4")
        assert eventually(lambda: processes.waiting() == 0)
        processes.seats[7].signal(signal.SIGCONT)
        processes.require_well(told)
        assert processes.require_well(slow)[7].value == 2
        assert processes.require_well(quick)[8].value == 3


class TestStandby:
    def test_serves_while_it_is_built_and_is_swapped(self, ranks: World):
        ranks.make("tp4")
        told = ranks.tell(range(4), "prepare", 0, "tp2-pp2")
        assert len({outcome.value for outcome in ranks.require_well(told).values()}) == 1
        ranks.add_up(range(4))
        ranks.await_state(range(4), "ready")
        ranks.add_up(range(4))
        ranks.require_well(ranks.tell(range(4), "commit", 0))
        ranks.add_up(range(4))
        assert ranks.require_well(ranks.tell([0], "topology", 0))[0].value == "tp2-pp2"

    def test_the_same_again_is_the_same_and_another_replaces_it(self, ranks: World):
        ranks.make("tp2")
        first = {one.value for one in ranks.require_well(ranks.tell([0, 1], "prepare", 0, "pp2")).values()}
        again = {one.value for one in ranks.require_well(ranks.tell([0, 1], "prepare", 0, "pp2")).values()}
        ranks.await_state([0, 1], "ready")
        assert first == again
        other = {one.value for one in ranks.require_well(ranks.tell([0, 1], "prepare", 0, "dp2")).values()}
        assert other.isdisjoint(first)
        ranks.await_state([0, 1], "ready")
        ranks.require_well(ranks.tell([0, 1], "commit", 0))
        assert ranks.require_well(ranks.tell([0], "topology", 0))[0].value == "dp2"

    def test_rebind_to_what_is_prepared_takes_it(self, ranks: World):
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "pp2"))
        ranks.require_well(ranks.tell([0, 1], "rebind", 0, "pp2"))
        ranks.add_up([0, 1])
        ranks.await_state([0, 1], "committed")

    def test_another_one_replaces_it_while_it_is_built(self, ranks: World):
        ranks.make("tp3")
        for topology in ("pp3", "dp3"):
            ranks.require_well(ranks.tell(range(3), "prepare", 0, topology))
        ranks.require_well(ranks.tell(range(3), "commit", 0))
        ranks.add_up(range(3))
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "tp3"))
        ranks.require_well(ranks.tell(range(3), "rebind", 0, "pp3"))
        ranks.add_up(range(3))

    def test_cancelled_while_it_is_built_is_cancelled_soon(self, ranks: World):
        ranks.make("tp3")
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "pp3"))
        ranks.require_well(ranks.tell([1], "cancel", 0))
        for outcome in outcomes(ranks.tell(range(3), "commit", 0)).values():
            assert outcome.error == "RebindError", outcome
            assert outcome.seconds < SOON
        ranks.require_well(ranks.tell(range(3), "rebind", 0, "dp3"))
        ranks.add_up(range(3))

    def test_cancelled_on_one_is_cancelled_on_all(self, ranks: World):
        ranks.make("tp3")
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "pp3"))
        ranks.await_state(range(3), "ready")
        ranks.require_well(ranks.tell([1], "cancel", 0))
        assert ranks.await_state([0, 2], "cancelled")[0][1] == "rank 1: cancelled"
        for outcome in outcomes(ranks.tell(range(3), "commit", 0)).values():
            assert outcome.error == "RebindError"
        ranks.add_up(range(3))
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "pp3"))
        ranks.require_well(ranks.tell(range(3), "commit", 0))
        ranks.add_up(range(3))

    def test_cancelled_when_another_rank_has_committed(self, ranks: World):
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "pp2"))
        ranks.await_state([0, 1], "ready")
        ranks.require_well(ranks.tell([0], "commit", 0))
        outcome = outcomes(ranks.tell([1], "cancel", 0))[1]
        assert outcome.error == "RebindError"
        assert "another rank has committed it" in outcome.text
        ranks.require_well(ranks.tell([1], "commit", 0))
        ranks.add_up([0, 1])

    def test_one_rank_does_not_prepare(self, ranks: World):
        ranks.make("tp3", timeout=2.5)
        ranks.require_well(ranks.tell([0, 2], "prepare", 0, "pp3"))
        for _, why, _ in ranks.await_state([0, 2], "failed"):
            assert "rank 1 did not come within 2.5 s; all ranks keep tp3" in why
        ranks.add_up(range(3))

    def test_one_rank_prepares_another_one(self, ranks: World):
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0], "prepare", 0, "pp2") | ranks.tell([1], "prepare", 0, "dp2"))
        for _, why, _ in ranks.await_state([0, 1], "failed"):
            assert "the ranks disagree" in why
        ranks.add_up([0, 1])

    def test_ranks_that_leave_are_safe_to_stop_when_all_have_gone_over(self, ranks: World):
        ranks.make("tp3")
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "tp2"))
        ranks.await_state(range(3), "ready")
        assert [one.value for one in ranks.require_well(ranks.tell([0, 2], "commit", 0)).values()] == [True, False]
        assert ranks.await_state([0], "committed")[0][2] == ()
        ranks.require_well(ranks.tell([1], "commit", 0))
        ranks.add_up([0, 1])
        assert eventually(lambda: ranks.await_state([0, 1], "committed")[0][2] == (2,))

    def test_a_newcomer_comes_in_when_it_is_committed(self, ranks: World):
        new = ranks.tell([5], "join", 0, {"timeout": FAR})
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "tp3"))
        ranks.await_state([0, 1], "ready")
        ranks.add_up([0, 1])
        assert not new[5].done()
        ranks.require_well(ranks.tell([0, 1], "commit", 0))
        assert ranks.require_well(new)[5].value == 2
        ranks.add_up([0, 1, 5], 6)

    def test_a_newcomer_waits_again_when_it_is_cancelled(self, ranks: World):
        new = ranks.tell([5], "join", 0, {"timeout": FAR})
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "tp3"))
        ranks.await_state([0, 1], "ready")
        ranks.require_well(ranks.tell([0], "cancel", 0))
        ranks.await_state([1], "cancelled")
        ranks.require_well(ranks.tell([0, 1], "rebind", 0, "pp3"))
        assert ranks.require_well(new)[5].value == 2
        ranks.add_up([0, 1, 5], 6)

    @pytest.mark.parametrize("how", ["killed", "frozen"])
    def test_a_rank_is_lost_before_it_is_committed(self, processes: World, how: str):
        ranks = processes
        ranks.make("tp3", operation_timeout=1)
        ranks.require_well(ranks.tell(range(3), "prepare", 0, "pp3"))
        ranks.await_state(range(3), "ready")
        ranks.lose(2, how)
        found = outcomes(ranks.tell([0, 1], "commit", 0))
        if how == "killed":
            assert {outcome.error for outcome in found.values()} == {"RebindError"}, found
            assert "rank 2 ended" in found[0].text
        else:  # as if it were frozen just after it committed
            assert {outcome.error for outcome in found.values()} == {""}, found
            for outcome in outcomes(ranks.tell([0, 1], "sum", 0, "world", 1)).values():
                assert outcome.error == "GroupTimeoutError"
        ranks.require_well(ranks.tell([0, 1], "rebind", 0, "tp2"))
        ranks.add_up([0, 1])

    def test_a_manager_that_is_closed_calls_it_off(self, ranks: World):
        ranks.make("tp2")
        ranks.require_well(ranks.tell([0, 1], "prepare", 0, "pp2"))
        ranks.await_state([0, 1], "ready")
        ranks.require_well(ranks.tell([0], "close", 0))
        assert "rank 0 has closed its manager" in ranks.await_state([1], "cancelled")[0][1]


@pytest.mark.slow
def test_a_hundred_changes_leave_nothing_behind_and_lose_no_request():
    store, seen = dist.HashStore(), list[tuple[int, int, int]]()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), store.num_keys()

    def body(rank: int) -> int:
        answered = 0
        groups: Any = GroupManager(ParallelTopology(tp=2), rank=rank, store=store, timeout=60) if rank < 2 else None
        for change in range(100):
            if change % 2:
                groups = groups.rebind(ParallelTopology(pp=2) if change % 4 == 1 else ParallelTopology(tp=2))
            elif rank < 2:
                groups = groups.prepare(ParallelTopology(tp=3)).commit()
            else:
                groups = GroupManager(store=store, joining=True, timeout=60)
            if not groups.closed:
                answered += groups.world.all_reduce(torch.tensor([1])).item() == groups.world.size
            if rank == 0 and change in (19, 89):
                assert eventually(lambda: state() <= (seen or [(10**6, 0, 0)])[0])
                seen.append(state())
        groups.close()
        return answered

    assert run_threads(["rank"] * 3, body, timeout=200) == [100, 100, 50]
    assert eventually(lambda: [key for key in torch_private.list_keys(store) if store.get(key)] == [])


class Left(TorchCommunicator):
    """Says what it is made of."""

    name = "own"

    def __init__(self, membership: Membership, made_of: tuple[Any, ...] = ()) -> None:
        super().__init__(membership.links, membership.device, membership.size, membership.rank)
        self.membership = membership
        self.made_of = made_of
        self.told: list[str] = []

    def follow(self, rank: int, members: Sequence[int], *, broken: bool) -> Communicator | None:
        if len(members) > 2:
            return None
        self.told.append("followed")
        return Follower(rank, tuple(members), broken)

    def suspend(self) -> None:
        self.told.append("suspended")

    def resume(self) -> None:
        self.told.append("resumed")


class Follower(Communicator):
    name = "own"

    def __init__(self, rank: int, members: tuple[int, ...], broken: bool) -> None:
        self.made_of = (rank, members, broken)

    def handles(self, operation: str, tensor: torch.Tensor) -> bool:
        return False


class TestCommunicators:
    def test_are_asked_what_follows_on_them(self):
        store = dist.HashStore()

        def body(rank: int) -> None:
            groups = GroupManager(
                ParallelTopology(tp=3), rank=rank, store=store, timeout=20, options={"tp": {"communicators": ("own",)}},
                communicators={"own": Left},
            )  # fmt: skip
            first: Any = groups.tp.communicators[0]
            groups = groups.rebind(ParallelTopology(tp=3, dp=1))  # three: it wants to be made anew
            second: Any = groups.tp.communicators[0]
            assert isinstance(second, Left)
            assert not first.told
            groups = groups.rebind(ParallelTopology(tp=2, ranks=(2, 1)))
            if rank:
                followed: Any = groups.tp.communicators[0]
                assert followed.made_of == (2 - rank, (2, 1), False)
                assert total(groups) == 5
            groups.close()

        run_threads(["rank"] * 3, body, timeout=30)

    def test_are_not_asked_while_they_serve(self):
        store = dist.HashStore()

        def body(rank: int) -> None:
            groups = GroupManager(
                ParallelTopology(tp=2), rank=rank, store=store, timeout=20, options={"tp": {"communicators": ("own",)}},
                communicators={"own": Left},
            )  # fmt: skip
            with groups.prepare(ParallelTopology(tp=2, pp=1)).commit() as groups:
                assert isinstance(groups.tp.communicators[0], Left)

        run_threads(["rank"] * 2, body, timeout=30)

    @pytest.mark.ranks("tp2", options={"tp": {"communicators": ("own",)}}, communicators={"own": Left})
    def test_are_suspended_and_resumed(self, groups: GroupManager):
        mine: Any = groups.tp.communicators[0]
        mine = getattr(mine, "inner", mine)
        groups.suspend()
        with pytest.raises(ClosedError, match="its manager is suspended: resume"):
            groups.tp.barrier()
        assert not groups.closed
        groups.resume()
        groups.resume()
        assert total(groups) == 3
        assert mine.told == ["suspended", "resumed"]
