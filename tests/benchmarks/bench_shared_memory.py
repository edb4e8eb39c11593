"""Small collectives within a host: ours over shared memory, beside torch's over gloo and vLLM's queue, in one run.

`python -m tests.benchmarks.bench_shared_memory [tp2 | tp4 | ...]`. Medians of rounds that alternate between the ways;
ratios to the first of each block. Objects go to and fro between ranks 0 and 1, and a time is that of one way. vLLM's
`MessageQueue` takes part where it is installed: `pip install --no-deps vllm==0.33.0 psutil pyzmq urllib3 regex`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import GroupManager
from parallel_topology.testing import run_ranks
from tests.benchmarks.bench_collectives import alternated, show

VALUE = {f"request {number}": list(range(number, number + 12)) for number in range(40)}


def tensors(groups: GroupManager) -> dict[str, float]:
    tp, group, x = groups.tp, groups.tp.device_group, torch.zeros(8)
    ways: dict[str, Callable[[], object]] = {
        "dist.all_reduce": lambda: dist.all_reduce(x, group=group),
        "tp.all_reduce": lambda: tp.all_reduce(x),
        "dist.barrier": lambda: dist.barrier(group=group),
        "tp.barrier": lambda: tp.barrier(),
        "dist.broadcast": lambda: dist.broadcast(x, group_src=0, group=group),
        "tp.broadcast": lambda: tp.broadcast(x),
        "dist.all_gather": lambda: dist.all_gather_single(x.new_empty(8 * tp.size), x, group=group),
        "tp.all_gather": lambda: tp.all_gather(x),
    }
    return alternated(ways, 20, tp.barrier, rounds=100)


def messages(groups: GroupManager) -> dict[str, float]:
    """Of 8 floats, to and fro between ranks 0 and 1; of one way."""
    tp, group, x = groups.tp, groups.tp.device_group, torch.zeros(8)

    def by_torch() -> None:
        for src in range(2):
            if tp.rank == src:
                dist.send(x, group_dst=1 - src, group=group)
            elif tp.rank == 1 - src:
                dist.recv(x, group_src=src, group=group)

    def ours() -> None:
        for src in range(2):
            if tp.rank == src:
                tp.send(x, dst=1 - src)
            elif tp.rank == 1 - src:
                tp.recv(x, src=src)

    found = alternated({"dist.send, recv": by_torch, "tp.send, recv": ours}, 20, tp.barrier, rounds=50)
    return {name: taken / 2 for name, taken in found.items()}


def sizes(groups: GroupManager) -> dict[str, float]:
    """An all-reduce of so many bytes."""
    tp, group = groups.tp, groups.tp.device_group
    ways: dict[str, Callable[[], object]] = {}
    for exponent in range(6, 24, 2):
        x = torch.zeros(2**exponent // 4)
        ways[f"dist.all_reduce of {2**exponent}"] = lambda x=x: dist.all_reduce(x, group=group)
        ways[f"tp.all_reduce of {2**exponent}"] = lambda x=x: tp.all_reduce(x)
    return alternated(ways, 10, tp.barrier, rounds=15)


def objects(groups: GroupManager) -> dict[str, float]:
    tp, group = groups.tp, groups.tp.device_group

    def by_torch() -> None:
        for src in range(2):
            held = [VALUE if tp.rank == src else None]
            dist.broadcast_object_list(held, group_src=src, group=group)

    def ours() -> None:
        for src in range(2):
            tp.broadcast_object(VALUE if tp.rank == src else None, src=src)

    ways: dict[str, Callable[[], object]] = {"dist.broadcast_object_list": by_torch, "tp.broadcast_object": ours}
    if (theirs := _message_queues(groups)) is not None:
        ways["vLLM's MessageQueue"] = theirs
    return {name: taken / 2 for name, taken in alternated(ways, 20, tp.barrier, rounds=100).items()}


def _message_queues(groups: GroupManager) -> Callable[[], object] | None:
    try:
        from vllm.distributed.device_communicators.shm_broadcast import MessageQueue  # pyright: ignore
    except ImportError:
        return None
    queues: list[Any] = [
        MessageQueue.create_from_process_group(groups.tp.device_group, 2**22, 10, writer_rank=src) for src in range(2)
    ]

    def to_and_fro() -> None:
        for src, queue in enumerate(queues):
            if groups.tp.rank == src:
                queue.enqueue(VALUE)
            else:
                queue.dequeue()

    return to_and_fro


def over_the_world(groups: GroupManager, body: Callable[[GroupManager], dict[str, float]], folder: str) -> Any:
    """torch's functions, and vLLM's, look groups up in a registry, so it is a manager made from a default group."""
    size = groups.topology.world_size
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=groups.rank, world_size=size)
    try:
        with GroupManager.from_world(groups.topology, timeout=100) as registered:
            time.sleep(0.1)
            return body(registered)
    finally:
        dist.destroy_process_group()


def main(topology: str) -> None:
    torch.set_num_threads(1)
    for body in (tensors, messages, objects, sizes):
        with tempfile.TemporaryDirectory() as folder:
            found = run_ranks(topology, over_the_world, body, folder, world="processes", check=False, timeout=300)[0]
        show(f"{topology}, {body.__name__}", found, pairs=body is not objects)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tp2")
