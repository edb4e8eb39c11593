"""Opening: a rank's gloo groups before it knows the others; each listens, and says where, but connects to nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import torch.distributed as dist

from parallel_topology.communicators.connections import Connections, likely_descriptors
from parallel_topology.communicators.contacts import Address, Contacts, open_gloo
from parallel_topology.errors import RendezvousError
from parallel_topology.meeting.addresses import gloo_devices
from parallel_topology.meeting.cards import UnreadableError, read_object
from parallel_topology.topology.plan import Plan


@dataclass
class Opened:
    """One group.

    Attributes:
        backend: torch's.
        contacts: how its members come to connections.
        connections: its sockets.
    """

    backend: Any
    contacts: Contacts
    connections: Connections


class Opening:
    """All groups of one rank, of one manager."""

    def __init__(self, plan: Plan, rank: int, store: dist.Store, timeout: timedelta) -> None:
        """`store`: from whose host the others are reached. `timeout`: of operations; gloo waits five times that for a
        connection, also if it is set to another one later."""
        self._plan = plan
        self._rank = rank
        self._store = store
        self._timeout = timeout
        self._opened: dict[str, Opened] = {}
        self._listening: dict[int, dict[str, list[Address]]] = {}
        self._lock = threading.Lock()
        self._over = False

    def build(self, others: Sequence[str]) -> str:
        """Open all groups; where each listens, as JSON.

        Args:
            others: addresses of ranks on other hosts, as these see them.

        Raises:
            BackendError: GLOO_SOCKET_IFNAME names interfaces that are not there.
        """
        devices = gloo_devices(self._store, others)
        for family, ranks in self._plan.of_rank(self._rank):
            likely = likely_descriptors()
            backend, contacts = open_gloo(devices(), ranks.index(self._rank), len(ranks), self._timeout)
            opened = Opened(backend, contacts, Connections(tuple(contacts.mine), tuple(likely)))
            with self._lock:
                if self._over:  # nobody waits for this any more
                    opened.contacts.end()
                    break
                self._opened[family] = opened
        return json.dumps({family: opened.contacts.mine for family, opened in self._opened.items()})

    def take(self, family: str, ranks: Sequence[int], built: Mapping[int, str]) -> Opened:
        """One of the groups, which is the caller's from now on; gloo knows where its members `ranks` are.

        Args:
            built: what each rank said of its groups.

        Raises:
            RendezvousError: what a rank says cannot be read.
            CreationError: it listens at addresses of another kind.
        """
        families = [name for name, _ in self._plan.of_rank(self._rank)]
        for rank in ranks:
            if rank not in self._listening:
                self._listening[rank] = listening(rank, built[rank], families)
        with self._lock:
            opened = self._opened.pop(family)
        opened.contacts.introduce([self._listening[rank][family] for rank in ranks])
        return opened

    def end(self) -> None:
        """End those that nobody took."""
        with self._lock:
            self._over = True
            left, self._opened = list(self._opened.values()), {}
        for opened in left:
            opened.contacts.end()


def listening(rank: int, built: str, families: Sequence[str]) -> dict[str, list[Address]]:
    """Where another rank's groups of these families listen, on each device.

    Raises:
        RendezvousError: what it says cannot be read.
    """
    try:
        told = read_object(built.encode(), dict.fromkeys(families, list))
        return {family: [_address(one) for one in addresses] for family, addresses in told.items()}
    except (UnreadableError, ValueError, TypeError) as error:
        raise RendezvousError(f"where rank {rank} listens cannot be read: {error}") from None


def _address(told: Any) -> Address:
    host, port = told
    if not isinstance(port, int) or not 0 < port < 2**16:
        raise ValueError(f"its port is {str(port)[:40]!r}")
    return str(ip_address(host)), port
