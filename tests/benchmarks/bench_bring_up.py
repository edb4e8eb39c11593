"""Bring-up of a tp x pp x dp layout beside torch's own ways: `python tests/benchmarks/bench_bring_up.py [RANKS ...]`.

All in one run, each several times in turn, in the same warm processes over one TCP store on loopback:

- ours: a GroupManager over the store, agreement and verification included;
- ours, unverified: without the greetings of neighbours;
- new_group: every rank calls it for every group, device and CPU, as vLLM's parallel_state does;
- new_group, members only: `use_local_synchronization=True`, for the groups a rank is in;
- DeviceMesh: `init_device_mesh` over the same sizes.

The three last ones also pay for `init_process_group`, without which they do not work. Seconds are those of the slowest
rank, the median of the rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.meeting.rendezvous import host_store, join_store
from parallel_topology.testing.processes import run_processes

ROUNDS = 5
TIMEOUT = 300.0


def ours(topology: ParallelTopology, rank: int, store: dist.Store, **options: Any) -> Callable[[], object]:
    """The client of the store is the manager's own, as by `connect`; for all ways it is connected before."""
    return GroupManager(topology, rank=rank, store=lambda _: store, timeout=TIMEOUT, backend="gloo", **options).close


def unverified(topology: ParallelTopology, rank: int, store: dist.Store) -> Callable[[], object]:
    return ours(topology, rank, store, verify=False)


def _default_group(topology: ParallelTopology, rank: int, store: dist.Store) -> Callable[[], object]:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=topology.world_size)
    return dist.destroy_process_group


def new_group(topology: ParallelTopology, rank: int, store: dist.Store) -> Callable[[], object]:
    end = _default_group(topology, rank, store)
    for axis in topology.axes:
        for ranks in topology.groups(axis):
            dist.new_group(list(ranks), backend="gloo")
            dist.new_group(list(ranks), backend="gloo")
    return end


def members_only(topology: ParallelTopology, rank: int, store: dist.Store) -> Callable[[], object]:
    end = _default_group(topology, rank, store)
    for axis in topology.axes:
        dist.new_group(list(topology.group(axis, rank=rank)), backend="gloo", use_local_synchronization=True)
    return end


def device_mesh(topology: ParallelTopology, rank: int, store: dist.Store) -> Callable[[], object]:
    end = _default_group(topology, rank, store)
    sizes = tuple(reversed(topology.sizes.values()))
    init_device_mesh("cpu", sizes, mesh_dim_names=tuple(reversed(topology.axes)))
    return end


WAYS: dict[str, Callable[[ParallelTopology, int, dist.Store], Callable[[], object]]] = {
    "ours": ours,
    "ours, unverified": unverified,
    "new_group": new_group,
    "new_group, members only": members_only,
    "DeviceMesh": device_mesh,
}


def worker(rank: int, topology: ParallelTopology, port: int, rounds: int) -> dict[str, list[float]]:
    store = join_store("127.0.0.1", port, TIMEOUT)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds):
        for name, way in WAYS.items():
            place = dist.PrefixStore(f"{name}/{turn}", store)
            place.add("ready", 1)
            if rank == 0:  # all begin together
                while place.add("ready", 0) < topology.world_size:
                    pass
                place.set("go", "")
            place.wait(["go"])
            begun = time.perf_counter()
            end = way(topology, rank, place)
            seconds[name].append(time.perf_counter() - begun)
            place.add("done", 1)
            if rank == 0:
                while place.add("done", 0) < topology.world_size:
                    pass
                place.set("over", "")
            place.wait(["over"])
            end()
    return seconds


def main() -> None:
    for ranks in [int(argument) for argument in sys.argv[1:]] or [8, 16, 32, 64]:
        topology = ParallelTopology(tp=2, dp=ranks // 4, pp=2)
        store = host_store("127.0.0.1", 0, TIMEOUT)
        rounds = ROUNDS
        results = run_processes(["rank"] * ranks, worker, topology, store.port, rounds, timeout=580)
        print(f"{topology}, {ranks} ranks, {rounds} rounds")
        slowest = {
            name: statistics.median(max(result[name][turn] for result in results) for turn in range(rounds))
            for name in WAYS
        }
        for name, seconds in slowest.items():
            print(f"  {name:<26} {seconds:8.3f} s   {seconds / slowest['ours']:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
