"""run_ranks: call a function once per rank, each with a GroupManager of its own, and collect what they return."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from parallel_topology.groups.manager import GroupManager
from parallel_topology.testing.diagnosis import Diagnosis, Heard, read_tape
from parallel_topology.testing.pool import WorkerPool
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.recording import FileTape, Ledger, record
from parallel_topology.testing.seeding import rank_seed, seed_process, seeded_threads
from parallel_topology.testing.threads import GRACE, run_threads
from parallel_topology.topology.topology import ParallelTopology

MARGIN = 5.0
"""Seconds by which a manager's timeout is later than the world's, which sees all ranks and says more."""

World = Literal["threads", "processes"]


def run_ranks(
    topology: ParallelTopology | str,
    fn: Callable[..., Any],
    *args: Any,
    world: World = "threads",
    timeout: float = 30.0,
    seed: int = 0,
    check: bool = True,
    pool: WorkerPool | None = None,
    **options: Any,
) -> list[Any]:
    """Call `fn(groups, *args)` on every rank, over real gloo groups; returns the results by position.

    Args:
        topology: or its compact notation.
        fn: for `world="processes"` a function that a fresh process can import.
        world: threads of this process (milliseconds a rank), or processes (what the real thing does).
        timeout: seconds for the whole.
        seed: of `random` and of torch's default generators: a process seeds its own by `rank_seed(rank, seed)`,
            threads share them, seeded with `seed`.
        check: whether the calls on all ranks are checked against each other: in threads before they reach gloo, and
            in either world when ranks stop making progress and when all have returned.
        pool: the workers for `world="processes"`, as the fixture `rank_workers` has them; without it new ones.
        options: as for `GroupManager`.

    Raises:
        ExceptionGroup: one or more ranks failed; every rank's error, the first failure first, each with a note that
            names rank and coordinate. A `DeadlockError` or `MismatchError` that explains them comes before them.
        TopologyError: the notation cannot be read.
        RanksUsageError: for processes, the function or its arguments cannot be pickled.
        ValueError: `world` is neither.
    """
    if isinstance(topology, str):
        topology = ParallelTopology.parse(topology)
    options = {"timeout": timeout + MARGIN, "backend": "gloo", **options}
    labels = [f"rank {rank} of {topology} {topology.coordinate(rank)}" for rank in topology.world]
    if world == "threads":
        with seeded_threads(seed):
            return _ThreadWorld(topology, check).run(labels, options, fn, args, timeout)
    if world == "processes":
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            diagnosis = Diagnosis(topology, lambda: _read_tapes(topology, folder)) if check else None
            job = (topology, folder, seed, check, options, fn, args)
            results = run_processes(
                labels, _in_process, *job, timeout=timeout, pool=pool, diagnosis=diagnosis, grace=GRACE
            )
            _check(labels, diagnosis)
            return results
    raise ValueError(f"world={world!r}: expected 'threads' or 'processes'")


class _ThreadWorld:
    """What the threads of one call share."""

    def __init__(self, topology: ParallelTopology, check: bool) -> None:
        self.topology = topology
        self.store = dist.HashStore()
        self.managers: dict[int, GroupManager] = {}
        self.ledger = Ledger(list(topology.world))
        self.diagnosis = Diagnosis(topology, lambda: self.ledger.heard) if check else None

    def run(
        self, labels: list[str], options: dict[str, Any], fn: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        run = (options, fn, args)
        results = run_threads(
            labels, self._on_rank, *run, timeout=timeout, diagnosis=self.diagnosis, interrupt=self._interrupt
        )
        _check(labels, self.diagnosis)
        return results

    def _on_rank(self, position: int, options: dict[str, Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        rank = self.topology.world[position]
        with GroupManager(self.topology, rank=rank, store=self.store, **options) as groups:
            self.managers[position] = groups
            if self.diagnosis is not None:
                record(groups, self.ledger.tape(rank))
            return fn(groups, *args)

    def _interrupt(self, position: int) -> None:
        if position in self.managers:
            self.managers[position].close()


def _check(labels: list[str], diagnosis: Diagnosis | None) -> None:
    if diagnosis is not None and (error := diagnosis.at_the_end()):
        raise BaseExceptionGroup(f"all {len(labels)} ranks returned, but {error}", [error])


def _read_tapes(topology: ParallelTopology, folder: str) -> dict[int, Heard]:
    return {rank: read_tape(Path(folder, f"calls-{position}")) for position, rank in enumerate(topology.world)}


def _in_process(
    position: int,
    topology: ParallelTopology,
    folder: str,
    seed: int,
    check: bool,
    options: dict[str, Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> Any:
    rank = topology.world[position]
    store = dist.FileStore(str(Path(folder, "store")), topology.world_size)
    seed_process(rank_seed(rank, seed))
    with (
        GroupManager(topology, rank=rank, store=store, **options) as groups,
        closing(FileTape(Path(folder, f"calls-{position}"))) as tape,
    ):
        if check:
            record(groups, tape)
        return fn(groups, *args)
