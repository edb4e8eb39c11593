"""Opening: what a rank builds when it is called; its gloo groups listen, and say where, but connect to nobody.

Groups within a host, whose members share memory, are not even made: `communicators.late` does so when they are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel_topology.communicators.connections import OPENED, Connections, made_at
from parallel_topology.communicators.contacts import Address, Contacts, addresses_in, open_gloo, words_for
from parallel_topology.communicators.host_memory import MOST, SLOT_BYTES, HostMemory, Offer, regions
from parallel_topology.errors import CreationError, RendezvousError
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
        self._devices: Callable[[], list[Any]] | None = None
        self._sizes: dict[str, tuple[int, int]] = {}
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
        near = self._near(called)
        if self._gloo and (self._devices is None or others != self._others or near != self._sizes):
            self._others, self._sizes = others, near
            self._drop()
            self._devices = gloo_devices(self._store, others, address)
            far = [group for group in self._plan.of_rank(self._rank) if not self._is_near(*group)]
            self._opened = self._listening(far)
            if self._over:  # nobody waits for these any more
                self._drop()
        here = [rank for rank in self._plan.topology.world if self.hosts[rank] == host]
        if near:
            self.memory = HostMemory(here, self._rank, regions(near), self.offer, called.memories[host])
        has_memory = self.memory is not None and self.memory.is_mapped
        return said_of(has_memory, [self._listens_at(family) for family in self._families])

    @property
    def _families(self) -> list[str]:
        """Those of this rank's groups, where gloo's are opened."""
        return [family for family, _ in self._plan.of_rank(self._rank)] if self._gloo else []

    def _listens_at(self, family: str) -> Sequence[Address]:
        return self._opened[family].contacts.mine if family in self._opened else ()

    def open(self, family: str, ranks: Sequence[int]) -> Opened:
        """One of the groups, opened now.

        Raises:
            BackendError, RuntimeError: it cannot be.
        """
        return self._listening([(family, ranks)])[family]

    def _listening(self, groups: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Opened]:
        devices = self._devices
        if devices is None:
            raise RuntimeError("its manager was closed")
        # gloo waits for a connection five times as long as it is told now, also if that is set to something else later.
        # Where it gives that up, and the peer then comes, it ends the process: it must be the last to do so.
        timeout = timedelta(seconds=max(map(self._options.operations_wait, self._plan.families)))
        made, descriptors = made_at(lambda: [devices() for _ in groups], len(groups))
        opened: dict[str, Opened] = {}
        for (family, ranks), own in zip(groups, made, strict=True):
            backend, contacts = open_gloo(own, ranks.index(self._rank), len(ranks), timeout)
            opened[family] = Opened(backend, contacts, Connections(tuple(contacts.mine), tuple(descriptors)))
            descriptors = descriptors[OPENED * len(own) :] + descriptors[: OPENED * len(own)]  # the next one's first
        return opened

    def _near(self, called: Called) -> dict[str, tuple[int, int]]:
        """What groups get of the memory that ranks on this host share: as of `regions`; the same on all of them."""
        host = called.hosts[self._rank]
        here = sum(other == host for other in called.hosts.values())
        if here < 2 or not called.memories[host]:
            return {}
        return {
            family.name: (
                min(family.size, here),
                min(self._options.of(family.name).shared_memory_bytes, SLOT_BYTES),
            )
            for family in self._plan.families.values()
            if family.creates and min(family.size, here) <= MOST and self._options.of(family.name).shares_memory
        }

    def _is_near(self, family: str, ranks: Sequence[int]) -> bool:
        """Whether its members, all on this host, are to tell each other in memory where they listen, if they do."""
        return family in self._sizes and len({self.hosts[rank] for rank in ranks}) == 1

    def conclude(self, built: Mapping[int, str]) -> None:
        """All have built; `built` is what each said of it.

        Raises:
            RendezvousError: what a rank said cannot be read.
        """
        families, lacking = self._families, set[int]()
        known: dict[str, str] = {}
        read: dict[str, tuple[bool, dict[str, list[Address]]]] = {}  # ranks that listen nowhere say the same
        for rank, text in built.items():
            if text not in read:
                has_memory, listening = read_said(rank, text, len(families), known)
                read[text] = has_memory, dict(zip(families, listening, strict=True))
            has_memory, self._told[rank] = read[text]
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

    def is_late(self, family: str, ranks: Sequence[int]) -> bool:
        """Whether a group is made when it is first needed; the same on all members."""
        return self._is_near(family, ranks) and set(ranks) <= set(self.known())

    def take(self, family: str, ranks: Sequence[int], exchange: Callable[[str], Sequence[str]]) -> Opened:
        """One of the groups, which is the caller's from now on; gloo knows where its members `ranks` are.

        Args:
            exchange: tells the members a text, and returns theirs, by position: for where a host's ranks were to share
                memory, but cannot.

        Raises:
            CreationError: a rank listens at addresses of another kind, or says none.
        """
        if self._is_near(family, ranks):
            opened = self.open(family, ranks)
            try:
                told = list(map(addresses_in, exchange(words_for(opened.contacts.mine))))
            except (ValueError, OSError) as error:
                raise CreationError(f"where a member of {family} listens cannot be read: {error!s:.200}") from None
        else:
            with self._lock:
                opened = self._opened.pop(family)
            told = [self._told[rank][family] for rank in ranks]
        opened.contacts.introduce(dict(enumerate(told)))
        return opened

    def address_of(self, rank: int) -> Address | None:
        """Where a rank listens for one of its groups; nothing where it does not."""
        return next((at[0] for at in self._told.get(rank, {}).values() if at), None)

    def end(self) -> None:
        """End what nobody took."""
        self.offer.close()
        with self._lock:
            self._over = True
        self._devices = None
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            left, self._opened = list(self._opened.values()), {}
        for opened in left:
            opened.contacts.end()


def said_of(has_memory: bool, listening: Sequence[Sequence[Address]]) -> str:
    """What a rank says of what it has built: whether it shares its host's memory, and for each group where it listens,
    on each device, if it does. `1|127.0.0.1 4711|127.0.0.1 4712`: every rank reads those of all, so it is short."""
    return "|".join([str(int(has_memory)), *map(words_for, listening)])


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
        return has_memory == "1", [addresses_in(one, known) if one else [] for one in listening]
    except (ValueError, OSError) as error:
        raise RendezvousError(f"where rank {rank} listens cannot be read: {error!s:.200}") from None
