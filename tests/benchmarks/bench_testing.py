"""What a test of ranks costs: threads, warm processes and `torch.multiprocessing.spawn`, side by side in one run.

`python -m tests.benchmarks.bench_testing [threads]`. Medians of five (of three for spawn), in seconds, imports not
counted. Then what worlds of threads cost that make their groups and all-reduce once, which is all that `threads` shows.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.examples import transformer  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.testing import WorkerPool, run_ranks

CONFIG = transformer.TransformerConfig(hidden=96, heads=12, layers=4, ffn=192)


def all_reduces(groups: GroupManager) -> None:
    for _ in range(10):
        groups.world.all_reduce(torch.ones(1024))


def one_all_reduce(groups: GroupManager) -> None:
    groups.tp.all_reduce(torch.ones(8))


def forward(groups: GroupManager) -> None:
    tokens = transformer.encode(b"a tensor- and pipeline-parallel transformer")
    logits = transformer.Transformer(CONFIG, tp=groups.tp, pp=groups.pp)(tokens)
    if logits is not None:
        torch.testing.assert_close(logits, transformer.dense_logits(CONFIG, tokens), atol=1e-3, rtol=0)


def spawned(rank: int, topology: str, folder: str, fn: Callable[..., Any]) -> None:
    torch.set_num_threads(1)
    parsed = ParallelTopology.parse(topology)
    store = dist.FileStore(str(Path(folder, "store")), parsed.world_size)
    with GroupManager(parsed, rank=rank, store=store, backend="gloo", timeout=60) as groups:
        fn(groups)


def spawn(topology: str, fn: Callable[..., Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = ParallelTopology.parse(topology).world_size
        multiprocessing.spawn(spawned, args=(topology, folder, fn), nprocs=size)  # pyright: ignore[reportPrivateImportUsage]


def median(run: Callable[[], Any], times: int = 5) -> float:
    taken: list[float] = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    if "threads" not in sys.argv[1:]:
        beside_spawn()
    for topology in ("tp4-dp2", "tp4-dp16"):
        run_ranks(topology, one_all_reduce)
        print(f"{topology:8} one_all_reduce threads {median(lambda t=topology: run_ranks(t, one_all_reduce), 9):6.3f}")


def beside_spawn() -> None:
    with WorkerPool() as pool:
        for topology, fn in (("tp4", all_reduces), ("tp4-pp2", forward)):
            begun = time.perf_counter()
            run_ranks(topology, fn, world="processes", pool=pool, timeout=60)
            cold = time.perf_counter() - begun
            threads = median(lambda t=topology, f=fn: run_ranks(t, f))
            processes = median(lambda t=topology, f=fn: run_ranks(t, f, world="processes", pool=pool))
            slow = median(lambda t=topology, f=fn: spawn(t, f), times=3)
            print(
                f"{topology:8} {fn.__name__:12} threads {threads:6.3f}  warm processes {processes:6.3f} "
                f"(first call {cold:5.2f})  spawn {slow:6.2f}  ratios {slow / threads:5.0f} and {slow / processes:5.0f}"
            )


if __name__ == "__main__":
    main()
