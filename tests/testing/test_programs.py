"""Random small programs, right or with one planted fault: the verdict is right, and who is at fault is named."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.testing import WorkerPool, run_ranks
from parallel_topology.testing.failures import DeadlockError, DeadRankError, MismatchError, StuckRankError

TOPOLOGIES = ("tp2", "tp4", "tp2-dp2", "tp2-pp2-dp2", "tp3@5")
OPERATIONS = ("all_reduce", "all_gather", "broadcast", "barrier", "pairs")
FAULTS = ("", "early", "order", "shape", "dead", "raises", "stuck", "thread")
LATER = 1.6
"""Seconds after which a helper thread makes its call: longer than ranks must wait in vain to be called stuck."""


@dataclass(frozen=True)
class Program:
    """What all ranks do, and what one of them does otherwise.

    Attributes:
        steps: (operation, group, rows).
        at: the step with the fault, on the rank at `position`.
    """

    topology: str
    steps: tuple[tuple[str, str, int], ...]
    fault: str
    at: int
    position: int


def drawn(seed: int) -> Program:
    random = Random(seed)
    topology = random.choice(TOPOLOGIES)
    value = ParallelTopology.parse(topology)
    groups = [*value.axes, "world"]
    steps = [
        (random.choice(OPERATIONS), random.choice(groups), random.randint(1, 9)) for _ in range(random.randint(2, 6))
    ]
    fault, at = FAULTS[seed % len(FAULTS)], random.randrange(len(steps))
    if fault == "shape":
        steps[at] = (random.choice(["all_reduce", "all_gather"]), *steps[at][1:])
    if fault == "order":  # over one group: over two it may be no fault at all
        group, rows = steps[at][1:]
        steps[at : at + 1] = [("all_reduce", group, rows), ("all_gather", group, rows + 1)]
    return Program(topology, tuple(steps), fault, at, random.randrange(value.world_size))


def play(groups: GroupManager, program: Program) -> int:
    """One rank; returns how many steps it made."""
    steps = list(program.steps)
    mine = groups.rank == groups.topology.world[program.position]
    if mine and program.fault == "order":
        steps[program.at : program.at + 2] = reversed(steps[program.at : program.at + 2])
    for number, (operation, name, rows) in enumerate(steps):
        if mine and number == program.at:
            if program.fault == "early":
                return number
            if program.fault == "raises":
                raise KeyError("planted")
            if program.fault == "dead":
                os._exit(7)
            if program.fault == "stuck":
                threading.Event().wait()
            if program.fault == "shape":
                rows += 1
            if program.fault == "thread":
                helper = threading.Timer(LATER, step, (groups, operation, name, rows))
                helper.start()
                helper.join()
                continue
        step(groups, operation, name, rows)
    return len(steps)


def step(groups: GroupManager, operation: str, name: str, rows: int) -> None:
    group = groups[name]
    if operation == "barrier":
        group.barrier()
    elif operation == "broadcast":
        group.broadcast(torch.ones(rows), src=group.size - 1)
    elif operation == "pairs":  # neighbours; who has none has nobody to talk with
        other = group.rank ^ 1
        if other < group.size and group.rank < other:
            group.send(torch.ones(rows), other)
            group.recv(torch.empty(rows), other)
        elif other < group.size:
            group.recv(torch.empty(rows), other)
            group.send(torch.ones(rows), other)
    else:
        getattr(group, operation)(torch.ones(rows))


def named(text: str) -> set[int]:
    """The ranks that a text names."""
    found: set[int] = set()
    for listed in re.findall(r"\branks? (\d+(?:(?:-|, | and )\d+)*)", text):
        for part in re.split(", | and ", listed):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def judge(program: Program, world: Any, pool: WorkerPool) -> None:
    guilty = ParallelTopology.parse(program.topology).world[program.position]
    how: dict[str, Any] = {"world": world, "pool": pool, "timeout": 3 if program.fault == "stuck" else 40}
    if program.fault in ("", "thread"):
        assert set(run_ranks(program.topology, play, program, **how)) == {len(program.steps)}
        return
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(program.topology, play, program, **how)
    error = caught.value.exceptions[0]
    head = str(error).splitlines()[0]
    of_rank = named(error.__notes__[-1]) if hasattr(error, "__notes__") else set[int]()
    if program.fault == "early":
        assert isinstance(error, DeadlockError), error
        assert re.match(rf"rank {guilty} returned without ", head), head
    elif program.fault in ("order", "shape"):
        assert isinstance(error, MismatchError), error
        assert guilty in named(head), head
    else:
        expected = {"raises": KeyError, "dead": DeadRankError, "stuck": StuckRankError}[program.fault]
        assert isinstance(error, expected), error
        assert of_rank == {guilty}, error.__notes__


def program_of(seed: int, world: Any) -> Program:
    program = drawn(seed)
    return replace(program, fault="raises") if program.fault == "dead" and world == "threads" else program


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(200))
def test_one_of_many_programs(seed: int, world: Any, rank_workers: WorkerPool):
    judge(program_of(seed, world), world, rank_workers)
