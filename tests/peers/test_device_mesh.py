"""torch's DeviceMesh numbers ranks row-major, its last dimension fastest: our order read backwards.

Over a fake process group, so it needs torch and nothing else. A few cases run by default, the 1,000 with `-m peers`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import combinations
from math import prod
from random import Random
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel_topology import ParallelTopology

AXES = ("tp", "cp", "ep", "dp", "pp")


@contextmanager
def device_mesh(topology: ParallelTopology, rank: int) -> Generator[DeviceMesh]:
    """The mesh that a user of torch would make of the same sizes, slowest axis first, as `rank` sees it."""
    sizes = topology.sizes
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=topology.world_size)
    try:
        yield init_device_mesh("cpu", tuple(sizes.values())[::-1], mesh_dim_names=tuple(sizes)[::-1])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("cases", [25, pytest.param(1000, marks=[pytest.mark.peers, pytest.mark.timeout(600)])])
def test_device_mesh_agrees_about_coordinates_and_every_groups_members(cases: int) -> None:
    random = Random(cases)
    for _ in range(cases):
        axes = random.sample(AXES, random.randint(1, 5))
        sizes: dict[str, Any] = {axis: random.choice((1, 2, 2, 3, 4, 5)) for axis in axes}
        if prod(sizes.values()) > 256:
            sizes[axes[0]] = sizes[axes[-1]] = 1
        topology = ParallelTopology(order="-".join(axes), **sizes)
        rank = random.randrange(topology.world_size)
        with device_mesh(topology, rank) as mesh:
            assert list(topology.coordinate(rank).values()) == list(mesh.get_coordinate() or ())[::-1]
            for axis in axes:
                group = topology.at(rank)[axis]
                assert group.ranks == dist.get_process_group_ranks(mesh.get_group(axis)), (str(topology), rank, axis)
                assert group.rank == mesh.get_local_rank(axis)
            for together in combinations(axes[::-1], 2):
                flat = mesh[together]._flatten()
                assert topology.group(*together, rank=rank) == flat.mesh.tolist(), (str(topology), rank, together)
