"""Members of a group that have not met yet: gloo connects them when they first use each other."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, torch_private
from parallel_topology.communicators.contacts import Contacts, open_gloo
from parallel_topology.errors import ClosedError, CollectiveError, CreationError, GroupTimeoutError
from parallel_topology.testing.threads import run_threads
from tests.waiting import FAR, SOON

RING = ParallelTopology(dp=5)
"""0 and 2, 0 and 3 and so on are no neighbours, so they have not met when the manager is there."""


GLOO = {"communicators": ("torch",)}


def manager(rank: int, store: dist.Store, timeout: float = FAR, **options: Any) -> GroupManager:
    """One whose groups are gloo's alone."""
    return GroupManager(RING, rank=rank, store=store, timeout=timeout, options={"dp": GLOO}, **options)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("sender", "receiver"), [(0, 2), (2, 0), (1, 4), (4, 1), (0, 1)])
def test_a_send_waits_for_nobody(sender: int, receiver: int, verify: bool):
    """Whichever of the two it is that connects; gloo itself waits for the other one to come."""
    store, sent = dist.HashStore(), threading.Event()

    def body(rank: int) -> list[float]:
        with manager(rank, store, verify=verify) as groups:
            handles = []
            if rank == sender:
                handles = [groups.dp.isend(torch.full((size,), float(size)), receiver) for size in (1, 3, 5000)]
                sent.set()
            assert sent.wait(20)  # the receiver has not begun
            groups.dp.barrier()
            got = [groups.dp.recv(torch.empty(size), sender) for size in (1, 3, 5000)] if rank == receiver else []
            for handle in handles:
                handle.wait()
            return [float(one.sum()) for one in got]

    assert run_threads(["rank"] * 5, body, timeout=60)[receiver] == [1.0, 9.0, 5000.0**2]


@pytest.mark.parametrize(("waits", "gone"), [(0, 2), (2, 0), (4, 1), (1, 4)])
def test_a_member_that_has_ended_is_noticed_by_who_never_met_it(waits: int, gone: int):
    store, made, ended = dist.HashStore(), threading.Barrier(5), threading.Event()

    def body(rank: int) -> tuple[str, float]:
        groups = manager(rank, store)
        made.wait(20)
        if rank == gone:
            groups.abort()
            ended.set()
        assert ended.wait(20)
        begun = time.monotonic()
        said = ""
        if rank == waits:
            with pytest.raises(CollectiveError) as caught:
                groups.dp.recv(torch.empty(1), gone)
            said = str(caught.value)
        took = time.monotonic() - begun
        groups.abort()
        return said, took

    said, took = run_threads(["rank"] * 5, body, timeout=60)[waits]
    assert said.startswith("recv on engine/dp[0]")
    assert took < SOON


@pytest.mark.parametrize("waits", range(5))
def test_a_collective_notices_it_too(waits: int):
    """Unverified, so nobody has met anybody."""
    store, made, ended = dist.HashStore(), threading.Barrier(5), threading.Event()
    gone = (waits + 2) % 5

    def body(rank: int) -> float:
        groups = manager(rank, store, verify=False)
        made.wait(20)
        if rank == gone:
            groups.abort()
            ended.set()
            return 0.0
        assert ended.wait(20)
        begun = time.monotonic()
        with pytest.raises(CollectiveError):
            groups.dp.all_reduce(torch.ones(1))
        took = time.monotonic() - begun
        groups.abort()
        return took

    assert max(run_threads(["rank"] * 5, body, timeout=2 * FAR)) < SOON


@pytest.mark.parametrize("operation", ["recv", "isend", "all_reduce"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_abort_frees_who_waits_for_a_connection(rank: int, operation: str):
    store, here = dist.HashStore(), threading.Barrier(2)
    topology = ParallelTopology(dp=2)

    def body(mine: int) -> tuple[BaseException | None, float]:
        groups = GroupManager(topology, rank=mine, store=store, timeout=FAR, verify=False, options={"dp": GLOO})
        found: list[tuple[BaseException, float]] = []

        def wait() -> None:
            try:
                if operation == "recv":
                    groups.dp.recv(torch.empty(1), 1 - mine)
                elif operation == "isend":
                    groups.dp.isend(torch.ones(1), 1 - mine).wait()
                else:
                    groups.dp.all_reduce(torch.ones(1))
            except Exception as error:
                found.append((error, time.monotonic()))

        here.wait(20)
        took = 0.0
        if mine == rank:
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(0.3)  # it waits: nobody else will come
            assert thread.is_alive()
            begun = time.monotonic()
            groups.abort()
            thread.join(SOON)
            assert not thread.is_alive()
            took = found[0][1] - begun
        here.wait(20)
        groups.abort()
        return (found[0][0] if found else None), took

    error, took = run_threads(["rank"] * 2, body, timeout=60)[rank]
    assert isinstance(error, ClosedError)
    assert took < SOON


def test_who_does_not_come_to_a_group_is_late():
    store, done = dist.HashStore(), threading.Event()

    def body(rank: int) -> str:
        groups = manager(rank, store, timeout=1.5)
        with groups:
            if rank == 0:
                with pytest.raises(GroupTimeoutError) as caught:
                    groups.dp.recv(torch.empty(1), 2)
                done.set()
                return str(caught.value)
            assert done.wait(20)
            return ""

    assert "recv on engine/dp[0]" in run_threads(["rank"] * 5, body, timeout=60)[0]


class TestAddresses:
    def opened(self, rank: int = 0, size: int = 2) -> tuple[object, Contacts]:
        device = torch_private.gloo_device(hostname="127.0.0.1")
        return open_gloo([device], rank, size, timedelta(seconds=5))

    def test_members_of_different_kinds_are_refused(self):
        _, contacts = self.opened()
        with pytest.raises(CreationError, match=r"member 1 listens at ::1, this one at 127.0.0.1: expected as many"):
            contacts.introduce({0: contacts.mine, 1: [("::1", 5)]})
        with pytest.raises(CreationError, match="member 1 listens at no address"):
            contacts.introduce({0: contacts.mine, 1: []})

    def test_who_listens_is_not_gone(self):
        backend, contacts = self.opened()
        other, theirs = self.opened(rank=1)
        contacts.introduce({0: contacts.mine, 1: theirs.mine})
        assert contacts.gone() == []
        theirs.end()
        del other
        deadline = time.monotonic() + 10
        while not contacts.gone() and time.monotonic() < deadline:
            time.sleep(0.01)  # its listening socket goes with the backend
        assert contacts.gone() == [1]
        del backend

    def test_one_of_the_two_connects(self):
        _, mine = self.opened()
        _, theirs = self.opened(rank=1)
        mine.introduce({0: mine.mine, 1: theirs.mine})
        theirs.introduce({0: mine.mine, 1: theirs.mine})
        assert mine.connects(1) is not theirs.connects(0)
