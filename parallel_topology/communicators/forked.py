"""What a forked child must never touch: it stays as it is there, for as long as the child lives.

Process groups, gloo's devices and stores end by joining threads, which a forked child does not have: it would wait for
ever, in the collector or at its exit. So the child keeps one reference more to each of them, which nobody gives back.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterable
from typing import Protocol


class Holder(Protocol):
    """Something that holds what ends by joining threads."""

    def held(self) -> Iterable[object]: ...

    def forked(self) -> None:
        """Called in the child: from now on this one is of no use here."""
        ...


class _Process:
    """This process, without the system call that `os.getpid` is: what asks, asks in each operation.

    Attributes:
        id: its number; a forked child's own.
    """

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = os.getpid()


this_process = _Process()
_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def leave_to_parent(holder: Holder) -> None:
    """From now on, a child that is forked leaves alone what this one holds at that time."""
    _holders.add(holder)


def _in_child() -> None:
    this_process.id = os.getpid()
    for holder in list(_holders):
        for thing in holder.held():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        holder.forked()


os.register_at_fork(after_in_child=_in_child)
