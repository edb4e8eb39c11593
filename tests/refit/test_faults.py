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

    def ends(*_: int) -> None:
        if rank == faulty:
            Path(folder, "fault").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    if phase == "before":
        groups.world.barrier()
        ends()
    begun = time.monotonic()
    try:
        refit(plan, groups.world, have, into, 1 << 20, progress=ends if phase == "during" else None)
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
@pytest.mark.parametrize("phase", ["before", "during"])
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
        assert seconds < 2 * TIMEOUT + 1
        assert intact
