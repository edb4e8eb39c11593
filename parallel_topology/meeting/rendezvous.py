"""Where the ranks meet: opening the store that an address or a launcher names."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.errors import RendezvousError
from parallel_topology.launch import LaunchInfo
from parallel_topology.meeting.addresses import listener, plain_host, reach_of
from parallel_topology.meeting.deadline import Deadline, Overtaken, overtake
from parallel_topology.meeting.hosted import Hosted
from parallel_topology.torch_errors import first_line

T = TypeVar("T")
_job_stores: dict[tuple[str, int], Hosted] = {}
"""The job's stores that this process hosts, until it ends: a launcher names one port, and a process can listen on it
once, for however many managers, one after the other or side by side."""
_hosting = threading.Lock()


def open_store(url: str, is_host: bool, timeout: float | Deadline) -> dist.Store:
    """The store at `tcp://host:port` (hosted here if `is_host`) or `file:///path`.

    Raises:
        RendezvousError: the address cannot be read, hosted or reached within `timeout` seconds.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that do not close; a port that is not a number, or above 65535
        parts, host, port = None, None, None
    if parts and parts.scheme == "file" and parts.path and not parts.netloc:
        return _file_store(parts.path)
    if parts is None or parts.scheme != "tcp" or not host or not port:
        hint = "; an IPv6 address stands in brackets, 'tcp://[::1]:29500'" if url.count(":") > 2 else ""
        raise RendezvousError(f"cannot read the address {url!r}: expected 'tcp://host:port' or 'file:///path'{hint}")
    return host_store(host, port, timeout) if is_host else join_store(host, port, timeout)


def _file_store(path: str) -> dist.FileStore:
    """torch's, of a file that is there: it waits for a folder that is not, for five minutes, whatever its timeout."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise RendezvousError(
            f"cannot open the file {path!r}: {getattr(error, 'strerror', None) or error}; expected one that every rank "
            "can read and write, in a folder that is there"
        ) from error
    return dist.FileStore(path, -1)


class At:
    """A meeting place: opens the store at an address when it is asked to.

    Attributes:
        hosted: the store's server, once this process runs it.
    """

    def __init__(self, url: str, is_host: bool) -> None:
        self.hosted: Hosted | None = None
        self._url = url
        self._is_host = is_host

    def __call__(self, deadline: Deadline) -> dist.Store:
        """Raises: RendezvousError: as `open_store`."""
        store = open_store(self._url, self._is_host, deadline)
        if not self._is_host or not isinstance(store, dist.TCPStore):
            return store
        self.hosted = Hosted(store)
        return torch_private.clone_store(store)


def host_store(host: str, port: int, timeout: float | Deadline) -> dist.TCPStore:
    """Run a store that listens as narrowly as `listener` finds; left to itself, torch's listens on every interface."""
    return _host(plain_host(host), port, _deadline(timeout), named=True)


def join_store(host: str, port: int, timeout: float | Deadline) -> dist.TCPStore:
    """Connect to a store that another process runs, waiting up to `timeout` seconds for it to appear."""
    host, deadline = plain_host(host), _deadline(timeout)

    def join() -> dist.TCPStore:
        return dist.TCPStore(host, port, timeout=deadline.timedelta(), wait_for_workers=False, is_master=False)

    hint = "; has the process started that hosts it, the first rank's or the launcher's, and is this where it is?"
    return _opened(join, f"cannot reach the store at {host}:{port}", deadline, hint)


def launched_store(info: LaunchInfo, timeout: float | Deadline, *, joining: bool = False) -> dist.Store:
    """A client of the store of a launcher's job, under a prefix of ours.

    Args:
        joining: others are there already, so it is hosted elsewhere.

    Raises:
        LaunchError: the launcher did not say where the ranks meet.
        RendezvousError: the store cannot be hosted or reached.
    """
    address, port = info.meeting_place()
    address, deadline = plain_host(address), _deadline(timeout)
    if (
        joining or info.store_is_hosted or info.rank != 0
    ):  # torchrun's agent hosts it; it keeps it when it restarts its workers
        return dist.PrefixStore("parallel_topology", join_store(address, port, deadline))
    if not _hosting.acquire(timeout=min(deadline.left(), threading.TIMEOUT_MAX)):
        raise RendezvousError(f"cannot host the store at {address}:{port} within {deadline.seconds:g} s")
    try:
        hosted = _job_stores.get((address, port))
        store = hosted.server if hosted is not None else torch_private.default_store_at(port)
        if store is None:
            alone = info.local_size == info.world_size
            store = _host(address, port, deadline, named=False, alone=alone)
            _job_stores[address, port] = Hosted(store)
    finally:
        _hosting.release()
    client = _opened(lambda: torch_private.clone_store(store), f"cannot reach the store at {address}:{port}", deadline)
    return dist.PrefixStore("parallel_topology", client)


def _host(host: str, port: int, deadline: Deadline, *, named: bool, alone: bool = False) -> dist.TCPStore:
    def host_it() -> dist.TCPStore:
        with listener(host, port, named=named, alone=alone) as found:
            reach = reach_of(host, port)
            number = found.getsockname()[1]
            # Shared with a default group that this process makes at the same address later on (`multi_tenant`).
            return dist.TCPStore(
                reach, number, timeout=deadline.timedelta(), wait_for_workers=False, is_master=True,
                multi_tenant=not named, master_listen_fd=found.detach(),
            )  # fmt: skip

    return _opened(host_it, f"cannot host the store at {host}:{port}", deadline)


def _opened(make: Callable[[], T], what: str, deadline: Deadline, hint: str = "") -> T:
    try:
        return overtake(make, deadline, grace=0.2)
    except RendezvousError:
        raise
    except Overtaken:
        raise RendezvousError(f"{what} within {deadline.seconds:g} s{hint}") from None
    except RuntimeError as error:
        raise RendezvousError(f"{what} within {deadline.seconds:g} s: {first_line(error)}{hint}") from error


def _deadline(timeout: float | Deadline) -> Deadline:
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout)
