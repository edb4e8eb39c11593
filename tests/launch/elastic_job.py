"""A job for torchrun: ten steps, each an all-reduce and a checkpoint; at step 4 of the first start rank 3 is killed.

Usage: elastic_job.py DIRECTORY fail|wait - what the other ranks do then: fail too, or wait for their agent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from parallel_topology import CollectiveError, GroupManager, LaunchInfo, ParallelTopology


def main(directory: Path, others: str) -> None:
    checkpoint = directory / "checkpoint"
    info = LaunchInfo.from_env(os.environ)
    with GroupManager.from_env(ParallelTopology(tp=2, dp=2), timeout=60) as groups:
        step, value = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
        with (directory / f"starts{groups.rank}").open("a") as starts:
            starts.write(
                json.dumps([step, info.restart, info.host_index, groups.local_rank, groups.world.label]) + "\n"
            )
        try:
            while step < 10:
                if (step, groups.rank) == (4, 3) and len((directory / "starts3").read_text().splitlines()) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                part = groups.tp.all_reduce(torch.tensor([groups.rank + step]))
                value += int(groups.dp.all_reduce(part).item())
                step += 1
                groups.world.barrier()
                if groups.rank == 0:
                    (directory / "new").write_text(json.dumps([step, value]))
                    (directory / "new").replace(checkpoint)
                groups.world.barrier()
        except CollectiveError:
            if others == "fail":
                raise
            signal.pause()  # healthy, as far as its agent knows, until the agent restarts it with the others


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
