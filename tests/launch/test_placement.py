"""Hosts as launchers say them: right for every process that they start, or an error that says what to give."""

from __future__ import annotations

import pytest

from parallel_topology import Hosts, LaunchError
from parallel_topology.launch.placement import hosts_from

ENV = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def torchrun(rank: int, world: int, local: int) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "job", "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank % local),
        "LOCAL_WORLD_SIZE": str(local), "GROUP_RANK": str(rank // local), "GROUP_WORLD_SIZE": str(world // local),
        "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "ROLE_RANK": str(rank),
    }  # fmt: skip


def srun(rank: int, node: int, local: int, tasks: str, world: int) -> dict[str, str]:
    nodes = str(len(tasks.split(",")))
    return {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local), "SLURM_STEP_NUM_TASKS": str(world), "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_STEP_NODELIST": f"n[1-{nodes}]",
    }  # fmt: skip


@pytest.mark.parametrize("rank", range(8))
def test_every_rank_of_a_job_reads_the_same(rank: int):
    assert hosts_from(torchrun(rank, 8, 4)) == Hosts.parse("2x4")
    node, local = next((node, rank - first) for node, first in ((2, 6), (1, 4), (0, 0)) if rank >= first)
    assert hosts_from(srun(rank, node, local, "4,2,2", 8)) == Hosts.parse("4,2,2")


def test_a_batch_script_knows_before_srun():
    assert hosts_from({"SLURM_JOB_ID": "7", "SLURM_TASKS_PER_NODE": "8(x3)"}) == Hosts.parse("3x8")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "no launcher was found, so nothing says how many ranks .* as in 2x4"),
        (ENV, r"env .* does not say how many ranks are on a host: give the hosts, as in 2x4"),
        (torchrun(0, 10, 4) | {"GROUP_WORLD_SIZE": "3"}, r"10 ranks, 4 on this host, .* as in 4,4,2"),
        (srun(1, 1, 0, "2,2", 4), r"rank 1 is number 0 on host 1, so ranks do not stand host by host; .* 0,2/1,3"),
        ({"SLURM_TASKS_PER_NODE": "x"}, "cannot read 'x'; expected counts like 2"),
    ],
)
def test_what_is_not_said_is_asked_for(env: dict[str, str], said: str):
    with pytest.raises(LaunchError, match=said):
        hosts_from(env)
