"""Addresses: where a store that is hosted here listens, and on which addresses gloo's connections of this rank are."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EADDRINUSE
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.errors import BackendError, RendezvousError

LOOPBACK = "127.0.0.1"
_SO_BINDTODEVICE = 25  # of Linux; `socket` names it since Python 3.14


def plain_host(host: str) -> str:
    """A host without the brackets that an IPv6 address has beside a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def listener(host: str, port: int, *, named: bool, alone: bool = False) -> socket.socket:
    """A socket on which a store listens, as narrow as what `host` means on other ranks allows.

    An address listens on that address. A name, or an address that a launcher gives (not `named`), may mean another
    interface on each rank: where here it means loopback, as `localhost` does, or all ranks are on this host, the socket
    takes whatever comes from this host, and nothing from outside. A name that means loopback only here (Debian's
    127.0.1.1), or an address that is not this host's (a service's, behind NAT), takes all interfaces.

    Args:
        named: somebody gave this very address to listen on.
        alone: all ranks are on this host.

    Raises:
        RendezvousError: the host is unknown, or the port is taken.
    """
    addresses = _resolved(host, port)
    literal = _literal(host) is not None
    loopback = all(address.is_loopback for address in addresses)
    try:
        if literal and _is_here(addresses[0]) and (named or not loopback):
            return _bound(str(addresses[0]), port)
        if loopback and (literal or alone or host == "localhost" or host.endswith(".localhost")):
            return _bound_to_this_host(str(addresses[0]), port)
        return _bound("", port)
    except OSError as error:
        hint = "; choose another port, or let the program end that listens there" if error.errno == EADDRINUSE else ""
        raise RendezvousError(f"cannot host the store at {host}:{port}: {error.strerror or error}{hint}") from error


def reach_of(host: str, port: int) -> str:
    """How the process that hosts a store reaches it: by `host`, or from inside if that leads somewhere else first."""
    return host if any(_is_here(address) for address in _resolved(host, port)) else LOOPBACK


def address_towards(store: dist.Store) -> str:
    """The address of this host from which the store's host is reached; empty where a store has no address."""
    base = torch_private.base_store(store)
    return _source(base.host, base.port) if isinstance(base, dist.TCPStore) else ""


def gloo_devices(store: dist.Store, others: Sequence[str], address: str = "") -> Callable[[], list[Any]]:
    """What makes one group's devices for gloo: on the interfaces of GLOO_SOCKET_IFNAME, else on the address from which
    the others are reached.

    Args:
        others: addresses of ranks on other hosts, as these see them.
        address: as of `address_towards`, if it was asked already.

    Raises:
        BackendError: GLOO_SOCKET_IFNAME names interfaces that are not there.
    """
    if given := os.environ.get("GLOO_SOCKET_IFNAME"):
        names = list(dict.fromkeys(_interfaces(given)))
        return lambda: [_device(name) for name in names]
    mine = _reached_from(torch_private.base_store(store), others, address)
    return lambda: [torch_private.gloo_device(hostname=mine)]


def _reached_from(store: dist.Store, others: Sequence[str], known: str) -> str:
    if isinstance(store, dist.HashStore):  # lives in this process, and so do all ranks
        return LOOPBACK
    mine = known or address_towards(store)
    outside = [one for one in others if (address := _literal(one)) is not None and not address.is_loopback]
    if outside and ip_address(mine or LOOPBACK).is_loopback:  # the store is here, and its name means loopback here
        mine = _source(outside[0], 1)
    return mine


def _device(name: str) -> Any:
    try:
        return torch_private.gloo_device(interface=name)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise BackendError(f"GLOO_SOCKET_IFNAME: gloo cannot use {name!r}: {reason}") from error


def _interfaces(given: str) -> list[str]:
    there = [name for _, name in socket.if_nameindex()]
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in there:
            raise BackendError(
                f"GLOO_SOCKET_IFNAME={given!r}: there is no interface {name!r}; this host has {', '.join(there)}"
            )
    return names


def _source(host: str, port: int) -> str:
    for family, _, _, _, where in _infos(host, port):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # sends nothing: it only asks the kernel for a route
            return str(probe.getsockname()[0])
    return ""


def _infos(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RendezvousError(
            f"cannot resolve the host {host!r}: {reason}; expected a name or an address of the first rank's host (in "
            "MASTER_ADDR, where launchers say it), known on all others"
        ) from error


def _resolved(host: str, port: int) -> list[IPv4Address | IPv6Address]:
    return [ip_address(str(info[4][0]).partition("%")[0]) for info in _infos(host, port)]


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_here(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has the address: only then can something be bound to it."""
    try:
        _bound(str(address), 0).close()
    except OSError:
        return False
    return True


def _bound(address: str, port: int, device: str = "") -> socket.socket:
    """Listens on one address, or on all (""), both versions of IP where the host has both."""
    both = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        if device:
            made.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode())
        made.bind((address, port))
        made.listen(1024)
    except BaseException:
        made.close()
        raise
    return made


def _bound_to_this_host(address: str, port: int) -> socket.socket:
    """Listens on all addresses, for connections from this host; where the system cannot do that, on the one address."""
    with suppress(PermissionError):  # Linux before 5.7 asks for rights
        if os.uname().sysname == "Linux":
            return _bound("", port, device="lo")
    return _bound(address, port)
