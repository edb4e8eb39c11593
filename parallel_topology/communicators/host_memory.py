"""HostMemory: memory that a manager's ranks on one host share, and that has no name.

Every rank offers an anonymous file (`memfd_create`) in agreement; the first one's is taken, and the others open it
through that process's descriptors, `/proc/<pid>/fd/<n>`. Nothing is ever in /dev/shm, whose size does not matter, and
the memory ends with the last process that has it, however it ends. Where one rank cannot find it (another namespace of
processes, another user), all ranks of the host do without.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from parallel_topology.communicators import futex
from parallel_topology.communicators.presence import started
from parallel_topology.wire.frames import PIECE as FIRST_PIECE

PAGE = 4096
_NAME = "parallel_topology"
_NONCE = 16
_NOT_DUMPED = 16
"""Of Linux's `MADV_DONTDUMP`, which Python's `mmap` does not name everywhere."""
_NOT_MAPPED = 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_map, _unmap, _advise = _libc.mmap, _libc.munmap, _libc.madvise
_map.restype = ctypes.c_void_p
_map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

LETTERS = 8
"""Messages from one member to another that there is room for."""
MOST = 256
"""Members of the largest group that uses it: each looks at all others in each call."""
SLOT_BYTES = 2**18
"""What a member gives to a call at most; more takes as many rounds as it has such pieces."""
SLOTS = 8
"""Calls whose memory each member has: who need not wait for the others can be so many, less one, ahead of them."""


class Offer:
    """An empty file in memory, which others can find while it is open.

    Attributes:
        text: where: process, descriptor, and what stands in it; empty where the system has no such files.
    """

    def __init__(self) -> None:
        self._file = -1
        self.text = ""
        if sys.platform != "linux" or sys.maxsize < 2**32:  # a word of 8 bytes must be written at once
            return
        import fcntl

        with suppress(OSError):
            self._file = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # nobody can take it away under us
            nonce = secrets.token_bytes(_NONCE)
            os.pwrite(self._file, nonce, 0)
            self.text = f"{os.getpid()}/{self._file}/{nonce.hex()}"

    def close(self) -> None:
        """It can no longer be found; who has it keeps it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@dataclass(frozen=True)
class Box:
    """Where messages from one member to another are: words, and where each letter's begin.

    Attributes:
        sent, sender_sleeps: written by the sender.
        taken, receiver_sleeps: written by the receiver.
        letters: a word for the tag, one for the length, and six words later what is sent.
    """

    sent: int
    sender_sleeps: int
    taken: int
    receiver_sleeps: int
    letters: list[int]

    LETTER = 64 + FIRST_PIECE
    BYTES = 128 + LETTERS * LETTER


@dataclass(frozen=True)
class Region:
    """What one member has for one group.

    Attributes:
        start: where it begins in the member's area.
        members: of the group.
        slots: how many calls' memory there is.
        slot_bytes: of each.
    """

    start: int
    members: int
    slots: int
    slot_bytes: int

    WORDS = 128
    """Bytes of the member's own words."""
    SAID = 1024
    """Bytes of what the member says to the others, with its length before it."""
    HEADER = 256
    """Bytes of a slot's header."""
    PARCELS = 2**25
    """Bytes of what the member has sent and nobody has taken yet, at most."""
    BLOCKS = 256
    """Into which these are cut."""

    @property
    def said(self) -> int:
        """Where stands what the member says."""
        return self.start + self.WORDS

    @property
    def sleepers(self) -> int:
        """Where a byte for each member is, which says that it sleeps until this one's word changes."""
        return self.said + self.SAID

    @property
    def headers(self) -> int:
        """Where the slots' headers begin."""
        return self.sleepers + -(-self.members // 64) * 64

    @property
    def data(self) -> int:
        """Where the slots begin."""
        return _up(self.headers + self.slots * self.HEADER)

    @property
    def boxes(self) -> int:
        """Where the boxes for messages to each member begin."""
        return _up(self.data + self.slots * self.slot_bytes)

    @property
    def used(self) -> int:
        """Where a byte for each block of parcels is, which says whether it is in use."""
        return self.boxes + self.members * Box.BYTES

    @property
    def parcels(self) -> int:
        """Where these blocks begin."""
        return _up(self.used + self.BLOCKS)

    @property
    def end(self) -> int:
        """Where the next region begins."""
        return self.parcels + self.PARCELS

    def box(self, area: int, receiver: int) -> Box:
        """That of a member whose area begins there, for messages to another one."""
        line = (area + self.boxes + receiver * Box.BYTES) // 8
        letters = [line + 16 + number * Box.LETTER // 8 for number in range(LETTERS)]
        return Box(line, line + 1, line + 8, line + 9, letters)


class HostMemory:
    """The memory, as one rank has it: an area for each rank of the manager on this host.

    Attributes:
        ranks: the global ranks on this host, in the topology's order.
        regions: a group's family -> where each member's part is in its area; the same in all areas.
        is_shared: whether all ranks of this host have it; known after `settle`.
        bytes: all of it; nothing where it could not be had.
        words: the same in words of 8 bytes.
        tensor: the same as a tensor of bytes.
        address: where it begins.
    """

    def __init__(
        self, ranks: Sequence[int], rank: int, regions: Mapping[str, Region], offer: Offer, taken: str
    ) -> None:
        """Map what the first rank of this host offered.

        Args:
            offer: this rank's, which stays open until all have found what they need.
            taken: the text of the first one's.
        """
        self.ranks = tuple(ranks)
        self.regions = regions
        self.is_shared = False
        self.bytes = memoryview(b"")
        self._places = {one: place for place, one in enumerate(self.ranks)}
        self._area_bytes = max((region.end for region in regions.values()), default=PAGE)
        self._offer = offer
        self._fence = futex.Fence()
        try:
            found = mapped(taken, PAGE + len(self.ranks) * self._area_bytes)
        except (OSError, ValueError):
            return
        self.bytes = memoryview(found).cast("B")
        self.words = self.bytes.cast("Q")
        self.tensor = torch.frombuffer(found, dtype=torch.uint8)
        self.address = ctypes.addressof(found)
        mine = self.area(rank) // 8
        self.words[mine + 1] = os.getpid()
        self.words[mine + 2] = started(os.getpid())

    @property
    def is_mapped(self) -> bool:
        """Whether this rank has it."""
        return len(self.bytes) > 0

    def settle(self, *, shared: bool) -> None:
        """All ranks have made this. `shared`: whether all on this host have mapped it, as they all know."""
        self._offer.close()
        if self.is_mapped:
            self.is_shared = shared

    def area(self, rank: int) -> int:
        """Where a rank's area begins, in bytes."""
        return PAGE + self._places[rank] * self._area_bytes

    def has(self, family: str, ranks: Sequence[int]) -> bool:
        """Whether these ranks, a group of that family, are all on this host, and can be found here."""
        return self.is_mapped and family in self.regions and all(rank in self._places for rank in ranks)

    def process(self, rank: int) -> tuple[int, int]:
        """A rank's process, and when that began."""
        at = self.area(rank) // 8
        return self.words[at + 1], self.words[at + 2]

    def say(self, family: str, rank: int, text: str) -> None:
        """Let the members of a rank's group read something, which is written once; `ring` tells them.

        Raises:
            ValueError: it is longer than there is room for.
        """
        encoded, at = text.encode(), self.area(rank) + self.regions[family].said
        if len(encoded) > Region.SAID - 16:
            raise ValueError(f"{len(encoded)} bytes are to be told, expected at most {Region.SAID - 16}")
        self.bytes[at + 16 : at + 16 + len(encoded)] = encoded
        self._fence()
        self.words[at // 8] = len(encoded) + 1
        self._fence()

    def unsay(self, family: str, rank: int) -> None:
        """Let them read that it holds no more, or never will."""
        self.words[(self.area(rank) + self.regions[family].said) // 8 + 1] = 1
        self._fence()

    def said(self, family: str, rank: int) -> str | None:
        """What a member said, which may be anything; empty if it holds no more, None if it said nothing yet."""
        at = self.area(rank) + self.regions[family].said
        length, is_over = self.words[at // 8], self.words[at // 8 + 1]
        if is_over or not length:
            return "" if is_over else None
        self._fence()
        return str(self.bytes[at + 16 : at + 16 + min(length - 1, Region.SAID - 16)], errors="replace")

    def ring(self, ranks: Iterable[int]) -> None:
        """Wake these, if they sleep in `hear`."""
        for rank in ranks:
            bell = self._bell(rank)
            self.words[bell // 8] = secrets.randbits(63)  # nobody counts here: several may write at once
            futex.wake(self.address + bell)

    def hear(self, rank: int, heard: int, seconds: float) -> int:
        """Sleep until another rank rings for this one, or so long.

        Args:
            heard: what this returned before what others said was looked at; 0 at first.
        """
        bell = self._bell(rank)
        if self.words[bell // 8] == heard:
            futex.sleep(self.address + bell, heard, seconds)
        return self.words[bell // 8]

    def _bell(self, rank: int) -> int:
        return self.area(rank) + 24

    def close(self) -> None:
        """Nobody can find it any more; it stays mapped until nothing refers to it, as a thread may still be in it."""
        self._offer.close()


def regions(families: Mapping[str, tuple[int, int]]) -> dict[str, Region]:
    """Where groups' parts are in an area.

    Args:
        families: name -> members of each group, bytes of a slot.
    """
    found: dict[str, Region] = {}
    start = PAGE
    for name, (members, slot_bytes) in families.items():
        found[name] = Region(start, members, SLOTS, _up(slot_bytes))
        start = found[name].end
    return found


def mapped(text: str, size: int) -> ctypes.Array[ctypes.c_char]:
    """What was offered, in this size, without a descriptor of its own (which Python's `mmap` keeps).

    Raises:
        OSError: it cannot be found from here, or not mapped.
        ValueError: this is no offer.
    """
    file = _opened(text)
    try:
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)  # all give it the same size
        address = _map(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    finally:
        os.close(file)
    if address in (None, _NOT_MAPPED):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _advise(address, size, _NOT_DUMPED)  # a core dump would touch, and so take, what was never used
    found = (ctypes.c_char * size).from_address(address)
    weakref.finalize(found, _unmap, address, size).atexit = False
    return found


def process_of(text: str) -> tuple[int, int]:
    """The process that offered it, and when that began."""
    process = int(text.partition("/")[0])
    return process, started(process)


def _opened(text: str) -> int:
    """A descriptor of what was offered.

    Raises:
        OSError: it cannot be found from here.
        ValueError: this is no offer.
    """
    process, descriptor, nonce = text.split("/")
    path = f"/proc/{int(process)}/fd/{int(descriptor)}"
    if not os.readlink(path).startswith(f"/memfd:{_NAME}"):  # in another namespace the numbers are another's
        raise OSError(f"{path} is something else")
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.pread(file, _NONCE, 0).hex() != nonce or not _is_sealed(file):
        os.close(file)
        raise OSError(f"{path} is another one")
    return file


def _is_sealed(file: int) -> bool:
    """Whether nobody can make it smaller, which would end the processes that have it."""
    import fcntl

    return bool(fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)


def _up(size: int) -> int:
    return -(-size // PAGE) * PAGE
