"""A refit beside torch's DCP and DTensor and, if it is there, Megatron's planner, in one run; what comes is compared.

python -m tests.benchmarks.bench_refit_peers [--megabytes 256] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib import import_module
from math import prod
from typing import Any

from parallel_topology import ParallelTopology
from parallel_topology.refit import RefitPlan
from parallel_topology.testing import run_ranks
from parallel_topology.weights import Weight, Weights
from tests.peers import resharding


def planning() -> None:
    """Dense, of 96 layers: what a rank's plan takes, and the bytes that all move."""
    try:
        planner: Any = import_module("megatron.core.resharding.planner")
    except ImportError:
        print("Megatron's planner is not installed")
        return
    weights = Weights(
        [
            Weight("q", "8192/tp 4096", layer=True),
            Weight("o", "4096 8192/tp", layer=True),
            Weight("up", "12288/tp 4096", layer=True),
            Weight("down", "4096 12288/tp", layer=True),
            Weight("norm", "4096", layer=True),
        ],
        layers=96,
    )
    source, target = ParallelTopology(tp=4, dp=4, pp=8), ParallelTopology(tp=8, dp=16)
    begun = time.perf_counter()
    ours = RefitPlan(weights, source, target)
    moves = len(ours.moves(77))
    mine = time.perf_counter() - begun
    rosters: Any = resharding.rosters(ours)
    begun = time.perf_counter()
    made: Any = planner.build_plan_from_rosters(*rosters, 77)
    theirs = time.perf_counter() - begun
    lacked = sum(2 * prod(map(len, box)) for _, box, peer in resharding.megatrons_boxes(ours, made, 77) if peer != 77)
    come = ours.bytes_received(77)
    print(f"plan 128 -> 128, one rank: {mine * 1e3:.0f} ms, {moves} moves, {come / 1e6:,.0f} MB come")
    moves = len(made.recv_ops) + len(made.send_ops)
    print(f"Megatron's, once all is gathered: {theirs * 1e3:,.0f} ms, {moves} moves, {lacked / 1e6:,.0f} MB come")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    planning()
    with tempfile.TemporaryDirectory() as folder:
        found = run_ranks(
            4, resharding.beside, asked.megabytes, asked.rounds, folder, world="processes", timeout=500, check=False
        )
    for name in found[0]:
        slowest = [max(turn) for turn in zip(*(one[name] for one in found), strict=True)]
        print(f"{name}: {statistics.median(slowest):.3f} s, from {min(slowest):.3f} to {max(slowest):.3f}")


if __name__ == "__main__":
    main()
