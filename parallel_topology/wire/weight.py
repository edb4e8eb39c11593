"""How much memory a message may ask for: a small multiple of the bytes that came.

JSON says much in little: an empty list is two bytes, and takes 64. Who encodes such a value makes the message longer
until it pays for what it makes; who decodes refuses one that does not, before anything is made.
"""

from __future__ import annotations

from parallel_topology.errors import WireError

FACTOR = 16
"""How many times its own length a message may take in memory."""
FREE = 4 * 2**20
"""Bytes that any message may take."""

_PIECE = 2**16
_TAGS = {b"tensor": 1500, b"ndarray": 350, b"model": 1000, b"dataclass": 400, b"spec": 350, b"device": 150, b"set": 150,
         b"frozenset": 150, b"ordered": 400}  # fmt: skip
"""What a tagged value takes, besides what is said of every dict."""


def lacking(header: bytes, length: int) -> int:
    """By how many bytes a message of this length is too short for what its header makes."""
    allowed = FACTOR * length + FREE
    if 300 * len(header) <= allowed or _most(header) <= allowed:
        return 0
    return max(0, -(-(_weight(header) - FREE) // FACTOR) - length)


def require_weight(header: bytes, length: int) -> None:
    """Raises: WireError: a message would take more than it may."""
    if more := lacking(header, length):
        raise WireError(
            f"{length} bytes from a peer would take too much memory: they lack {more} that would pay for it"
        )


def _most(header: bytes) -> int:
    """At least what it weighs, found faster: what stands in strings is counted, too."""
    count = header.count
    return (
        88 * count(b"[") + 256 * count(b"{") + 104 * count(b",") + 50 * count(b":") + 40 * count(b'"') + _tags(header)
    )


def _weight(header: bytes) -> int:
    """Bytes of the Python objects that a header makes; seen in CPython 3.11."""
    count = _outside_strings(header).__getitem__
    tagged = header.count(b'{"":["')  # these are gone when what they stand for has been made
    lists, dicts, strings = count(b"[") - tagged, count(b"{") - tagged, count(b'"') - 2 * tagged
    empty = count(b"[]") + count(b"{}")
    held = count(b",") + lists + dicts - empty - tagged
    numbers = max(0, held - strings - lists - dicts)
    keyed = 64 * held if any(tag in header for tag in (b'["set"', b'["frozenset"', b'["dict"', b'["ordered"')) else 0
    made = 64 * lists + 24 * (lists + dicts - empty) + 64 * dicts + 170 * (count(b":") - tagged)
    return made + 8 * held + 32 * numbers + 64 * strings + keyed + _tags(header)


def _outside_strings(header: bytes) -> dict[bytes, int]:
    """How often what makes objects stands outside of strings, and how often these begin."""
    plain = header.replace(b"\\\\", b"").replace(b'\\"', b"")
    counts = dict.fromkeys((b"[", b"{", b",", b":", b"[]", b"{}"), 0)
    inside = False
    for start in range(0, len(plain), _PIECE):  # one piece at a time, because split() makes many objects
        pieces = plain[start : start + _PIECE].split(b'"')
        outside = b'"'.join(pieces[inside::2])
        inside ^= len(pieces) % 2 == 0
        for mark in counts:
            counts[mark] += outside.count(mark)
    return counts | {b'"': plain.count(b'"') // 2}


def _tags(header: bytes) -> int:
    return sum(weight * header.count(b'["' + tag + b'"') for tag, weight in _TAGS.items()) if b'{"":' in header else 0
