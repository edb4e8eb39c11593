"""Worlds of processes that have a default process group, as a trainer's do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.testing.processes import run_processes


def run_in_world(topology: str, fn: Callable[..., Any], *args: Any, timeout: float = 100, **options: Any) -> list[Any]:
    """`fn(groups, *args)` on every rank, in processes, with `groups` from `from_world`; the results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = ["rank"] * ParallelTopology.parse(topology).world_size
        return run_processes(ranks, _on_rank, folder, topology, options, fn, args, timeout=timeout)


def _on_rank(
    rank: int, folder: str, text: str, options: dict[str, Any], fn: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    topology = ParallelTopology.parse(text)
    store = dist.FileStore(f"{folder}/store", topology.world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=topology.world_size)
    try:
        with GroupManager.from_world(topology, timeout=60, **options) as groups:
            return fn(groups, *args)
    finally:
        dist.destroy_process_group()


def registered() -> int:
    """How many process groups torch's registry holds."""
    return len(dist.distributed_c10d._world.pg_map)


@contextmanager
def fake_world(size: int, rank: int = 0) -> Generator[None]:
    """A default group of torch's that communicates with nobody, for what is only looked at."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
