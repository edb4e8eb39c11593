"""Random programs: messages and collectives of any size, begun and waited for in any order that cannot wait for ever.

A program is one line of events. What a rank does of it, it does in that order; whatever waits, waits for events that
stand before it. So all of it comes to its end, if nothing waits for anything else: for what another rank does later,
for memory that is full, or for a group that is only made when it is needed.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parallel_topology import GroupManager, ParallelTopologyError
from parallel_topology.testing import WorkerPool, run_ranks
from tests.waiting import FAR, SOON

RANKS, EVENTS = 3, 30
BYTES = (0, 1, 8000, 8192, 10_000, 2**16, 2**18 + 1, 2**20, 2**22 + 5, 2**23, 2**24, 2**24 + 4096)
"""Around all that makes a difference: letters, parcels, slots, what memory takes at most."""
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "reduce_scatter", "all_to_all", "broadcast_object", "torch")


@dataclass(frozen=True)
class Message:
    """From one rank to another.

    Attributes:
        posted, sent, waited: when; it is waited for at once, where that is when it is posted.
        is_waited_for: whether its sender goes on when it is through; else it waits at the program's end.
        value: what all its bytes are.
    """

    src: int
    dst: int
    tag: int
    nbytes: int
    posted: int
    sent: int
    waited: int
    is_waited_for: bool
    value: int


@dataclass(frozen=True)
class Collective:
    """Of all ranks: when, what, and of how many bytes each gives; when a begun one is waited for."""

    begun: int
    operation: str
    nbytes: int
    waited: int


Program = tuple[list[Message], list[Collective]]
moments = st.integers(0, EVENTS)


@st.composite
def programs(draw: st.DrawFn, most: int = 10) -> Program:
    pairs = st.sampled_from([(src, dst) for src in range(RANKS) for dst in range(RANKS) if src != dst])
    few = st.sampled_from(draw(st.lists(pairs, min_size=1, max_size=3)))  # so that what is between two may be full
    posted, waited = moments, moments
    if draw(st.booleans()):
        posted, waited = st.integers(0, EVENTS // 4), st.integers(EVENTS * 3 // 4, EVENTS)
    one = st.tuples(few, st.integers(0, 1), st.sampled_from(BYTES), posted, moments, waited, st.booleans())
    drawn = draw(st.lists(one, min_size=draw(st.integers(0, most)), max_size=most))
    messages: list[Message] = []
    for channel in sorted({(pair, tag) for pair, tag, *_ in drawn}):  # messages of one are received as they are sent
        own = [one for one in drawn if one[:2] == channel]
        posts, sends = sorted(one[3] for one in own), sorted(one[4] for one in own)
        for number, (((src, dst), tag), posted, sent) in enumerate(
            zip([channel] * len(own), posts, sends, strict=True)
        ):
            _, _, nbytes, _, _, later, is_waited_for = own[number]
            waited = max(posted, sent, later)
            messages.append(
                Message(src, dst, tag, nbytes, posted, sent, waited, is_waited_for and posted < sent, len(messages) + 1)
            )
    collectives = draw(
        st.lists(
            st.builds(Collective, moments, st.sampled_from(COLLECTIVES), st.sampled_from(BYTES), moments), max_size=5
        )
    )
    return messages, collectives


def run(groups: GroupManager, program: Program) -> None:
    """Do this rank's part of it. Of one moment: first what is begun, then what waits for others, in one order."""
    messages, collectives = program
    world, rank = groups.world, groups.rank
    begun: dict[Any, Any] = {}
    left: list[Any] = []
    for now in range(EVENTS + 1):
        for one in messages:
            if one.posted == now and one.dst == rank:
                begun[one] = world.irecv(torch.empty(one.nbytes, dtype=torch.uint8), src=one.src, tag=one.tag)
        for one in messages:
            if one.sent == now and one.src == rank:
                tensor = torch.full((one.nbytes,), one.value, dtype=torch.uint8)
                if one.is_waited_for:
                    world.send(tensor, dst=one.dst, tag=one.tag)
                else:
                    left.append(world.isend(tensor, dst=one.dst, tag=one.tag))
        for number, one in enumerate(collectives):
            if one.begun == now:
                begun[number] = carry_out(groups, one, number)
        for one in messages:
            if one.waited == now and one.dst == rank:
                require(begun.pop(one).wait(), one.value)
        for number, one in enumerate(collectives):
            if max(one.begun, one.waited) == now and begun[number] is not None:
                require(begun[number].wait(), sum(range(1, RANKS + 1)))
    for handle in left:
        handle.wait()


def require(tensor: torch.Tensor, value: int) -> None:
    """This is all that is in it."""
    assert bool((tensor == value).all()), (tensor.unique(), value)


def carry_out(groups: GroupManager, one: Collective, number: int) -> Any:
    """Look at what comes of it; a handle, where it is an all-reduce that is to be waited for later."""
    world, rank, count = groups.world, groups.rank, one.nbytes // 4
    mine, total = torch.full((count,), float(rank + 1)), sum(range(1, RANKS + 1))
    match one.operation:
        case "all_reduce":
            if one.waited > one.begun:
                return world.all_reduce(mine, async_op=True)
            require(world.all_reduce(mine), total)
        case "all_gather":
            for member, part in enumerate(world.all_gather(mine).view(RANKS, count)):
                require(part, member + 1)
        case "broadcast":
            require(world.broadcast(mine, src=number % RANKS), number % RANKS + 1)
        case "reduce_scatter":
            require(world.reduce_scatter(mine.repeat(RANKS)), total)
        case "all_to_all":
            count = count // RANKS
            given = torch.arange(float(RANKS)).repeat_interleave(count)
            require(world.all_to_all(given), rank)
        case "broadcast_object":
            said = {"text": "x" * one.nbytes} if rank == number % RANKS else None
            assert len(world.broadcast_object(said, src=number % RANKS)["text"]) == one.nbytes
        case _:  # other code, by the process group itself
            group = world.device_group
            assert group is not None
            group.allreduce([tensor := torch.ones(max(count, 1))]).wait()
            require(tensor, RANKS)
    return None


def run_then_abort(groups: GroupManager, program: Program, how: int) -> None:
    """At its end one rank aborts, and the others hear of it where they wait: for it, or for one who waits for it."""
    run(groups, program)
    world, large = groups.world, torch.ones(2**22)
    world.barrier()
    if groups.rank == 0:
        groups.abort()
        return
    ways = (
        lambda: world.all_reduce(large),
        lambda: world.all_reduce(large, async_op=True).wait(),
        lambda: world.recv(large, src=0),
        lambda: world.recv(large[:2000], src=0),
        world.barrier,
        lambda: world.recv_object(src=0),
    )
    with pytest.raises(ParallelTopologyError):
        ways[how]()
    gc.collect()


slowly = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # not to shrink: one that hangs takes its deadline
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(slowly, max_examples=25)
@given(programs())
def test_a_program_comes_to_its_end(program: Program):
    run_ranks(f"dp{RANKS}", run, program, timeout=SOON, check=False)


@settings(slowly, max_examples=10)
@given(programs(most=4), st.integers(0, 5))
def test_whoever_waits_for_one_that_aborts_hears_of_it(program: Program, how: int):
    run_ranks(f"dp{RANKS}", run_then_abort, program, how, timeout=FAR, check=False)


@pytest.mark.slow
@settings(slowly, max_examples=60)
@given(programs(most=40))
def test_longer_ones(program: Program):
    run_ranks(f"dp{RANKS}", run, program, timeout=SOON, check=False)


@pytest.mark.slow
@settings(slowly, max_examples=60)
@given(programs(most=20), st.sampled_from([None, *range(6)]))
def test_in_processes(rank_workers: WorkerPool, program: Program, how: int | None):
    body, rest = (run, ()) if how is None else (run_then_abort, (how,))
    run_ranks(f"dp{RANKS}", body, program, *rest, world="processes", pool=rank_workers, timeout=FAR, check=False)
