"""check_calls changes nothing but errors: any correct program runs the same with it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import GroupManager, MismatchError
from parallel_topology.testing import run_ranks

SIZE = 3
COLLECTIVES = ["all_reduce", "all_gather", "broadcast", "all_to_all"]
Event = tuple[str, int, int, int]
"""What happens, from whom, to whom, and how many numbers: all ranks take part in what is theirs, in one order."""

events = st.one_of(
    st.tuples(st.sampled_from(COLLECTIVES), st.integers(0, SIZE - 1), st.just(0), st.sampled_from([1, 7, 3000])),
    st.tuples(
        st.sampled_from(["tensor", "object"]), st.integers(0, SIZE - 1), st.integers(1, SIZE - 1),
        st.sampled_from([0, 1, 700, 3000]),
    ),
)  # fmt: skip


def _numbers(event: int, rank: int, count: int) -> torch.Tensor:
    return torch.arange(count) * (rank + 1) + event


def _begin(tp: Any, number: int, event: Event, *, begun: bool) -> tuple[Any, Any] | None:
    """What an event gives this rank, or a handle on it, and what it should give."""
    what, who, step, count = event
    mine = _numbers(number, tp.rank, count)
    if what == "all_reduce":
        expected: Any = sum(_numbers(number, rank, count) for rank in range(SIZE))
        return tp.all_reduce(mine, async_op=begun), expected
    if what == "all_gather":
        return tp.all_gather(mine, async_op=begun), torch.cat([_numbers(number, rank, count) for rank in range(SIZE)])
    if what == "broadcast":
        return tp.broadcast(mine, who, async_op=begun), _numbers(number, who, count)
    if what == "all_to_all":
        rows = torch.cat([mine] * SIZE)
        expected = torch.cat([_numbers(number, rank, count) for rank in range(SIZE)])
        return tp.all_to_all(rows, [count] * SIZE, [count] * SIZE, async_op=begun), expected
    to = (who + step) % SIZE
    if tp.rank == who:
        if what == "object":
            tp.send_object({"numbers": mine}, to)
            return None
        return (tp.isend if begun else tp.send)(mine, to), None
    if tp.rank == to:
        expected = _numbers(number, who, count)
        if what == "object":
            return tp.recv_object(who)["numbers"], expected
        return (tp.irecv if begun else tp.recv)(torch.empty_like(mine), who), expected
    return None


def _program(groups: GroupManager, program: list[Event], seed: int) -> None:
    """Every rank begins its events in their order, and waits for what it has begun whenever it likes."""
    tp, random = groups.tp, Random(seed * 100 + groups.rank)
    under_way: list[tuple[Any, Any]] = []

    def end(place: int) -> None:
        handle, expected = under_way.pop(place)
        result = handle.wait()
        assert expected is None or torch.equal(result, expected)

    for number, event in enumerate(program):
        begun = random.random() < 0.6
        found = _begin(tp, number, event, begun=begun)
        if found is not None and begun and event[0] != "object":
            under_way.append(found)
        elif found is not None and found[1] is not None:
            assert torch.equal(*found)
        while under_way and random.random() < 0.3:
            end(random.randrange(len(under_way)))
    while under_way:
        end(random.randrange(len(under_way)))


@settings(max_examples=12, deadline=None)
@given(st.lists(events, min_size=1, max_size=12), st.integers(0, 9))
def test_any_correct_program_runs_the_same(program: list[Event], seed: int):
    for checked in (False, True):
        run_ranks("tp3", _program, program, seed, check=False, check_calls=checked)


def test_correct_programs_in_processes():
    random = Random(1)
    program: list[Event] = []
    for _ in range(60):
        what = random.choice([*COLLECTIVES, "tensor", "tensor", "object"])
        program.append((what, random.randrange(SIZE), random.randrange(1, SIZE), random.choice([1, 700, 3000, 40_000])))
    run_ranks("tp3", _program, program, 1, check=False, check_calls=True, world="processes")


def test_a_call_that_was_begun_lets_its_caller_go_on():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        if tp.is_first:
            begun = tp.all_reduce(torch.ones(2), async_op=True)
            tp.send(torch.ones(1))  # without which the other would not come to its all-reduce
            assert begun.wait().tolist() == [2, 2]
        else:
            tp.recv(torch.empty(1))
            assert tp.all_reduce(torch.ones(2)).tolist() == [2, 2]

    run_ranks("tp2", body, check=False, check_calls=True)


@pytest.mark.parametrize("begun", [False, True])
def test_collectives_that_do_not_match_are_an_error_on_all_members(begun: bool):
    def body(groups: GroupManager) -> None:
        tp: Any = groups.tp
        odd = groups.rank == 2
        splits = [1, 2, 0] if odd else [1, 1, 1]
        ways: list[Any] = [
            lambda: tp.all_reduce(torch.ones(4 - 2 * odd, dtype=[torch.float32, torch.float64][odd]), async_op=begun),
            lambda: tp.broadcast(torch.ones(4 - 2 * odd), async_op=begun),
            lambda: tp.all_gather(torch.ones(2 + odd), async_op=begun),
            lambda: tp.all_reduce(torch.ones(2), "max" if odd else "sum", async_op=begun),
            lambda: tp.all_gather_v(torch.ones(2), [2, 2, 2], async_op=begun) if not odd else
            tp.all_gather_v(torch.ones(3), [2, 2, 3], async_op=begun),
            lambda: tp.all_to_all(torch.ones(3), splits, splits, async_op=begun),
        ]  # fmt: skip
        for way in ways:
            with pytest.raises(MismatchError, match="rank 2"):  # noqa: PT012
                found: Any = way()
                if begun:
                    found.wait()
            assert tp.all_reduce(torch.ones(1)) == SIZE

    run_ranks("tp3", body, check=False, check_calls=True)


def _many(groups: GroupManager) -> None:
    tp = groups.tp
    splits = [100 + (member + tp.rank) % 2 * 900 for member in range(tp.size)]  # long texts, and of many lengths
    came = tp.all_to_all(torch.full((sum(splits),), tp.rank), splits, splits)
    assert came[-1] == tp.size - 1
    sizes = [1000 + member for member in range(tp.size)]
    assert tp.all_gather_v(torch.ones(sizes[tp.rank]), sizes).sum() == sum(sizes)


def test_of_many_members():
    run_ranks("tp33", _many, check=False, check_calls=True, timeout=60)
