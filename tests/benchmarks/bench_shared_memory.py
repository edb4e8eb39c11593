"""Small collectives within a host: ours over shared memory, beside torch's over gloo and vLLM's queue.

`python -m tests.benchmarks.bench_shared_memory`. Medians of rounds that alternate between the ways; ratios to the first
of each block. Beside vLLM where it is installed, without its dependencies: `pip install --no-deps vllm==0.33.0`, and
psutil and pyzmq; else beside the same way written down here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import GroupManager
from parallel_topology.testing import run_ranks
from tests.benchmarks.bench_collectives import alternated, show

VALUE = {f"request {number}": list(range(number, number + 12)) for number in range(40)}


def tensors(groups: GroupManager) -> dict[str, float]:
    tp, group, x, y = groups.tp, groups.tp.device_group, torch.zeros(8), torch.zeros(8)
    ways: dict[str, Callable[[], object]] = {
        "dist.all_reduce": lambda: dist.all_reduce(x, group=group),
        "tp.all_reduce": lambda: tp.all_reduce(x),
        "dist.barrier": lambda: dist.barrier(group=group),
        "tp.barrier": lambda: tp.barrier(),
        "dist.broadcast": lambda: dist.broadcast(x, group_src=0, group=group),
        "tp.broadcast": lambda: tp.broadcast(x),
        "dist.all_gather": lambda: dist.all_gather_single(x.new_empty(8 * tp.size), x, group=group),
        "tp.all_gather": lambda: tp.all_gather(y),
    }
    return alternated(ways, 20, tp.barrier, rounds=100)


def sizes(groups: GroupManager) -> dict[str, float]:
    """Where gloo is faster."""
    tp, group = groups.tp, groups.tp.device_group
    ways: dict[str, Callable[[], object]] = {}
    for exponent in range(6, 22, 2):
        x = torch.zeros(2**exponent // 4)
        ways[f"dist.all_reduce {2**exponent}"] = lambda x=x: dist.all_reduce(x, group=group)
        ways[f"tp.all_reduce {2**exponent}"] = lambda x=x: tp.all_reduce(x)
    return alternated(ways, 20, tp.barrier, rounds=15)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    ranks: Any = arguments[0] if arguments else "tp2"
    for body in (tensors, sizes):
        found = run_ranks(ranks, body, world="processes", check=False, timeout=200)[0]
        show(f"{ranks}, {body.__name__}", found, pairs=True)


if __name__ == "__main__":
    main(sys.argv[1:])
