"""Objects between members: what arrives is what was sent; what cannot be sent, or read, is an error everywhere."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from pydantic import BaseModel

from parallel_topology import CollectiveError, GroupArgumentError, GroupManager, ParallelTopology, WireError
from parallel_topology.communicators.announcement import Announcement
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.testing import run_ranks
from parallel_topology.testing.ranks import World


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Held:
    name: str
    value: Any


class Colour(Enum):
    RED = "red"


class Request(BaseModel):
    number: int
    prompt: str


def value(rank: int) -> Any:
    return {
        "rank": rank,
        "pair": (rank, [None, "text"]),
        7: torch.arange(rank),
        "request": Request(number=rank, prompt="é"),
    }


def same(one: Any, other: Any) -> bool:
    tensors = one.pop(7), other.pop(7)
    return one == other and torch.equal(*tensors) and tensors[0].dtype == tensors[1].dtype


def _every_way(groups: GroupManager) -> None:
    tp, models = groups.tp, (Request,)
    mine = value(groups.rank)
    for source, rank in enumerate(tp.ranks):
        got = tp.broadcast_object(mine if tp.rank == source else "ignored", source, models=models)
        assert same(got, value(rank)), got
        mine = value(groups.rank)
    for rank, got in zip(tp.ranks, tp.all_gather_object(mine, models=models), strict=True):
        assert same(got, value(rank))
    if tp.is_first and tp.size > 1:
        tp.send_object(value(groups.rank))
    elif tp.rank == 1:
        assert same(tp.recv_object(src_rank=tp.first_rank, models=models), value(tp.first_rank))


@pytest.mark.ranks([1, 2, "tp3@5"])
def test_what_arrives_is_what_was_sent(groups: GroupManager):
    _every_way(groups)


@pytest.mark.ranks(2, world="processes")
def test_what_arrives_is_what_was_sent_in_processes(groups: GroupManager):
    _every_way(groups)


WAYS: dict[str, Any] = {
    "broadcast_object": lambda tp, value, **how: tp.broadcast_object(value, **how),
    "all_gather_object": lambda tp, value, **how: tp.all_gather_object(value, **how),
    "send_object": lambda tp, value, **how: tp.send_object(value, **how) if tp.is_first else tp.recv_object(**how),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.ranks(2)
def test_what_cannot_be_sent_is_an_error_on_all_members(groups: GroupManager, way: Any):
    mine = threading.Lock() if groups.tp.is_first else 1
    expected = GroupArgumentError if groups.tp.is_first else CollectiveError
    with pytest.raises(expected, match="lock" if groups.tp.is_first else "rank 0 could not send its object"):
        way(groups.tp, mine)
    assert groups.tp.all_reduce(torch.ones(1)) == 2  # and the group goes on


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.ranks(2)
def test_what_is_too_large_is_refused_before_it_is_sent(groups: GroupManager, way: Any):
    how = {"max_bytes": 100}
    mine = "x" * 200 if groups.tp.is_first else 1
    expected = GroupArgumentError if groups.tp.is_first else CollectiveError
    with pytest.raises(expected, match=r"more than max_bytes=100" if groups.tp.is_first else "could not send"):
        way(groups.tp, mine, **how)
    assert groups.tp.all_reduce(torch.ones(1)) == 2


@pytest.mark.ranks(2)
def test_what_a_peer_announces_is_not_allocated_unseen(groups: GroupManager):
    tp = groups.tp
    for communicator in tp.communicators:
        if tp.is_first:
            lie = {"src": 0, "announcement": Announcement(0, 2**60)}
            communicator.issue("broadcast_message", torch.empty(0, dtype=torch.uint8), async_op=False, **lie)
        else:
            tp.communicators = (communicator,)
            with pytest.raises(WireError, match="rank 0 announces 1152921504606846976 bytes"):
                tp.broadcast_object()


def _steps(groups: GroupManager, count: int, size: int) -> list[Any]:
    """A scheduler at rank 1 feeds all."""
    tp = groups.tp
    steps = ([number, "x" * size] for number in range(count)) if tp.rank == 1 else None
    return list(tp.broadcast_objects(steps, src=1))


@pytest.mark.parametrize("carrier", ["shared_memory", "torch"])
def test_a_loop_that_one_member_feeds(world: World, carrier: str):
    for count, size in ((0, 0), (30, 5), (3, 1_000_000)):
        options = {"tp": {"communicators": [carrier]}}
        found = run_ranks("tp3", _steps, count, size, world=world, check=False, options=options)
        assert found == [[[number, "x" * size] for number in range(count)]] * 3


@pytest.mark.ranks(2)
def test_a_loop_ends_on_all_members_however_its_source_leaves_it(groups: GroupManager):
    tp = groups.tp

    def steps() -> Iterator[Any]:
        yield 1
        raise KeyError("no more")

    if tp.is_first:
        for step in tp.broadcast_objects([1, 2, 3]):
            if step == 2:
                break
        with pytest.raises(KeyError, match="no more"):
            list(tp.broadcast_objects(steps()))
        with pytest.raises(GroupArgumentError, match="lock"):
            list(tp.broadcast_objects([threading.Lock()]))
        with pytest.raises(GroupArgumentError, match="the source gave no values"):
            tp.broadcast_objects()
    else:
        assert list(tp.broadcast_objects()) == [1, 2]
        for before in ([1], []):
            fed = tp.broadcast_objects()
            assert [next(fed) for _ in before] == before
            with pytest.raises(CollectiveError, match="rank 0 could not send its object"):
                next(fed)
    assert tp.all_reduce(torch.ones(1)) == 2


def test_alone_a_loop_is_over_its_own_values():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        assert list(groups.tp.broadcast_objects(iter("abc"))) == ["a", "b", "c"]


@pytest.mark.ranks(2)
def test_pickle_only_where_both_sides_ask_for_it(groups: GroupManager):
    tp = groups.tp
    for_pickle = {"complex": 1j}
    for both in (True, False):
        if tp.is_first:
            tp.send_object(for_pickle, unsafe_pickle=True)
        elif both:
            assert tp.recv_object(unsafe_pickle=True) == for_pickle
        else:
            with pytest.raises(WireError):
                tp.recv_object()


@pytest.mark.ranks(2)
def test_models_are_built_only_if_named(groups: GroupManager):
    if groups.tp.is_first:
        groups.tp.send_object(Request(number=1, prompt=""))
    else:
        with pytest.raises(WireError, match="Request"):
            groups.tp.recv_object()


@pytest.mark.ranks(2)
def test_classes_and_arrays_travel_with_and_without_tensors(groups: GroupManager):
    tp, models = groups.tp, (Pair, Held, Colour)
    sent = OrderedDict(b=Pair(1j, Colour.RED), a=Held("x", numpy.arange(3)))
    tensors = [Pair(torch.ones(3), Held("y", OrderedDict(z=torch.zeros(9000)))), Colour.RED]
    if tp.is_first:
        for _ in range(2):
            tp.send_object(sent)
            tp.send_tensors(tensors)
    else:
        with pytest.raises(WireError, match=r"give the class, as in models="):
            tp.recv_object()
        with pytest.raises(WireError, match=r"give the class, as in models="):
            tp.recv_tensors()
        came = tp.recv_object(models=models)
        assert list(came) == ["b", "a"]
        assert came["b"] == sent["b"]
        assert came["a"].value.tolist() == [0, 1, 2]
        (first, held), colour = tp.recv_tensors(models=models)
        assert first.tolist() == [1, 1, 1]
        assert type(held) is Held
        assert held.value["z"].numel() == 9000
        assert colour is Colour.RED


def test_torch_pickles_nothing_of_ours():
    """torch's own object collectives are not used: they unpickle what a peer sends (CVE-2025-47277)."""
    assert not any("object_list" in name for name in vars(ParallelGroup))


@pytest.mark.parametrize("length", [5, 3_000_000])
@pytest.mark.ranks(3)
def test_who_refuses_takes_part_so_that_the_next_call_is_right(groups: GroupManager, length: int):
    tp = groups.tp
    ways: list[Any] = [
        lambda **how: tp.broadcast_object("x" * length if tp.is_first else None, **how),
        lambda **how: tp.all_gather_object("x" * (1 if tp.rank == 1 else length), **how)[0],
        lambda **how: tp.scatter_object(["x" * length] * 3 if tp.is_first else None, **how),
        lambda **how: (tp.gather_object("x" * (1 if tp.rank == 1 else length), dst=1, **how) or ["x" * length])[0],
    ]
    for way in ways:
        if tp.rank == 1:
            with pytest.raises(WireError, match="bytes, expected at most max_bytes=12"):
                way(max_bytes=12)
        else:
            assert way() == "x" * length
        assert tp.all_gather_object(tp.rank) == [0, 1, 2]


@pytest.mark.ranks([1, 3])
def test_objects_are_gathered_and_scattered(groups: GroupManager):
    tp = groups.tp
    for there in range(tp.size):
        gathered = tp.gather_object(value(tp.rank), there, models=(Request,))
        if tp.rank == there:
            assert gathered is not None
            assert all(same(got, value(rank)) for rank, got in enumerate(gathered))
        else:
            assert gathered is None
        given = [value(rank + 10) for rank in range(tp.size)] if tp.rank == there else None
        assert same(tp.scatter_object(given, there, models=(Request,)), value(tp.rank + 10))


@pytest.mark.ranks(3)
def test_one_that_cannot_be_gathered_or_scattered_harms_no_other_call(groups: GroupManager):
    tp = groups.tp
    if tp.is_first:
        with pytest.raises(CollectiveError, match="rank 1 could not send its object"):
            tp.gather_object(0)
        with pytest.raises(GroupArgumentError, match=r"scatter_object on engine/tp.*: 1 values, expected 3"):
            tp.scatter_object([1])
    elif tp.rank == 1:
        with pytest.raises(GroupArgumentError, match="lock"):
            tp.gather_object(threading.Lock())
    else:
        tp.gather_object(2)
    if not tp.is_first:
        with pytest.raises(CollectiveError, match="rank 0 could not send its object"):
            tp.scatter_object()
    assert tp.gather_object(tp.rank) == ([0, 1, 2] if tp.is_first else None)
