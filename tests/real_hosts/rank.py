"""One rank on a host of its own: makes a manager, then does what it is told, and says what came of it and when.

python -m tests.real_hosts.rank '{"topology": "tp2", "rank": 0, "url": "tcp://10.77.0.1:29500", "timeout": 5}'
python -m tests.real_hosts.rank '{"topology": "tp2", "env": {"RANK": "0", ...}, "timeout": 5}'
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from parallel_topology import GroupManager, ParallelTopology


def report(doing: Callable[[], object]) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        said: dict[str, Any] = {"result": doing()}
    except Exception as error:
        said = {"error": type(error).__name__, "text": str(error)}
    said["seconds"] = time.monotonic() - begun
    return said


def main() -> None:
    told = json.loads(sys.argv[1])
    topology = ParallelTopology.parse(told["topology"])
    made: list[GroupManager] = []
    print(json.dumps({"result": "imported"}), flush=True)

    def make() -> str:
        options = {"backend": "gloo", "timeout": told["timeout"]} | told.get("options", {})
        if "env" in told:
            made.append(GroupManager.from_env(topology, env=told["env"], **options))
        else:
            made.append(GroupManager.connect(told["url"], topology, rank=told["rank"], **options))
        return str(made[-1].topology)

    actions: dict[str, Callable[[], object]] = {
        "make": make,
        "all_reduce": lambda: made[-1].world.all_reduce(torch.ones(4)).tolist(),
        "large_all_reduce": lambda: made[-1].world.all_reduce(torch.ones(16_384)).mean().item(),
        "barrier": lambda: made[-1].world.barrier(),
        "survivors": lambda: made[-1].survivors(2.0),
        "close": lambda: made.pop().close(),
        "abort": lambda: made.pop().abort(),
    }
    for line in sys.stdin:
        print(json.dumps(report(actions[line.strip()])), flush=True)


if __name__ == "__main__":
    main()
