"""run_ranks: call a function once per rank, each with a GroupManager of its own, and collect what they return."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from parallel_topology.groups.manager import GroupManager
from parallel_topology.meeting.deadline import seconds_of
from parallel_topology.testing.asked import topology_of
from parallel_topology.testing.diagnosis import Diagnosis, Heard, read_tape
from parallel_topology.testing.inheritance import Inheritance, lent
from parallel_topology.testing.pool import WorkerPool
from parallel_topology.testing.processes import OnMessage, run_processes
from parallel_topology.testing.recording import FileTape, Ledger, record
from parallel_topology.testing.seeding import rank_seed, seed_process
from parallel_topology.testing.threads import GRACE, run_threads
from parallel_topology.testing.workers import Seat
from parallel_topology.topology.topology import ParallelTopology

MARGIN = 5.0
"""Seconds by which a manager's timeout is later than the world's, which sees all ranks and says more."""

World = Literal["threads", "processes"]


def run_ranks(
    topology: ParallelTopology | str | int,
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
        topology: or its compact notation, or a number of ranks along `tp`.
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
        GroupArgumentError: `timeout` is not above 0.
        ValueError: `world` is neither.
    """
    topology, timeout = topology_of(topology), seconds_of("timeout", timeout)
    options = {"timeout": timeout + MARGIN, "backend": "gloo", **options}
    labels = labels_of(topology)
    if world == "threads":
        with lent(seed, {label: label.partition(" of ")[0] for label in labels}):
            return _ThreadWorld(topology, check).run(labels, options, fn, args, timeout)
    if world == "processes":
        job = (seed, check, options, fn, args)
        return run_world(topology, labels, _in_process, *job, check=check, timeout=timeout, pool=pool)
    raise ValueError(f"world={world!r}: expected 'threads' or 'processes'")


def labels_of(topology: ParallelTopology) -> list[str]:
    """What errors call the ranks, by position."""
    return [f"rank {rank} of {topology} {topology.coordinate(rank)}" for rank in topology.world]


def run_world(
    topology: ParallelTopology,
    labels: list[str],
    fn: Callable[..., Any],
    *args: Any,
    check: bool,
    on_message: OnMessage = lambda position, message: None,
    **how: Any,
) -> list[Any]:
    """Call `fn(position, seat, topology, folder, *args)` in a process for each rank; they meet in the folder."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        diagnosis = Diagnosis(topology, lambda: _read_tapes(topology, folder)) if check else None
        how |= {"on_message": on_message, "diagnosis": diagnosis, "grace": GRACE, "relay": True}
        results = run_processes(labels, fn, topology, folder, *args, **how)
        _check(labels, diagnosis)
        return results


class _ThreadWorld:
    """What the threads of one call share."""

    def __init__(self, topology: ParallelTopology, check: bool) -> None:
        self.topology = topology
        self.store = dist.HashStore()
        self.managers: dict[int, GroupManager] = {}
        self.ledger = Ledger(list(topology.world))
        self.diagnosis = Diagnosis(topology, lambda: self.ledger.heard) if check else None
        self.inheritance = Inheritance()

    def run(
        self, labels: list[str], options: dict[str, Any], fn: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        run = (options, fn, args)
        results = run_threads(
            labels, self._on_rank, *run, timeout=timeout, diagnosis=self.diagnosis, farewell=self._close
        )
        _check(labels, self.diagnosis)
        return results

    def _on_rank(self, position: int, options: dict[str, Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        rank = self.topology.world[position]
        groups = GroupManager(self.topology, rank=rank, store=self.store, **options)
        self.managers[position] = groups
        if self.diagnosis is not None:
            record(groups, self.ledger.tape(rank))
        return self.inheritance.call(fn, groups, *args)

    def _close(self, position: int) -> None:
        if position in self.managers:
            self.managers[position].close()


def _check(labels: list[str], diagnosis: Diagnosis | None) -> None:
    if diagnosis is not None and (error := diagnosis.at_the_end()):
        raise BaseExceptionGroup(f"all {len(labels)} ranks returned, but {error}", [error])


def _read_tapes(topology: ParallelTopology, folder: str) -> dict[int, Heard]:
    return {rank: read_tape(Path(folder, f"calls-{position}")) for position, rank in enumerate(topology.world)}


def _in_process(
    position: int,
    seat: Seat,
    topology: ParallelTopology,
    folder: str,
    seed: int,
    check: bool,
    options: dict[str, Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> Any:
    seed_process(rank_seed(topology.world[position], seed))
    with seated(position, seat, topology, folder, check, options) as groups:
        try:
            result = fn(groups, *args)
        except BaseException as error:
            seat.end(None, error)
            raise
        else:
            seat.end(result)
            return result
        finally:
            if check:
                seat.stay()


@contextmanager
def seated(
    position: int, seat: Seat, topology: ParallelTopology, folder: str, check: bool, options: dict[str, Any]
) -> Generator[GroupManager]:
    """The manager of the rank at a position of a world of processes, whose calls are on a tape in their folder."""
    rank = topology.world[position]
    store = dist.FileStore(str(Path(folder, "store")), topology.world_size)
    with (
        GroupManager(topology, rank=rank, store=store, **options) as groups,
        closing(FileTape(Path(folder, f"calls-{position}"))) as tape,
    ):
        if check:
            record(groups, tape)
        yield groups
