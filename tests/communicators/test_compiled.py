"""Collectives under torch.compile: one graph, right results, and each manager its own groups."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import ClosedError, GroupManager, ParallelTopology
from parallel_topology.communicators import compiled
from parallel_topology.functional import all_gather_from, copy_to, reduce_from, reduce_scatter_to
from parallel_topology.testing import run_ranks


class Layer(torch.nn.Module):
    """Two products with collectives around them, as a user's model has them."""

    def __init__(self, tp: Any) -> None:
        super().__init__()
        self.tp = tp
        generator = torch.Generator().manual_seed(tp.rank)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = reduce_from(torch.relu(copy_to(x, self.tp) @ self.weight), self.tp)
        return reduce_scatter_to(all_gather_from(x, self.tp, 0), self.tp, 0)


def all_collectives(x: torch.Tensor, tp: Any) -> tuple[torch.Tensor, ...]:
    mine = x + tp.rank
    highest = tp.all_reduce(mine.clone(), dist.ReduceOp.MAX)
    total = tp.all_reduce(mine, inplace=False)
    joined = tp.all_gather(mine * 2, dim=1)
    part = tp.reduce_scatter(joined, dim=1)
    swapped = tp.all_to_all(torch.cat([mine] * tp.size))
    uneven = tp.all_to_all(mine, [4 * (tp.rank == 0)] * tp.size, [4] + [0] * (tp.size - 1))
    first = tp.broadcast(mine.clone(), src=tp.size - 1)
    begun = tp.all_reduce(mine + 1, async_op=True)
    if tp.is_first:
        tp.send(mine)
        got = tp.recv(torch.zeros_like(mine))
    else:
        got = tp.recv(torch.zeros_like(mine))
        tp.send(mine)
    return highest, total, joined, part, swapped, uneven, first, begun.wait(), got, mine


def _same_as_eager(groups: GroupManager, backend: str) -> None:
    torch._dynamo.reset()
    x = torch.arange(16.0).view(4, 4)
    graph = torch.compile(all_collectives, fullgraph=True, backend=backend)
    for compiled_result, eager in zip(graph(x, groups.tp), all_collectives(x, groups.tp), strict=True):
        torch.testing.assert_close(compiled_result, eager, rtol=0, atol=0)
    layer = Layer(groups.tp)
    results: list[Any] = []
    for forward in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, layer.weight.grad.clone()))  # pyright: ignore[reportOptionalMemberAccess]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_full_graph_gives_what_eager_gives():
    run_ranks("tp2", _same_as_eager, "aot_eager", world="processes", timeout=100)


@pytest.mark.slow
def test_with_inductor():
    run_ranks("tp2", _same_as_eager, "inductor", world="processes", timeout=280)


def _total(x: torch.Tensor, tp: Any) -> torch.Tensor:
    return tp.all_reduce(x + tp.rank, inplace=False)


def _two_managers(groups: GroupManager, folder: str) -> None:
    """Both pairs of `tp2-pp2` and the one group of `tp4`, through the same compiled function and its guards."""
    store = dist.FileStore(f"{folder}/store", 4)
    with GroupManager(ParallelTopology(tp=4), rank=groups.rank, store=store, timeout=60) as other:
        graph = _total
        if groups.pp.is_first:  # what compiles takes seconds to import, on each rank
            graph = torch.compile(_total, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            assert graph(torch.zeros(1), groups.tp).item() == 1
            assert graph(torch.zeros(1), other.tp).item() == 6
        assert graph(torch.zeros(1), groups.pp).item() == 1
        tp = other.tp
    with pytest.raises(ClosedError):
        graph(torch.zeros(1), tp)
    assert graph(torch.zeros(1), groups.tp).item() == 1


def test_two_managers_in_one_process_each_get_their_own(tmp_path: Path):
    run_ranks("tp2-pp2", _two_managers, str(tmp_path), world="processes", timeout=100)


def test_a_key_names_one_group_for_ever():
    keys: list[str] = []

    def one() -> None:
        with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
            keys.extend([groups.tp.key, groups.world.key])

    one()
    one()
    assert len(set(keys)) == 4
    gc.collect()
    with pytest.raises(ClosedError, match="is gone: its manager was closed"):
        compiled.all_reduce(torch.ones(1), torch.zeros(1), keys[0], "SUM")


def test_the_ops_are_what_they_say():
    """Fake kernels against real ones, schemas, mutation: torch's own checks of custom ops."""

    def body(groups: GroupManager) -> None:
        tp, x = groups.tp, torch.arange(8.0).view(4, 2)
        ops: list[tuple[Any, tuple[Any, ...]]] = [
            (compiled.all_reduce, (x, tp.links.order, tp.key, "SUM")),
            (compiled.all_reduce_, (x.clone(), tp.links.order, tp.key, "MAX")),
            (compiled.broadcast_, (x.clone(), tp.links.order, tp.key, 0)),
            (compiled.all_gather, (x, tp.links.order, tp.key, 2, 1)),
            (compiled.reduce_scatter, (x, tp.links.order, tp.key, 2, "SUM", 0)),
        ]
        for op, arguments in ops:
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))

    run_ranks("tp2", body, check=False, world="threads")
