"""A rank that dies or freezes during a refit: named by all others, within the manager's timeout; have as it was."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from parallel_topology import GroupManager, ParallelTopology, RefitError
from parallel_topology.meeting.rendezvous import host_store, join_store
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.testing import WorkerPool
from parallel_topology.testing.processes import run_processes
from parallel_topology.weights import Weight, Weights
from tests.waiting import LATE

TIMEOUT = 4.0
MODEL = Weights([Weight("w", "2048/tp 512", layer=True)], layers=8, dtype="float32")
SENDERS, RECEIVERS = ParallelTopology(tp=2), ParallelTopology(tp=2, first_rank=2)


def _refits(rank: int, port: int, faulty: int, phase: str, how: str, folder: str) -> None:
    store = join_store("127.0.0.1", port, TIMEOUT)
    groups = GroupManager(ParallelTopology(tp=4), rank=rank, store=store, timeout=TIMEOUT)
    plan = RefitPlan(MODEL, SENDERS, RECEIVERS)
    have, into = (
        {
            name: torch.full(one.shape, rank + 1.0)
            for name, one in (side.tensors_on(rank) if rank in side.world else {}).items()
        }
        for side in (plan.source, plan.target)
    )

    def ends(through: int = 0, of: int = 0) -> None:
        if rank == faulty and (phase != "at the end" or through == of):
            Path(folder, "fault").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    if phase == "before":
        groups.world.barrier()
        ends()
    begun = time.monotonic()
    try:
        refit(plan, groups.world, have, into, 1 << 20, progress=None if phase == "before" else ends)
        said = ""
    except RefitError as error:
        said = str(error)
    seconds = time.monotonic() - begun
    intact = all(bool((tensor == rank + 1.0).all()) for tensor in have.values())
    draft = Path(folder, f"{rank}.draft")
    draft.write_text(json.dumps([said, seconds, intact]))
    draft.rename(Path(folder, f"{rank}.json"))
    groups.abort()


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [0, 3], ids=["sender", "receiver"])
@pytest.mark.parametrize("phase", ["before", "during", "at the end"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_rank_that_is_gone_is_named(faulty: int, phase: str, how: str, tmp_path: Path, rank_workers: WorkerPool):
    store = host_store("127.0.0.1", 0, TIMEOUT)
    job = (_refits, store.port, faulty, phase, how, str(tmp_path))
    with pytest.raises(ExceptionGroup):  # the faulty one
        run_processes([f"rank {rank}" for rank in range(4)], *job, timeout=15, grace=2 * TIMEOUT, pool=rank_workers)
    for rank in {0, 1, 2, 3} - {faulty}:
        said, seconds, intact = json.loads(Path(tmp_path, f"{rank}.json").read_text())
        assert f"rank {faulty}" in said, (rank, said)
        assert said.endswith("nothing was written" if phase == "before" else "half written, and not to be used"), said
        assert seconds < 2 * TIMEOUT + LATE
        assert intact


REPLICAS, ROLLOUT = ParallelTopology(tp=2, dp=2), ParallelTopology(tp=2, first_rank=4)


def _goes_on(rank: int, port: int, faulty: int, folder: str) -> None:
    store = join_store("127.0.0.1", port, TIMEOUT)
    groups = GroupManager(ParallelTopology(dp=6), rank=rank, store=store, timeout=TIMEOUT)
    plan = RefitPlan(MODEL, REPLICAS, ROLLOUT)
    have = {name: torch.full(one.shape, rank % 2 + 1.0) for name, one in plan.source.tensors_on(rank).items()}
    into = {name: torch.zeros(one.shape) for name, one in plan.target.tensors_on(rank).items()}

    def dies(*_: int) -> None:
        if rank == faulty:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RefitError, match=f"rank {faulty}"):
        refit(plan, groups.world, have, into, 1 << 20, progress=dies)
    alive = groups.survivors(2 * TIMEOUT)
    groups = groups.rebind(ParallelTopology(dp=len(alive), ranks=tuple(alive)))
    without = RefitPlan(MODEL, REPLICAS, ROLLOUT, without={*groups.topology.world} ^ {*range(6)})
    refit(without, groups.world, have, into, 1 << 20, version=1)
    right = all(bool((tensor == rank % 2 + 1.0).all()) for tensor in into.values())
    Path(folder, f"{rank}.right").write_text(json.dumps([alive, right, len(into)]))
    groups.world.barrier()
    groups.close()


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [0, 5], ids=["sender", "receiver"])
def test_the_others_go_on_without_it(faulty: int, tmp_path: Path, rank_workers: WorkerPool):
    """A sender's replica takes its place; a receiver is left out. Over what `rebind` makes of those that are left."""
    store = host_store("127.0.0.1", 0, TIMEOUT)
    with pytest.raises(ExceptionGroup):  # the faulty one
        run_processes(
            [f"rank {rank}" for rank in range(6)], _goes_on, store.port, faulty, str(tmp_path),
            timeout=40, grace=8 * TIMEOUT, pool=rank_workers,
        )  # fmt: skip
    for rank in {*range(6)} - {faulty}:
        alive, right, count = json.loads(Path(tmp_path, f"{rank}.right").read_text())
        assert alive == sorted({*range(6)} - {faulty})
        assert right
        assert count == (8 if rank >= 4 else 0)
