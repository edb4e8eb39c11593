"""Connections: gloo's sockets, found through the kernel, to be ended whoever still holds the groups.

gloo closes its sockets when the last reference to a group, to work or to a frame of a traceback goes, and nothing
interrupts a thread that waits in it. But every gloo device registers all its sockets in one epoll instance of its own,
whose list Linux shows. Where a connected socket is shut down both sides wake at once, and gloo closes it. A listening
socket must be left alone: gloo's thread would end the process (torch 2.13: an uncaught exception after `accept`).
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Address = tuple[str, int]
"""IP address and port."""

_one_at_a_time = threading.Lock()
"""Held while a device is made, so that managers in other threads do not take its descriptors."""
OPENED, _OTHERS = 4, 16
"""How many descriptors a device takes, and how many more are looked at: other threads may take some meanwhile."""
_dup, _close = ctypes.PyDLL(None).dup, ctypes.PyDLL(None).close
"""Without letting other threads run, which may open something in between."""


@dataclass(frozen=True)
class Device:
    """The connected sockets of a gloo device.

    Attributes:
        poll: the descriptor of the device's epoll instance.
        listener: the inode of its listening socket, by which that instance is known again.
    """

    poll: int
    listener: int

    def cut(self) -> None:
        """End the connections."""
        for descriptor, inode in self._registered():
            if inode != self.listener:
                _shut_down(descriptor, inode)

    def forget(self) -> None:
        """Let gloo watch no connection any more.

        One that came for a member after gloo had given that up it never closes: it looks at it without pause, and who
        drops the group's last reference waits for that to end, for ever, with Python's lock (torch 2.13).
        """
        left = [(descriptor, inode) for descriptor, inode in self._registered() if inode != self.listener]
        with suppress(OSError), select.epoll.fromfd(os.dup(self.poll)) as poll:
            for descriptor, inode in left:
                if _is_connected(descriptor, inode):
                    with suppress(OSError):  # closed meanwhile
                        poll.unregister(descriptor)

    def is_connected(self) -> bool:
        """Whether there are any."""
        return any(_is_connected(descriptor, inode) for descriptor, inode in self._registered())

    def _registered(self) -> list[tuple[int, int]]:
        there = list(_registered(self.poll))
        return there if any(inode == self.listener for _, inode in there) else []


class Connections:
    """Those of one group, on all its devices."""

    def __init__(self, addresses: Sequence[Address] = (), among: Sequence[int] = ()) -> None:
        """`addresses`: where the devices listen. They are looked for when connections are to be ended: `among` these
        descriptors, in this order, else among all, which takes long where a process has many."""
        self._addresses = addresses
        self._among = among
        self._devices: list[Device] = []

    @classmethod
    def of(cls, devices: Sequence[Device]) -> Connections:
        """Of devices that were found."""
        made = cls()
        made._devices = list(devices)
        return made

    def cut(self) -> None:
        """End them: whoever waits on either side gets an error at once. Nothing happens where they cannot be found."""
        for device in self._found():
            device.cut()

    def wait_until_gone(self, seconds: float) -> None:
        """gloo's own thread closes what was cut, and accepts what had come before: a moment later."""
        deadline = time.monotonic() + seconds
        while any(device.is_connected() for device in self._found()) and time.monotonic() < deadline:
            self.cut()
            time.sleep(0.0002)
        for device in self._found():
            device.forget()

    def _found(self) -> list[Device]:
        for polls in (filter(_is_poll, self._among), _polls()):
            if len(self._devices) < len(self._addresses):
                there = _devices_among(polls, self._addresses)
                self._devices = [there[address] for address in self._addresses if address in there]
        return self._devices


def made_at(make: Callable[[], T], devices: int) -> tuple[T, list[int]]:
    """What `make` returns, which makes so many gloo devices and waits for nobody, and the descriptors that were free.

    Those of the devices are among them: the first device has the `OPENED` lowest, the second one the next, unless
    another thread opens something meanwhile.
    """
    with _one_at_a_time:
        free: list[int] = []
        with suppress(OSError):
            free.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            free += [_dup(free[0]) for _ in range(OPENED * devices + _OTHERS)]
        for descriptor in free:
            _close(descriptor)  # also of -1, where there were no more: nothing happens
        made = make()
    return made, free


def new_connections(make: Callable[[], T]) -> tuple[T, Connections | None]:
    """What `make` returns, and the connections of the one gloo device that was made meanwhile in this process.

    None where they cannot be found: on another system than Linux, or where others made devices, too.
    """
    before = {inode for poll in _polls() for _, inode in _registered(poll)}
    made = make()
    found = [
        Device(poll, inode)
        for poll in _polls()
        for descriptor, inode in _registered(poll)
        if inode not in before and _listens_at(descriptor, inode) is not None
    ]
    return made, Connections.of(found) if len(found) == 1 else None


def _devices_among(polls: Iterable[int], addresses: Sequence[Address]) -> dict[Address, Device]:
    """The devices that listen at these addresses, of those whose epoll instances are `polls`."""
    found: dict[Address, Device] = {}
    for poll in polls:
        for descriptor, inode in _registered(poll):
            where = _listens_at(descriptor, inode)
            if where is not None and where in addresses:
                found[where] = Device(poll, inode)
        if len(found) == len(addresses):
            break
    return found


def _polls() -> Iterator[int]:
    """The descriptors of this process's epoll instances."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    yield from filter(_is_poll, map(int, descriptors))


def _is_poll(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventpoll]"
    except OSError:  # closed meanwhile
        return False


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


def _listens_at(descriptor: int, inode: int) -> Address | None:
    """IP address and port of a listening socket; None for anything else."""
    opened = _opened(descriptor, inode)
    if opened is None:
        return None
    with opened:
        if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        return opened.getsockname()[:2]


def _is_connected(descriptor: int, inode: int) -> bool:
    opened = _opened(descriptor, inode)
    if opened is None:
        return False
    with opened:
        return not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


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
