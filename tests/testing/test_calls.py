"""The pure check of recorded calls: what fits together, what does not, and who would wait for whom."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology.testing.calls import Call, check_complete, find_deadlock, find_mismatch
from parallel_topology.testing.failures import DeadlockError, MismatchError


def call(
    rank: int,
    operation: str = "all_reduce",
    ranks: tuple[int, ...] = (0, 1),
    *,
    shape: tuple[int, ...] = (4,),
    peer: int | None = None,
) -> Call:
    label = "engine/" + "-".join(map(str, ranks))
    return Call(rank, operation, "tp", label, ranks, shape, "float32", 16, peer, channel=label)


def send(rank: int, peer: int, ranks: tuple[int, ...] = (0, 1)) -> Call:
    return call(rank, "send", ranks, peer=peer)


def recv(rank: int, peer: int, ranks: tuple[int, ...] = (0, 1)) -> Call:
    return call(rank, "recv", ranks, peer=peer)


@settings(max_examples=60)
@given(st.data())
def test_calls_that_ranks_make_together_fit_and_one_that_is_left_out_does_not(data: st.DataObject):
    """Law: any global sequence of events, seen from each rank, completes; without one rank's part it does not."""
    members = st.lists(st.integers(0, 4), min_size=2, max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
    calls: dict[int, list[Call]] = {rank: [] for rank in range(5)}
    for ranks in data.draw(st.lists(members, min_size=1, max_size=8)):
        if data.draw(st.booleans()):
            for rank in ranks:
                calls[rank].append(call(rank, ranks=ranks))
        else:
            one, other = ranks[:2]
            calls[one].append(send(one, other, ranks))
            calls[other].append(recv(other, one, ranks))
    check_complete(calls)
    check_complete(calls, buffered_sends=True)
    assert find_mismatch(calls) is None
    rank = data.draw(st.sampled_from([rank for rank in calls if calls[rank]]))
    calls[rank].pop(data.draw(st.integers(0, len(calls[rank]) - 1)))
    with pytest.raises(MismatchError):
        check_complete(calls)


def test_crossed_orders_are_a_deadlock_that_names_rank_group_and_operation():
    one, other = call(0), call(0, "all_gather", (0, 1, 2))
    calls = {
        0: [one, other],
        1: [replace(other, rank=1), replace(one, rank=1)],
        2: [replace(other, rank=2)],
    }
    with pytest.raises(DeadlockError) as caught:
        check_complete(calls)
    assert re.search(r"rank 0, in its call 0, all_reduce of float32\[4\] on engine/0-1 = \[0, 1\], waits for rank 1,"
                     r" which is in all_gather on engine/0-1-2", str(caught.value))  # fmt: skip


def test_everybody_sends_first():
    """Fits only where sends are buffered, as they are for small tensors."""
    ring = {rank: [send(rank, 1 - rank), recv(rank, 1 - rank)] for rank in (0, 1)}
    check_complete(ring, buffered_sends=True)
    with pytest.raises(DeadlockError, match="rank 0 in send to 1"):
        check_complete(ring)


def test_a_send_that_nobody_receives():
    with pytest.raises(
        DeadlockError, match=r"rank 0, in its call 0, send to 1 .* waits for rank 1, which makes no more"
    ):
        check_complete({0: [send(0, 1)], 1: []})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (2, 2)}, r"shape \[4\] against \[2, 2\]"),
        ({"dtype": "int32"}, "dtype float32 against int32"),
        ({"operation": "broadcast"}, "operation all_reduce against broadcast"),
        ({"reduce": "MAX"}, "reduce None against MAX"),
        ({"peer": 1}, "peer None against 1"),
    ],
)
def test_what_must_be_equal(change: dict[str, object], said: str):
    calls = {0: [call(0)], 1: [replace(call(1), **change)]}  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match=said) as caught:
        check_complete(calls)
    assert "rank 0 calls" in str(caught.value)
    assert "rank 1 calls" in str(caught.value)
    assert "on engine/0-1 = [0, 1]" in str(caught.value)


def test_a_received_shape_must_be_the_sent_one():
    with pytest.raises(MismatchError, match=r"shape \[4\] against \[3\]"):
        check_complete({0: [send(0, 1)], 1: [call(1, "recv", shape=(3,), peer=0)]})


def test_ranks_that_wait_are_a_deadlock_only_when_nobody_can_free_them():
    mine, theirs = call(0), call(1, ranks=(1, 2))
    # Rank 2 still computes, and may come.
    assert find_deadlock({0: [mine], 1: [theirs], 2: []}, {0: 0, 1: 0, 2: 0}, set()) is None
    # It has ended.
    found = find_deadlock({0: [mine], 1: [theirs], 2: []}, {0: 0, 1: 0, 2: 0}, {2})
    assert found is not None
    assert "waits for rank 2, which has ended" in str(found)
    # All have come, and are about to go on.
    assert find_deadlock({0: [mine], 1: [replace(mine, rank=1)]}, {0: 0, 1: 1}, {1}) is None


def test_json_and_back():
    one = replace(send(0, 1), reduce="SUM")
    assert Call.from_json(one.to_json()) == one
