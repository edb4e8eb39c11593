"""What a process that some launcher started sees of itself, and, if told `meet`, what it gets from the others."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from parallel_topology import GroupManager, LaunchError, LaunchInfo, ParallelTopology


def report() -> dict[str, object]:
    try:
        info = LaunchInfo.from_env(os.environ)
        if "meet" not in sys.argv:
            return asdict(info)
        import torch

        with GroupManager.from_env(ParallelTopology(tp=info.world_size), timeout=60) as groups:
            total = groups.tp.all_reduce(torch.tensor([groups.rank])).item()
            return {**asdict(info), "total": total, "device_index": groups.local_rank}
    except LaunchError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report()) + "\n")  # in one piece: many processes share this output
