"""A rank that is lost in a refit, at each step: the others finish without it, or all say that they cannot; in time."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, RefitError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.meeting.rendezvous import host_store, join_store
from parallel_topology.meeting.witness import Witness
from parallel_topology.refit import RefitPlan, Refitted, refit
from parallel_topology.refit.boxes import Boxes
from parallel_topology.refit.slips import Slip
from parallel_topology.testing import WorkerPool
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from parallel_topology.weights import Weight, Weights
from tests.waiting import LATE

TIMEOUT = 4.0
MODEL = Weights([Weight("w", "2048/tp 512", layer=True)], layers=8, dtype="float32")
REPLICAS, SINGLE = ParallelTopology(tp=2, dp=2), ParallelTopology(tp=2, ranks=(0, 2))
ROLLOUT = ParallelTopology(tp=2, first_rank=4)
STEPS: dict[str, tuple[type, str, int]] = {
    "agreeing": (ParallelGroup, "all_gather_object", 1),
    "packing": (Boxes, "read", 3),
    "sending": (Slip, "lend", 2),
    "receiving": (Slip, "borrowed", 2),
    "unpacking": (Boxes, "write", 3),
    "at the end": (ParallelGroup, "all_gather_object", 2),
}
"""Which method, and the how manieth call of it."""
SENDERS = ("agreeing", "packing", "sending", "at the end")
RECEIVERS = ("agreeing", "receiving", "unpacking", "at the end")
CASES = [(0, step) for step in SENDERS] + [(5, step) for step in RECEIVERS]
AT_LEAST = [(0, "packing"), (5, "unpacking"), (5, "agreeing"), (0, "at the end")]


class Fault(BaseException):
    """Ends a thread, as a signal a process."""


def lost_at(step: str, lose: Callable[[], object], patch: Callable[[type, str, Any], object]) -> Callable[[], None]:
    """From then on the thread that calls what is returned is lost at that step."""
    of, name, number = STEPS[step]
    found, faulty, calls = getattr(of, name), set[int](), iter(range(1, 1000))

    def called(self: Any, *given: Any) -> Any:
        if threading.get_ident() in faulty and next(calls) == number:
            lose()
        return found(self, *given)

    patch(of, name, called)
    return lambda: faulty.add(threading.get_ident())


def refitted(groups: GroupManager, source: ParallelTopology, begin: Callable[[], None]) -> list[Any]:
    """[what is said, who was lost, whether all is right, seconds]"""
    rank = groups.rank
    plan = RefitPlan(MODEL, source, ROLLOUT)
    have, into = (
        {name: torch.full(one.shape, position % 2 + 1.0) for name, one in side.tensors_on(rank).items()}
        for side, position in ((plan.source, source.world.index(rank) if rank in source.world else 0), (plan.target, 9))
    )
    before = {name: tensor.clone() for name, tensor in have.items()}
    for tensor in into.values():
        tensor.zero_()
    groups.world.barrier()
    begin()
    begun = time.monotonic()
    try:
        done: Refitted | None = refit(plan, groups.world, have, into, 1 << 20, version=3)
        said = ""
    except RefitError as error:
        done, said = None, str(error)
    seconds = time.monotonic() - begun
    right = all(torch.equal(tensor, before[name]) for name, tensor in have.items())
    if done is not None:
        right = right and all(bool((tensor == rank % 2 + 1.0).all()) for tensor in into.values())
    return [said, list(done.lost) if done else [], right, seconds]


def require_right(found: dict[int, list[Any]], faulty: int, step: str, source: ParallelTopology, most: float) -> None:
    """The others are done, or say why not."""
    replaced = faulty == 5 or source is REPLICAS
    assert {*found} == {*range(6)} - {faulty}
    for said, lost, right, seconds in found.values():
        assert right
        assert seconds < most, (seconds, said)
        if replaced:
            assert (said, lost) == ("", [faulty])
        else:
            written = "nothing was" if step == "agreeing" else "what was to be written is half"
            assert f"no copy is left, they were on ranks [{faulty}]; {written} written" in said, said
            assert re.search(rf"ranks? ([0-9], )*{faulty}\b", said), said  # others may be late on a busy machine
    assert len({said.partition("; before that: ")[0] for said, *_ in found.values()}) == 1


@pytest.mark.parametrize(("faulty", "step"), AT_LEAST)
def test_a_thread_that_ends(faulty: int, step: str, monkeypatch: pytest.MonkeyPatch):
    found = in_threads(faulty, step, REPLICAS, monkeypatch, frozen=False)
    require_right(found, faulty, step, REPLICAS, TIMEOUT + LATE)


@pytest.mark.slow
@pytest.mark.parametrize(("faulty", "step"), CASES)
def test_a_thread_that_ends_and_may_have_the_only_copy(faulty: int, step: str, monkeypatch: pytest.MonkeyPatch):
    found = in_threads(faulty, step, SINGLE, monkeypatch, frozen=False)
    require_right(found, faulty, step, SINGLE, TIMEOUT + LATE)


@pytest.mark.slow
@pytest.mark.parametrize(("faulty", "step"), CASES)
def test_a_thread_that_is_frozen(faulty: int, step: str, monkeypatch: pytest.MonkeyPatch):
    """Who wakes up when the others have gone on is told so."""
    found = in_threads(faulty, step, REPLICAS, monkeypatch, frozen=True)
    said, *_ = found.pop(faulty)
    assert f"the others go on without rank {faulty}" in said
    require_right(found, faulty, step, REPLICAS, 2 * TIMEOUT + LATE)


def in_threads(
    faulty: int, step: str, source: ParallelTopology, monkeypatch: pytest.MonkeyPatch, *, frozen: bool
) -> dict[int, list[Any]]:
    store, over = dist.HashStore(), threading.Semaphore(0)

    def lose() -> None:
        if not frozen:
            raise Fault
        for _ in range(5):
            over.acquire(timeout=60)

    begin = lost_at(step, lose, monkeypatch.setattr)

    def body(rank: int) -> list[Any] | None:
        groups = GroupManager(ParallelTopology(dp=6), rank=rank, store=store, timeout=TIMEOUT)
        try:
            return refitted(groups, source, begin if rank == faulty else lambda: None)
        except Fault:
            return None
        finally:
            over.release()
            groups.abort()

    found = run_threads([f"rank {rank}" for rank in range(6)], body, timeout=90)
    assert store.num_keys() < 20  # none for each message or look
    return {rank: one for rank, one in enumerate(found) if one is not None}


def _in_process(rank: int, port: int, faulty: int, step: str, how: str, single: bool, folder: str) -> None:
    store = join_store("127.0.0.1", port, TIMEOUT)
    groups = GroupManager(ParallelTopology(dp=6), rank=rank, store=store, timeout=TIMEOUT)
    begin: Callable[[], None] = lambda: None  # noqa: E731
    if rank == faulty:
        number = signal.SIGKILL if how == "killed" else signal.SIGSTOP
        begin = lost_at(step, lambda: os.kill(os.getpid(), number), setattr)
    found = refitted(groups, SINGLE if single else REPLICAS, begin)
    draft = Path(folder, f"{rank}.draft")
    draft.write_text(json.dumps(found))
    draft.rename(Path(folder, f"{rank}.json"))
    groups.abort()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "faulty", "step"), [("killed", *c) for c in CASES] + [("frozen", *c) for c in AT_LEAST]
)
def test_a_process(faulty: int, step: str, how: str, tmp_path: Path, rank_workers: WorkerPool):
    in_processes(faulty, step, how, REPLICAS, tmp_path, rank_workers)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["agreeing", "sending"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_process_that_has_the_only_copy(step: str, how: str, tmp_path: Path, rank_workers: WorkerPool):
    in_processes(0, step, how, SINGLE, tmp_path, rank_workers)


def in_processes(faulty: int, step: str, how: str, source: ParallelTopology, folder: Path, workers: WorkerPool) -> None:
    store = host_store("127.0.0.1", 0, TIMEOUT)
    with pytest.raises(ExceptionGroup):  # the faulty one
        run_processes(
            [f"rank {rank}" for rank in range(6)], _in_process, store.port, faulty, step, how, source is SINGLE,
            str(folder), timeout=2 * TIMEOUT + 2 * LATE, grace=2 * TIMEOUT + 2 * LATE, pool=workers,
        )  # fmt: skip
    found = {rank: json.loads(Path(folder, f"{rank}.json").read_text()) for rank in {*range(6)} - {faulty}}
    most = (1 if how == "killed" else 2) * TIMEOUT + LATE
    require_right(found, faulty, step, source, most)


def test_what_one_knows_all_are_told():
    """Who failed at the very end, when another one had seen that all have everything, is done, too."""
    store = dist.HashStore()
    witnesses = [Witness(_control(store), "keys", rank) for rank in range(3)]

    def body(rank: int) -> tuple[str, list[int]]:
        number = witnesses[rank].begin("engine/world")
        return witnesses[rank].concluded("engine/world", number, range(3), 20, "done" if rank == 1 else "")

    assert {known for known, _ in run_threads(["rank"] * 3, body, timeout=60)} == {"done"}


def test_a_rank_that_takes_a_lost_one_s_place_catches_up(monkeypatch: pytest.MonkeyPatch):
    """The others go on in what `rebind` makes, and nobody but the newcomer gets anything."""
    store = dist.HashStore()
    begin = lost_at("unpacking", _end, monkeypatch.setattr)
    whole = ParallelTopology(dp=6)

    def body(rank: int) -> str:
        if rank == 6:
            groups = GroupManager(joining=True, store=store, timeout=30)
            assert groups.rank == 5
        else:
            groups = GroupManager(whole, rank=rank, store=store, timeout=30, operation_timeout=TIMEOUT)
            try:
                said, lost, right, _ = refitted(groups, REPLICAS, begin if rank == 5 else lambda: None)
            except Fault:
                groups.abort()
                return "lost"
            assert (said, lost, right) == ("", [5], True)
            alive = groups.survivors(TIMEOUT)
            assert alive == [0, 1, 2, 3, 4]
            groups = groups.rebind(whole)
        plan = RefitPlan(MODEL, REPLICAS, ROLLOUT, only=[5])
        have, into = (
            {name: torch.full(one.shape, groups.rank % 2 + 1.0) for name, one in side.tensors_on(groups.rank).items()}
            for side in (plan.source, plan.target)
        )
        for tensor in into.values():
            tensor.zero_()
        done = refit(plan, groups.world, have, into, version=3)
        assert done.received == plan.bytes_received(groups.rank) == (plan.bytes_moved if groups.rank == 5 else 0)
        assert all(bool((tensor == 2 * (groups.rank == 5)).all()) for tensor in into.values())
        groups.world.barrier()
        groups.close()
        return "there"

    assert run_threads([f"rank {rank}" for rank in range(7)], body, timeout=90) == ["there"] * 5 + ["lost", "there"]


def _end() -> None:
    raise Fault


def _control(store: dist.Store) -> Any:
    from parallel_topology.meeting.control import Control

    return Control(store)
