"""Rounds: the calls that a group's members make in one order, each member with a slot of shared memory for each call.

A member writes to its own slot, then the call's number to its own word, and reads the others' slots when their words
say so. That a member has come to a call says, too, that it has read all it wanted of those before: so a slot is free
again when all have come to the call after the one it was used for.

Waits look again and again, letting others run in between, and then sleep until the word changes. Each nap ends after
`NAP` seconds at the latest, to see whether the one waited for has died, whether this one was closed, and whether time
is up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from parallel_topology.communicators import futex
from parallel_topology.communicators.descriptions import require_equal
from parallel_topology.communicators.host_memory import HostMemory, Region
from parallel_topology.communicators.presence import is_gone
from parallel_topology.topology.wording import shown_ranks

NAP = 0.025
"""Seconds of the longest nap."""
YIELDS = 300
"""Looks between which others may run, before the first nap; each takes a microsecond, if nobody else wants to."""

TEXT = Region.HEADER - 8
"""Bytes of a call in words."""

_CLOSED, _FAILED = 1, 2
_LOST = {0: "has died: its process has ended", _CLOSED: "has closed its manager", _FAILED: "has failed before"}
"""A member's state -> why it does not come."""


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


class PeerLostError(RuntimeError):
    """A member will not come: its process has ended, or it has closed or failed. Of the kind of torch's own errors."""


class Rounds:
    """One member's part."""

    def __init__(self, memory: HostMemory, family: str, label: str, ranks: Sequence[int], rank: int) -> None:
        """`ranks` are the members' global ranks, `rank` this one's position among them."""
        region = memory.regions[family]
        starts = [memory.area(one) for one in ranks]
        slots = range(region.slots)
        self.ranks = ranks
        self.rank = rank
        self.slots = region.slots
        self.slot_bytes = region.slot_bytes
        self.number = 0
        self.others = [one for one in reversed(range(len(ranks))) if one != rank]
        self.offsets = [[start + region.data + slot * region.slot_bytes for start in starts] for slot in slots]
        self.addresses = [[memory.address + offset for offset in offsets] for offsets in self.offsets]
        self._label = label
        self._memory = memory
        self._bytes, self._words = memory.bytes, memory.words
        self._posted = [(start + region.start) // 8 for start in starts]
        self._headers = [[(start + region.headers + slot * Region.HEADER) // 8 for start in starts] for slot in slots]
        self._written: list[Call | None] = [None] * region.slots
        self._sleepers = [start + region.sleepers for start in starts]
        asleep = self._sleepers[rank] // 8
        self._asleep = range(asleep, asleep + -(-len(ranks) // 8))
        self._came = 0  # all have come to this call
        self._timeout = self._until = 0.0
        self._ended = ""
        self._fence = futex.Fence()

    def begin(self, timeout: float) -> int:
        """The slot of this member's next call, which is free from now on.

        Args:
            timeout: seconds for all waits of this call together.

        Raises:
            RuntimeError: others have not come, as of `wait_for`; or these rounds have ended.
        """
        if self._ended:
            raise RuntimeError(self._ended)
        self._timeout, self._until = timeout, 0.0
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
                futex.wake(self._address(self.rank))

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

    def end(self, why: str, *, failed: bool) -> None:
        """From now on nobody waits here, nor for this member: neither in this process nor elsewhere."""
        if not self._ended:
            self._ended = why
            self._fence()
            self._words[self._posted[self.rank] + 1] = _FAILED if failed else _CLOSED
        for member in range(len(self.ranks)):  # its own word, and those that it may sleep on
            futex.wake(self._address(member))

    def _wait_for(self, members: Sequence[int], number: int) -> None:
        words, posted = self._words, self._posted
        for member in members:
            if words[posted[member]] < number:
                self._wait(member, number)
        self._fence()

    def _wait(self, member: int, number: int) -> None:
        words, at = self._words, self._posted[member]
        for _ in range(YIELDS):
            futex.give_way()
            if words[at] >= number:
                return
        if not self._until:
            self._until = time.monotonic() + self._timeout
        mine = self._sleepers[member] + self.rank
        self._bytes[mine] = 1
        try:
            naps = 0
            while (seen := words[at]) < number:
                self._require(member, number, naps)
                naps += 1
                futex.sleep(self._address(member), seen, max(min(NAP, self._until - time.monotonic()), 0.0001))
        finally:
            self._bytes[mine] = 0

    def _require(self, member: int, number: int, naps: int) -> None:
        """Raises: RuntimeError: it makes no sense to wait on."""
        if self._ended:
            raise RuntimeError(self._ended)
        at, rank = self._posted[member], self.ranks[member]
        state = self._words[at + 1]
        if state or (naps and is_gone(*self._memory.process(rank))):
            self._fence()  # it may have come just before
            if self._words[at] < number:
                raise self._failed(PeerLostError, f"rank {rank} {_LOST[state]}")
        if time.monotonic() >= self._until:
            missing = sorted(self.ranks[one] for one in self.others if self._words[self._posted[one]] < number)
            raise self._failed(RuntimeError, f"timed out after {self._timeout:g} s, waiting for {shown_ranks(missing)}")

    def _failed(self, kind: type[RuntimeError], why: str) -> RuntimeError:
        why_later = why.replace("timed out", "given up")  # which is no timeout of the later operation
        self.end(f"an earlier operation failed here: {why_later}", failed=True)
        return kind(why)

    def _address(self, member: int) -> int:
        return self._memory.address + self._posted[member] * 8

    def _compare(self, members: Sequence[int], headers: Sequence[int]) -> None:
        said: dict[int, str] = {}
        for member in sorted([*members, self.rank]):
            start = headers[member] * 8 + 8
            said[self.ranks[member]] = str(self._bytes[start : start + TEXT], errors="replace").rstrip()
        require_equal(self._label, self.ranks, said)
