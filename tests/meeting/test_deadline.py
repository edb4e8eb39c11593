"""One deadline: whoever is late, freezes or dies, in whatever phase, our error comes at most a second after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    GroupArgumentError,
    GroupManager,
    GroupTimeoutError,
    ParallelTopology,
    ParallelTopologyError,
    RendezvousError,
)
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.meeting.deadline import Deadline, Overtaken, overtake, seconds_of
from parallel_topology.meeting.rendezvous import join_store
from parallel_topology.testing.threads import run_threads
from tests.ports import free_port
from tests.waiting import FAR, LATE, soon

TP2 = ParallelTopology(tp=2)

HOST = """
import os, sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""

LEFT_BEHIND = """
import sys, threading
from contextlib import suppress
import torch.distributed as dist
from parallel_topology.meeting.deadline import Deadline, Overtaken, overtake

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

def ask():
    while not over.passed():
        store.check(["key"])

def wait(deadline):
    with suppress(Overtaken):
        overtake(ask, deadline)

over = Deadline(0.5 if sys.argv[1] == "overtaken" else 60)
if sys.argv[1] == "overtaken":
    wait(Deadline(0.01))
else:  # in a thread of the program, which does not wait for it
    threading.Thread(target=wait, args=[over], daemon=True).start()
"""


@contextmanager
def hosted() -> Generator[tuple[subprocess.Popen[str], int]]:
    """A store in a process of its own, which can be frozen."""
    with subprocess.Popen([sys.executable, "-c", HOST], stdin=-1, stdout=-1, text=True) as host:
        try:
            assert host.stdout is not None
            yield host, int(host.stdout.readline())
        finally:
            host.kill()


def timed(act: Callable[[], Any]) -> tuple[BaseException | None, float]:
    begun = time.monotonic()
    try:
        act()
    except ParallelTopologyError as error:
        return error, time.monotonic() - begun
    return None, time.monotonic() - begun


class TestOvertake:
    def test_what_ends_in_time(self):
        assert overtake(lambda: 5, Deadline(20)) == 5
        with pytest.raises(ZeroDivisionError):
            overtake(lambda: 1 / 0, Deadline(20))

    def test_what_does_not_is_left_behind(self):
        forever = threading.Event()
        deadline = Deadline(0.3)
        with soon(), pytest.raises(Overtaken):
            overtake(lambda: forever.wait(FAR), deadline)
        assert deadline.passed()
        forever.set()

    def test_last_words(self):
        deadline = Deadline(0.2)

        def late() -> str:
            while not deadline.passed():
                time.sleep(0.01)
            return "last words"

        assert overtake(late, deadline, grace=5) == "last words"

    @pytest.mark.parametrize("how", ["overtaken", "waiting"])
    def test_who_is_in_torch_when_the_interpreter_ends_does_not_abort_it(self, how: str):
        """It comes back from the store again and again, as one does whose farewell took a busy store too long, or who
        waits for a place."""
        done = subprocess.run([sys.executable, "-c", LEFT_BEHIND, how], capture_output=True, text=True, timeout=FAR)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5", None, timedelta(0)])
    def test_what_is_no_timeout(self, timeout: Any):
        given: dict[str, Any]
        for given in ({"timeout": timeout}, {"timeout": 5, "operation_timeout": timeout}):
            if given["timeout"] == 5 and timeout is None:
                continue
            with pytest.raises(GroupArgumentError, match=r"timeout=.*: expected a number of seconds above 0"):
                GroupManager(ParallelTopology(tp=1), rank=0, **given)

    def test_a_timedelta_is_a_timeout_everywhere(self):
        minute = timedelta(minutes=1)
        assert seconds_of("timeout", minute) == 60.0
        options = {"tp": {"timeout": timedelta(minutes=10)}}
        store = dist.HashStore()

        def body(rank: int) -> list[float]:
            told: dict[str, Any] = {"timeout": minute, "operation_timeout": timedelta(seconds=30), "options": options}
            with GroupManager(TP2, rank=rank, store=store, **told) as groups:
                waits = [groups.tp.links.timeout.total_seconds(), groups.world.links.timeout.total_seconds()]
                groups.set_timeout(timedelta(seconds=20))
                groups.tp.set_timeout(timedelta(seconds=10))
                assert groups.survivors(minute) == [0, 1]
                assert groups.diagnose(minute) == []
                return [*waits, groups.tp.links.timeout.total_seconds()]

        assert run_threads(["rank"] * 2, body, timeout=60) == [[600.0, 30.0, 10.0]] * 2


@pytest.mark.slow
class TestAFrozenStore:
    def test_before_anybody_came(self):
        with hosted() as (host, port):
            store = join_store("127.0.0.1", port, 20)
            host.send_signal(signal.SIGSTOP)
            error, seconds = timed(lambda: GroupManager(TP2, rank=0, store=store, timeout=1))
            assert isinstance(error, RendezvousError)
            assert "engine: the store does not answer: rank 0 could not meet the others of [0, 1] within 1 s" in str(
                error
            )
            assert seconds < 1 + LATE

    def test_while_a_rank_waits(self):
        with hosted() as (host, port):
            store = join_store("127.0.0.1", port, 20)

            def freeze() -> None:
                join_store("127.0.0.1", port, 20).wait(["engine@0/came/1"])
                host.send_signal(signal.SIGSTOP)

            threading.Thread(target=freeze).start()
            error, seconds = timed(lambda: GroupManager(TP2, rank=1, store=store, timeout=2))
            assert isinstance(error, RendezvousError)
            assert seconds < 2 + LATE

    def test_a_failed_operation_does_not_wait_for_it(self):
        with hosted() as (host, port):
            frozen = threading.Barrier(2)

            def body(rank: int) -> tuple[str, float, float]:
                store = join_store("127.0.0.1", port, 20)
                groups = GroupManager(TP2, rank=rank, store=store, timeout=20, operation_timeout=1)
                if frozen.wait(20) == 0:
                    host.send_signal(signal.SIGSTOP)
                frozen.wait(20)
                error, seconds = timed(lambda: groups.tp.recv(torch.ones(1)) if rank == 0 else None)
                there, counted = timed(lambda: groups.survivors(0.5))
                assert isinstance(there, RendezvousError)
                assert counted < 0.5 + LATE
                _, closed = timed(groups.abort)
                return str(error), seconds, closed

            found = run_threads(["rank"] * 2, body, timeout=60)
            assert "the store does not answer, so the others cannot be asked" in found[0][0]
            assert found[0][1] < 1 + LATE
            assert max(closed for _, _, closed in found) < LATE

    def test_it_does_not_hold_up_a_manager_over_another_store(self):
        with hosted() as (host, port):
            frozen = join_store("127.0.0.1", port, 20)
            host.send_signal(signal.SIGSTOP)
            waiting = threading.Thread(target=timed, args=[lambda: GroupManager(TP2, rank=0, store=frozen, timeout=4)])
            waiting.start()
            store = dist.HashStore()

            def body(rank: int) -> float:
                with GroupManager(TP2, rank=rank, store=store, timeout=5) as groups:
                    return groups.tp.all_reduce(torch.ones(1)).item()

            assert run_threads(["rank"] * 2, body, timeout=20) == [2.0, 2.0]
            assert waiting.is_alive()
            waiting.join(20)


class TestCreation:
    @pytest.mark.parametrize("verify", [True, False])
    def test_a_rank_that_stops_in_it_is_named_in_time(self, verify: bool):
        """Rank 1 has agreed, and then makes nothing more; gloo would wait five times its timeout for it."""
        store = dist.HashStore()
        over = threading.Event()

        def factory(membership: Membership) -> Any:
            if membership.ranks[membership.rank] == 1:
                over.wait(20)
            return TorchCommunicator(membership.links, membership.device, membership.size, membership.rank)

        def body(rank: int) -> tuple[BaseException | None, float]:
            told: dict[str, Any] = {"communicators": {"slow": factory}, "options": {"pp": {"communicators": ("slow",)}}}
            topology = ParallelTopology(pp=2, tp=2)
            try:
                return timed(lambda: GroupManager(topology, rank=rank, store=store, timeout=1.5, verify=verify, **told))
            finally:
                over.set() if rank == 0 else None

        found = run_threads(["rank"] * 4, body, timeout=60)
        for rank, (error, seconds) in enumerate(found):
            assert isinstance(error, GroupTimeoutError), (rank, error)
            assert seconds < 1.5 + LATE, (rank, error)
        assert "1 did not report: dead, elsewhere or still waiting" in str(found[0][0]) or "rank 1" in str(found[0][0])

    def test_a_groups_own_timeout_is_for_its_operations(self):
        """One shorter than a peer is late does not end creation, nor does the manager's overwrite a longer one."""
        store = dist.HashStore()

        def factory(membership: Membership) -> Any:
            if membership.ranks[membership.rank] == 1:
                threading.Event().wait(1.5)  # a machine that is slow
            return TorchCommunicator(membership.links, membership.device, membership.size, membership.rank)

        def body(rank: int) -> float:
            told: dict[str, Any] = {
                "communicators": {"slow": factory}, "operation_timeout": 1,
                "options": {"pp": {"communicators": ("slow",), "timeout": 0.5}, "tp": {"timeout": 600}},
            }  # fmt: skip
            topology = ParallelTopology(pp=2, tp=2)
            with GroupManager(topology, rank=rank, store=store, timeout=20, **told) as groups:
                assert groups.pp.links.timeout == timedelta(seconds=0.5)
                assert groups.world.links.timeout == timedelta(seconds=1)
                return groups.tp.links.timeout.total_seconds()

        assert run_threads(["rank"] * 4, body, timeout=60) == [600.0] * 4


class TestTwoManagers:
    @pytest.mark.slow
    def test_one_that_waits_does_not_hold_up_another_nor_the_caller_on_one_client(self):
        with hosted() as (_, port):
            clients = [join_store("127.0.0.1", port, 20) for _ in range(2)]

            def body(position: int) -> float:
                rank, waits = position % 2, position >= 2
                if waits:  # for a rank that never comes
                    topology, name = ParallelTopology(tp=3), "waits"
                    error, seconds = timed(
                        lambda: GroupManager(topology, rank=rank, store=clients[rank], name=name, timeout=4)
                    )
                    assert "rank 2 did not come" in str(error)
                    return seconds
                probe = join_store("127.0.0.1", port, 20)
                probe.wait(["waits@0/came/0", "waits@0/came/1"])
                begun = time.monotonic()
                clients[rank].set(f"mine/{rank}", "the caller's own")
                with GroupManager(TP2, rank=rank, store=clients[rank], timeout=20) as groups:
                    groups.tp.all_reduce(torch.ones(1))
                return time.monotonic() - begun

            found = run_threads(["rank"] * 4, body, timeout=60)
            assert max(found[:2]) < 2
            assert max(found[2:]) < 5


class TestRendezvous:
    @pytest.mark.parametrize("timeout", [0.5, pytest.param(3, marks=pytest.mark.slow)])
    def test_a_host_that_is_never_there(self, timeout: float):
        url = f"tcp://127.0.0.1:{free_port()}"
        error, seconds = timed(lambda: GroupManager.connect(url, TP2, rank=1, timeout=timeout))
        assert isinstance(error, RendezvousError)
        assert timeout - 0.1 <= seconds < timeout + (LATE if timeout < 1 else 1)

    @pytest.mark.slow
    def test_the_time_to_reach_the_store_is_part_of_it(self):
        port = free_port()
        opened: list[Any] = []

        def host() -> None:
            time.sleep(1)  # the host is late: what is tested is time
            opened.append(dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))

        threading.Thread(target=host).start()
        error, seconds = timed(lambda: GroupManager.connect(f"tcp://127.0.0.1:{port}", TP2, rank=1, timeout=2.5))
        assert "rank 0 did not come within 2.5 s" in str(error) or "cannot reach the store" in str(error)
        assert seconds < 3.6


INTERRUPTED = """
import os, signal, sys, threading, time
import torch.distributed as dist
from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from tests.waiting import FAR, LATE, soon

where, port = sys.argv[1], int(sys.argv[2])
store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
begun = []

def interrupt():
    begun.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

def slow(membership):
    threading.Timer(0.3, interrupt).start()
    threading.Event().wait()

told = {}
if where == "agreement":
    threading.Timer(1, interrupt).start()
else:
    told = {"communicators": {"slow": slow}, "options": {"tp": {"communicators": ("slow",)}}}
    def other():
        try:
            GroupManager(ParallelTopology(tp=2), rank=1, store=store, timeout=30, **told)
        except BaseException:
            pass
    threading.Thread(target=other, daemon=True).start()
try:
    GroupManager(ParallelTopology(tp=2), rank=0, store=store, timeout=30, **told)
except KeyboardInterrupt:
    print("interrupted after", time.monotonic() - begun[0], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["agreement", "creation"])
def test_ctrl_c_is_obeyed_at_once_and_the_process_ends_cleanly(where: str):
    with hosted() as (_, port):
        environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        command = [sys.executable, "-c", INTERRUPTED, where, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("interrupted after"), done.stderr
        assert float(done.stdout.split()[2]) < 1


def test_a_thread_has_ended_when_its_result_is_there():
    """At the interpreter's end, one that is still in torch would abort the process."""
    freed: list[float] = []

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.02)
            freed.append(time.monotonic())

    def act() -> None:
        local.held = Slow()  # goes with the thread, after the result was handed over

    local = threading.local()
    for times in range(1, 6):
        overtake(act, Deadline(5))
        assert len(freed) == times
