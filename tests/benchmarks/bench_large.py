"""Large tensors, where gloo carries them: ours beside the raw calls, in pairs, in one run.

`python -m tests.benchmarks.bench_large [tp2 | tp4 | ...]`. The two ways of each pair take turns call by call, and first
one begins, then the other; a figure is the median of the ratios of such pairs. That is steadier than the ratio of
medians, because a machine's speed wanders more than the two ways differ. `torch`: without shared memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from parallel_topology import GroupManager, GroupOptions
from parallel_topology.testing import run_ranks

PAIRS = 40
MIB = 2**20


def paired(raw: Callable[[], object], ours: Callable[[], object], before: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of the raw call, and the median ratio of ours to it."""
    found: list[tuple[float, float]] = []
    for turn in range(PAIRS + 2):
        taken = {}
        for way in (raw, ours) if turn % 2 else (ours, raw):
            before()
            begun = time.perf_counter()
            way()
            taken[way] = time.perf_counter() - begun
        found.append((taken[raw] * 1e6, taken[ours] / taken[raw]))
    found = found[2:]  # the first ones connect
    return statistics.median(taken for taken, _ in found), statistics.median(ratio for _, ratio in found)


def measure(groups: GroupManager) -> dict[str, tuple[float, float]]:
    tp, group = groups.tp, groups.tp.device_group
    found: dict[str, tuple[float, float]] = {}
    for mib in (1, 4, 16, 64):
        x = torch.zeros(mib * MIB // 4)
        out = x.new_empty(x.numel() * tp.size)
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "all_reduce": (lambda x=x: dist.all_reduce(x, group=group), lambda x=x: tp.all_reduce(x)),
            "all_gather": (
                lambda x=x, out=out: dist.all_gather_single(out, x, group=group),
                lambda x=x, out=out: tp.all_gather(x, out=out),
            ),
            "all_to_all": (
                lambda x=x, out=out: dist.all_to_all_single(out[: x.numel()], x, group=group),
                lambda x=x, out=out: tp.all_to_all(x, out=out[: x.numel()]),
            ),
            "send, recv": (lambda x=x: to_and_fro_by_torch(groups, x), lambda x=x: to_and_fro(groups, x)),
        }
        for name, (raw, ours) in pairs.items():
            found[f"{name} of {mib} MiB"] = paired(raw, ours, tp.barrier)
    return found


def to_and_fro_by_torch(groups: GroupManager, x: torch.Tensor) -> None:
    for src in range(2):
        if groups.tp.rank == src:
            dist.send(x, group_dst=1 - src, group=groups.tp.device_group)
        elif groups.tp.rank == 1 - src:
            dist.recv(x, group_src=src, group=groups.tp.device_group)


def to_and_fro(groups: GroupManager, x: torch.Tensor) -> None:
    for src in range(2):
        if groups.tp.rank == src:
            groups.tp.send(x, dst=1 - src)
        elif groups.tp.rank == 1 - src:
            groups.tp.recv(x, src=src)


def over_the_world(groups: GroupManager, folder: str, communicators: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """torch's functions look groups up in a registry, so it is a manager made from a default group."""
    size = groups.topology.world_size
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=groups.rank, world_size=size)
    try:
        options = {"tp": GroupOptions(communicators=communicators)}
        with GroupManager.from_world(groups.topology, timeout=100, options=options) as registered:
            return measure(registered)
    finally:
        dist.destroy_process_group()


def main(topology: str) -> None:
    torch.set_num_threads(1)
    for communicators in ((), ("torch",)):
        with tempfile.TemporaryDirectory() as folder:
            found = run_ranks(
                topology, over_the_world, folder, communicators, world="processes", check=False, timeout=300
            )[0]
        print(f"{topology}, {communicators[0] if communicators else 'as it comes'}")
        for name, (taken, ratio) in found.items():
            print(f"  {name:28} {taken:9.0f} us raw   {ratio:5.2f}x")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tp2")
