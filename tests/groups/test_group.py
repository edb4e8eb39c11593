"""ParallelGroup: peers and arguments, groups of one rank, handles, and members that do not take part."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    ClosedError,
    CollectiveError,
    GroupArgumentError,
    GroupManager,
    GroupTimeoutError,
    Handle,
    ParallelTopology,
)
from parallel_topology.testing.threads import run_threads


@pytest.mark.ranks(["tp2@5", "tp4@5"])
def test_a_ring_of_blocking_sends_needs_a_partner_that_receives(groups: GroupManager):
    tp, got = groups.tp, torch.empty(3)
    mine = torch.full((3,), float(groups.rank))
    if tp.rank % 2 == 0:
        tp.send(mine)
        tp.recv(got)
    else:
        tp.recv(got)
        tp.send(mine)
    assert got.tolist() == [tp.prev_rank] * 3
    assert tp.send_recv(mine).tolist() == [tp.prev_rank] * 3  # no partner needed
    backwards = tp.send_recv(mine, torch.empty(3), dst_rank=tp.prev_rank, src=(tp.rank + 1) % tp.size)
    assert backwards.tolist() == [tp.next_rank] * 3


@pytest.mark.ranks("tp3@5")
def test_what_is_done_in_place_is_done_in_strided_tensors_too(groups: GroupManager):
    base = torch.zeros(3, 2)
    column = base[:, 1]
    for use in (
        lambda: groups.tp.all_reduce(column),
        lambda: groups.tp.broadcast(column, src=1),
        lambda: groups.tp.all_reduce(column, async_op=True).wait(),
        lambda: groups.tp.scatter(column, torch.arange(9.0) if groups.tp.is_first else None),
    ):
        column.fill_(groups.rank)
        assert use() is column
        assert base[:, 0].eq(0).all()
        assert base[:, 1].tolist() != [groups.rank] * 3 or groups.tp.rank == 1


@pytest.mark.ranks(2)
def test_out_of_place(groups: GroupManager):
    mine = torch.ones(2)
    for result in (
        groups.tp.all_reduce(mine, inplace=False),
        groups.tp.all_reduce(mine, inplace=False, async_op=True).wait(),
    ):
        assert result.tolist() == [2, 2]
    assert mine.tolist() == [1, 1]


@pytest.mark.ranks(2)
def test_a_handle_gives_the_same_again(groups: GroupManager):
    handle = groups.tp.all_gather(torch.tensor([groups.rank]), async_op=True)
    first = handle.wait()
    assert first.tolist() == [0, 1]
    assert handle.wait() is first
    assert handle.is_done()
    assert repr(handle) == "<Handle of all_gather on engine/tp[0], done>"


def test_a_group_of_one_rank_gives_back_what_it_is_given():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        tp, x = groups.tp, torch.ones(2)
        for result in (
            tp.all_reduce(x),
            tp.all_reduce(x, async_op=True),
            tp.all_gather(x),
            tp.all_gather_v(x),
            tp.reduce_scatter(x),
            tp.reduce_scatter_v(x, [2]),
            tp.broadcast(x, async_op=True),
            tp.reduce(x),
            tp.gather(x),
            tp.all_to_all(x),
            tp.send_recv(x),
            tp.broadcast_object(x),
            tp.all_gather_object(x)[0],
        ):
            assert (result.wait() if isinstance(result, Handle) else result) is x
        assert tp.scatter(torch.zeros(2), x).tolist() == [1, 1]
        tp.barrier()
        with pytest.raises(GroupArgumentError, match="would be its own peer"):
            tp.send(x)
    with pytest.raises(ClosedError):
        tp.all_reduce(x)


REFUSED: list[tuple[Any, str]] = [
    (lambda tp: tp.broadcast(torch.ones(1), src=2), "engine/tp[0]: src=2 is outside the group: expected 0..1"),
    (lambda tp: tp.broadcast(torch.ones(1), src=-1), "engine/tp[0]: src=-1 is outside the group"),
    (lambda tp: tp.broadcast(torch.ones(1), src_rank=0), "engine/tp[0]: src_rank=0 is not a member: expected one of ["),
    (lambda tp: tp.broadcast(torch.ones(1), src=0, src_rank=5), "engine/tp[0]: both src=0 and src_rank=5"),
    (lambda tp: tp.gather(torch.ones(1), dst=3), "engine/tp[0]: dst=3 is outside the group"),
    (lambda tp: tp.reduce(torch.ones(1), dst_rank=9), "engine/tp[0]: dst_rank=9 is not a member"),
    (lambda tp: tp.broadcast_object(1, src=2), "engine/tp[0]: src=2 is outside the group"),
    (lambda tp: tp.send(torch.ones(1), dst=tp.rank), "send on engine/tp[0]: rank "),
    (lambda tp: tp.irecv(torch.ones(1), src_rank=tp.ranks[tp.rank]), "irecv on engine/tp[0]: rank "),
    (lambda tp: tp.all_reduce(torch.ones(1, device="meta")), "all_reduce on engine/tp[0]: the tensor is on meta"),
    (lambda tp: tp.all_reduce(torch.ones(1), dist.ReduceOp.BAND), "all_reduce on engine/tp[0]: RedOpType.BAND of a to"),
    (lambda tp: tp.all_reduce(torch.tensor([1]), dist.ReduceOp.AVG), "all_reduce on engine/tp[0]: RedOpType.AVG of a"),
    (lambda tp: tp.all_reduce(torch.ones(1, dtype=torch.int16)), "all_reduce on engine/tp[0]: Invalid scalar type; co"),
    (lambda tp: tp.all_gather(torch.ones(1), dim=1), "all_gather on engine/tp[0]: dim=1 of a tensor of shape [1]"),
    (lambda tp: tp.reduce_scatter(torch.ones(3)), "reduce_scatter on engine/tp[0]: dim 0 of [3] does not divide by 2"),
    (lambda tp: tp.reduce_scatter(torch.tensor(1.0)), "reduce_scatter on engine/tp[0]: dim=0 of a tensor of shape []"),
    (lambda tp: tp.reduce_scatter_v(torch.ones(3), [1, 1]), "reduce_scatter_v on engine/tp[0]: sizes=[1, 1] make 2, b"),
    (lambda tp: tp.reduce_scatter_v(torch.ones(3), [3]), "reduce_scatter_v on engine/tp[0]: sizes=[3]; expected 2 len"),
    (lambda tp: tp.all_gather_v(torch.ones(3), [1, 1]), "all_gather_v on engine/tp[0]: sizes=[1, 1], but this member,"),
    (lambda tp: tp.all_to_all(torch.ones(3)), "all_to_all on engine/tp[0]: dim 0 of [3] does not divide by 2"),
    (lambda tp: tp.all_to_all(torch.ones(3), [1, 2]), "all_to_all on engine/tp[0]: output_splits=[1, 2], input_splits"),
    (lambda tp: tp.all_to_all(torch.ones(3), [1, 2], [1, 1]), "all_to_all on engine/tp[0]: input_splits=[1, 1] make 2"),
    (lambda tp: tp.all_to_all(torch.ones(3), [0, 0], [1, 2]), "all_to_all on engine/tp[0]: output_splits=[0, 0], but"),
    (lambda tp: tp.all_to_all(torch.ones(3), [0, 0], [-1, 4]), "all_to_all on engine/tp[0]: input_splits=[-1, 4]; exp"),
    (lambda tp: tp.scatter(torch.ones(1), None if tp.is_first else torch.ones(2)), "scatter on engine/tp[0]: tensor="),
    (lambda tp: tp.set_timeout(0), "seconds=0: expected a number of seconds above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("use", "message"), REFUSED, ids=[message[-40:] for _, message in REFUSED])
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


def test_a_handle_says_the_same_about_it():
    store, over = dist.HashStore(), threading.Event()

    def body(position: int) -> None:
        with GroupManager(ParallelTopology(tp=2), rank=position, store=store, timeout=20) as groups:
            if position == 1:
                assert over.wait(20)
                return
            handle = groups.tp.irecv(torch.ones(1))
            assert not handle.is_done()
            for _ in range(2):
                with pytest.raises(
                    GroupTimeoutError, match=re.escape("recv on engine/tp[0] = [0, 1] failed at rank 0")
                ):
                    handle.wait(timeout=0.5)
            over.set()

    run_threads(["rank"] * 2, body, timeout=30)


@pytest.mark.ranks(2)
def test_a_peer_that_is_gone_is_a_collective_error(groups: GroupManager):
    if not groups.tp.is_first:
        groups.abort()  # one that only returns is waited for, and found to be missing
    else:
        with pytest.raises(CollectiveError, match=re.escape("all_reduce on engine/tp[0] = [0, 1] failed at rank 0")):
            groups.tp.all_reduce(torch.ones(1))
