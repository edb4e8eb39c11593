"""How long an engine stands still when a rank dies, when one comes in, and when its layout changes.

    python -m tests.benchmarks.bench_elastic [--ranks 8] [--rounds 5] [death grow swap]
    python -m tests.benchmarks.bench_elastic cut     # as root: each rank on a host of its own, one of which is cut off

Ranks are processes of this host, which add up all the time; times are of one clock (`time.monotonic`), from the kill,
the newcomer's first line, or the last sum of the old manager to the first right sum of the new one on the slowest rank.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, ParallelTopologyError
from parallel_topology.meeting.rendezvous import host_store, join_store
from tests.groups.seats import StoreSeat, enter
from tests.real_hosts.namespaces import Network

TIMEOUT = 20.0
CUT_AFTER = 1.0
"""Seconds that operations wait for a host that is cut off."""


def add_up(groups: GroupManager, x: torch.Tensor) -> None:
    x.fill_(groups.rank)
    groups.world.all_reduce(x)
    if x[0] != sum(groups.topology.world):
        raise AssertionError(f"{x[0]} of {groups.topology}")


def serve(groups: GroupManager, until: Any, times: list[float] | None = None) -> None:
    """Add up until all are told to stop, which the first rank hears."""
    x = torch.zeros(8, dtype=torch.int64)
    stop = torch.zeros(1, dtype=torch.int64)
    while True:
        begun = time.perf_counter()
        add_up(groups, x)
        if times is not None:
            times.append(time.perf_counter() - begun)
        stop[0] = until()
        groups.world.all_reduce(stop)
        if stop[0]:
            return


def rank_of(rank: int, ranks: int, host: str, port: int, pipe: Any, what: str, network: str) -> None:
    if network:
        enter(network)
    torch.set_num_threads(1)
    store = join_store(host, port, TIMEOUT)
    globals()[what](rank, ranks, store, pipe)


def death(rank: int, ranks: int, store: dist.Store, pipe: Any, waits: float = TIMEOUT) -> None:
    """Rank 3 is killed while all add up; the others go on without it."""
    groups = GroupManager(ParallelTopology(tp=ranks), rank=rank, store=store, timeout=TIMEOUT, operation_timeout=waits)
    x = torch.zeros(8, dtype=torch.int64)
    add_up(groups, x)
    pipe.send(os.getpid())
    try:
        while True:
            add_up(groups, x)
    except ParallelTopologyError as error:
        named = time.monotonic()
        said = str(error)
    others = [one for one in range(ranks) if one != 3]
    groups = groups.rebind(ParallelTopology(tp=ranks - 1, ranks=others))
    bound = time.monotonic()
    add_up(groups, x)
    done = time.monotonic()
    groups.world.barrier()
    pipe.send((named, bound, done, "3" in said))
    groups.close()


def cut(rank: int, ranks: int, store: dist.Store, pipe: Any) -> None:
    """As `death`, but nobody is told."""
    death(rank, ranks, store, pipe, CUT_AFTER)


def grow(rank: int, ranks: int, store: dist.Store, pipe: Any) -> None:
    """One comes in while the others wait for it in `rebind`."""
    x = torch.zeros(8, dtype=torch.int64)
    if rank == ranks - 1:
        pipe.send(os.getpid())
        pipe.recv()
        begun = time.monotonic()
        groups = GroupManager(store=store, timeout=TIMEOUT, joining=True)
    else:
        groups = GroupManager(ParallelTopology(tp=ranks - 1), rank=rank, store=store, timeout=TIMEOUT)
        add_up(groups, x)
        pipe.send(os.getpid())
        begun = 0.0
        groups = groups.rebind(ParallelTopology(tp=ranks))
    bound = time.monotonic()
    add_up(groups, x)
    done = time.monotonic()
    groups.world.barrier()
    pipe.send((begun, bound, done, True))
    groups.close()


def swap(rank: int, ranks: int, store: dist.Store, pipe: Any) -> None:
    """Sums before, while another layout is prepared, and over the swap."""
    groups = GroupManager(ParallelTopology(tp=ranks), rank=rank, store=store, timeout=TIMEOUT)
    before: list[float] = []
    meanwhile: list[float] = []
    pipe.send(os.getpid())
    end = time.monotonic() + 1.0
    serve(groups, lambda: time.monotonic() > end, before)
    standby = groups.prepare(ParallelTopology(pp=ranks))
    begun = time.monotonic()
    serve(groups, lambda: standby.status.state != "building", meanwhile)
    took = time.monotonic() - begun
    last = time.monotonic()
    groups = standby.commit()
    add_up(groups, torch.zeros(8, dtype=torch.int64))
    done = time.monotonic()
    groups.world.barrier()
    pipe.send((statistics.median(before), statistics.median(meanwhile), took, last, done))
    groups.close()


class World:
    """The processes of one measurement."""

    def __init__(self, what: str, ranks: int, network: Network | None = None) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "parallel_topology.groups.manager"])
        host = "127.0.0.1" if network is None else network.addresses[ranks]
        self.store: Any = host_store(host, 0, TIMEOUT) if network is None else StoreSeat(network.names[ranks])
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            name = "" if network is None else network.names[rank]
            args = (rank, ranks, host, self.store.port, theirs, what, name)
            process = context.Process(target=rank_of, args=args, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def hear(self, ranks: Any = None) -> list[Any]:
        return [pipe.recv() for rank, pipe in enumerate(self.pipes) if ranks is None or rank in ranks]

    def end(self) -> None:
        for process in self.processes:
            process.join(20 if process.is_alive() else 0)
            process.kill()
        if isinstance(self.store, StoreSeat):
            self.store.leave()


def measure_death(ranks: int) -> dict[str, float]:
    world = World("death", ranks)
    pids = world.hear()
    time.sleep(0.3)
    killed = time.monotonic()
    os.kill(pids[3], signal.SIGKILL)
    told = world.hear([rank for rank in range(ranks) if rank != 3])
    world.end()
    assert all(one[3] for one in told)
    named, bound, done = (max(one[at] for one in told) - killed for at in range(3))
    return {"named": named, "bound": bound, "first sum": done}


def measure_cut(ranks: int) -> dict[str, float]:
    """Beyond the timeout."""
    with Network(ranks + 1) as network:
        world = World("cut", ranks, network)
        world.hear()
        time.sleep(0.3)
        cut_off = time.monotonic()
        network.cut(3)
        told = world.hear([rank for rank in range(ranks) if rank != 3])
        world.processes[3].kill()
        world.end()
    assert all(one[3] for one in told)
    named, bound, done = (max(one[at] for one in told) - cut_off - CUT_AFTER for at in range(3))
    return {"named": named, "bound": bound, "first sum": done}


def measure_grow(ranks: int) -> dict[str, float]:
    world = World("grow", ranks)
    world.hear()
    time.sleep(0.3)
    world.pipes[-1].send(None)
    told = world.hear()
    world.end()
    begun = told[-1][0]
    return {"bound": max(one[1] for one in told) - begun, "first sum": max(one[2] for one in told) - begun}


def measure_swap(ranks: int) -> dict[str, float]:
    world = World("swap", ranks)
    world.hear()
    told = world.hear()
    world.end()
    before, meanwhile, took = (statistics.median(one[at] for one in told) for at in range(3))
    return {
        "a sum": before, "a sum meanwhile": meanwhile, "as a ratio": meanwhile / before / 1e3, "until ready": took,
        "first sum": max(one[4] for one in told) - max(one[3] for one in told),
    }  # fmt: skip


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--ranks", type=int, default=8)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("what", nargs="*", default=["death", "grow", "swap"])
    told = given.parse_args()
    for what in told.what:
        found = [globals()[f"measure_{what}"](told.ranks) for _ in range(told.rounds)]
        for name in found[0]:
            values = sorted(one[name] for one in found)
            print(f"{what:8} {name:15} median {statistics.median(values) * 1e3:8.2f} ms, worst {values[-1] * 1e3:8.2f}")


if __name__ == "__main__":
    main()
