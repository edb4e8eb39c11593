"""What the value costs: importing it and making a first one, beside pydantic; each question, beside another checkout.

python -m tests.benchmarks.bench_value [another checkout's folder]

Processor time, so that a busy machine disturbs less; medians and minima of alternating runs.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

HERE = str(Path(__file__).parents[2])
PYDANTIC = "from pydantic import BaseModel\nclass M(BaseModel):\n    tp: int\nM(tp=2)"
OURS = "from parallel_topology import ParallelTopology\nParallelTopology(tp=2)"
QUESTIONS = """
import timeit
from time import process_time
from parallel_topology import ParallelTopology as T
small, big = T(tp=2, pp=4), T(tp=8, cp=2, dp=64, pp=16)
for name, ask, number in [
    ("construct", lambda: T(tp=2, pp=4), 2000),
    ("construct with a view", lambda: T(tp=2, dp=4, views={"expert": "etp1-ep8"}), 1000),
    ("parse", lambda: T.parse("tp2-pp4"), 2000),
    ("size", lambda: big.tp, 20000),
    ("coordinate", lambda: big.coordinate(77), 20000),
    ("rank", lambda: big.rank(tp=1, cp=1, dp=3, pp=2), 10000),
    ("group", lambda: big.group("dp", rank=77), 20000),
    ("group of two axes", lambda: big.group("dp", "tp", rank=77), 20000),
    ("groups", lambda: big.groups("dp"), 20000),
    ("at(rank).tp", lambda: small.at(5).tp, 5000),
]:
    print(name, min(timeit.repeat(ask, number=number, repeat=7, timer=process_time)) / number * 1e6, sep="=")
"""


def run(program: str, tree: str) -> str:
    env = {"PYTHONPATH": tree, "PATH": os.environ["PATH"]}
    return subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True).stdout


def seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(program, HERE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(15):
        for program in (PYDANTIC, OURS):
            taken[program].append(seconds(program))
    theirs, ours = median(taken[PYDANTIC]), median(taken[OURS])
    print(f"import and a first one: pydantic {theirs:.3f} s, this {ours:.3f} s, {ours / theirs:.2f} of it")
    trees = [HERE, *sys.argv[1:2]]
    best: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for _ in range(6):
        for tree in trees:
            for line in run(QUESTIONS, tree).splitlines():
                name, _, figure = line.partition("=")
                best[name][tree] = min(best[name].get(tree, float("inf")), float(figure))
    for name, figures in best.items():
        other = f", {figures[HERE] / figures[trees[1]]:.2f} of the other's" if len(trees) > 1 else ""
        print(f"{name}: {figures[HERE]:.2f} us{other}")


if __name__ == "__main__":
    main()
