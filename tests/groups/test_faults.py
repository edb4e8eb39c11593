"""The fault table: what goes wrong, who raises what, within how long. docs/reliability.md shows it to people.

Every fault is planted in real processes over a real TCP store, and every rank's outcome is checked.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    ClosedError,
    CollectiveError,
    DisagreementError,
    GroupManager,
    GroupTimeoutError,
    LiveGraphError,
    MismatchError,
    ParallelTopology,
    ParallelTopologyError,
    RebindError,
    RendezvousError,
    WireError,
)
from parallel_topology.communicators.channels import channels_of
from parallel_topology.meeting.rendezvous import host_store, join_store
from parallel_topology.testing import WorkerPool
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from parallel_topology.wire.frames import Frame, Kind
from tests.groups.graphs import Graph
from tests.groups.seats import StoreSeat
from tests.ports import free_port
from tests.waiting import FAR, LATE, SOON, soon

TOPOLOGY = ParallelTopology(tp=2, pp=2)
TIMEOUT = 4.0
"""Seconds the managers of these tests wait; an error may take this long and a little more."""


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: the error's type and text, or nothing, and after how long."""

    error: str
    text: str
    seconds: float


def outcome(act: Callable[[], object]) -> Outcome:
    begun = time.monotonic()
    try:
        act()
    except ParallelTopologyError as error:
        return Outcome(type(error).__name__, str(error), time.monotonic() - begun)
    return Outcome("", "", time.monotonic() - begun)


def manager(rank: int, port: int, **options: Any) -> GroupManager:
    """Over a store that the test's own process hosts, unless a fault says otherwise."""
    store = join_store("127.0.0.1", port, TIMEOUT)
    told: dict[str, Any] = {"topology": TOPOLOGY, "rank": rank, "store": store, "timeout": TIMEOUT}
    return GroupManager(**told | options)


def build(rank: int, port: int, **options: Any) -> Outcome:
    return outcome(lambda: manager(rank, port, **options).close())


# Each fault is a function of rank and port that returns that rank's outcome.


def other_topology(rank: int, port: int) -> Outcome:
    return build(rank, port, **({"topology": ParallelTopology(tp=4)} if rank == 2 else {}))


def other_order(rank: int, port: int) -> Outcome:
    return build(rank, port, **({"topology": ParallelTopology(tp=2, pp=2, order="pp-tp")} if rank == 2 else {}))


def other_declared_groups(rank: int, port: int) -> Outcome:
    return build(rank, port, **({"groups": [("tp", "pp")]} if rank == 2 else {}))


def other_world_size(rank: int, port: int) -> Outcome:
    return build(rank, port, **({"topology": ParallelTopology(tp=2, pp=4)} if rank == 2 else {}))


def missing_rank(rank: int, port: int) -> Outcome:
    return Outcome("", "", 0) if rank == 3 else build(rank, port)


def duplicate_rank(rank: int, port: int) -> Outcome:
    return build(1 if rank == 3 else rank, port)


def killed_at_creation(rank: int, port: int) -> Outcome:
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return build(rank, port)


def killed_in_all_reduce(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return _then_aborts(groups, lambda: groups.world.all_reduce(torch.ones(1)))


def killed_in_recv(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return _then_aborts(groups, lambda: groups.world.recv(torch.ones(1), src=3))


def killed_between_operations(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    groups.world.all_reduce(torch.ones(1))
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return _then_aborts(groups, lambda: groups.world.barrier())


def killed_before_gloo_was_needed(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    groups.world.all_reduce(torch.ones(1))  # through memory
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return _then_aborts(groups, lambda: groups.world.all_reduce(torch.ones(2**22), async_op=True).wait())


def killed_at_close(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome(groups.close)


def does_not_take_part(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 3:
        outcome(lambda: groups.pp.recv(torch.ones(1)))  # elsewhere, where nobody sends
        groups.abort()
        return Outcome("", "", 0)
    return _then_aborts(groups, lambda: groups.world.all_reduce(torch.ones(1)))


def another_operation(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 1:
        return _then_aborts(groups, lambda: groups.tp.recv(torch.ones(1)))
    return _then_aborts(groups, lambda: groups.tp.barrier())


def other_size_in_a_receive(rank: int, port: int) -> Outcome:
    return _received(rank, port, lambda world: world.send(torch.ones(4), 1), lambda world: world.recv(torch.ones(2), 0))


def refused_message(rank: int, port: int) -> Outcome:
    return _received(
        rank, port, lambda world: world.send_object("x" * 10**6, 1), lambda world: world.recv_object(0, max_bytes=100)
    )


def _received(rank: int, port: int, send: Callable[[Any], object], recv: Callable[[Any], object]) -> Outcome:
    """Rank 1 receives from rank 0 what it does not want, and then what it does."""
    with manager(rank, port) as groups:
        world, found = groups.world, Outcome("", "", 0)
        if rank == 0:
            send(world)
            world.send(torch.ones(3), 1)
        elif rank == 1:
            found = outcome(lambda: recv(world))
            assert world.recv(torch.zeros(3), 0).tolist() == [1, 1, 1]
        world.barrier()
        return found


def other_size_in_a_collective(rank: int, port: int) -> Outcome:
    with manager(rank, port, check_calls=True) as groups:
        found = outcome(lambda: groups.world.all_reduce(torch.ones(4 if rank == 2 else 2)))
        assert groups.world.all_reduce(torch.ones(1)) == 4
        return found


def announced_and_never_sent(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    if rank == 0:
        message = bytearray(Frame(Kind.OBJECT, 0, 10**6).packed().ljust(8192))
        first = channels_of(groups.world.links).to(1).send_first(torch.frombuffer(message, dtype=torch.uint8))
        assert first.wait(groups.world.links.timeout)
        time.sleep(TIMEOUT + 1)  # it is there, and says nothing
    if rank != 1:
        groups.abort()
        return Outcome("", "", 0)
    found = outcome(groups.world.recv_object)
    again = outcome(groups.world.recv_object)
    groups.abort()
    assert "nothing more can be received on this channel: an object of 1000000 bytes did not come" in again.text, again
    return found


def other_token(rank: int, port: int) -> Outcome:
    return build(rank, port, token="wrong" if rank == 2 else "right")


def without_token(rank: int, port: int) -> Outcome:
    return build(rank, port, **({} if rank == 2 else {"token": "right"}))


def store_is_killed(rank: int, port: int) -> Outcome:
    """Rank 0 hosts a store of its own, and is killed while the others wait in agreement for rank 3."""
    url = f"tcp://127.0.0.1:{port}"  # free when the test began
    if rank == 0:
        store = host_store("127.0.0.1", port, TIMEOUT)
        store.wait(["engine@0/came/1", "engine@0/came/2"])
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 3:
        return Outcome("", "", 0)
    return outcome(lambda: GroupManager.connect(url, TOPOLOGY, rank=rank, timeout=TIMEOUT).close())


def late_rank(rank: int, port: int) -> Outcome:
    if rank == 3:
        join_store("127.0.0.1", port, TIMEOUT).wait(["engine@0/came/0", "engine@0/came/1", "engine@0/came/2"])
    return build(rank, port)


def frozen_store(rank: int, port: int) -> Outcome:
    return build(rank, port)


def ended_by_one(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    kept = groups.world.device_group  # which keeps no connection open
    if rank == 3:
        groups.close()
        found = outcome(lambda: groups.world.barrier())
        assert found.error == "ClosedError"
        assert kept is not None
        return Outcome("", "", 0)
    return _then_aborts(groups, lambda: groups.world.all_reduce(torch.ones(1)))


def used_after_the_end(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    groups.close()
    return outcome(lambda: groups.world.all_reduce(torch.ones(1)))


def aborted_by_another_thread(rank: int, port: int) -> Outcome:
    groups = manager(rank, port, operation_timeout=FAR)
    if rank == 3:
        threading.Timer(0.5, groups.abort).start()
    elif rank == 2:
        return _then_aborts(groups, lambda: groups.world.recv(torch.ones(1), src=3))
    else:
        groups.close()
        return Outcome("", "", 0)
    found = outcome(lambda: groups.world.recv(torch.ones(1), src=2))
    assert found.error == "ClosedError", found
    assert found.seconds < SOON
    return Outcome("", "", 0)


def rebound_without_one(rank: int, port: int) -> Outcome:
    groups = manager(rank, port, operation_timeout=4 * TIMEOUT)  # rank 3 waits at the barrier while the others give up
    found = Outcome("", "", 0) if rank == 3 else outcome(lambda: groups.rebind(ParallelTopology(tp=4)))
    groups.world.barrier()  # what there was goes on
    with groups.rebind(ParallelTopology(tp=4)) as successor:
        assert successor.tp.all_reduce(torch.ones(1)) == 4
    return found


def dropped_handle(rank: int, port: int) -> Outcome:
    with manager(rank, port) as groups:
        if rank == 0:
            for number in range(20):
                groups.world.isend(torch.full((5000,), float(number)), dst=1)
            gc.collect()
        elif rank == 1:
            for number in range(20):
                assert groups.world.recv(torch.zeros(5000), src=0).unique() == number
        groups.world.barrier()
    return Outcome("", "", 0)


def live_graph(rank: int, port: int) -> Outcome:
    groups = manager(rank, port)
    graph = Graph()
    if rank == 3:
        groups.tp.links.graphs.append(weakref.ref(graph))
    found = outcome(groups.close)
    groups.abort()
    return found


def forked_child(rank: int, port: int) -> Outcome:
    with manager(rank, port) as groups:
        child = os.fork() if rank == 3 else -1
        if child == 0:
            signal.alarm(20)
            os._exit(7 if outcome(lambda: groups.world.all_reduce(torch.ones(1))).error == "ClosedError" else 1)
        assert groups.world.all_reduce(torch.ones(1)) == 4
        if child > 0:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    return Outcome("", "", 0)


def _then_aborts(groups: GroupManager, act: Callable[[], object]) -> Outcome:
    found = outcome(act)
    with soon():
        groups.abort()
    return found


ALL = (0, 1, 2, 3)
SURVIVORS = (0, 1, 2)
# fault: (who raises, the error's type, what its text says)
TABLE: dict[Callable[[int, int], Outcome], tuple[tuple[int, ...], type[Exception], str]] = {
    other_topology: (ALL, DisagreementError, r"ranks 0, 1, 3: topology tp2-pp2.*\n  rank 2: topology tp4"),
    other_order: (ALL, DisagreementError, r"ranks 0, 1, 3: topology tp2-pp2.*\n  rank 2: topology pp2-tp2"),
    other_declared_groups: (ALL, DisagreementError, r"ranks 0, 1, 3: groups .*\n  rank 2: groups .*tp-pp\(tp-pp\)"),
    other_world_size: (ALL, DisagreementError, r"rank.* 2: topology tp2-pp4"),
    missing_rank: (SURVIVORS, GroupTimeoutError, "rank 3 did not come within 4 s; rank . waited with 3 of 4 present"),
    duplicate_rank: (ALL, GroupTimeoutError, "did not come within 4 s"),
    killed_at_creation: (SURVIVORS, GroupTimeoutError, "rank 3 did not come within 4 s"),
    killed_in_all_reduce: (
        SURVIVORS,
        CollectiveError,
        "all_reduce on engine/world .*ranks? [0-9, ]*3 did not report: dead",
    ),
    killed_in_recv: (SURVIVORS, CollectiveError, "recv on engine/world .*ranks? [0-9, ]*3 did not report: dead"),
    killed_between_operations: (
        SURVIVORS,
        CollectiveError,
        "barrier on engine/world .*ranks? [0-9, ]*3 did not report: dead",
    ),
    killed_before_gloo_was_needed: (
        SURVIVORS,
        CollectiveError,
        "all_reduce on engine/world .*ranks? [0-9, ]*3 did not report: dead",
    ),
    killed_at_close: ((), Exception, ""),
    does_not_take_part: (
        SURVIVORS,
        GroupTimeoutError,
        "all_reduce on engine/world .*ranks? [0-9, ]*3 did not report: dead",
    ),
    another_operation: ((0, 1), GroupTimeoutError, "on engine/tp.0. .*; rank . (was in (recv|barrier)|did not report)"),
    other_size_in_a_receive: ((1,), MismatchError, r"rank 0 sends float32\[4\], but rank 1 receives into float32\[2\]"),
    refused_message: ((1,), WireError, "from rank 0: it announces 100.* bytes, expected at most max_bytes=100"),
    other_size_in_a_collective: (ALL, MismatchError, "rank 2 differs"),
    announced_and_never_sent: ((1,), GroupTimeoutError, "recv on engine/world"),
    other_token: (ALL, RendezvousError, "what came as rank . does not hold the same token as rank ."),
    without_token: (ALL, RendezvousError, "what came as rank . does not hold the same token as rank ."),
    late_rank: ((), Exception, ""),
    frozen_store: (ALL, RendezvousError, "the store does not answer|cannot reach the store"),
    ended_by_one: (SURVIVORS, CollectiveError, "all_reduce on engine/world"),
    used_after_the_end: (ALL, ClosedError, "its manager was closed"),
    aborted_by_another_thread: ((2,), CollectiveError, "recv on engine/world"),
    rebound_without_one: (SURVIVORS, RebindError, "rank 3 did not come within 4 s; all ranks keep tp2-pp2"),
    dropped_handle: ((), Exception, ""),
    live_graph: ((3,), LiveGraphError, "1 of"),
    forked_child: ((), Exception, ""),
    store_is_killed: ((1, 2), RendezvousError, "the store failed|cannot reach the store"),
}


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.__name__)
def test_fault(fault: Callable[[int, int], Outcome], tmp_path: Path, rank_workers: WorkerPool, request: Any):
    who, kind, text = TABLE[fault]
    outcomes: dict[int, Outcome | None] = {}
    for attempt in range(3):
        store: Any = None
        if fault is store_is_killed:
            port = free_port()
        elif fault is frozen_store:
            store = StoreSeat()
            port = store.port
            store.signal(signal.SIGSTOP)
            request.addfinalizer(store.leave)
        else:
            store = host_store("127.0.0.1", 0, TIMEOUT)
            port = store.port
        (folder := tmp_path / str(attempt)).mkdir()
        outcomes = dict(enumerate(_outcomes(fault, port, folder, rank_workers)))
        silent = any(found is not None and "the store does not answer" in found.text for found in outcomes.values())
        if fault is frozen_store or not silent:  # which on a busy machine another one may not do in time, either
            break
    for rank, found in outcomes.items():
        if found is None:  # killed
            continue
        if rank in who:
            # Loss of a peer is seen at once by those connected to it, and passed on by them: both kinds are its error.
            kinds = {kind.__name__} | ({"GroupTimeoutError"} if kind is CollectiveError else set())
            if fault in (does_not_take_part, another_operation):
                kinds.add("CollectiveError")  # whose time runs out second may see the first one's connection close
            assert found.error in kinds, (rank, found)
            assert re.search(text, found.text), (rank, found)
        assert found.seconds < TIMEOUT + LATE, (rank, found)
    raised = {rank for rank, found in outcomes.items() if found is not None and found.error}
    assert raised == set(who), outcomes
    if kind is GroupTimeoutError and fault is not does_not_take_part:  # there the first may be who is elsewhere
        assert kind.__name__ in {found.error for found in outcomes.values() if found is not None}, outcomes
    if fault is another_operation:  # who failed long before the other looks no more; the other finds it all the same
        assert " was in " in "".join(found.text for found in outcomes.values() if found)
    if fault is duplicate_rank:
        assert "rank 1 has joined 2 times" in "".join(found.text for found in outcomes.values() if found)


def _outcomes(fault: Callable[[int, int], Outcome], port: int, folder: Path, pool: WorkerPool) -> list[Outcome | None]:
    """Each rank writes down how it ended: a killed one cannot return it, and ends the world for the others."""
    with suppress(ExceptionGroup):
        # The grace: a killed rank must not end the others before their deadline.
        labels = [f"rank {rank}" for rank in ALL]
        run_processes(labels, _write_down, fault, port, str(folder), timeout=1.5 * FAR, grace=2 * TIMEOUT, pool=pool)
    found: list[Outcome | None] = []
    for rank in ALL:
        file = folder / f"{rank}.json"
        found.append(Outcome(**json.loads(file.read_text())) if file.exists() else None)
    return found


def _write_down(rank: int, fault: Callable[[int, int], Outcome], port: int, folder: str) -> None:
    found = fault(rank, port)
    draft = Path(folder, f"{rank}.draft")
    draft.write_text(json.dumps(found.__dict__))
    draft.rename(Path(folder, f"{rank}.json"))


GARBAGE = [f"engine@0/{key}" for key in ("came/0", "came/1", "open", "number", "live", "met", "ended")]


@pytest.mark.parametrize("key", GARBAGE)
def test_garbage_under_our_keys_is_a_named_error(key: str):
    """Before creation: an error of ours on every rank, in time; or it is overwritten, and does no harm."""
    values = ["", "garbage", "{}", '{"content": "{}", "seal": ""}', "[1", "\x00\xff"]
    stores = [dist.HashStore() for _ in values]
    for store, value in zip(stores, values, strict=True):
        store.set(key, value)

    def body(position: int) -> Outcome:
        job, rank = divmod(position, 2)
        topology = ParallelTopology(tp=2)
        return outcome(lambda: GroupManager(topology, rank=rank, store=stores[job], timeout=1).close())

    found = run_threads(["rank"] * 2 * len(values), body, timeout=30)  # a job for each, side by side: they wait
    for value, outcomes in zip(values, zip(found[::2], found[1::2], strict=True), strict=True):
        harmless = not value or not key.endswith(("number", "live"))
        if harmless and "" in [one.error for one in outcomes]:
            # It was written over before anybody looked; an empty count is a count of none. The other's time may have
            # been up by then.
            assert {one.error for one in outcomes} <= {"", "GroupTimeoutError"}, (value, outcomes)
            continue
        for one in outcomes:
            assert one.error in {"RendezvousError", "GroupTimeoutError"}, (value, one)
            assert one.seconds < 1 + LATE, value


@pytest.mark.parametrize("garbage", ["garbage", " garbage", " {}", ' {"world": [["nowhere", 1]]}'])
def test_garbage_under_the_keys_of_creation_is_a_named_error(garbage: str):
    """Where each rank says where it listens."""

    class Spoiled(dist.Store):
        """A store in which a stranger overwrites what ranks answer."""

        def __init__(self, inner: dist.Store) -> None:
            super().__init__()
            self.inner = inner

        def set(self, key: str, value: Any) -> None:
            self.inner.set(key, garbage if "/ack/" in key else value)

        def get(self, key: str) -> bytes:
            return self.inner.get(key)

        def add(self, key: str, value: int) -> int:
            return self.inner.add(key, value)

        def check(self, keys: list[str]) -> bool:
            return self.inner.check(keys)

        def wait(self, keys: list[str], timeout: Any = timedelta(seconds=2)) -> None:
            self.inner.wait(keys, timeout)

        def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
            return self.inner.compare_set(key, expected_value, desired_value)

    store = Spoiled(dist.HashStore())

    def body(rank: int) -> Outcome:
        topology = ParallelTopology(tp=2)
        return outcome(lambda: GroupManager(topology, rank=rank, store=store, timeout=2).close())

    for found in run_threads(["rank"] * 2, body, timeout=20):
        assert found.error in {"RendezvousError", "GroupTimeoutError"}, found
        assert found.seconds < 2 + LATE


def test_two_jobs_on_one_store_by_name():
    """Two jobs that share a store by mistake: under different names they do not see each other."""
    store = dist.HashStore()

    def body(position: int) -> float:
        name, rank = ("one", position) if position < 2 else ("two", position - 2)
        with GroupManager(ParallelTopology(tp=2), rank=rank, store=store, name=name, timeout=10) as groups:
            return groups.tp.all_reduce(torch.tensor([float(position)])).item()

    assert run_threads(["rank"] * 4, body, timeout=20) == [1, 1, 5, 5]


def _goes_on_with_less(rank: int, port: int, folder: str) -> None:
    groups = manager(rank, port)
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    assert outcome(lambda: groups.world.all_reduce(torch.ones(1))).error
    groups.abort()
    with manager(rank, port, topology=ParallelTopology(tp=3), name="survivors") as smaller:
        total = smaller.tp.all_reduce(torch.tensor([rank])).item()
    Path(folder, str(rank)).write_text(str(total))


def test_survivors_build_a_smaller_manager_and_go_on(tmp_path: Path, rank_workers: WorkerPool):
    store = host_store("127.0.0.1", 0, TIMEOUT)
    labels, job = [f"rank {r}" for r in ALL], (_goes_on_with_less, store.port, str(tmp_path))
    with pytest.raises(ExceptionGroup, match=r"1 of 4 ranks failed, first rank 3 .*SIGKILL"):
        run_processes(labels, *job, timeout=30, grace=2 * TIMEOUT, pool=rank_workers)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}
