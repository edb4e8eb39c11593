"""What messages between two processes over gloo cost: processor time and wall time, beside another checkout's.

python -m tests.benchmarks.bench_messages [another checkout's folder]

Each turn is one send and one receive on both ranks; figures are of one rank, minima of many short rounds. Both
checkouts' pairs of processes live at the same time and take turns, so that what the machine does meets both.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parents[2])
ROUNDS = 20
RANK = """
import sys, time, torch
from parallel_topology import GroupManager, ParallelTopology
torch.set_num_threads(1)
groups = GroupManager.from_env(ParallelTopology(tp=2), timeout=60)
tp, me, x, big = groups.tp, groups.rank, torch.zeros(8), torch.zeros(2**20)
tensors = {"a": torch.zeros(2**18), "b": torch.zeros(2**18)}

def turns(send, recv):
    def once():
        if me == 0:
            send()
            recv()
        else:
            recv()
            send()
    return once

ways = {
    "send and recv, 8 floats": (turns(lambda: tp.send(x), lambda: tp.recv(x)), 200),
    "isend and irecv, 8 floats": (turns(lambda: tp.isend(x).wait(), lambda: tp.irecv(x).wait()), 200),
    "send and recv, 4 MiB": (turns(lambda: tp.send(big), lambda: tp.recv(big)), 5),
    "send_tensors, 2 x 1 MiB": (turns(lambda: tp.send_tensors(tensors), tp.recv_tensors), 5),
    "send_object": (turns(lambda: tp.send_object({"step": 1}), tp.recv_object), 100),
    "barrier": (tp.barrier, 200),
    "all_reduce, 8 floats": (lambda: tp.all_reduce(x), 200),
    "all_reduce begun, 8 floats": (lambda: tp.all_reduce(x, async_op=True).wait(), 200),
}
for line in sys.stdin:
    for name, (way, calls) in ways.items():
        way()
        tp.barrier()
        used, begun = time.process_time(), time.perf_counter()
        for _ in range(calls):
            way()
        used, passed = time.process_time() - used, time.perf_counter() - begun
        print(name, used / calls * 1e6, passed / calls * 1e6, sep="=")
    print(flush=True)
groups.close()
"""

Figures = dict[str, tuple[float, float]]


def pair(tree: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": tree}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, "-c", RANK], cwd=tree, env={**os.environ, **where, "RANK": rank}, **pipes)
        for rank in "01"
    ]


def one_round(ranks: list[subprocess.Popen[str]], best: Figures) -> None:
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    for rank in ranks:
        assert rank.stdout is not None
        while line := rank.stdout.readline().strip():
            name, used, passed = line.split("=")
            before = best.get(name, (float("inf"), float("inf")))
            best[name] = min(before[0], float(used)), min(before[1], float(passed))


def main() -> None:
    trees = [HERE, *sys.argv[1:2]]
    pairs, found = [pair(tree) for tree in trees], [Figures() for _ in trees]
    for _ in range(ROUNDS):
        for ranks, best in zip(pairs, found, strict=True):
            one_round(ranks, best)
    for rank in [rank for ranks in pairs for rank in reversed(ranks)]:  # the first hosts the store
        rank.communicate(timeout=60)
    for name, (used, passed) in found[0].items():
        line = f"{name:28} {used:8.1f} us of processor, {passed:8.1f} us in all"
        if len(trees) > 1:
            others = found[1][name]
            line += f"; {used / others[0]:.2f} and {passed / others[1]:.2f} of the other's"
        print(line)


if __name__ == "__main__":
    main()
