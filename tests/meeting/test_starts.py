"""Every start finds keys of its own in a store that outlives its ranks, however the starts before it ended."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_topology import GroupTimeoutError, ParallelTopology, RendezvousError
from parallel_topology.meeting.starts import Start
from parallel_topology.testing.threads import run_threads


class Killed(BaseException):
    """As SIGKILL: nothing runs after it."""


class Mortal:
    """A store whose user dies after some operations."""

    def __init__(self, store: dist.Store, operations: int) -> None:
        self.store = store
        self.left = operations

    def __getattr__(self, name: str) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return getattr(self.store, name)


class Reader:
    """A store whose user tells that it has read something."""

    def __init__(self, store: dist.Store, read: threading.Semaphore) -> None:
        self.store = store
        self.read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get(self, key: str) -> bytes:
        value = self.store.get(key)
        self.read.release()
        return value


def start(store: dist.Store, world: int, lives: list[int | None], timeout: float) -> list[str | None]:
    """The name each rank finds; None for who dies, after as many operations as `lives` has for it, or gives up."""

    def body(rank: int) -> str | None:
        life = lives[rank] if rank < len(lives) else None
        own: Any = store if life is None else Mortal(store, life)
        try:
            return Start(own, ParallelTopology(tp=world).world, rank, timeout).name()
        except (Killed, GroupTimeoutError):
            return None

    return run_threads(["rank"] * world, body, timeout=60)


def last_start(store: dist.Store, world: int, *, first_comes_last: bool) -> list[str]:
    """One in which nobody dies; with `first_comes_last` the others have read an earlier start's name before."""
    read = threading.Semaphore(0)

    def body(rank: int) -> str:
        own: Any = Reader(store, read)
        if rank == 0 and first_comes_last:
            assert all(read.acquire(timeout=20) for _ in range(world - 1))
        return Start(own, ParallelTopology(tp=world).world, rank, 20).name()

    return run_threads(["rank"] * world, body, timeout=60)


@settings(max_examples=25, deadline=None)
@given(
    earlier=st.lists(
        st.tuples(st.integers(2, 4), st.lists(st.none() | st.integers(0, 9), max_size=4)), min_size=1, max_size=3
    ),
    world=st.integers(2, 4),
    first_comes_last=st.booleans(),
)
@example(earlier=[(2, [])], world=2, first_comes_last=True)  # they have been there
@example(earlier=[(2, [])], world=4, first_comes_last=True)  # rank 2 has not, but it is full
@example(earlier=[(4, [None, None, None, 0])], world=4, first_comes_last=True)  # rank 3 makes it full
def test_all_meet_under_a_new_name_after_any_earlier_starts(
    earlier: list[tuple[int, list[int | None]]], world: int, first_comes_last: bool
):
    store = dist.HashStore()
    before: set[str | None] = set()
    for size, lives in earlier:  # nobody waits long for the dead
        before |= set(start(store, size, lives, timeout=0.05 if any(life is not None for life in lives) else 20))
    any_name = store.check(["newest@0"])
    names = last_start(store, world, first_comes_last=first_comes_last and any_name)
    assert len(set(names)) == 1
    assert not before & set(names)


@pytest.mark.parametrize("absent", [0, 2])
def test_who_does_not_come_is_named(absent: int):
    store = dist.HashStore()

    def body(rank: int) -> str:
        if rank == absent:
            return ""
        with pytest.raises(GroupTimeoutError) as caught:
            Start(store, ParallelTopology(tp=3).world, rank, timeout=0.5).name()
        return str(caught.value)

    for rank, message in enumerate(run_threads(["rank"] * 3, body, timeout=30)):
        assert rank == absent or message.startswith(f"rank {absent} did not come within 0.5 s; rank {rank} waited")


def test_a_store_that_fails():
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Connection reset by peer")

    broken: Any = Broken()
    with pytest.raises(RendezvousError, match="the store failed while rank 1 looked for the others: Connection reset"):
        Start(broken, ParallelTopology(tp=2).world, 1, timeout=1).name()
