"""Contacts: how the members of a gloo group come to connections, which each pair makes when it first needs one.

So a group costs a rank the same, whatever its size. gloo does the connecting, but not as it should (torch 2.8, 2.13):
of two members one connects, the other waits for that *inside the call*, also of an asynchronous one, for five times the
timeout of the group, and cannot be interrupted; and only who connects notices that the other is gone. Hence:

- who first sends to a member, or receives from it, does so on a thread of its own, and so does what follows until then;
- who waits for a connection in vain is freed by one that this process makes itself, and closes at once;
- where a wait takes long, members are looked for: nobody listens any more where one has ended.

What gloo reads of the others' addresses is a store of this process, filled once: no wait in gloo depends on another.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.communicator import Work
from parallel_topology.errors import CreationError

Address = tuple[str, int]
"""Where a gloo device listens: IP address and port."""

LOOK = 0.25
"""Seconds after which a waiting thread runs Python again."""
_WITHIN = 0.25
"""Seconds in which members are looked for; a live host answers in a fraction of one."""
_AT_ONCE = 64
"""How many members are looked for at a time."""


class Contacts:
    """Where the members of one gloo group listen, and with whom of them this one has had to do.

    Attributes:
        patience: seconds for which gloo waits for a member to connect.
        mine: where this member listens, on each of its devices.
        met: positions of the members to which there is a connection for sure.
    """

    def __init__(self, store: dist.Store, devices: int, rank: int, size: int, timeout: timedelta) -> None:
        """`store`: what gloo reads; nobody else does. `rank`: this member's position. `timeout`: as gloo was told."""
        self.patience = 5 * timeout.total_seconds()
        self._store = store
        self._rank = rank
        self._size = size
        self._told = [bytes(store.get(self._key(index, rank))) for index in range(devices)]
        self.mine: list[Address] = [torch_private.gloo_address(told) for told in self._told]
        self._theirs: dict[int, Address] = {}  # on the first device
        self.met: set[int] = set()
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # held while gloo is told something, never while it is called
        self._pending: dict[int, deque[Later]] = {}
        self._meeting: set[threading.Thread] = set()
        self._ended = False

    def introduce(self, addresses: Mapping[int, Sequence[Address]]) -> None:
        """Tell gloo where members listen, on each device, by position. What waits in gloo for one of these goes on.

        Raises:
            CreationError: what one said is no address, or of another kind than this member's.
        """
        kinds = [":" in host for host, _ in self.mine]
        for position, theirs in addresses.items():
            if [":" in host for host, _ in theirs] != kinds:
                raise CreationError(
                    f"member {position} listens at {_shown(theirs)}, this one at {_shown(self.mine)}: expected as many "
                    "addresses, and of the same version of IP; set GLOO_SOCKET_IFNAME alike on all ranks"
                )
        others = [position for position in addresses if position != self._rank]
        told: dict[str, bytes] = {}
        for index, mine in enumerate(self._told):
            blobs = torch_private.gloo_blobs(mine, (addresses[position][index] for position in others))
            told |= {self._key(index, position): blob for position, blob in zip(others, blobs, strict=True)}
        with self._telling:
            if not self._ended:
                torch_private.multi_set(self._store, told)
                self._theirs |= {position: addresses[position][0] for position in others}

    def give_up(self, positions: Iterable[int]) -> None:
        """These members will not come: what gloo begins to or from one of them fails, and so do messages that wait."""
        gone = list(positions)
        with self._telling:
            self._lead_nowhere(gone)
        with self._lock:
            waits = set(gone).intersection(self._pending)
        for peer in filter(self._is_stranger, waits):
            self._free(peer)

    def post(self, peer: int, begin: Callable[[], Work]) -> Work:
        """Begin a message to or from a member, which must not wait for anything once they are connected."""
        if peer in self.met:
            return begin()
        with self._lock:
            if peer not in self.met:
                later = Later(begin, lambda: self._free_if_gone(peer))
                pending = self._pending.get(peer)
                if pending is not None:
                    pending.append(later)
                    return later
                self._pending[peer] = deque([later])
                thread = threading.Thread(
                    target=self._meet, args=(peer,), name="parallel_topology contact", daemon=True
                )
                self._meeting.add(thread)
                thread.start()
                return later
        return begin()

    def connects(self, peer: int) -> bool:
        """Whether it is this member of the two that connects, and so waits for nobody but the system in doing it."""
        return torch_private.gloo_initiates(self.mine[0], self._theirs[peer])

    def _meet(self, peer: int) -> None:
        pending = self._pending[peer]
        connected = True
        while True:
            connected = pending[0].run() and connected  # the first one returns when there is a connection
            with self._lock:
                pending.popleft()
                if pending:  # begun meanwhile
                    continue
                del self._pending[peer]
                if connected:
                    self.met.add(peer)
                self._meeting.discard(threading.current_thread())
                return

    def wait_until_gone(self, seconds: float) -> None:
        """Once it has ended: wait until no thread is in gloo any more, where an interpreter that ends would abort."""
        end = time.monotonic() + seconds
        for thread in tuple(self._meeting):
            thread.join(max(end - time.monotonic(), 0))

    def _free_if_gone(self, peer: int) -> None:
        if self.gone([peer]):
            self._free(peer)

    def gone(self, peers: Iterable[int] | None = None) -> list[int]:
        """Which members, of those that no message went to or came from, do not listen any more: they have ended."""
        unmet = [peer for peer in (range(self._size) if peers is None else peers) if self._is_stranger(peer)]
        refused: list[int] = []
        for start in range(0, len(unmet), _AT_ONCE):
            refused += refusing({peer: self._theirs[peer] for peer in unmet[start : start + _AT_ONCE]})
        return refused

    def _is_stranger(self, peer: int) -> bool:
        return peer in self._theirs and peer not in self.met

    def end(self, *, waited_for: bool = True) -> None:
        """From now on nobody waits for a connection in this group, and nobody makes one.

        Args:
            waited_for: somebody besides messages may be waiting for a connection: any of them. Not where gloo has given
                that up: it ends the process if one comes then (torch 2.13: `ex_ == nullptr`).
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
            pending = set(self._pending)
        with self._telling:
            self._lead_nowhere(position for position in range(self._size) if position != self._rank)
        for peer in filter(self._is_stranger, range(self._size) if waited_for else pending):
            self._free(peer)

    def _lead_nowhere(self, positions: Iterable[int]) -> None:
        nowhere = list(enumerate(map(torch_private.gloo_nowhere, self._told)))
        told = {self._key(index, position): told for position in positions for index, told in nowhere}
        torch_private.multi_set(self._store, told)

    def _free(self, peer: int) -> None:
        """Give who waits for this member to connect a connection, which has ended."""
        for address in self.mine:
            with suppress(OSError), socket.create_connection(address, timeout=_WITHIN) as connection:
                connection.sendall(torch_private.gloo_greeting(peer))

    @staticmethod
    def _key(index: int, position: int) -> str:
        return f"{index}/{position}"


def open_gloo(devices: Sequence[Any], rank: int, size: int, timeout: timedelta) -> tuple[Any, Contacts]:
    """A gloo backend that waits for nobody: its members are to be introduced to each other, before they use it or
    meanwhile.

    Args:
        devices: for this group alone.
        rank: this member's position.
        timeout: how long it waits for one to be introduced, and, five times as long, for its connection.
    """
    store = dist.HashStore()
    backend = torch_private.gloo_backend(store, rank, size, timeout, *devices)
    return backend, Contacts(store, len(devices), rank, size, timeout)


class Later:
    """Work that begins when there is a connection."""

    __slots__ = ("_begin", "_begun", "_error", "_look", "_work")

    def __init__(self, begin: Callable[[], Work], look: Callable[[], object]) -> None:
        """`look` is called from time to time while somebody waits."""
        self._begin: Callable[[], Work] | None = begin
        self._look = look
        self._begun = threading.Event()
        self._work: Work | None = None
        self._error = ""

    def run(self) -> bool:
        """Begin; whether that went well."""
        begin, self._begin = self._begin, None
        try:
            self._work = begin() if begin is not None else None
        except Exception as error:  # told to whoever waits; its traceback would hold the group
            self._error = str(error) or type(error).__name__
        self._begun.set()
        return not self._error

    def wait(self, timeout: timedelta | None = None) -> object:
        end = None if timeout is None else time.monotonic() + timeout.total_seconds()
        looks = 1
        while not self._begun.wait(LOOK if end is None else max(min(LOOK, end - time.monotonic()), 0.0)):
            if end is not None and time.monotonic() >= end:
                raise RuntimeError("timed out waiting for a connection: the peer did not come to this group")
            looks += 1
            if looks & (looks - 1) == 0:  # more and more rarely
                self._look()
        if self._error or self._work is None:
            raise RuntimeError(self._error)
        if end is None:
            return self._work.wait()
        return self._work.wait(timedelta(seconds=max(end - time.monotonic(), 0.001)))

    def is_completed(self) -> bool:
        return self._begun.is_set() and (self._work is None or self._work.is_completed())


def words_for(addresses: Sequence[Address]) -> str:
    """Addresses as members tell each other: `127.0.0.1 4711`, one after the other."""
    return " ".join(f"{host} {port}" for host, port in addresses)


def addresses_in(said: str, known: dict[str, str] | None = None) -> list[Address]:
    """What `words_for` was given.

    Args:
        known: hosts as they were said -> as they are written; most members have one of few.

    Raises:
        ValueError, OSError: it is something else.
    """
    known = {} if known is None else known
    fields = said.split(" ")
    found: list[Address] = []
    for name, port in zip(fields[::2], map(int, fields[1::2]), strict=True):
        host = known.get(name)
        if host is None:  # `ipaddress` takes ten times as long
            family = socket.AF_INET6 if ":" in name else socket.AF_INET
            host = known[name] = socket.inet_ntop(family, socket.inet_pton(family, name))
        if not 0 < port < 2**16:
            raise ValueError(f"its port is {port!s:.40}")
        found.append((host, port))
    return found


def refusing(addresses: Mapping[int, Address]) -> list[int]:
    """At which addresses nobody listens; hosts that do not answer within a quarter of a second are not among them."""
    refused: list[int] = []
    deadline = time.monotonic() + _WITHIN
    with selectors.DefaultSelector() as selector:
        for peer, (host, port) in addresses.items():
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            probe.setblocking(False)
            code = probe.connect_ex((host, port))
            if code == errno.EINPROGRESS:
                selector.register(probe, selectors.EVENT_WRITE, peer)
                continue
            probe.close()
            refused += [peer] if code == errno.ECONNREFUSED else []
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                probe = _socket_of(key)
                refused += [key.data] if _outcome(probe) == errno.ECONNREFUSED else []
                selector.unregister(probe)
                probe.close()
        for key in list(selector.get_map().values()):
            _socket_of(key).close()
    return refused


def _socket_of(key: selectors.SelectorKey) -> socket.socket:
    return cast("socket.socket", key.fileobj)  # what was registered


def _outcome(probe: socket.socket) -> int:
    return probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _shown(addresses: Collection[Address]) -> str:
    return ", ".join(host for host, _ in addresses) or "no address"
