"""Who was where: at a price that does not grow with how many are silent, and of this failure, not the one before."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.communicators.links import Call
from parallel_topology.meeting import witness
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.witness import Witness
from parallel_topology.testing.threads import run_threads
from tests.waiting import FAR, LATE, SOON, eventually, soon

TP2 = ParallelTopology(tp=2)
WORLD = "engine/world"


class Counting(dist.Store):
    """Counts the operations on a store."""

    def __init__(self, inner: dist.Store) -> None:
        super().__init__()
        self.inner = inner
        self.count = 0

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        self.count += 1
        return self.inner.compare_set(key, expected_value, desired_value)


@pytest.mark.parametrize("ranks", [4, 128])
def test_silent_ranks_cost_half_a_second_and_a_bounded_number_of_operations(ranks: int):
    store = Counting(dist.HashStore())
    said = ""

    def told() -> bool:
        """On a busy machine the store may not answer in time."""
        nonlocal said
        store.count = 0
        with soon(0.5 + LATE):  # a fifth of a second for each silent rank would be 25
            said = Witness(Control(store), "keys", 0).report(WORLD, range(ranks), Call("all_reduce", 1))
        return "did not report" in said

    assert eventually(told)
    assert store.count < 40
    assert said == f"ranks {', '.join(map(str, range(1, ranks)))} did not report: dead, elsewhere or still waiting" or (
        ranks == 128 and "did not report" in said
    )


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """However busy the machine is, the store answers in time."""
    monkeypatch.setattr(witness, "SILENCE", FAR)
    return monkeypatch


def test_each_failure_is_told_by_itself(unhurried: pytest.MonkeyPatch):
    unhurried.setattr(witness, "GRACE", SOON)  # those that failed are all waited for
    store = dist.HashStore()
    witnesses = [Witness(Control(store), "keys", rank) for rank in range(3)]

    def report(*calls: Call | None) -> list[Any]:
        absent = [rank for rank, call in enumerate(calls) if call is None]

        def body(rank: int) -> str | None:
            witnesses[rank].ended = lambda ranks, thoroughly: absent
            call = calls[rank]
            return call and witnesses[rank].report(WORLD, range(3), call)

        return run_threads(["rank"] * 3, body, timeout=FAR)

    first = report(Call("all_reduce", 1), Call("all_reduce", 1), None)
    assert first[:2] == [f"rank {other} failed in it too; rank 2 did not report: dead" for other in (1, 0)]
    assert report(Call("barrier", 2), None, None)[0] == "ranks 1, 2 did not report: dead"
    third = report(Call("recv"), Call("recv"), Call("send"))
    assert third[0] == "rank 1 failed in it too; rank 2 was in send"
    assert third[2] == "rank 0 was in recv; rank 1 was in recv"


@pytest.mark.usefixtures("unhurried")
def test_who_reports_late_is_not_counted_for_the_next_failure():
    """Rank 1 comes when rank 0 looks no longer: it failed in the same all_reduce, and is not in the barrier."""
    store = dist.HashStore()
    first, late = (Witness(Control(store), "keys", rank) for rank in range(2))
    nobody = "rank 1 did not report: dead, elsewhere or still waiting"
    assert first.report(WORLD, [0, 1], Call("all_reduce", 1)) == nobody
    assert late.report(WORLD, [0, 1], Call("all_reduce", 1)) == "rank 0 failed in it too"
    assert first.report(WORLD, [0, 1], Call("barrier", 2)) == nobody
    assert late.report(WORLD, [0, 1], Call("reduce", 3)) == "rank 0 was in barrier"


def test_garbage_among_the_reports_harms_nobody():
    store = dist.HashStore()
    store.set(
        "keys/failed", "x\n[1]\n" + "[" * 50_000 + '\n["engine/world", 1, 5]\n["engine/world", 1, "barrier", "x", 5]\n'
    )
    said = Witness(Control(store), "keys", 0).report(WORLD, [0, 1], Call("barrier", 1))
    assert said == "rank 1 did not report: dead, elsewhere or still waiting"


class Held(dist.Store):
    """Holds whoever goes on to the next count, for half a second or until `over`."""

    def __init__(self, inner: dist.Store, over: threading.Event) -> None:
        super().__init__()
        self.inner = inner
        self.over = over

    def add(self, key: str, value: int) -> int:
        if key.endswith("/counts") and value:
            self.over.wait(0.5)
        return self.inner.add(key, value)

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        if key.endswith("/counts") and desired_value.isdigit():
            self.over.wait(0.5)
        return self.inner.compare_set(key, expected_value, desired_value)


class TestPresent:
    def test_who_asks_again_at_once_is_counted_again(self):
        """Before the one who decided the first count has gone on to the second."""
        store, over = dist.HashStore(), threading.Event()

        def body(rank: int) -> list[list[int]]:
            witness = Witness(Control(Held(store, over) if rank == 0 else store), "keys", rank)
            if rank == 0:  # comes last, and decides
                assert eventually(lambda: store.check(["keys/count/0/here"]))
            found = [witness.present([0, 1], 10) for _ in range(2)]
            over.set()
            return found

        assert run_threads(["rank"] * 2, body, timeout=60) == [[[0, 1]] * 2] * 2

    def test_who_missed_one_is_not_shifted(self):
        store = dist.HashStore()

        def body(rank: int) -> list[list[int]]:
            with GroupManager(ParallelTopology(tp=3), rank=rank, store=store, timeout=20) as groups:
                found = [groups.survivors(0.5), groups.diagnose(0.5)] if rank != 2 else []
                groups.world.barrier()
                found += [groups.survivors(20), groups.diagnose(20)]
                groups.world.barrier()
                return found

        both = [[0, 1], [2], [0, 1, 2], []]
        assert run_threads(["rank"] * 3, body, timeout=60) == [both, both, both[2:]]

    def test_it_is_the_same_list_for_all_whoever_comes_when(self):
        store = dist.HashStore()
        ranks = range(6)
        witnesses = [Witness(Control(store), "keys", rank) for rank in ranks]

        def body(rank: int) -> list[int]:
            threading.Event().wait(0.05 * rank)  # one after the other, all before the first one's time is up
            return witnesses[rank].present(ranks, 0.8 + 0.3 * rank) if rank != 5 else []

        assert run_threads(["rank"] * 6, body, timeout=60)[:5] == [[0, 1, 2, 3, 4]] * 5


class TestKeys:
    @pytest.mark.parametrize("kind", ["hash", "tcp"])
    def test_none_stays_after_the_last_one_closed(self, kind: str):
        store = dist.HashStore() if kind == "hash" else dist.TCPStore("127.0.0.1", 0, is_master=True)
        before = store.num_keys()

        def body(rank: int) -> None:
            for cycle in range(3):
                told: dict[str, Any] = {"token": "secret"} if cycle else {}
                with GroupManager(ParallelTopology(tp=2, pp=2), rank=rank, store=store, timeout=20, **told) as groups:
                    groups.tp.all_reduce(torch.ones(1))
                    for _ in range(4):
                        groups.diagnose(10)
                    groups.world.barrier()

        run_threads(["rank"] * 4, body, timeout=60)
        assert store.num_keys() == before

    def test_cycles_in_which_a_rank_dies_leave_no_more_each(self):
        store = dist.HashStore()
        counts: list[int] = []

        def body(rank: int) -> None:
            groups = GroupManager(TP2, rank=rank, store=store, timeout=20)
            groups.world.barrier()
            if rank == 0:
                groups.abort()
            else:  # killed: it runs nothing of ours any more
                assert groups._held is not None
                groups._held.control = None
                groups.abort()

        for _ in range(6):
            run_threads(["rank"] * 2, body, timeout=60)
            counts.append(store.num_keys())
        assert len(set(counts[1:])) == 1, counts
