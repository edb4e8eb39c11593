"""Opening: what a rank builds when it is called; its gloo groups listen, and say where, but connect to nobody."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel_topology.communicators.connections import OPENED, Connections, made_at
from parallel_topology.communicators.contacts import Address, Contacts, open_gloo
from parallel_topology.communicators.host_memory import MOST, SLOT_BYTES, HostMemory, Offer, regions
from parallel_topology.errors import RendezvousError
from parallel_topology.meeting.addresses import gloo_devices
from parallel_topology.meeting.cards import Called
from parallel_topology.meeting.options import Options
from parallel_topology.topology.plan import Plan


@dataclass
class Opened:
    """One gloo group.

    Attributes:
        backend: torch's.
        contacts: how its members come to connections.
        connections: its sockets.
    """

    backend: Any
    contacts: Contacts
    connections: Connections


class Opening:
    """Of one rank, for one manager.

    Attributes:
        offer: memory that this rank offers to those on its host.
        memory: what they share; None where this rank is alone, or they use none.
        hosts: each rank's host, numbered; known when it was called.
        sharing: ranks that share memory with all others on their hosts; known in the end.
    """

    def __init__(self, plan: Plan, rank: int, store: dist.Store, options: Options, *, gloo: bool) -> None:
        """`store`: from whose host the others are reached. `gloo`: whether its groups are opened, too."""
        self.offer = Offer()
        self.memory: HostMemory | None = None
        self.hosts: Mapping[int, int] = {}
        self.sharing: frozenset[int] = frozenset()
        self._plan = plan
        self._rank = rank
        self._store = store
        self._options = options
        self._gloo = gloo
        self._others: list[str] = []
        self._opened: dict[str, Opened] = {}
        self._told: dict[int, dict[str, list[Address]]] = {}
        self._lock = threading.Lock()
        self._over = False

    def build(self, called: Called, address: str = "") -> str:
        """Build all; what the others are to know of it. Called again, it keeps what still holds.

        Args:
            address: from which this rank reaches the store's host, if that is known.

        Raises:
            BackendError: GLOO_SOCKET_IFNAME names interfaces that are not there.
        """
        host, self.hosts = called.hosts[self._rank], called.hosts
        others = [address for other, address in enumerate(called.addresses) if other != host and address]
        if self._gloo and (not self._opened or others != self._others):
            self._others = others
            self._drop()
            self._open(address)
        self.memory = self._share(called, host)
        has_memory = self.memory is not None and self.memory.is_mapped
        return said_of(has_memory, [opened.contacts.mine for opened in self._opened.values()])

    def _open(self, address: str) -> None:
        devices = gloo_devices(self._store, self._others, address)
        # gloo waits for a connection five times as long as it is told now, also if that is set to something else later.
        timeout = timedelta(seconds=max(map(self._options.operations_wait, self._plan.families)))
        groups = self._plan.of_rank(self._rank)
        made, descriptors = made_at(lambda: [devices() for _ in groups], len(groups))
        for (family, ranks), own in zip(groups, made, strict=True):
            backend, contacts = open_gloo(own, ranks.index(self._rank), len(ranks), timeout)
            opened = Opened(backend, contacts, Connections(tuple(contacts.mine), tuple(descriptors)))
            descriptors = descriptors[OPENED * len(own) :] + descriptors[: OPENED * len(own)]  # the next one's first
            with self._lock:
                self._opened[family] = opened
        if self._over:  # nobody waits for these any more
            self._drop()

    def _share(self, called: Called, host: int) -> HostMemory | None:
        here = [rank for rank in self._plan.topology.world if called.hosts[rank] == host]
        families = {
            family.name: (
                min(family.size, len(here)),
                min(self._options.of(family.name).shared_memory_bytes, SLOT_BYTES),
            )
            for family in self._plan.families.values()
            if family.creates
            and len(here) > 1
            and min(family.size, len(here)) <= MOST
            and self._options.of(family.name).shares_memory
        }
        if not families or not called.memories[host]:
            return None
        return HostMemory(here, self._rank, regions(families), self.offer, called.memories[host])

    def conclude(self, built: Mapping[int, str]) -> None:
        """All have built; `built` is what each said of it.

        Raises:
            RendezvousError: what a rank said cannot be read.
        """
        families, lacking = list(self._opened), set[int]()
        known: dict[str, str] = {}
        for rank, text in built.items():
            has_memory, listening = read_said(rank, text, len(families), known)
            self._told[rank] = dict(zip(families, listening, strict=True))
            if not has_memory:
                lacking.add(self.hosts[rank])
        self.sharing = frozenset(rank for rank, host in self.hosts.items() if host not in lacking)
        if self.memory is None:
            self.offer.close()
        else:
            self.memory.settle(shared=self._rank in self.sharing)

    def known(self) -> Collection[int]:
        """Those of this rank's host, where all have said that they share its memory."""
        return self.memory.ranks if self.memory is not None and self.memory.is_shared else ()

    def take(self, family: str, ranks: Sequence[int]) -> Opened:
        """One of the groups, which is the caller's from now on; gloo knows where its members `ranks` are.

        Raises:
            CreationError: a rank listens at addresses of another kind.
        """
        with self._lock:
            opened = self._opened.pop(family)
        opened.contacts.introduce([self._told[rank][family] for rank in ranks])
        return opened

    def address_of(self, rank: int) -> Address | None:
        """Where a rank listens for one of its groups; nothing where it does not."""
        return next((at[0] for at in self._told.get(rank, {}).values() if at), None)

    def end(self) -> None:
        """End what nobody took."""
        self.offer.close()
        with self._lock:
            self._over = True
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            left, self._opened = list(self._opened.values()), {}
        for opened in left:
            opened.contacts.end()


def said_of(has_memory: bool, listening: Sequence[Sequence[Address]]) -> str:
    """What a rank says of what it has built: whether it shares its host's memory, and for each group where it listens,
    on each device. `1|127.0.0.1 4711|127.0.0.1 4712`: every rank reads those of all, so it is short."""
    return "|".join([str(int(has_memory)), *(" ".join(f"{host} {port}" for host, port in at) for at in listening)])


def read_said(rank: int, said: str, groups: int, known: dict[str, str]) -> tuple[bool, list[list[Address]]]:
    """What `said_of` says of so many groups.

    Args:
        known: hosts as they were said -> as they are written; most ranks have one of few.

    Raises:
        RendezvousError: it cannot be read.
    """
    try:
        has_memory, *listening = said.split("|")
        if len(listening) != groups:
            raise ValueError(f"it names {len(listening)} groups, expected {groups}")
        return has_memory == "1", [_addresses(one, known) for one in listening]
    except (ValueError, OSError) as error:
        raise RendezvousError(f"where rank {rank} listens cannot be read: {error!s:.200}") from None


def _addresses(said: str, known: dict[str, str]) -> list[Address]:
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
