"""What layout questions cost, beside peers measured in the same run: `python tests/benchmarks/bench_layout.py`.

Each figure is the median of at least five. Megatron's generator is measured if megatron-core is installed
(see tests/peers/test_peers.py for how).
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parallel_topology import ParallelTopology

RANKS = 1_048_576
SIZES: dict[str, Any] = {"tp": 8, "dp": RANKS // 128, "pp": 16}


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    times: list[float] = []
    for _ in range(runs):
        gc.collect()
        begun = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begun)
        del result
    return statistics.median(times)


def per_call(work: Callable[[], object], calls: int = 20_000) -> float:
    def many() -> None:
        for _ in range(calls):
            work()

    return median_seconds(many, 7) / calls


def all_groups(topology: ParallelTopology) -> list[list[Any]]:
    return [list(topology.groups(axis)) for axis in topology.axes]


def numpy_groups() -> list[list[list[int]]]:
    import numpy as np

    grid = np.arange(RANKS).reshape(SIZES["pp"], SIZES["dp"], SIZES["tp"])
    return [np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis]).tolist() for axis in range(3)]


def megatron_groups() -> list[list[list[int]]]:
    from megatron.core.parallel_state import RankGenerator  # pyright: ignore[reportMissingImports]

    generator = RankGenerator(tp=8, ep=1, dp=SIZES["dp"], pp=16, cp=1, order="tp-cp-ep-dp-pp")
    return [generator.get_ranks(axis) for axis in SIZES]


def apart(expression: str, runs: int = 5) -> float | None:
    """Median seconds of an expression in a fresh process; the first call, with its imports, does not count."""
    here = Path(__file__)
    program = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r}); from {here.stem} import *\n"
        f"work = lambda: {expression}\nwork(); print(median_seconds(work, {runs}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def program_seconds(program: str) -> float:
    return median_seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True), 15)


def show(what: str, ours: float, *peers: tuple[str, float | None]) -> None:
    ratios = "   ".join(
        f"{name} {seconds * 1e3:.1f} ms: {seconds / ours:.1f}x" for name, seconds in peers if seconds is not None
    )
    print(f"{what:<58} {ours * 1e6:>12.2f} us   {ratios}")


def main() -> None:
    topology = ParallelTopology(**SIZES)
    # Each in a process of its own: a large peer's objects would slow everybody's garbage collection.
    ours = apart("all_groups(ParallelTopology(**SIZES))")
    assert ours is not None
    numpy, megatron = apart("numpy_groups()"), apart("megatron_groups()", runs=1)
    show(
        f"all groups of three axes, {RANKS:,} ranks",
        ours,
        ("NumPy reshape + tolist", numpy),
        ("Megatron RankGenerator", megatron),
    )
    tracemalloc.start()
    held = all_groups(topology)
    print(f"{'  memory held by them':<58} {tracemalloc.get_traced_memory()[0] / 1e6:>12.1f} MB")
    tracemalloc.stop()
    del held

    small, large = ParallelTopology(tp=2, dp=8, pp=4), ParallelTopology(tp=8, dp=131_072, pp=16)
    questions: dict[str, Callable[[ParallelTopology], Callable[[], object]]] = {
        "group along tp": lambda t: lambda: t.group("tp", rank=37),
        "group along dp": lambda t: lambda: t.group("dp", rank=37),
        "group along tp and pp": lambda t: lambda: t.group("pp", "tp", rank=37),
        "coordinate": lambda t: lambda: t.coordinate(37),
        "rank at a coordinate": lambda t: lambda: t.rank(tp=1, dp=1, pp=1),
        "next rank along pp": lambda t: lambda: t.at(37).pp.next_rank,
        "one group of all": lambda t: lambda: t.groups("dp")[1],
    }
    for name, ask in questions.items():
        at_small, at_large = per_call(ask(small)), per_call(ask(large))
        print(f"one rank's {name:<47} {at_small * 1e6:>12.2f} us   at 16,777,216 ranks {at_large / at_small:.2f}x")
    show("constructing a topology", per_call(lambda: ParallelTopology(tp=2, pp=4), 2_000))
    for what, peer in (
        ("import parallel_topology", "import pydantic"),
        (
            "from parallel_topology import ParallelTopology",
            "from pydantic import BaseModel\nclass A(BaseModel): x: int",
        ),
    ):
        ours, theirs = program_seconds(what), program_seconds(peer)
        print(f"{what:<58} {ours * 1e3:>12.0f} ms   {peer.splitlines()[0]} {theirs * 1e3:.0f} ms: {ours / theirs:.2f}x")


if __name__ == "__main__":
    main()
