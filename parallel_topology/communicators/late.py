"""Late: a gloo group within a host that is made when a member first needs it.

Each gloo group has a listening socket, and a thread that wakes a hundred times a second, whether it is used or not, and
two more that do not (torch 2.8, 2.14). Within a host memory carries what is small, so most groups never need one. Who
does says in that memory where it listens, and rings for the others, whose doorkeepers make theirs, wherever their
program is: gloo waits for an address with a lock held that all its messages need.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from parallel_topology.communicators.connections import Connections
from parallel_topology.communicators.contacts import Contacts, addresses_in, words_for
from parallel_topology.communicators.host_memory import HostMemory
from parallel_topology.communicators.presence import is_gone
from parallel_topology.errors import CreationError
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import first_line

_log = logging.getLogger("parallel_topology")
ANSWER = 0.1
"""Seconds that who makes a group waits for the others to say where they listen; then gloo has to."""


@dataclass(frozen=True)
class Gloo:
    """One member's part of a gloo group.

    Attributes:
        group: torch's.
        contacts: how its members come to connections; None where all are connected from the beginning.
        connections: its sockets; None where they cannot be found.
    """

    group: dist.ProcessGroup
    contacts: Contacts | None
    connections: Connections | None


class Late:
    """One member's part of a group that may be made."""

    def __init__(
        self, make: Callable[[], Gloo], made: Callable[[Gloo], object], memory: HostMemory, family: str,
        ranks: Sequence[int], rank: int,
    ) -> None:  # fmt: skip
        """`made` is told what `make` made. `memory` is what the members `ranks` share, `rank` this one's position."""
        self._make: Callable[[], Gloo] | None = make  # None once it is over
        self._made: Callable[[Gloo], object] | None = made
        self._memory = memory
        self._family = family
        self._rank = ranks[rank]
        self._others = {other: position for position, other in enumerate(ranks) if position != rank}
        self._missing = set(self._others)  # of whom nothing is known yet
        self._there = set[int]()  # who were introduced, and have not ended
        self._lock = threading.Lock()
        self._gloo: Gloo | None = None  # held as long as somebody who uses it holds this
        self._answered = threading.Event()
        self._is_cut = False

    def open(self) -> None:
        """Make it, unless it is made, or this is over.

        Raises:
            CreationError: gloo cannot, or where it listens cannot be told.
        """
        with self._lock:
            is_first = self._open()
        if is_first:
            self._answered.wait(ANSWER)

    def attend(self) -> bool:
        """Make it if another member has; tell gloo where members listen, and who has ended. Whether some have not said
        anything yet, and are to be looked for."""
        with self._lock:
            if self._gloo is None and any(self._memory.said(self._family, other) for other in self._others):
                self._open()
            contacts = self._gloo.contacts if self._gloo is not None and self._make is not None else None
        if contacts is None:
            return False
        over = {rank for rank in self._there if self._memory.said(self._family, rank) == ""}
        self._there -= over
        for rank in sorted(self._missing):
            said = self._memory.said(self._family, rank)
            if said:
                self._introduce(contacts, rank, said)
            elif said is not None or is_gone(*self._memory.process(rank)):
                self._missing.discard(rank)
                over.add(rank)
        if over:
            contacts.give_up(self._others[rank] for rank in over)
        if not self._missing:
            self._answered.set()
        return bool(self._missing)

    def cut(self) -> None:
        """From now on nobody waits for this member here, nor it for others."""
        if not self._is_cut:
            self._is_cut = True
            self._memory.unsay(self._family, self._rank)
            self._memory.ring(other for other in self._others if self._memory.said(self._family, other))

    def end(self) -> bool:
        """It is not made any more; whether it never was, as is said once."""
        with self._lock:
            was_open = self._make is not None
            self._make = self._made = None
        self.cut()
        self._answered.set()
        return was_open and self._gloo is None

    def _open(self) -> bool:
        """Whether it was made now."""
        if self._gloo is not None or self._make is None or self._made is None:
            return False
        try:
            gloo = self._make()
        except RuntimeError as error:
            who = [self._rank, *self._others]
            raise CreationError(
                f"gloo cannot make the group of {shown_ranks(sorted(who))}: {first_line(error)}"
            ) from error
        contacts = gloo.contacts
        if contacts is not None:
            try:
                self._memory.say(self._family, self._rank, words_for(contacts.mine))
            except ValueError as error:
                raise CreationError(f"GLOO_SOCKET_IFNAME names too many interfaces: {error}") from None
            if self._is_cut:
                contacts.end()
        self._gloo = gloo
        self._made(gloo)
        self._memory.ring([*self._others, self._rank])
        return True

    def _introduce(self, contacts: Contacts, rank: int, said: str) -> None:
        self._missing.discard(rank)
        try:
            contacts.introduce({self._others[rank]: addresses_in(said)})
            self._there.add(rank)
        except (CreationError, ValueError, OSError) as error:
            contacts.give_up([self._others[rank]])
            _log.warning("where rank %d listens is of no use here: %s", rank, error)
