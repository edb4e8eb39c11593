"""Handles: one total of time, one finish, whatever interrupts or fails; Ctrl-C in every wait of the CPU groups."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch

from parallel_topology import (
    CollectiveError,
    GroupArgumentError,
    GroupManager,
    GroupTimeoutError,
    Handle,
)
from parallel_topology.communicators.communicator import Together
from parallel_topology.communicators.handle import Handles
from parallel_topology.communicators.links import Call
from tests.waiting import FAR, LATE, SOON


class Later:
    """Work that is over when a test says so."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.waits = 0
        self.given = 0.0

    def wait(self, timeout: timedelta | None = None) -> object:
        self.waits += 1
        self.given += 0 if timeout is None else timeout.total_seconds()
        if not self.over.wait(None if timeout is None else timeout.total_seconds()):
            raise RuntimeError("Operation timed out!")
        return True

    def is_completed(self) -> bool:
        return self.over.is_set()


class TestOneTotal:
    @pytest.mark.parametrize("timeout", [0.3, timedelta(seconds=0.3)])
    def test_over_the_parts_of_work(self, groups_of_one: Any, timeout: float | timedelta):
        works = Later(), Later(), Later()
        handle = Handle(groups_of_one, Call("all_reduce"), Together(*works), int)
        with pytest.raises(GroupTimeoutError):
            handle.wait(timeout)
        assert 0.25 < sum(work.given for work in works) < 0.35

    def test_over_several_handles(self, groups_of_one: Any):
        slow, never = Later(), Later()
        threading.Timer(0.3, slow.over.set).start()
        parts = [Handle(groups_of_one, Call("all_reduce"), work, int) for work in (slow, never)]
        with pytest.raises(GroupTimeoutError):
            Handle(groups_of_one, Call("all_reduce"), Handles(parts), int).wait(0.5)
        assert 0.45 < slow.given + never.given < 0.95  # twice the time would be 1

    def test_of_nothing_is_a_look(self, groups_of_one: Any):
        done = Later()
        done.over.set()
        assert Handle(groups_of_one, Call("all_reduce"), done, int).wait(0) == 0
        with pytest.raises(GroupTimeoutError):
            Handle(groups_of_one, Call("all_reduce"), Later(), int).wait(0)

    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True])
    def test_refused(self, groups_of_one: Any, timeout: Any):
        with pytest.raises(GroupArgumentError, match=r"wait\(timeout=.*expected a number of seconds from 0"):
            Handle(groups_of_one, Call("all_reduce"), Later(), int).wait(timeout)

    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False)
    def test_over_what_nobody_takes_part_in(self, groups: GroupManager):
        if groups.rank == 0:
            parts = [groups.tp.all_reduce(torch.ones(1), async_op=True) for _ in range(12)]
            begun = time.monotonic()
            with pytest.raises(GroupTimeoutError):
                Handle(groups.tp, Call("all_reduce"), Handles(parts), int).wait(1)
            assert 0.9 < time.monotonic() - begun < 1 + LATE
        assert groups.diagnose(30) == []
        groups.abort()


class TestFinish:
    def test_that_fails_is_not_run_again(self, groups_of_one: Any):
        runs: list[int] = []

        def finish() -> int:
            runs.append(1)
            raise CollectiveError("not finished")

        handle = Handle(groups_of_one, Call("gather"), None, finish)
        errors: list[BaseException] = []
        for _ in range(3):
            with pytest.raises(CollectiveError, match="not finished") as caught:
                handle.wait()
            errors.append(caught.value)
        assert len(runs) == 1
        assert errors[0] is errors[1] is errors[2]

    def test_that_is_interrupted_is_lost(self, groups_of_one: Any):
        def finish() -> int:
            raise KeyboardInterrupt

        handle = Handle(groups_of_one, Call("gather"), None, finish)
        with pytest.raises(KeyboardInterrupt):
            handle.wait()
        with pytest.raises(CollectiveError, match="interrupted when it was all but done; its result is lost"):
            handle.wait()

    def test_happens_once_for_all_threads(self, groups_of_one: Any):
        work, runs = Later(), [0]

        def finish() -> int:
            runs[0] += 1
            return runs[0]

        handle = Handle(groups_of_one, Call("all_reduce"), work, finish)
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(handle.wait())) for _ in range(8)]
        for thread in threads:
            thread.start()
        with pytest.raises(GroupTimeoutError, match="another thread still waits for it"):
            handle.wait(0.1)
        work.over.set()
        for thread in threads:
            thread.join(10)
        assert results == [1] * 8
        assert runs == [1]


@pytest.fixture
def groups_of_one() -> Iterator[Any]:
    """An owner for handles whose work is a test's."""
    from parallel_topology import ParallelTopology

    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        yield groups.tp


class Interrupted:
    seconds = 0.0


@contextmanager
def interrupt(after: float = 0.3) -> Generator[Interrupted]:
    """Inside, this process gets SIGINT; what is there to raise KeyboardInterrupt, and how long after."""
    seen = Interrupted()
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it
    timer = threading.Timer(after, send)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield seen
        seen.seconds = time.monotonic() - sent[0]
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


WAITS: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "all_reduce": lambda tp, x: tp.all_reduce(x),
    "barrier": lambda tp, _: tp.barrier(),
    "handle": lambda tp, x: tp.all_reduce(x, async_op=True).wait(),
    "handle with a timeout": lambda tp, x: tp.all_reduce(x, async_op=True).wait(FAR),
    "recv": lambda tp, x: tp.recv(x, src=1),
    "send": lambda tp, _: tp.send(torch.ones(2**22 + 1024), dst=1),
    "irecv": lambda tp, x: tp.irecv(x, src=1).wait(),
    "send_recv": lambda tp, x: tp.send_recv(x.clone(), x, dst=1, src=1),
    "recv_object": lambda tp, _: tp.recv_object(src=1),
}


class TestInterrupt:
    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False)
    @pytest.mark.parametrize("wait", WAITS)
    @pytest.mark.parametrize("within", [SOON, pytest.param(1, marks=pytest.mark.slow)])
    def test_is_obeyed_at_once(self, groups: GroupManager, wait: str, within: float):
        if groups.rank == 0:
            with interrupt() as seen:
                WAITS[wait](groups.tp, torch.ones(1))
            assert seen.seconds < within
        assert groups.diagnose(30) == []  # over the store: the other takes part in nothing
        groups.abort()

    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False, check_calls=True)
    @pytest.mark.parametrize("wait", ["all_reduce", "barrier", "handle", "recv"])
    def test_is_obeyed_where_calls_are_compared(self, groups: GroupManager, wait: str):
        if groups.rank == 0:
            with interrupt() as seen:
                WAITS[wait](groups.tp, torch.ones(1))
            assert seen.seconds < SOON
        assert groups.diagnose(30) == []
        groups.abort()

    @pytest.mark.ranks("tp2", world="processes", timeout=60)
    def test_a_second_wait_goes_on(self, groups: GroupManager):
        x = torch.tensor([1.0, 2.0])
        if groups.rank == 0:
            both = [groups.tp.all_reduce(x.clone(), async_op=True), groups.tp.all_reduce(x, async_op=True)]
            call = Call("all_reduce")
            handle = Handle(groups.tp, call, Handles(both), lambda: [part.wait().tolist() for part in both])
            with interrupt():
                handle.wait()
            groups.diagnose(10)  # over the store: now the other may begin
            assert handle.wait() == handle.wait() == [[2, 4], [2, 4]]
        else:
            groups.diagnose(10)
            groups.tp.all_reduce(x.clone())
            groups.tp.all_reduce(x)

    @pytest.mark.ranks("tp2", world="processes", timeout=10)
    @pytest.mark.parametrize("raised", [TimeoutError, KeyboardInterrupt])
    @pytest.mark.parametrize("begun", [False, True])
    def test_a_handler_that_raises_costs_no_other_message(
        self, groups: GroupManager, raised: type[BaseException], begun: bool
    ):
        """Python runs it when the message has come."""

        def stop(number: int, _: object) -> None:
            raise raised("stop")

        tp, got = groups.tp, torch.zeros(1)
        if groups.rank == 0:
            before = signal.signal(signal.SIGINT, stop)
            try:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                threading.Timer(0.6, groups.diagnose, (10,)).start()
                with pytest.raises(raised, match="stop"):
                    tp.irecv(got, src=1).wait() if begun else tp.recv(got, src=1)
            finally:
                signal.signal(signal.SIGINT, before)
            assert tp.recv(got, src=1).item() == 6
            assert tp.recv(got, src=1).item() == 7
        else:
            groups.diagnose(10)
            for number in (5.0, 6.0, 7.0):
                tp.send(torch.tensor([number]), dst=0)

    @pytest.mark.ranks("tp2", world="processes", timeout=60)
    def test_another_handler_is_called_and_the_message_arrives(self, groups: GroupManager):
        """A program that counts interrupts, to stop after this step, must not lose its connections."""
        if groups.rank == 0:
            came: list[int] = []
            before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
            try:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                threading.Timer(0.8, groups.diagnose, (10,)).start()
                got = torch.zeros(1)
                groups.tp.recv(got, src=1)
                assert came == [signal.SIGINT]
                assert got.item() == 5
            finally:
                signal.signal(signal.SIGINT, before)
        else:
            groups.diagnose(10)
            groups.tp.send(torch.tensor([5.0]), dst=0)
