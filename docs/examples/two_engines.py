"""Two engines with different topologies in the same worker processes, each with a GroupManager of its own.

`python -m parallel_topology demo` runs this and shows what it did.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology import GroupManager, ParallelTopology, TopologyError
from parallel_topology.testing.processes import run_processes

from .transformer import Transformer, TransformerConfig, dense_logits, encode

TOLERANCE = 1e-4
"""Largest difference of a logit that float32 sums in another order may make; logits are of order 1."""
BATCH = 4

Report = Callable[[str], None]


class Engine:
    """What an inference engine's worker holds: a model, and the groups it was given."""

    def __init__(self, groups: GroupManager, config: TransformerConfig) -> None:
        self.groups = groups
        self.model = Transformer(config, tp=groups.tp, pp=groups.pp)

    def difference(self, tokens: Tensor, expected: Tensor) -> float | None:
        """Run the model; how far its logits are from those expected, on ranks of the last stage."""
        logits = self.model(tokens)
        return None if logits is None else (logits - expected).abs().max().item()


@dataclass
class Outcome:
    """What a demo run found.

    Attributes:
        differences: per engine, the largest difference of any logit on any rank of its last stage.
        after_close: the same for the engines that went on after the first one was closed.
        checked: per engine, how many ranks compared their logits.
        seconds: phase -> duration.
    """

    tokens: int
    differences: list[float] = field(default_factory=list[float])
    after_close: list[float] = field(default_factory=list[float])
    checked: list[int] = field(default_factory=list[int])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def agrees(self) -> bool:
        # `not <=` rather than `>`: a NaN must not pass.
        return all(difference <= TOLERANCE for difference in [*self.differences, *self.after_close])


def check(topologies: Sequence[ParallelTopology]) -> None:
    """Whether the demo's model divides over all of them, before a process is started.

    Raises:
        TopologyError: it does not.
    """
    for topology in topologies:
        try:
            TransformerConfig().require_divisible(tp=topology.tp, pp=topology.pp)
        except ValueError as error:
            raise TopologyError(f"{topology} does not fit the demo's model: {error}") from None


def run(topologies: Sequence[ParallelTopology], text: bytes, on_phase: Report, *, timeout: float = 120.0) -> Outcome:
    """Start a process per rank, build every engine in each, and compare them with a single-process reference."""
    config = TransformerConfig()
    started = time.perf_counter()
    on_phase("reference, one process")
    batches = _batches(text, config.max_seq - 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: on a busy machine threads wait for each other far longer than they work
    expected = [dense_logits(config, tokens) for tokens in batches]
    torch.set_num_threads(threads)
    outcome = Outcome(tokens=sum(tokens.numel() for tokens in batches))
    outcome.seconds["reference"] = time.perf_counter() - started

    def on_message(rank: int, message: str) -> None:
        if rank == 0:
            on_phase(message)

    labels = [f"rank {rank}" for rank in topologies[0].world]
    with tempfile.TemporaryDirectory() as folder:
        torch.save((batches, expected), Path(folder, "reference.pt"))
        on_phase("starting processes")
        begun = time.perf_counter()
        ranks = run_processes(labels, _worker, list(topologies), folder, timeout=timeout, on_message=on_message)
    outcome.seconds["start and stop"] = time.perf_counter() - begun - max(sum(r["seconds"].values()) for r in ranks)
    for phase in ranks[0]["seconds"]:
        outcome.seconds[phase] = max(rank["seconds"][phase] for rank in ranks)
    for key, target in (("differences", outcome.differences), ("after_close", outcome.after_close)):
        for engine in range(len(topologies) - (key == "after_close")):
            found = [d for rank in ranks for d in rank[key][engine] if d is not None]
            target.append(max(found))
    outcome.checked = [sum(rank["differences"][e][0] is not None for rank in ranks) for e in range(len(topologies))]
    return outcome


def _batches(text: bytes, width: int) -> list[Tensor]:
    pieces = [text[start : start + width] for start in range(0, len(text), width)]
    return [encode(*pieces[start : start + BATCH]) for start in range(0, len(pieces), BATCH)]


def _worker(position: int, send: Report, topologies: list[ParallelTopology], folder: str) -> dict[str, Any]:
    """One rank: all engines side by side."""
    torch.set_num_threads(1)  # the ranks share this machine's cores
    clock = _Clock(send)
    with ExitStack() as stack:
        clock.phase("groups")
        store = dist.FileStore(str(Path(folder, "store")), topologies[0].world_size)
        managers = [
            stack.enter_context(
                GroupManager(topology, rank=topology.world[position], store=store, name=f"engine{number}")
            )
            for number, topology in enumerate(topologies)
        ]
        clock.phase("weights")
        config = TransformerConfig()
        engines = [Engine(groups, config) for groups in managers]
        batches, expected = torch.load(Path(folder, "reference.pt"))
        clock.phase("text through all engines, interleaved")
        differences = _interleaved(engines, batches, expected)
        clock.phase("first engine closed, the others go on")
        managers[0].close()
        after_close = _interleaved(engines[1:], batches[:1], expected[:1])
        clock.stop()
    return {"differences": differences, "after_close": after_close, "seconds": clock.seconds}


def _interleaved(engines: list[Engine], batches: list[Tensor], expected: list[Tensor]) -> list[list[float | None]]:
    """For each engine, the difference of each batch."""
    found: list[list[float | None]] = [[] for _ in engines]
    for tokens, logits in zip(batches, expected, strict=True):
        for engine, differences in zip(engines, found, strict=True):
            differences.append(engine.difference(tokens, logits))
    return found


class _Clock:
    def __init__(self, send: Report) -> None:
        self.send = send
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._since = 0.0

    def phase(self, name: str) -> None:
        self.stop()
        self._name, self._since = name, time.perf_counter()
        self.send(name)

    def stop(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._since
