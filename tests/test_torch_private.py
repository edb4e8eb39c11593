"""The private names of torch that this package uses, and what it relies on them doing: fails when they move."""

from __future__ import annotations

import subprocess
import sys
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import torch_private


def test_the_names_are_there():
    for name in (
        "_set_default_backend", "_register_backend", "_set_group_name", "_set_group_desc", "_allgather_base",
        "_reduce_scatter_base", "_start_coalescing", "_end_coalescing",
    ):  # fmt: skip
        assert hasattr(dist.ProcessGroup, name)
    for name in ("_Options", "create_device", "create_default_device"):
        assert hasattr(dist.ProcessGroupGloo, name)
    for name in ("_stash_obj_in_tls", "_get_obj_in_tls", "_is_key_in_tls", "_current_graph_task_id"):
        assert hasattr(torch._C, name)
    assert {"_devices", "_timeout"} <= set(dir(torch_private._gloo._Options))


@pytest.mark.skipif(
    not dist.is_nccl_available(), reason="this torch was built without NCCL; a CUDA build needs no GPU for it"
)
def test_the_names_of_nccl_are_there():
    """/a/venv/with/a/CUDA/build/bin/python -m pytest -p parallel_topology.testing.plugin tests/test_torch_private.py"""
    for name in ("_group_start", "_group_end", "abort", "shutdown"):
        assert hasattr(dist.ProcessGroupNCCL, name)
    assert hasattr(dist.ProcessGroup, "_get_backend")
    options = torch_private.nccl_options(timedelta(seconds=3), high_priority=True, config={"max_ctas": 8})
    assert options.is_high_priority_stream
    assert options._timeout == timedelta(seconds=3)
    assert options.config.max_ctas == 8


def test_groups_that_are_not_nccls_end_as_they_are():
    with torch_private.ended_together([]):
        pass


def test_a_hand_made_group_works_without_a_default_group_and_is_in_no_registry():
    device = torch_private.gloo_device(hostname="127.0.0.1")
    store = dist.HashStore()
    backend = torch_private.gloo_backend(store, 0, 1, timedelta(seconds=5), device)
    group = torch_private.new_process_group(
        store, 0, 1, description="text", key="key", kind="gloo", backends={"cpu": backend}
    )
    assert (group.group_name, group.group_desc) == ("key", "text")
    tensor = torch.ones(1)
    gathered = torch.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dist.all_reduce(tensor, group=group)
        torch_private.all_gather_single(group, gathered, tensor, async_op=False).wait()
    assert gathered.item() == 1
    assert not dist.is_initialized()
    assert group not in dist.distributed_c10d._world.pg_map


def test_every_backward_goes_through_the_engines_function():
    engine, seen = torch_private.ENGINE, list[int]()

    def profiled(frame: Any, *_: Any) -> None:
        if frame.f_code is engine.__code__:
            seen.append(frame.f_lineno)

    x = torch.ones(1, requires_grad=True)
    sys.setprofile(profiled)
    try:
        (x * x).sum().backward()
        torch.autograd.grad((x * x).sum(), x)
        torch.autograd.backward((x * x).sum())
    finally:
        sys.setprofile(None)
    assert len(seen) >= 3


def test_nothing_is_said_beside_the_program():
    """By torch, on either stream, in a process that has warned of nothing yet (2.14 warns once, of what 2.13 needs)."""
    program = """
import torch
from parallel_topology.testing import run_ranks

def body(groups):
    groups.tp.all_reduce(torch.ones(3))
    groups.world.barrier()
    groups.world.all_gather_object("x")

run_ranks("tp2-pp2", body)
print("said")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "said\n" or (torch_private.GLOO_TELLS and done.stdout.endswith("\nsaid\n"))
