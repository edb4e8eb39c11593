"""Rounds: the calls that a group's members make in one order, each member with a slot of shared memory for each call.

A member writes to its own slot, then the call's number to its own word, and reads the others' slots when their words
say so. That a member has come to a call says, too, that it has read all it wanted of those before: so a slot is free
again when all have come to the call after the one it was used for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from parallel_topology.communicators import futex
from parallel_topology.communicators.attendance import Attendance, PeerLostError, TimeUpError
from parallel_topology.communicators.descriptions import require_equal
from parallel_topology.communicators.host_memory import Region
from parallel_topology.topology.wording import shown_ranks

TEXT = Region.HEADER - 8
"""Bytes of a call in words."""


class Call(NamedTuple):
    """What a member calls, so that the others can compare.

    Attributes:
        digest: 64 bits, which differ where calls do not fit together.
        text: the call in words, of `TEXT` bytes, padded.
    """

    digest: int
    text: bytes

    @classmethod
    def of(cls, compared: str, text: str) -> Call:
        """Of what is compared, and of what is said if it differs."""
        digest = int.from_bytes(blake2b(compared.encode(), digest_size=8).digest(), "little")
        return cls(digest, text.encode()[:TEXT].ljust(TEXT))


class Rounds:
    """One member's part."""

    def __init__(self, attendance: Attendance, family: str) -> None:
        memory, ranks, rank = attendance.memory, attendance.ranks, attendance.rank
        region = memory.regions[family]
        starts = [memory.area(one) for one in ranks]
        slots = range(region.slots)
        self.ranks = ranks
        self.rank = rank
        self.slots = region.slots
        self.slot_bytes = region.slot_bytes
        self.number = 0
        self.others = [one for one in reversed(range(len(ranks))) if one != rank]
        data, headers = region.data, region.headers  # each is a sum, which is made once
        self.offsets = [[start + data + slot * region.slot_bytes for start in starts] for slot in slots]
        self.addresses = [[memory.address + offset for offset in offsets] for offsets in self.offsets]
        self._attendance = attendance
        self._bytes, self._words, self._posted = memory.bytes, memory.words, attendance.posted
        self._headers = [[(start + headers + slot * Region.HEADER) // 8 for start in starts] for slot in slots]
        self._written: list[Call | None] = [None] * region.slots
        sleepers = region.sleepers
        self._sleepers = [start + sleepers for start in starts]
        asleep = self._sleepers[rank] // 8
        self._asleep = range(asleep, asleep + -(-len(ranks) // 8))
        self._came = 0  # all have come to this call
        self._timeout = self._until = 0.0
        self._fence = futex.Fence()

    def begin(self, timeout: float, *, goes_on: bool = False) -> int:
        """The slot of this member's next call, which is free from now on.

        Args:
            timeout: seconds for all waits of this call together.
            goes_on: whether the last call's time is this one's, too.

        Raises:
            RuntimeError: others have not come, as of `wait_for`; or these rounds have ended.
        """
        self._attendance.require_open()
        if not goes_on:
            self._timeout, self._until = timeout, time.monotonic() + timeout
        number = self.number + 1
        if self._came <= number - self.slots:
            self._wait_for(self.others, number - self.slots + 1)
            words = self._words
            self._came = min(words[self._posted[one]] for one in self.others)
        return number % self.slots

    def post(self, call: Call) -> None:
        """What stands in this member's slot is complete: the others may read it."""
        number = self.number + 1
        slot = number % self.slots
        if self._written[slot] is not call:
            at = self._headers[slot][self.rank]
            self._words[at] = call.digest
            self._bytes[at * 8 + 8 : at * 8 + 8 + TEXT] = call.text
            self._written[slot] = call
        words, fence = self._words, self._fence
        fence()
        words[self._posted[self.rank]] = self.number = number
        fence()
        for at in self._asleep:
            if words[at]:
                futex.wake(self._attendance.memory.address + self._posted[self.rank] * 8)

    def wait_for(self, members: Sequence[int], call: Call) -> None:
        """Wait until these members have come to the call that this one posted last, and compare theirs with it.

        Raises:
            MismatchError: they call something else.
            PeerLostError: one will not come.
            RuntimeError: they did not come in time, or this member was closed.
        """
        self._wait_for(members, self.number)
        headers = self._headers[self.number % self.slots]
        for member in members:
            if self._words[headers[member]] != call.digest:
                self._compare(members, headers)

    def _wait_for(self, members: Sequence[int], number: int) -> None:
        words, posted, attendance = self._words, self._posted, self._attendance
        try:
            for member in members:
                if words[posted[member]] < number:
                    asleep = self._sleepers[member] + self.rank
                    attendance.wait(member, posted[member], number, asleep, self._until)
        except TimeUpError:
            missing = shown_ranks(sorted(self.ranks[one] for one in self.others if words[posted[one]] < number))
            attendance.end(f"an earlier operation failed here, waiting for {missing}", failed=True)
            raise RuntimeError(f"timed out after {self._timeout:g} s, waiting for {missing}") from None
        except PeerLostError as error:
            attendance.end(f"an earlier operation failed here: {error}", failed=True)
            raise
        self._fence()

    def _compare(self, members: Sequence[int], headers: Sequence[int]) -> None:
        said: dict[int, str] = {}
        for member in sorted([*members, self.rank]):
            start = headers[member] * 8 + 8
            said[self.ranks[member]] = str(self._bytes[start : start + TEXT], errors="replace").rstrip()
        require_equal(self._attendance.label, self.ranks, said)
