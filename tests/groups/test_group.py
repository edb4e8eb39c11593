"""ParallelGroup: each collective against what plain torch gives in one process."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import CollectiveError, GroupArgumentError, GroupManager, GroupTimeoutError, ParallelTopology
from parallel_topology.testing.threads import run_threads

SHAPES = [(), (1,), (5,), (2, 3), (2, 3, 4), (0,), (3, 0)]


def value(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).mul(10).to(dtype)


def _all_reduce(groups: GroupManager) -> None:
    for shape in SHAPES:
        for op, plain in (
            (dist.ReduceOp.SUM, lambda stacked: stacked.sum(0)),
            (dist.ReduceOp.MAX, lambda stacked: stacked.amax(0)),
            (dist.ReduceOp.MIN, lambda stacked: stacked.amin(0)),
            (dist.ReduceOp.PRODUCT, lambda stacked: stacked.prod(0)),
        ):
            mine = value(groups.rank, shape)
            assert groups.tp.all_reduce(mine, op) is mine
            torch.testing.assert_close(mine, plain(torch.stack([value(rank, shape) for rank in groups.tp.ranks])))


def _all_gather(groups: GroupManager) -> None:
    for shape in SHAPES:
        for dim in range(-len(shape), max(len(shape), 1)):
            parts = [value(rank, shape).reshape(shape or (1,)) for rank in groups.tp.ranks]
            gathered = groups.tp.all_gather(value(groups.rank, shape), dim=dim)
            torch.testing.assert_close(gathered, torch.cat(parts, dim), rtol=0, atol=0)


def _broadcast(groups: GroupManager) -> None:
    for source, rank in enumerate(groups.tp.ranks):
        for arguments in ({"src": source}, {"src_rank": rank}):
            mine = value(groups.rank, (4,))
            assert groups.tp.broadcast(mine, **arguments) is mine
            assert torch.equal(mine, value(rank, (4,)))
    mine = value(groups.rank, (4,))
    groups.tp.broadcast(mine)
    assert torch.equal(mine, value(groups.tp.first_rank, (4,)))


def _ring(groups: GroupManager) -> None:
    """To the next and from the previous, evens first: blocking sends need a partner that receives."""
    tp = groups.tp
    got = torch.empty(3)
    if tp.rank % 2 == 0:
        tp.send(value(groups.rank, (3,)))
        tp.recv(got)
    else:
        tp.recv(got)
        tp.send(value(groups.rank, (3,)))
    assert torch.equal(got, value(tp.prev_rank, (3,)))


def _named_peers(groups: GroupManager) -> None:
    tp = groups.tp
    if tp.is_first:
        tp.send(torch.ones(1), dst=tp.size - 1)
        tp.send(torch.ones(1) * 2, dst_rank=tp.last_rank)
    elif tp.is_last:
        assert tp.recv(torch.zeros(1), src=0) == 1
        assert tp.recv(torch.zeros(1), src_rank=tp.first_rank) == 2


def _non_contiguous(groups: GroupManager) -> None:
    tp = groups.tp
    base = torch.zeros(3, 2)
    column = base[:, 1]
    column.copy_(value(groups.rank, (3,)))
    tp.all_reduce(column)
    expected = sum(value(rank, (3,)) for rank in tp.ranks)
    torch.testing.assert_close(base[:, 1], expected)
    assert base[:, 0].eq(0).all()
    gathered = tp.all_gather(value(groups.rank, (2, 3)).T, dim=1)
    assert torch.equal(gathered, torch.cat([value(rank, (2, 3)).T for rank in tp.ranks], dim=1))
    tp.broadcast(column.copy_(value(groups.rank, (3,))), src=1)
    assert torch.equal(column, value(tp.ranks[1], (3,)))
    if tp.is_first:
        tp.send(value(7, (2, 3)).T)
    elif tp.rank == 1:
        received = torch.zeros(2, 3).T
        tp.recv(received)
        assert torch.equal(received, value(7, (2, 3)).T)


BODIES = [_all_reduce, _all_gather, _broadcast, _named_peers, _non_contiguous]


@pytest.mark.ranks(["tp2@5", "tp3@5", "tp4@5"])
@pytest.mark.parametrize("body", BODIES)
def test_equals_plain_torch(groups: GroupManager, body: Any):
    body(groups)


@pytest.mark.ranks("tp3@5", world="processes")
@pytest.mark.parametrize("body", BODIES)
def test_equals_plain_torch_in_processes(groups: GroupManager, body: Any):
    body(groups)


@pytest.mark.ranks([2, 4])
def test_ring(groups: GroupManager):
    _ring(groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8])
@pytest.mark.ranks(2)
def test_dtypes(groups: GroupManager, dtype: torch.dtype):
    summed = groups.tp.all_reduce(torch.tensor([1, 2, 3]).to(dtype))
    assert torch.equal(summed, torch.tensor([2, 4, 6]).to(dtype))
    assert groups.tp.all_gather(summed).dtype == dtype


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda tp: tp.broadcast(torch.ones(1), src=2), "engine/tp[0]: src=2 is outside the group: expected 0..1"),
        (lambda tp: tp.broadcast(torch.ones(1), src=-1), "engine/tp[0]: src=-1 is outside the group"),
        (
            lambda tp: tp.broadcast(torch.ones(1), src_rank=0),
            "engine/tp[0]: src_rank=0 is not a member: expected one of [5",
        ),
        (lambda tp: tp.broadcast(torch.ones(1), src=0, src_rank=5), "engine/tp[0]: both src=0 and src_rank=5"),
        (lambda tp: tp.send(torch.ones(1), dst=tp.rank), "send on engine/tp[0]: rank "),
        (lambda tp: tp.recv(torch.ones(1), src_rank=tp.ranks[tp.rank]), "recv on engine/tp[0]: rank "),
        (lambda tp: tp.all_reduce(torch.ones(1, device="meta")), "all_reduce on engine/tp[0]: the tensor is on meta"),
    ],
)
@pytest.mark.ranks("tp2@5")
def test_refused_arguments(groups: GroupManager, use: Any, message: str):
    with pytest.raises(GroupArgumentError) as caught:
        use(groups.tp)
    assert str(caught.value).startswith(message)


def test_a_peer_that_does_not_take_part_is_a_timeout():
    store, over = dist.HashStore(), threading.Event()

    def body(position: int) -> None:
        with GroupManager(ParallelTopology(tp=2), rank=position, store=store, timeout=1.5) as groups:
            if position == 1:
                assert over.wait(20)
                return
            with pytest.raises(
                GroupTimeoutError, match=re.escape("all_reduce on engine/tp[0] = [0, 1] failed at rank 0")
            ):
                groups.tp.all_reduce(torch.ones(1))
            over.set()

    run_threads(["rank"] * 2, body, timeout=30)


@pytest.mark.ranks(2)
def test_a_peer_that_is_gone_is_a_collective_error(groups: GroupManager):
    if groups.tp.is_first:
        with pytest.raises(CollectiveError, match=re.escape("all_reduce on engine/tp[0] = [0, 1] failed at rank 0")):
            groups.tp.all_reduce(torch.ones(1))
