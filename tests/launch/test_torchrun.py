"""Under torchrun: several agents, restarts, and the store that they keep."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
JOB = Path(__file__).parent / "elastic_job.py"
SUM = sum(4 * step + 0 + 1 + 2 + 3 for step in range(10))


def run(*agents: list[str], job: list[str], **env: str) -> list[str]:
    """What each agent wrote, when all have ended well."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    started = [
        subprocess.Popen(
            [*command, *options, *job], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for options in agents
    ]
    try:
        outputs = [agent.communicate(timeout=240)[0] for agent in started]
    finally:
        for agent in started:
            agent.kill()
    assert [agent.returncode for agent in started] == [0] * len(started), "\n".join(outputs)
    return outputs


def two_agents(backend: str) -> tuple[list[str], list[str]]:
    endpoint = f"127.0.0.1:{free_port()}"
    common = ["--nnodes=2", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.2"]
    if backend == "c10d":
        common += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job", "--local-addr=127.0.0.1"]
        return common, common
    address, port = endpoint.split(":")
    common += [f"--master-addr={address}", f"--master-port={port}"]
    return [*common, "--node-rank=0"], [*common, "--node-rank=1"]


def starts(directory: Path) -> list[list[list[object]]]:
    """For each rank its starts: the step it began at, restarts counted, host, local rank, the world's label."""
    return [[json.loads(line) for line in (directory / f"starts{rank}").read_text().splitlines()] for rank in range(4)]


@pytest.mark.parametrize("share", ["1", "0"], ids=["agents-store", "rank-0s-store"])
@pytest.mark.parametrize("others", ["fail", "wait"])
def test_a_killed_rank_comes_back(tmp_path: Path, others: str, share: str):
    disabled = "0" if share == "1" else "1"
    run(*two_agents("c10d"), job=[str(JOB), str(tmp_path), others], TORCH_DISABLE_SHARE_RDZV_TCP_STORE=disabled)
    assert json.loads((tmp_path / "checkpoint").read_text()) == [10, SUM]
    of_rank = starts(tmp_path)
    for rank, (first, second) in enumerate(of_rank):
        assert first[0] == 0
        assert second[0] == 4
        assert first[4] == "engine/world"
        assert second[4] == of_rank[0][1][4]  # whether the agent's store still knows of the first life or not
        assert second[3] == rank % 2
    if others == "wait":  # one agent alone counts a failure: nothing tells the others' workers of another start
        assert sorted({(host, count) for _, count, host, *_ in (second for _, second in of_rank)}) in (
            [(0, 0), (1, 1)],
            [(0, 1), (1, 0)],  # hosts are numbered by arrival
        )


def test_node_rank_and_master_address(tmp_path: Path):
    script = tmp_path / "job.py"
    script.write_text(
        "import torch\n"
        "from parallel_topology import GroupManager, ParallelTopology\n"
        "topology = ParallelTopology(tp=2, pp=2)\n"
        "for name in 'one', 'two':\n"  # two managers by from_env, one after the other
        "    with GroupManager.from_env(topology, name=name) as groups:\n"
        "        total = groups.pp.all_reduce(torch.tensor([groups.rank])).item()\n"
        "        print(f'{name} rank {groups.rank} local {groups.local_rank} sum {total}', flush=True)\n"
    )
    lines = re.findall(r"\w+ rank \d local \d sum \d", "".join(run(*two_agents("static"), job=[str(script)])))
    expected = [(0, 0, 2), (1, 1, 4), (2, 0, 2), (3, 1, 4)]
    assert sorted(lines) == [
        f"{name} rank {rank} local {local} sum {total}" for name in ("one", "two") for rank, local, total in expected
    ]
