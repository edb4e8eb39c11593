"""Handing: how a box of elements gets from the ranks that have it to all that need it. Plain numbers of ranks.

Own memory comes first, then a rank of the same host, then the others in turn. Where no rank of a host has the box, one
takes it across and hands it on, so that nothing crosses twice. The `turn` of a box says with whom to begin: boxes of
one pattern take turns, so that replicas share the load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from parallel_topology.errors import RankError


@dataclass(frozen=True)
class Flow:
    """Senders that serve parties of receivers in turn: the first of a party receives, and hands on to the others.

    Attributes:
        senders: who has the box.
        parties: receivers; each of a party could hand on to the others.
    """

    senders: tuple[int, ...]
    parties: tuple[tuple[int, ...], ...]

    def sender(self, party: int, turn: int) -> int:
        return self.senders[(turn * len(self.parties) + party) % len(self.senders)]

    def leader(self, party: int, turn: int) -> int:
        members = self.parties[party]
        return members[turn % len(members)]

    def served_by(self, place: int, turn: int) -> range:
        """The parties that the sender at a place serves."""
        first = (place - turn * len(self.parties)) % len(self.senders)
        return range(first, len(self.parties), len(self.senders))


class Handing:
    """Who gives one box to whom.

    Attributes:
        having, needing: ranks.
        own: those that are both.
        flows: one across hosts, and one inside each host where somebody has it.
    """

    def __init__(self, having: Iterable[int], needing: Iterable[int], host_of: Callable[[int], int] | None) -> None:
        self.having, self.needing = have, need = tuple(having), tuple(needing)
        known = set(have)
        self.own = tuple(rank for rank in need if rank in known)
        lacking = [rank for rank in need if rank not in known]
        self.flows = _flows(have, lacking, host_of) if lacking else ()

    @property
    def moved(self) -> int:
        """How often the box goes from one rank to another."""
        return sum(len(party) for flow in self.flows for party in flow.parties)

    def source_of(self, rank: int, turn: int) -> tuple[int, int]:
        """(from whom a rank gets it, how many hands it has gone through before): itself, if it has it."""
        place = self._receivers.get(rank)
        if place is None:
            if rank in self.own:
                return rank, 0
            raise RankError(f"rank {rank} does not need this")
        flow, party = place
        leader = flow.leader(party, turn)
        return (flow.sender(party, turn), 0) if rank == leader else (leader, 1)

    def given_by(self, rank: int, turn: int) -> Iterator[tuple[int, int]]:
        """(to whom a rank gives it that has it, 0)."""
        for flow, place in self._senders.get(rank, ()):
            for party in flow.served_by(place, turn):
                yield flow.leader(party, turn), 0

    def handed_on_by(self, rank: int, turn: int) -> Iterator[tuple[int, int]]:
        """(to whom a rank gives it that has just received it, 1)."""
        place = self._receivers.get(rank)
        if place is not None and place[0].leader(place[1], turn) == rank:
            yield from ((other, 1) for other in place[0].parties[place[1]] if other != rank)

    @cached_property
    def _receivers(self) -> dict[int, tuple[Flow, int]]:
        return {
            rank: (flow, number) for flow in self.flows for number, party in enumerate(flow.parties) for rank in party
        }

    @cached_property
    def _senders(self) -> dict[int, list[tuple[Flow, int]]]:
        found: dict[int, list[tuple[Flow, int]]] = {}
        for flow in self.flows:
            for place, rank in enumerate(flow.senders):
                found.setdefault(rank, []).append((flow, place))
        return found


def _flows(have: tuple[int, ...], lacking: list[int], host_of: Callable[[int], int] | None) -> tuple[Flow, ...]:
    if host_of is None:
        return (Flow(have, tuple((rank,) for rank in lacking)),)
    having: dict[int, list[int]] = {}
    for rank in have:
        having.setdefault(host_of(rank), []).append(rank)
    parties: dict[int, list[int]] = {}
    for rank in lacking:
        parties.setdefault(host_of(rank), []).append(rank)
    inside = [
        Flow(tuple(having[host]), tuple((rank,) for rank in party)) for host, party in parties.items() if host in having
    ]
    across = tuple(tuple(party) for host, party in parties.items() if host not in having)
    return (*inside, Flow(have, across)) if across else tuple(inside)
