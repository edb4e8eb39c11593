"""What encode and decode cost, beside pickle: `python tests/benchmarks/bench_wire.py`."""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from parallel_topology.wire.wire import decode, encode

VALUES: dict[str, Any] = {
    "10 tensors of 1 MB": {f"layer.{i}": torch.randn(512, 512) for i in range(10)},
    "10 tensors of 4 kB": {f"layer.{i}": torch.randn(32, 32) for i in range(10)},
    "metadata, 10,000 leaves": {
        f"layer.{i}": {"shape": [4096, i], "dtype": "bfloat16", "frozen": False} for i in range(2500)
    },
    "str -> int, 10,000": {f"layer.{i}": i for i in range(10_000)},
    "ints, 10,000": list(range(10_000)),
    "pairs, 10,000": [(i, str(i)) for i in range(10_000)],
}


def milliseconds(call: Callable[[], object]) -> float:
    """The median of 15 calls."""
    times: list[float] = []
    for _ in range(15):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def main() -> None:
    torch.set_num_threads(1)
    for name, value in VALUES.items():
        message, pickled = encode(value), pickle.dumps(value)
        ours = milliseconds(lambda value=value: encode(value)), milliseconds(lambda data=message: decode(data))
        theirs = (
            milliseconds(lambda value=value: pickle.dumps(value)),
            milliseconds(lambda data=pickled: pickle.loads(data)),
        )
        print(
            f"{name:24} encode {ours[0]:6.2f} ms, {ours[0] / theirs[0]:5.2f} x pickle;"
            f" decode {ours[1]:6.2f} ms, {ours[1] / theirs[1]:5.2f} x pickle; {len(message)} / {len(pickled)} bytes"
        )


if __name__ == "__main__":
    main()
