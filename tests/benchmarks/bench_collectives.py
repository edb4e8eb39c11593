"""What our calls cost beside torch's own, on gloo, side by side in one run.

`python -m tests.benchmarks.bench_collectives`. Medians of rounds that alternate between the ways; ratios to the first.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import GroupManager
from parallel_topology.testing import run_ranks


def alternated(
    ways: dict[str, Callable[[], object]], calls: int, before: Callable[[], object], rounds: int = 15
) -> dict[str, float]:
    """Microseconds a call, the median of the rounds; `before` each round all ranks meet."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before()
            begun = time.perf_counter()
            for _ in range(calls):
                way()
            taken[name].append((time.perf_counter() - begun) / calls * 1e6)
    return {name: statistics.median(found) for name, found in taken.items()}


def all_reduce(groups: GroupManager) -> dict[str, float]:
    tp, group, x = groups.tp, groups.tp.device_group, torch.zeros(1)
    ways: dict[str, Callable[[], object]] = {
        "dist.all_reduce": lambda: dist.all_reduce(x, group=group),
        "tp.all_reduce": lambda: tp.all_reduce(x),
        "dist.all_gather_into_tensor": lambda: dist.all_gather_single(x.new_empty(2), x, group=group),
        "tp.all_gather": lambda: tp.all_gather(x),
        "dist.broadcast": lambda: dist.broadcast(x, group_src=0, group=group),
        "tp.broadcast": lambda: tp.broadcast(x),
    }
    return alternated(ways, 20, tp.barrier, rounds=300)  # small messages' times wander: in short turns


def accessors(groups: GroupManager) -> dict[str, float]:
    plain, dist_group = SimpleNamespace(tp=SimpleNamespace(rank=0)), dist.group.WORLD
    ways: dict[str, Callable[[], object]] = {
        "plain.tp.rank": lambda: plain.tp.rank,
        "groups.tp.rank": lambda: groups.tp.rank,
        "dist.get_rank(group)": lambda: dist.get_rank(dist_group),
        "nothing": lambda: None,
    }
    return alternated(ways, 20_000, lambda: None)


def accessors_beside_torch(groups: GroupManager) -> dict[str, float]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return accessors(groups)
    finally:
        dist.destroy_process_group()


def transfer(groups: GroupManager) -> dict[str, float]:
    """Ten tensors from stage to stage of a pipeline of 4: ours, torch's object metadata for each, and split."""
    pp, value = groups.pp, {f"layer{number}": torch.ones(64, number + 1) for number in range(10)}
    group = pp.device_group

    def ours() -> None:
        got = value if pp.is_first else pp.recv_tensors()
        if not pp.is_last:
            pp.send_tensors(got)

    def with_object_metadata() -> None:
        for name, sent in value.items():
            tensor = sent
            if not pp.is_first:
                header: list[Any] = [None]
                dist.recv_object_list(header, group_src=pp.rank - 1, group=group)
                tensor = torch.empty(header[0][1])
                dist.recv(tensor, group_src=pp.rank - 1, group=group)
            if not pp.is_last:
                dist.send_object_list([(name, tuple(tensor.shape))], group_dst=pp.rank + 1, group=group)
                dist.send(tensor, group_dst=pp.rank + 1, group=group)

    def with_our_objects() -> None:
        for name, tensor in value.items():
            got = tensor
            if not pp.is_first:
                got = pp.recv(torch.empty(pp.recv_object()[1]))
            if not pp.is_last:
                pp.send_object((name, tuple(got.shape)))
                pp.send(got)

    return alternated(
        {
            "torch's object lists for each": with_object_metadata,
            "recv/send_object for each": with_our_objects,
            "send_tensors": ours,
        },
        20,
        pp.barrier,
    )


def transfer_over_world(groups: GroupManager, folder: str) -> dict[str, float]:
    """Torch's object lists look ranks up in its registry: so over a manager made from the default group."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 4), rank=groups.rank, world_size=4)
    try:
        with GroupManager.from_world(groups.topology, timeout=100) as registered:
            return transfer(registered)
    finally:
        dist.destroy_process_group()


def show(title: str, found: dict[str, float], pairs: bool = False) -> None:
    print(title)
    first = next(iter(found.values()))
    for number, (name, taken) in enumerate(found.items()):
        if pairs and number % 2 == 0:
            first = taken
        print(f"  {name:32} {taken:9.2f} us  {taken / first:6.2f}x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for world in ("processes", "threads"):
        show(f"2 ranks, {world}", run_ranks("tp2", all_reduce, world=world, check=False, timeout=200)[0], pairs=True)
    show("accessors", run_ranks("tp1", accessors_beside_torch, world="processes", timeout=100)[0])
    with tempfile.TemporaryDirectory() as folder:
        found = run_ranks("pp4", transfer_over_world, folder, world="processes", check=False, timeout=200)[3]
    show("ten tensors along a pipeline of 4", found)
