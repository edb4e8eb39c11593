"""What a manager costs a rank, by the size of the world: `python -m tests.benchmarks.bench_cost [RANKS ...]`.

Ranks are threads, each with a client of its own of one TCP store on loopback, once on one host, as they are, once as
if each were on its own. Store operations are counted where Python calls torch's stores; what stands in a loop until
something has come is one for each look.

Columns: store operations of a rank, and of the first one, which calls the others; bytes that a rank reads there;
descriptors a rank, the store's client included; seconds until all have their manager.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any

import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.groups import joining
from parallel_topology.meeting.rendezvous import host_store, join_store
from parallel_topology.testing.threads import run_threads

_COUNTED = ("set", "get", "add", "compare_set", "check", "wait", "delete_key", "append", "multi_get", "multi_set")
_counts: ContextVar[list[int]] = ContextVar("counts")
_host: ContextVar[str] = ContextVar("host")


def count_operations() -> None:
    """Count calls of torch's stores in the calling context, and the bytes that they return."""
    for kind in (dist.TCPStore, dist.PrefixStore):
        for name in _COUNTED:
            setattr(kind, name, _counted(getattr(kind, name)))


def _counted(method: Any) -> Any:
    def call(store: dist.Store, *arguments: Any) -> Any:
        result = method(store, *arguments)
        counts = _counts.get(None)
        if counts is not None:
            counts[0] += 1
            counts[1] += (
                sum(map(len, result)) if isinstance(result, list) else len(result) if isinstance(result, bytes) else 0
            )
        return result

    return call


def settled() -> int:
    """How many descriptors there are, once those of the bring-up before are closed."""
    gc.collect()
    seen, now = -1, len(os.listdir("/proc/self/fd"))
    while seen != now:
        time.sleep(0.3)
        seen, now = now, len(os.listdir("/proc/self/fd"))
    return now


def measure(ranks: int, *, apart: bool) -> tuple[float, int, int, float, float]:
    """Of one bring-up, as the columns say. `apart`: each rank on a host of its own."""
    topology = ParallelTopology(tp=2, dp=ranks // 4, pp=2)
    hosted = host_store("127.0.0.1", 0, 60.0)
    clients = [join_store("127.0.0.1", hosted.port, 60.0) for _ in range(ranks)]
    all_there = threading.Barrier(ranks)
    before = settled()

    def body(rank: int) -> tuple[int, int, float, int]:
        counts = [0, 0]
        _counts.set(counts)
        _host.set(f"host {rank}" if apart else "host")
        all_there.wait(60)
        begun = time.perf_counter()
        with GroupManager(topology, rank=rank, store=clients[rank], timeout=120):
            seconds, (operations, read) = time.perf_counter() - begun, counts
            all_there.wait(120)
            descriptors = len(os.listdir("/proc/self/fd")) - before if rank == 0 else 0
            all_there.wait(120)
        return operations, read, seconds, descriptors

    found = run_threads(["rank"] * ranks, body, timeout=300)
    others = found[1:]
    return (
        sum(one[0] for one in others) / len(others), found[0][0], max(one[1] for one in others),
        found[0][3] / ranks, max(one[2] for one in found),
    )  # fmt: skip


def main() -> None:
    count_operations()
    joining.host_identity = _host.get
    for apart in (False, True):
        print("each rank on a host of its own" if apart else "all ranks on one host")
        print("ranks  operations  of the first  bytes read  descriptors  seconds")
        for ranks in [int(argument) for argument in sys.argv[1:]] or [8, 16, 32, 64, 128]:
            operations, first, read, descriptors, seconds = measure(ranks, apart=apart)
            print(
                f"{ranks:5}  {operations:10.1f}  {first:12}  {read:10}  {descriptors:11.1f}  {seconds:7.2f}", flush=True
            )


if __name__ == "__main__":
    main()
