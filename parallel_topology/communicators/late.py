"""Late: a gloo group within a host that is made when it is first needed.

Each gloo group has a listening socket, and a thread that wakes a hundred times a second, whether it is used or not, and
two more that do not (torch 2.8, 2.14). Within a host memory carries what is small, so most groups never need one. Who
does tells the others, in that memory, where it listens; a thread tells gloo what the others say. What is called
meanwhile waits inside gloo, and so do messages, each on its own.
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

_log = logging.getLogger("parallel_topology")
LOOK = 0.25
"""Seconds after which a member that told nothing is looked for: it may have died."""
_SOON = 0.05
"""Seconds that the end waits for the thread, which ends at once."""


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
        self._make: Callable[[], Gloo] | None = make
        self._made: Callable[[Gloo], object] | None = made
        self._memory = memory
        self._family = family
        self._ranks = ranks
        self._rank = rank
        self._lock = threading.Lock()
        self._gloo: Gloo | None = None  # held as long as somebody who uses it holds this
        self._thread: threading.Thread | None = None
        self._is_cut = self._is_over = False

    def open(self) -> None:
        """Make it, unless it is made, or this is over.

        Raises:
            RuntimeError: gloo cannot.
            CreationError: where it listens cannot be told.
        """
        with self._lock:
            if self._is_over or self._gloo is not None or self._make is None or self._made is None:
                return
            gloo = self._make()
            contacts = gloo.contacts
            if contacts is not None:
                try:
                    self._memory.say(self._family, self._ranks, self._ranks[self._rank], words_for(contacts.mine))
                except ValueError as error:
                    raise CreationError(f"GLOO_SOCKET_IFNAME names too many interfaces: {error}") from None
                self._thread = threading.Thread(
                    target=self._introduce, args=(contacts,), name="parallel_topology contacts", daemon=True
                )
                self._thread.start()
                if self._is_cut:
                    contacts.end()
            self._gloo = gloo
            self._made(gloo)

    def cut(self) -> None:
        """From now on nobody waits for this member here, nor it for others."""
        if not self._is_cut:
            self._is_cut = True
            self._memory.unsay(self._family, self._ranks, self._ranks[self._rank])

    def end(self) -> bool:
        """It is not made any more; whether it never was, as is said once."""
        with self._lock:
            was_open, self._is_over = not self._is_over, True
            self._make = self._made = None
        self.cut()
        if self._thread is not None:
            self._thread.join(_SOON)
        return was_open and self._gloo is None

    def _introduce(self, contacts: Contacts) -> None:
        """Tell gloo where the others listen, as they tell it, until all did, or will not."""
        missing = {position: rank for position, rank in enumerate(self._ranks) if position != self._rank}
        mine = self._ranks[self._rank]
        heard = self._memory.listen(self._family, mine)
        while not self._is_over:
            for position, rank in list(missing.items()):
                said = self._memory.said(self._family, rank)
                if said is None and not is_gone(*self._memory.process(rank)):
                    continue
                del missing[position]
                try:
                    contacts.introduce({position: addresses_in(said or "")})
                except (CreationError, ValueError, OSError) as error:
                    contacts.give_up([position])
                    if said:
                        _log.warning("where rank %d listens is of no use to rank %d: %s", rank, mine, error)
            if not missing:
                return
            heard = self._memory.hear(self._family, mine, heard, LOOK)
