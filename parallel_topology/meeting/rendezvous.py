"""Where the ranks meet: opening the store that an address or a launcher names, and the network the groups then use."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.errors import RendezvousError
from parallel_topology.launch import LaunchInfo
from parallel_topology.meeting.starts import Start
from parallel_topology.topology.layout import Ranks

_job_stores: dict[tuple[str, int], dist.TCPStore] = {}
"""The job's stores that this process hosts, until it ends: a launcher names one port, and a process can listen on it
once, for however many managers, one after the other or side by side. What ranks left in it does no harm: they meet in
rounds."""


def open_store(url: str, *, is_host: bool, timeout: float) -> dist.Store:
    """The store at `tcp://host:port` (hosted here if `is_host`) or `file:///path`.

    Raises:
        RendezvousError: the address cannot be read, hosted or reached within `timeout` seconds.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return dist.FileStore(parts.path, -1)
    try:
        port = parts.port
    except ValueError:  # not a number, or above 65535
        port = None
    if parts.scheme != "tcp" or not parts.hostname or not port:
        raise RendezvousError(f"cannot read the address {url!r}: expected 'tcp://host:port' or 'file:///path'")
    return host_store(parts.hostname, port, timeout) if is_host else join_store(parts.hostname, port, timeout)


def host_store(host: str, port: int, timeout: float) -> dist.TCPStore:
    """Run a store that listens on `host` alone; left to itself, torch's listens on every interface."""
    try:
        listener = socket.create_server((host, port), family=_family(host, port), backlog=1024)
    except OSError as error:
        raise RendezvousError(f"cannot host the store at {host}:{port}: {error.strerror or error}") from error
    return _tcp_store(host, listener.getsockname()[1], timeout, is_master=True, master_listen_fd=listener.detach())


def join_store(host: str, port: int, timeout: float) -> dist.TCPStore:
    """Connect to a store that another process runs, waiting up to `timeout` seconds for it to appear."""
    return _tcp_store(host, port, timeout, is_master=False)


def launched_store(info: LaunchInfo, world: Ranks, timeout: float) -> dist.Store:
    """The store of a launcher's job, with keys of this start's own.

    Raises:
        LaunchError: the launcher did not say where the ranks meet.
        RendezvousError: the store cannot be hosted or reached.
        GroupTimeoutError: a launcher hosts the store, and not all of `world` came.
    """
    address, port = info.meeting_place()
    if info.store_is_hosted:  # by torchrun's agent, which restarts its workers and keeps the store
        store = join_store(address, port, timeout)
        return Start(dist.PrefixStore("parallel_topology", store), world, info.rank, timeout).keys()
    if info.rank != 0:
        return dist.PrefixStore("parallel_topology", join_store(address, port, timeout))
    if (address, port) not in _job_stores:
        _job_stores[address, port] = host_store(address, port, timeout)
    return dist.PrefixStore("parallel_topology", _job_stores[address, port])


def gloo_device(store: dist.Store) -> Any:
    """The network device for gloo: GLOO_SOCKET_IFNAME, else the address from which the store's host is reached."""
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        return torch_private.gloo_device(interface=interface)
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):
        with socket.socket(_family(store.host, store.port), socket.SOCK_DGRAM) as probe:
            probe.connect((store.host, store.port))  # sends nothing: it only asks the kernel for a route
            return torch_private.gloo_device(hostname=probe.getsockname()[0])
    if isinstance(store, dist.HashStore):  # lives in this process, and so do all ranks
        return torch_private.gloo_device(hostname="127.0.0.1")
    return torch_private.gloo_device()


def _tcp_store(host: str, port: int, timeout: float, **options: Any) -> dist.TCPStore:
    try:
        return dist.TCPStore(host, port, timeout=timedelta(seconds=timeout), wait_for_workers=False, **options)
    except RuntimeError as error:
        doing = "host" if options["is_master"] else "reach"
        first_line = str(error).splitlines()[0]
        raise RendezvousError(
            f"cannot {doing} the store at {host}:{port} within {timeout:g} s: {first_line}"
        ) from error


def _family(host: str, port: int) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise RendezvousError(f"cannot resolve the host {host!r}: {error.strerror or error}") from error
