"""Connections: gloo's sockets, found through the kernel, to be ended whoever still holds the groups.

gloo closes its sockets when the last reference to a group, to work or to a frame of a traceback goes, and nothing
interrupts a thread that waits in it. But every gloo device registers all its sockets in one epoll instance of its own,
whose list Linux shows. Where a connected socket is shut down both sides wake at once, and gloo closes it. A listening
socket must be left alone: gloo's thread would end the process (torch 2.13: an uncaught exception after `accept`).
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

T = TypeVar("T")

_one_at_a_time = threading.Lock()
"""Held while devices are made: what is new in this process is then theirs."""
_TRIES = 3


@dataclass(frozen=True)
class Connections:
    """The connected sockets of a gloo device, or of one of its groups.

    Attributes:
        poll: the descriptor of the device's epoll instance.
        listener: the inode of its listening socket, by which that instance is known again.
        of_group: the inodes of one group's sockets; None for all.
    """

    poll: int
    listener: int
    of_group: frozenset[int] | None = None

    def inodes(self) -> frozenset[int]:
        """Of all sockets and pipes that are there now; none when the device is gone."""
        return frozenset(inode for _, inode in self._registered())

    def since(self, before: frozenset[int]) -> Connections:
        """Those that have come since `inodes()` was asked: of the group that was made meanwhile."""
        return Connections(self.poll, self.listener, self.inodes() - before)

    def cut(self) -> None:
        """End the connections: whoever waits on either side gets an error at once."""
        for descriptor, inode in self._registered():
            if inode != self.listener and (self.of_group is None or inode in self.of_group):
                _shut_down(descriptor, inode)

    def wait_until_gone(self, seconds: float) -> None:
        """gloo's own thread closes what was cut: a moment later."""
        deadline = time.monotonic() + seconds
        while self._connected() and time.monotonic() < deadline:
            time.sleep(0.0002)

    def _connected(self) -> bool:
        ours = self.inodes() - {self.listener}
        if self.of_group is not None:
            return bool(ours & self.of_group)
        return any(_is_socket(descriptor, inode) for descriptor, inode in self._registered() if inode in ours)

    def _registered(self) -> list[tuple[int, int]]:
        there = list(_registered(self.poll))
        return there if any(inode == self.listener for _, inode in there) else []


def connections_of(make: Callable[[], list[T]]) -> tuple[list[T], tuple[Connections, ...]]:
    """What `make` returns, which makes gloo devices and waits for nobody, and the connections of each.

    None where they cannot be found: on another system than Linux, or where somebody else makes devices all the time.
    """
    with _one_at_a_time:
        made, connections = new_connections(make, devices=None)
        for _ in range(_TRIES if os.path.isdir("/proc/self/fdinfo") else 0):
            if connections:
                break
            made, connections = new_connections(make, devices=None)
    return made, connections


def new_connections(make: Callable[[], T], *, devices: int | None) -> tuple[T, tuple[Connections, ...]]:
    """What `make` returns, and the connections of the gloo devices that were made meanwhile in this process.

    Args:
        devices: how many it makes; None for as many as it returns. If there are more, others are among them.
    """
    before = {inode for poll in _polls() for _, inode in _registered(poll)}
    made = make()
    found = tuple(
        Connections(poll, inode)
        for poll in _polls()
        for descriptor, inode in _registered(poll)
        if inode not in before and _is_socket(descriptor, inode, listening=True)
    )
    expected = devices if devices is not None else len(cast("list[object]", made))
    return made, found if len(found) == expected else ()


def _polls() -> Iterator[int]:
    """The descriptors of this process's epoll instances."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventpoll]":
                yield int(descriptor)
        except OSError:  # closed meanwhile
            continue


def _registered(poll: int) -> Iterator[tuple[int, int]]:
    """Descriptor and inode of all that an epoll instance watches (`ino:` since Linux 4.13)."""
    try:
        with open(f"/proc/self/fdinfo/{poll}", encoding="ascii") as lines:
            told = lines.read().splitlines()
    except OSError:  # closed meanwhile
        return
    for line in told:
        if line.startswith("tfd:") and " ino:" in line:
            yield int(line.split()[1]), int(line.split(" ino:")[1].split()[0], 16)


def _opened(descriptor: int, inode: int) -> socket.socket | None:
    """A socket of our own on the same connection, if the descriptor still is what it was."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    seen = os.fstat(copy)
    if seen.st_ino != inode or not stat.S_ISSOCK(seen.st_mode):
        os.close(copy)
        return None
    return socket.socket(fileno=copy)


def _is_socket(descriptor: int, inode: int, *, listening: bool = False) -> bool:
    opened = _opened(descriptor, inode)
    if opened is None:
        return False
    with opened:
        return bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) == listening


def _shut_down(descriptor: int, inode: int) -> None:
    opened = _opened(descriptor, inode)
    if opened is None:
        return
    with opened:
        if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            try:
                opened.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer was faster
                return
