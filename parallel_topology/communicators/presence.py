"""Presence: whether a process of this host lives, as the kernel tells without a descriptor of its own."""

from __future__ import annotations

import os


def started(process: int) -> int:
    """When a process began, in ticks since the system did; 0 if it has ended. No two of one number have it equal."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def is_gone(process: int, since: int) -> bool:
    """Whether the process of that number that began then has ended."""
    return process != os.getpid() and started(process) != since
