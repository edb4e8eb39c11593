"""run_ranks, in threads and in processes: results, failures, the dead and the stuck."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from parallel_topology import ClosedError, CollectiveError, GroupManager, ParallelTopology
from parallel_topology.meeting import witness
from parallel_topology.testing import WorkerPool, diagnosis, processes, rank_generator, run_ranks, threads
from parallel_topology.testing.failures import (
    DeadlockError,
    DeadRankError,
    MismatchError,
    RanksUsageError,
    StuckRankError,
)
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from parallel_topology.testing.where import others_alive
from tests.waiting import eventually


def _place(groups: GroupManager, offset: int) -> tuple[int, dict[str, int]]:
    return groups.rank + offset, groups.coordinate


def _one_fails(groups: GroupManager) -> None:
    if groups.rank == 2:
        raise KeyError("planted")
    groups.world.all_reduce(torch.ones(1))


def _one_is_killed(groups: GroupManager) -> None:
    if groups.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    groups.world.barrier()


def _one_exits(groups: GroupManager) -> None:
    if groups.rank == 1:
        os._exit(7)
    groups.world.barrier()


def _one_is_stuck(position: int) -> None:
    if position == 1:
        threading.Event().wait()


def _unpicklable(position: int) -> None:
    class LocalError(Exception):
        pass

    raise LocalError("planted")


def _talks(position: int, send: Any, word: str) -> int:
    send(word * position)
    return position


def test_results_by_position(world: Any, rank_workers: WorkerPool):
    topology = ParallelTopology(tp=2, pp=2, first_rank=4)
    expected = [(rank + 10, topology.coordinate(rank)) for rank in topology.world]
    assert run_ranks(topology, _place, 10, world=world, pool=rank_workers) == expected
    assert run_ranks("tp2-pp2@4", _place, 10, world=world) == expected  # with new workers


def test_a_failure_ends_all_and_comes_first(world: Any, rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks("tp2-pp2", _one_fails, world=world, pool=rank_workers)
    group = caught.value
    message = "4 of 4 ranks failed, first rank 2 of tp2-pp2 {'tp': 0, 'pp': 1} with KeyError: 'planted'"
    assert group.message == message
    assert isinstance(group.exceptions[0], KeyError)
    for error in group.exceptions:
        assert re.match(r"on rank \d of tp2-pp2 \{'tp': \d, 'pp': \d\}", error.__notes__[-1])


@pytest.mark.parametrize(
    ("body", "cause"),
    [(_one_is_killed, "its process died by SIGKILL"), (_one_exits, "its process exited with status 7")],
)
def test_a_dead_process_is_named(body: Any, cause: str, rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup, match=f"first rank 1 of tp3 .* with DeadRankError: {cause}") as caught:
        run_ranks("tp3", body, world="processes", pool=rank_workers)
    assert caught.group_contains(DeadRankError, match=cause)


def test_a_stuck_thread_is_named_with_its_stack():
    with pytest.raises(ExceptionGroup, match="1 of 2 ranks failed, first b with StuckRankError") as caught:
        run_threads(["a", "b"], _one_is_stuck, timeout=0.5)
    assert caught.group_contains(StuckRankError, match=r"threading\.Event\(\)\.wait\(\)")


def test_a_thread_that_is_left_behind_keeps_no_connections():
    over = threading.Event()

    def body(groups: GroupManager) -> None:
        if groups.rank == 1:
            over.wait()
        groups.world.barrier()

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with pytest.raises(ExceptionGroup, match="2 of 2 ranks failed"):
        run_ranks("tp2", body, timeout=0.5, check=False, operation_timeout=90)
    assert eventually(lambda: descriptors() <= before)
    over.set()


def test_a_thread_that_is_interrupted_on_its_way_out_takes_no_notice():
    told, over = threading.Event(), threading.Event()

    def tell(result: object, error: BaseException | None) -> None:
        told.set()
        over.wait(20)

    rank = threads._Rank("a", lambda: 1 / 0, tell, threading.Event(), lambda: None)
    rank.start()
    assert told.wait(20)
    rank.interrupt()
    over.set()
    rank.join(20)
    rank.interrupt()


def test_a_thread_that_is_interrupted_before_it_has_begun_does_not_begin():
    called: list[int] = []
    rank = threads._Rank("a", lambda: called.append(1), lambda *_: None, threading.Event(), lambda: None)
    rank.interrupt()
    rank.start()
    rank.join(20)
    assert not rank.is_alive()
    assert not called


def test_a_rank_that_is_freed_is_not_interrupted_too():
    """An exception raised in it from outside could hit it anywhere, in its fixtures' teardown as well."""
    met: list[type[BaseException]] = []

    def body(groups: GroupManager) -> None:
        try:
            if groups.rank == 1:
                threading.Event().wait()
            groups.tp.barrier()
        except BaseException as error:
            met.append(type(error))
            sum(range(2_000_000))
            met.append(type(error))

    with pytest.raises(ExceptionGroup):
        run_ranks("tp2", body, timeout=1)
    assert met == [ClosedError, ClosedError]


def test_a_stuck_process_is_killed_and_named_with_its_stack(rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup, match="1 of 2 ranks failed, first b with StuckRankError") as caught:
        run_processes(["a", "b"], _one_is_stuck, timeout=3, pool=rank_workers)
    assert caught.group_contains(StuckRankError, match=r"threading\.Event\(\)\.wait\(\)")


def _crossed(groups: GroupManager) -> None:
    order = [groups.tp, groups.world] if groups.rank == 1 else [groups.world, groups.tp]
    for group in order:
        group.all_reduce(torch.ones(1))


def _other_shapes(groups: GroupManager) -> None:
    groups.tp.all_reduce(torch.ones(4 if groups.tp.is_first else 8))


def _quietly_wrong(groups: GroupManager) -> None:
    groups.tp.all_reduce(torch.ones(2, 3) if groups.tp.is_first else torch.ones(3, 2))


def test_a_deadlock_is_named_long_before_the_deadline(world: Any, rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup, match="first rank 0 of tp2-pp2") as caught:  # after the deadline, all are stuck
        run_ranks("tp2-pp2", _crossed, world=world, timeout=100, pool=rank_workers)
    said = (
        r"rank 1, in its call 0, all_reduce of float32\[1\] on engine/tp\[0\] = \[0, 1\], waits for rank 0, which is in"
    )
    assert caught.group_contains(DeadlockError, match=said)
    assert caught.group_contains(StuckRankError, match=r"waiting in all_reduce on engine/tp\[0\] = \[0, 1\]")


def test_a_rank_whose_call_failed_does_not_wait(monkeypatch: pytest.MonkeyPatch):
    """Before it raises it asks the others where they were, which takes a while: that is no deadlock."""
    monkeypatch.setattr(witness, "GRACE", 2.0)

    def body(groups: GroupManager) -> None:
        if groups.tp.is_first:
            with pytest.raises(CollectiveError):
                groups.tp.all_reduce(torch.ones(1))
        else:
            groups.close()

    run_ranks("tp2", body)


@pytest.mark.parametrize("body", [_other_shapes, _quietly_wrong])
def test_shapes_that_do_not_fit_are_named(world: Any, body: Any, rank_workers: WorkerPool):
    """In threads before they reach gloo, which would end this process on some."""
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks("tp2", body, world=world, pool=rank_workers)
    assert caught.group_contains(MismatchError, match=r"rank [01] calls all_reduce of float32\[.*\] on engine/tp\[0\]")


def test_without_check_a_mismatch_is_the_testers_own_business():
    run_ranks("tp2", _quietly_wrong, check=False)


def test_a_crash_is_named_with_the_call_and_what_was_printed(rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks("tp3", _crashes, world="processes", pool=rank_workers)
    error = caught.value.exceptions[0]
    death, line = str(error).splitlines()
    assert death == "its process died by SIGABRT after all_reduce of float32[1] on engine/tp[0] = [0, 1, 2]"
    assert line.endswith(": rank 1 last called it here: groups.tp.all_reduce(torch.ones(1))")
    assert any("last words" in note and "Fatal Python error: Aborted" in note for note in error.__notes__)


def _crashes(groups: GroupManager) -> None:
    groups.tp.all_reduce(torch.ones(1))
    if groups.rank == 1:
        print("last words", flush=True)  # noqa: T201
        os.abort()
    groups.tp.barrier()


def test_64_ranks():
    assert run_ranks("tp8-pp8", lambda groups: groups.world.all_reduce(torch.ones(1)).item(), timeout=60) == [64.0] * 64


def _pid(groups: GroupManager) -> int:
    return os.getpid()


def test_workers_are_used_again_and_replaced_when_they_fail():
    with WorkerPool() as pool:
        first = set(run_ranks("tp2", _pid, world="processes", pool=pool))
        assert set(run_ranks("tp2", _pid, world="processes", pool=pool)) == first
        with pytest.raises(ExceptionGroup):
            run_ranks("tp2", _one_is_killed, world="processes", pool=pool)
        assert len(set(run_ranks("tp2", _pid, world="processes", pool=pool))) == 2
        assert pool.started <= 4


def test_seeds_belong_to_the_rank_in_processes_and_to_the_world_in_threads(rank_workers: WorkerPool):
    before = torch.get_rng_state()
    drawn = run_ranks("tp2", _draw, world="processes", pool=rank_workers)
    assert drawn == run_ranks("tp2", _draw, world="processes", pool=rank_workers) == [
        torch.rand(1, generator=rank_generator(rank)).item() for rank in range(2)
    ]  # fmt: skip
    assert drawn != run_ranks("tp2", _draw, world="processes", seed=1, pool=rank_workers)
    assert run_ranks("tp1", _draw) == run_ranks("tp1", _draw)
    assert torch.equal(torch.get_rng_state(), before)


def _draw(groups: GroupManager) -> float:
    return torch.rand(1).item()


def _one_is_stuck_while_others_rebind(groups: GroupManager) -> None:
    if groups.rank == 2:
        threading.Event().wait()
    groups.rebind(groups.topology)


def test_who_waits_in_a_call_of_the_manager_is_not_the_first_to_be_named(world: Any, rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup, match="first rank 2 of tp3") as caught:
        run_ranks("tp3", _one_is_stuck_while_others_rebind, world=world, pool=rank_workers, timeout=3)
    assert caught.group_contains(StuckRankError, match=r"waiting in \w+\.rebind")


def test_an_error_that_cannot_travel_is_told_in_words(rank_workers: WorkerPool):
    with pytest.raises(ExceptionGroup, match="LocalError: planted"):
        run_processes(["a"], _unpicklable, timeout=20, pool=rank_workers)


def test_a_function_that_cannot_travel():
    with pytest.raises(RanksUsageError, match=r"cannot travel to other processes \(.*<lambda>.*\): expected a"):
        run_ranks("tp2", lambda groups: groups.rank, world="processes")


def test_messages_come_with_their_position(rank_workers: WorkerPool):
    heard: list[tuple[int, str]] = []
    how: dict[str, Any] = {"on_message": lambda *said: heard.append(said), "pool": rank_workers}
    assert run_processes(["a"] * 3, _talks, "x", timeout=20, **how) == [0, 1, 2]
    assert sorted(heard) == [(0, ""), (1, "x"), (2, "xx")]


def test_an_unknown_world():
    with pytest.raises(ValueError, match="world='cluster': expected 'threads' or 'processes'"):
        run_ranks("tp2", _place, world="cluster")  # pyright: ignore[reportArgumentType]


def _called_from_a_helper(groups: GroupManager) -> None:
    if groups.rank == 0:
        helper = threading.Timer(1.5, groups.tp.send, (torch.ones(1), 1))
        helper.start()
        groups.tp.recv(torch.empty(1), 1)
        helper.join()
    else:
        groups.tp.recv(torch.empty(1), 0)
        groups.tp.send(torch.ones(1), 0)


def test_no_deadlock_is_claimed_while_another_thread_may_still_call(
    world: Any, rank_workers: WorkerPool, monkeypatch: pytest.MonkeyPatch
):
    """Both ranks wait in recv, for each other, until one's other thread sends."""
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.2)
    run_ranks("tp2", _called_from_a_helper, world=world, pool=rank_workers)


def test_no_deadlock_is_claimed_where_the_other_thread_calls_and_ends_as_one_looks_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    def when_it_has_ended(ranks: Any) -> bool:
        assert eventually(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))
        return others_alive(ranks)

    monkeypatch.setattr(diagnosis, "PATIENCE", 0.2)
    monkeypatch.setattr(threads, "others_alive", when_it_has_ended)
    run_ranks("tp2", _called_from_a_helper)


def test_no_deadlock_is_claimed_while_ranks_do_not_answer(rank_workers: WorkerPool, monkeypatch: pytest.MonkeyPatch):
    """They may be too busy to say that another thread lives."""
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.2)
    monkeypatch.setattr(processes, "ANSWER", 0.0)
    run_ranks("tp2", _called_from_a_helper, world="processes", pool=rank_workers)


def test_the_grace_after_a_failure_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "GRACE", 0.2)

    def body(position: int) -> None:
        if position == 0:
            raise KeyError("planted")
        threading.Event().wait()

    with pytest.raises(ExceptionGroup, match="2 of 2 ranks failed, first a with KeyError"):
        run_threads(["a", "b"], body, timeout=30)


TRACED = """
import sys, threading
from parallel_topology.testing.threads import run_threads

def body(position):
    if position:
        threading.Event().wait()  # in C, where no exception reaches it

def called():
    return 1

def trace(frame, event, argument):
    return trace

try:
    run_threads(["a", "b"], body, timeout=0.5)
except ExceptionGroup as failures:
    print(failures.exceptions[0])
sys.settrace(trace)
print(called())
sys.stdout.flush()
"""


def test_a_thread_that_cannot_be_interrupted_does_not_hang_others_under_a_debugger():
    """On Python 3.11 an exception that waits for another thread makes a traced call repeat its first step for ever."""
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0].startswith("still running at its end")
    assert done.stdout.splitlines()[-1] == "1"
