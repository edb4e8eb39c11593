"""Slips: loans come in order, and whoever waits for somebody who will not come is told so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from datetime import timedelta

import pytest

from parallel_topology.communicators.attendance import PeerLostError, TimeUpError
from parallel_topology.communicators.presence import started
from parallel_topology.refit.slips import LOANS, SLIP, Loan, Peer, Slip
from parallel_topology.testing.threads import run_threads

HERE = (os.getpid(), started(os.getpid()))


class Memory:
    def __init__(self) -> None:
        self._whole = ctypes.create_string_buffer(3 * SLIP)
        self.bytes = memoryview(self._whole).cast("B")
        self.words = self.bytes.cast("Q")
        self.address = ctypes.addressof(self._whole)


def both(seconds: float = 60, process: tuple[int, int] = HERE) -> tuple[Slip, Slip]:
    """The owner's side and the reader's."""
    memory, timeout = Memory(), timedelta(seconds=seconds)
    sides = (True, False)
    one, other = (
        Slip(memory, SLIP, Peer(rank, process), lends=lends, timeout=timeout, look=lambda: None)
        for rank, lends in zip((3, 5), sides, strict=True)
    )
    return one, other


def test_loans_come_in_their_order_and_are_given_back():
    owner, reader = both()
    count = 20 * LOANS

    def lend() -> None:
        for number in range(1, count + 1):
            assert owner.lend(Loan(number % 3, number)) == number
            owner.wait(number - LOANS + 1)  # there is room for one more

    def read() -> list[Loan]:
        found: list[Loan] = []
        for number in range(1, count + 1):
            found.append(reader.borrowed(number))
            reader.give_back()
        return found

    _, found = run_threads(["owner", "reader"], lambda rank: (lend, read)[rank](), timeout=60)
    assert found == [Loan(number % 3, number) for number in range(1, count + 1)]


@pytest.mark.parametrize("waits", ["owner", "reader"])
def test_who_has_left_is_not_waited_for(waits: str):
    owner, reader = both()
    owner.lend(Loan(0, 0))
    other, slip = (reader, owner) if waits == "owner" else (owner, reader)
    other.leave()
    with pytest.raises(PeerLostError, match=r"rank [35] has given up"):
        slip.wait(2)
    assert reader.borrowed(1) == Loan(0, 0)  # what came before counts


def test_whose_process_has_ended_is_not_waited_for():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = started(process.pid)
    process.communicate(b"\n")
    _, reader = both(process=(process.pid, since))
    with pytest.raises(PeerLostError, match="rank 5 has died: its process has ended"):
        reader.wait(1)


def test_who_does_not_come_in_time_is_named():
    owner, _ = both(0.05)
    with pytest.raises(TimeUpError, match=r"timed out after 0\.05 s, waiting for rank 3"):
        owner.wait(1)


def test_a_wait_ends_when_it_is_to_end():
    slip = Slip(Memory(), 0, Peer(1, HERE), lends=True, timeout=timedelta(seconds=60), look=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slip.wait(1)
