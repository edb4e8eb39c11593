"""Announcement: what all members are to get from one of them, whose length only that one knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel_topology.wire.frames import MAX_MESSAGE

FAILED = -1
"""In place of a length, by who could not make what was to be sent, so that the others need not wait for it."""


@dataclass
class Announcement:
    """A message of bytes from one member to all.

    Attributes:
        max_bytes: the most that is taken here.
        length: as the source says it; 0 at the end of several, for no message has none.
        data: what came, on members other than the source.
    """

    max_bytes: int
    length: int = 0
    data: bytearray = field(default_factory=bytearray)

    @property
    def follows(self) -> int:
        """How many bytes follow: those that no message has, none, nor after a failure."""
        return self.length if 0 < self.length <= MAX_MESSAGE else 0

    @property
    def is_taken(self) -> bool:
        """Whether what follows is kept; else it is forgotten."""
        return 0 < self.follows <= self.max_bytes
