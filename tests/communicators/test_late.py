"""Gloo groups within a host: nobody has one before it is needed, and who asks for one waits for nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, torch_private
from parallel_topology.errors import ClosedError, CollectiveError, CreationError, GroupTimeoutError
from parallel_topology.testing.threads import run_threads
from tests.communicators.hidden import hidden_from
from tests.waiting import FAR, LATE, eventually, soon

TWO = ParallelTopology(tp=2)
LARGE = 2**22 + 1024
"""Floats of a tensor that gloo carries."""


def devices() -> int:
    """gloo's in this process: each has an epoll instance."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            found += os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventpoll]"
    return found


def managers(timeout: float = FAR, topology: ParallelTopology = TWO, **options: Any) -> list[GroupManager]:
    store = dist.HashStore()

    def body(rank: int) -> GroupManager:
        return GroupManager(topology, rank=rank, store=store, timeout=timeout, **options)

    return run_threads(["rank"] * topology.world_size, body, timeout=FAR)


def each(made: list[GroupManager], *acts: Callable[[GroupManager], Any]) -> list[Any]:
    """What each rank's act comes to, all at the same time; an act for all of them, or one for each."""
    return run_threads(
        ["rank"] * len(made), lambda rank: acts[rank if len(acts) > 1 else 0](made[rank]), timeout=2 * FAR
    )


@pytest.fixture
def pair() -> Any:
    made = managers()
    yield made
    for groups in made:
        groups.abort()


def test_what_is_small_needs_none():
    before = devices()
    made = managers(topology=ParallelTopology(tp=2, dp=2))

    def use(groups: GroupManager) -> None:
        groups.tp.all_reduce(torch.ones(8))
        groups.dp.all_gather(torch.ones(8))
        groups.world.broadcast_object({"step": 1} if groups.rank == 0 else None)
        groups.tp.send_recv(torch.ones(8))
        groups.world.barrier()

    each(made, use)
    assert devices() <= before
    closed = [groups.close() for groups in made]
    assert closed[0] == ["engine/dp[0]", "engine/tp[0]", "engine/world"]


def _ring(groups: GroupManager) -> None:
    sent = groups.tp.isend(torch.ones(LARGE))
    assert groups.tp.recv(torch.empty(LARGE)).sum() == LARGE
    sent.wait()


def _by_torch(groups: GroupManager) -> None:
    group = groups.tp.device_group
    assert group is not None
    group.allreduce([reduced := torch.ones(1)]).wait()
    assert reduced == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda groups: groups.tp.all_reduce(torch.ones(LARGE)),
        lambda groups: groups.tp.all_reduce(torch.ones(LARGE), async_op=True).wait(),
        lambda groups: groups.tp.send_recv(torch.ones(LARGE)),
        _ring,
        _by_torch,
    ],
)
def test_what_is_large_or_torchs_own_makes_one(pair: list[GroupManager], use: Callable[[GroupManager], Any]):
    before = devices()
    each(pair, use)
    assert devices() > before
    for groups in pair:
        groups.close()
    assert eventually(lambda: devices() <= before)


def test_who_asks_first_waits_for_nobody(pair: list[GroupManager]):
    """A send, an all-reduce and a group given to torch begin before the other one has come at all."""
    first, second = pair
    with soon():
        sent = first.tp.isend(torch.ones(LARGE))
        group = first.world.device_group
        assert group is not None
        raw = group.allreduce([reduced := torch.ones(3)])
        begun = first.tp.all_reduce(summed := torch.ones(LARGE), async_op=True)
    assert second.tp.recv(torch.empty(LARGE)).sum() == LARGE
    theirs = second.world.device_group
    assert theirs is not None
    theirs.allreduce([torch.ones(3)]).wait()
    raw.wait()
    assert reduced.tolist() == [2, 2, 2]
    second.tp.all_reduce(torch.ones(LARGE))
    begun.wait()
    sent.wait()
    assert summed[0] == 2


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("use", ["recv", "all_reduce"])
def test_who_ends_before_it_is_needed_is_noticed(pair: list[GroupManager], use: str, end: str):
    first, second = pair

    begin: dict[str, Callable[[], Any]] = {
        "recv": lambda: first.tp.irecv(torch.empty(LARGE)),
        "all_reduce": lambda: first.tp.all_reduce(torch.ones(LARGE), async_op=True),
    }

    def wait(_: GroupManager) -> None:
        with pytest.raises(CollectiveError):
            begin[use]().wait()

    with soon():
        each(pair, wait, lambda _: getattr(second, end)())


def test_who_has_failed_is_not_waited_for(pair: list[GroupManager]):
    """Its connections were cut before there were any."""
    first, second = pair
    second.tp.links.cut()
    for groups in (second, first):
        with soon(), pytest.raises(CollectiveError):
            groups.tp.all_reduce(torch.ones(LARGE), async_op=True).wait()


def test_who_is_late_is_named_in_time():
    made = managers(timeout=1.5)

    def wait(groups: GroupManager) -> None:
        with soon(1.5 + LATE), pytest.raises(GroupTimeoutError, match=r"all_reduce on engine/tp\[0\]"):
            groups.tp.all_reduce(torch.ones(LARGE), async_op=True).wait()

    each(made, wait, lambda groups: None)
    for groups in made:
        groups.abort()


def test_a_timeout_that_was_set_before_is_kept(pair: list[GroupManager]):
    each(pair, lambda groups: groups.tp.set_timeout(1.5))
    with soon(1.5 + LATE), pytest.raises(GroupTimeoutError):
        pair[0].tp.all_reduce(torch.ones(LARGE), async_op=True).wait()


def test_after_the_end_there_is_none(pair: list[GroupManager]):
    links = pair[0].tp.links
    before = devices()
    pair[0].close()
    assert links.device_group is links.cpu_group is None
    assert devices() <= before
    with pytest.raises(ClosedError):
        _ = pair[0].tp.device_group


def test_where_gloo_cannot_make_one_the_error_is_ours(pair: list[GroupManager], monkeypatch: pytest.MonkeyPatch):
    def full(**_: object) -> object:
        raise RuntimeError("Too many open files")

    monkeypatch.setattr(torch_private, "gloo_device", full)
    with pytest.raises(CreationError, match="gloo cannot make the group of ranks 0, 1: Too many open files"):
        _ = pair[0].tp.device_group


def test_many_threads_that_ask_at_once_get_the_same(pair: list[GroupManager]):
    together = threading.Barrier(8)

    def ask(position: int) -> object:
        together.wait(FAR)
        return pair[position % 2].tp.cpu_group

    found = run_threads(["thread"] * 8, ask, timeout=FAR)
    assert len({id(one) for one in found}) == 2


def test_an_end_while_others_ask_leaves_nothing():
    before = devices()
    for _ in range(5):
        made, together = managers(), threading.Barrier(4)

        def body(position: int, made: list[GroupManager] = made, together: threading.Barrier = together) -> None:
            together.wait(FAR)
            if position < 2:
                made[position].abort()
            else:
                with suppress(ClosedError):
                    _ = made[position - 2].tp.device_group

        run_threads(["thread"] * 4, body, timeout=FAR)
    assert eventually(lambda: devices() <= before)


def test_ranks_that_cannot_share_memory_after_all_meet_at_the_store(monkeypatch: pytest.MonkeyPatch):
    is_rank = hidden_from(1, monkeypatch)
    store = dist.HashStore()

    def body(rank: int) -> None:
        is_rank(rank)
        topology = ParallelTopology(tp=2, dp=2)
        with GroupManager(topology, rank=rank, store=store, timeout=FAR) as groups:
            assert groups.tp.all_reduce(torch.ones(LARGE))[0] == 2
            assert groups.world.all_reduce(torch.ones(1)) == 4

    run_threads(["rank"] * 4, body, timeout=FAR)
    assert torch_private.list_keys(store) == []


LEFT_OVER = """
import gc
import torch
from parallel_topology.errors import ParallelTopologyError
from parallel_topology.testing import run_ranks

def body(groups):
    groups.tp.send_recv(torch.ones(2**22 + 1024))
    groups.tp.device_group.allreduce([torch.ones(9)]).wait()
    groups.world.barrier()
    if groups.rank == 0:
        groups.abort()
        return
    try:
        groups.world.all_reduce(torch.ones(2**22), async_op=True).wait()
    except ParallelTopologyError:
        return
    raise AssertionError("rank 0 had ended")

for _ in range(5):
    run_ranks("tp4", body, check=False, timeout=40)
    gc.collect()
"""


def test_connections_that_came_too_late_do_not_keep_the_collector():
    """gloo looked at them for ever, with Python's lock: so in a process that can be ended."""
    subprocess.run([sys.executable, "-c", LEFT_OVER], check=True, timeout=FAR)
