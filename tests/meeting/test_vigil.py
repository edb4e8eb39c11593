"""What a rank says shortly before its time is up: said in time, taken back if it came after all, else not said."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from datetime import timedelta

import pytest

from parallel_topology.communicators.links import Call
from parallel_topology.meeting.vigil import LEAD, Vigil
from tests.waiting import eventually

LONG = timedelta(seconds=100)


class Said:
    def __init__(self) -> None:
        self.vigil = Vigil(self._say)
        self.lines: list[tuple[str, Call | None, float]] = []

    def _say(self, group: str, call: Call | None) -> None:
        self.lines.append((group, call, time.monotonic()))


@pytest.fixture
def said() -> Generator[Said]:
    made = Said()
    yield made
    made.vigil.end()


def test_an_operation_that_takes_long_is_said_before_its_time_is_up(said: Said):
    begun = time.monotonic()
    said.vigil.begins("a", Call("barrier"), LONG, begun)
    said.vigil.is_over()
    said.vigil.begins("b", Call("all_reduce"), timedelta(seconds=1), begun)  # sooner than what the thread sleeps for
    assert eventually(lambda: len(said.lines) == 1)
    group, call, when = said.lines[0]
    assert (group, call) == ("b", Call("all_reduce"))
    assert when >= begun + 1 - LEAD
    assert said.vigil.take("b") > 0
    assert said.vigil.take("b") == 0


def test_a_short_timeout_leaves_half_of_it(said: Said):
    begun = time.monotonic()
    said.vigil.begins("a", Call("barrier"), timedelta(seconds=0.4), begun)
    assert eventually(lambda: len(said.lines) == 1)
    assert said.lines[0][2] >= begun + 0.2


def test_what_comes_at_the_last_moment_is_taken_back(said: Said):
    said.vigil.begins("a", Call("barrier"), timedelta(seconds=0.1), time.monotonic())
    assert eventually(lambda: len(said.lines) == 1)
    said.vigil.is_over()
    assert eventually(lambda: [line[:2] for line in said.lines] == [("a", Call("barrier")), ("a", None)])


def test_threads_wait_each_for_itself_and_what_is_quick_is_not_said(said: Said):
    def wait(group: str) -> None:
        for _ in range(200):
            said.vigil.begins(group, Call("barrier"), timedelta(seconds=30), time.monotonic())
            said.vigil.is_over()

    threads = [threading.Thread(target=wait, args=(group,)) for group in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said.vigil.begins("e", Call("barrier"), timedelta(seconds=0.2), time.monotonic())
    assert eventually(lambda: len(said.lines) == 1)
    assert said.lines[0][0] == "e"
    said.vigil.end()
    assert not [thread for thread in threading.enumerate() if thread is said.vigil._thread]
