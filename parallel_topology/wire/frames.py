"""Frames: what stands before every point-to-point message, and into which pieces a large one is cut. Pure.

A message is one piece of at most `PIECE` bytes, the header and what fits behind it, and for a larger one the rest in
chunks. gloo ends the process when a message is larger than the memory that was given for it. So the first piece has a
limit that no message exceeds, and a chunk's size stands in its tag: it meets only memory of exactly its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from math import prod
from typing import NamedTuple

from parallel_topology.errors import WireError

PIECE = 8192
"""The most bytes of a first piece, and what a receiver has ready for it."""
UNIT = 4096
"""Bytes of the smallest chunk. What makes no whole unit travels behind the header."""
_UNITS = (UNIT, UNIT * 16, UNIT * 256, UNIT * 4096)
CHUNK = _UNITS[-1]
"""The most bytes of one chunk, 16 MiB."""
MAX_MESSAGE = 2**40
"""The most bytes that one message may announce, 1 TiB."""

TAGS = 1000
"""Tags that callers may choose, from 0."""
LEVELS_TAG, COLLECTIVE_TAG, CHECK_TAG = 1021, 1022, 1023
"""Tags of our own: between hosts, of collectives that are made of messages, and of `check_calls`."""
_OURS, _IS_CHUNK = 1 << 30, 1 << 29  # the lowest tags are those of code that uses the process group by itself
_TURNS = 1 << 13
"""Messages after which chunks' tags repeat, which harms nothing: equal tags are matched in order."""

_MAGIC = b"ptf1"
_DIMS = 8
_NO_DIMS = (0,) * _DIMS
_HEADER = struct.Struct(f"<4s4B24sQQ3q{_DIMS}q")
_SEQUENCE_AT = struct.calcsize("<4s4B24s")
HEADER = _HEADER.size
INLINE = PIECE - HEADER


class Kind(IntEnum):
    """What a message is."""

    ANY = 0
    """To a receiver that will forget it."""
    TENSOR = 1
    OBJECT = 2
    TRANSFER = 3
    PART = 4
    CHECK = 5
    GATHERED = 6
    SCATTERED = 7


_WORDS: dict[int, str] = {
    Kind.OBJECT: "an object", Kind.TRANSFER: "what send_tensors sends", Kind.GATHERED: "an object to be gathered",
    Kind.SCATTERED: "a scattered object",
}  # fmt: skip


class Frame(NamedTuple):
    """A header.

    Attributes:
        sequence: how many messages went before on this channel: from one member to another, under one tag.
        nbytes: of what follows, behind the header and in chunks.
        failed: the sender could not make what it was to send; nothing follows.
        parts, split: of a transfer: how many messages belong to it, and over how many members its tensors are cut.
        place: where in the sender's memory is what would go in chunks; 0 if it does.
    """

    kind: int
    sequence: int
    nbytes: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    failed: bool = False
    parts: int = 0
    split: int = 0
    place: int = 0

    def packed(self) -> bytes:
        """The bytes of the header."""
        dims = folded(self.shape)
        return _HEADER.pack(
            _MAGIC, self.kind, len(self.shape), self.failed, 0, self.dtype.encode(), self.sequence, self.nbytes,
            self.parts, self.split, self.place, *dims, *_NO_DIMS[len(dims) :],
        )  # fmt: skip

    @classmethod
    def unpack(cls, message: bytearray) -> Frame:
        """The header in the first bytes of a message.

        Raises:
            WireError: there is none.
        """
        magic, kind, ndim, failed, _, dtype, sequence, nbytes, parts, split, place, *dims = _HEADER.unpack_from(message)
        if magic != _MAGIC:
            raise WireError(f"a peer sent {bytes(message[:16])!r}, which is not the header of a message")
        shape = tuple(dims[: min(ndim, _DIMS)])
        name = dtype.rstrip(b"\0").decode("ascii", "replace")
        return cls(kind, sequence, nbytes, name, shape, bool(failed), parts, split, place)

    def fits(self, other: Frame, *, shapes: bool) -> bool:
        """Whether one of these can be received as the other: kind, dtype and size, and `shapes` if they matter."""
        same = self.kind == other.kind and self.dtype == other.dtype and self.nbytes == other.nbytes
        return same and (not shapes or folded(self.shape) == folded(other.shape))

    def __str__(self) -> str:
        """`float32[3]`, `an object of 12 bytes`"""
        if self.kind in (Kind.TENSOR, Kind.CHECK, Kind.PART):
            part = " as a part of send_tensors" if self.kind == Kind.PART else ""
            return f"{self.dtype}{list(self.shape)}{part}"
        word = _WORDS.get(self.kind, f"a message of the unknown kind {self.kind}")
        return f"{word} of {self.nbytes} bytes" if self.nbytes else word


class Header:
    """What is equal in the headers of frames that differ in their number alone: made once for many messages."""

    __slots__ = ("_before", "_behind")

    def __init__(self, frame: Frame) -> None:
        packed = frame.packed()
        self._before, self._behind = packed[:_SEQUENCE_AT], packed[_SEQUENCE_AT + 8 :]

    def numbered(self, sequence: int) -> bytes:
        """As `Frame.packed` of that one."""
        return self._before + sequence.to_bytes(8, "little") + self._behind


def folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as a header holds it: dims that have no place there multiplied into the last one."""
    return shape if len(shape) <= _DIMS else (*shape[: _DIMS - 1], prod(shape[_DIMS - 1 :]))


def inline(nbytes: int) -> int:
    """How many bytes of a message, its last ones, travel behind the header."""
    return nbytes if nbytes <= INLINE else nbytes % UNIT


def chunks(nbytes: int, tag: int, sequence: int) -> Iterator[tuple[int, int, int]]:
    """The chunks of a message: wire tag, where each begins, and its length."""
    if nbytes <= INLINE:
        return
    base = _OURS | _IS_CHUNK | tag << 19 | sequence % _TURNS << 6
    start, whole = 0, nbytes - nbytes % UNIT
    while whole - start >= CHUNK:
        yield base | 3 << 4 | 1, start, CHUNK
        start += CHUNK
    for exponent in (2, 1, 0):
        count = (whole - start) // _UNITS[exponent]
        if count:  # below 16
            yield base | exponent << 4 | count, start, count * _UNITS[exponent]
            start += count * _UNITS[exponent]


def first_tag(tag: int) -> int:
    """The wire tag of first pieces."""
    return _OURS | tag


def pack_transfer(digests: list[int], description: bytes) -> bytearray:
    """What goes before the tensors of a transfer: a number for each that is cut, and what describes all of them.

    Args:
        digests: below 2**32; an equal tensor has an equal one.
        description: nothing, where it is the last one again.
    """
    return bytearray(struct.pack(f"<I{len(digests)}I", len(digests), *digests) + description)


def unpack_transfer(message: bytearray) -> tuple[list[int], bytes]:
    """What `pack_transfer` was given.

    Raises:
        WireError: a peer sent something else.
    """
    count = int.from_bytes(message[:4], "little")
    end = 4 + 4 * count
    if len(message) < end:
        raise WireError(f"{len(message)} bytes from a peer are too few to announce {count} tensors")
    return list(struct.unpack_from(f"<{count}I", message, 4)), bytes(message[end:])
