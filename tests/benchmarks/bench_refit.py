"""What a refit costs: planning, and carrying it out against the best plain loop of point-to-point calls.

    python -m tests.benchmarks.bench_refit [--megabytes 1024] [--rounds 5]

The plain loop sends the same bytes between the same ranks over gloo, each pair's as one contiguous tensor that is
ready, all at once. Its memory is written before: pages of zeros that were never written are all one page.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections import Counter
from typing import Any

import torch

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.testing import run_ranks
from parallel_topology.weights import Fused, Storage, Weight, Weights

SOURCE, TARGET = ParallelTopology(tp=2, pp=2, dp=2), ParallelTopology(tp=4, dp=2)


def mixture_of_experts(layers: int = 96, hidden: int = 4096, inner: int = 1536, experts: int = 128) -> Weights:
    """Like Qwen3-235B-A22B."""
    return Weights(
        [
            Weight("embed", f"151936/tp {hidden}", stage="first", pad_to=64),
            Weight("q", f"8192/tp {hidden}", units=64, layer=True),
            Weight("k", f"512/tp {hidden}", units=4, layer=True),
            Weight("v", f"512/tp {hidden}", units=4, layer=True),
            Weight("o", f"{hidden} 8192/tp", layer=True),
            Weight("norm", f"{hidden}", layer=True),
            Weight("router", f"{experts} {hidden}", layer=True),
            Weight("gate", f"{experts}/ep {inner}/etp {hidden}", layer=True),
            Weight("up", f"{experts}/ep {inner}/etp {hidden}", layer=True),
            Weight("down", f"{experts}/ep {hidden} {inner}/etp", layer=True),
            Weight("head", f"151936/tp {hidden}", stage="last", pad_to=64),
        ],
        layers=layers,
    )


def planning() -> None:
    """Of new plans. What was imported is kept from the collector, which now and then takes longer than a plan."""
    gc.collect()
    gc.freeze()
    weights = mixture_of_experts()
    source = ParallelTopology(tp=4, dp=4, pp=8, views={"expert": "etp1-ep16-pp8"})
    for target in (ParallelTopology(tp=8, dp=16, first_rank=128), ParallelTopology(tp=8, dp=4, first_rank=128)):
        seconds: list[float] = []
        moves: list[int] = []
        for rank in (0, 64, 127, *target.world[:3]):
            tries: list[float] = []
            for _ in range(5):
                begun = time.perf_counter()
                moves.append(len(RefitPlan(weights, source, target).moves(rank)))
                tries.append(time.perf_counter() - begun)
            seconds.append(statistics.median(tries))
        tracemalloc.start()
        plan = RefitPlan(weights, source, target)
        kept = plan.moves(target.world[0])
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        del kept
        ratio = plan.bytes_moved / plan.lower_bound
        print(
            f"plan 128 -> {target.world_size}: {max(seconds) * 1e3:.0f} ms a rank at most, {max(moves)} moves, "
            f"{peak:.0f} MB, {plan.bytes_moved / 1e9:.1f} GB moved, {ratio:.3f} of the lower bound"
        )


def model(megabytes: int) -> Weights:
    """Dense, bfloat16, of about so many MB."""
    hidden = 1024
    layers = max(4, round(megabytes * 2**20 / 2 / (12 * hidden * hidden)))
    return Weights(
        [
            Weight("q", f"{hidden}/tp {hidden}", units=16, layer=True),
            Weight("k", f"{hidden}/tp {hidden}", units=16, layer=True),
            Weight("v", f"{hidden}/tp {hidden}", units=16, layer=True),
            Weight("o", f"{hidden} {hidden}/tp", layer=True),
            Weight("gate", f"{hidden * 8 // 3 // 64 * 64}/tp {hidden}", layer=True),
            Weight("up", f"{hidden * 8 // 3 // 64 * 64}/tp {hidden}", layer=True),
            Weight("down", f"{hidden} {hidden * 8 // 3 // 64 * 64}/tp", layer=True),
            Weight("norm", f"{hidden}", layer=True),
        ],
        layers=layers - layers % 2,
    )


def measured(groups: GroupManager, megabytes: int, rounds: int, fused: bool) -> list[tuple[float, float, int]]:
    weights = model(megabytes)
    rules = [Fused("qkv", ["q", "k", "v"]), Fused("gate_up", ["gate", "up"])]
    plan = RefitPlan(weights, SOURCE, TARGET, target_as=Storage(weights, rules) if fused else weights)
    rank = groups.rank
    have, into = (
        {name: torch.ones(one.shape, dtype=torch.bfloat16) for name, one in side.tensors_on(rank).items()}
        for side in (plan.source, plan.target)
    )
    pairs: Counter[tuple[int, int]] = Counter()
    for move in plan.moves(rank):
        if move.source != move.target:
            pairs[move.source, move.target] += plan.nbytes(move)
    buffers = {pair: torch.ones(nbytes, dtype=torch.uint8) for pair, nbytes in pairs.items()}
    group: Any = groups.world.cpu_group
    found: list[tuple[float, float, int]] = []
    for _ in range(rounds):
        groups.world.barrier()
        begun = time.perf_counter()
        works = [
            group.send([buffers[pair]], pair[1], 0) if pair[0] == rank else group.recv([buffers[pair]], pair[0], 0)
            for pair in sorted(pairs)
        ]
        for work in works:
            work.wait()
        groups.world.barrier()
        plain = time.perf_counter() - begun
        begun = time.perf_counter()
        done = refit(plan, groups.world, have, into)
        groups.world.barrier()
        found.append((time.perf_counter() - begun, plain, done.staged))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    planning()
    for fused in (False, True):
        weights = model(asked.megabytes)
        plan = RefitPlan(weights, SOURCE, TARGET)
        results = run_ranks(
            8, measured, asked.megabytes, asked.rounds, fused, world="processes", timeout=500, check=False
        )
        slowest = [[max(one[what] for one in turn) for turn in zip(*results, strict=True)] for what in (0, 1)]
        ours, plain = map(statistics.median, slowest)
        staged = max(turn[2] for one in results for turn in one)
        print(
            f"refit {SOURCE} -> {TARGET}{', fused at the target' if fused else ''}: {plan.bytes_moved / 1e6:.0f} MB "
            f"moved in {ours:.2f} s, {ours / plain:.2f}x of the plain loop, {staged / 2**20:.0f} MiB staged"
        )


if __name__ == "__main__":
    main()
