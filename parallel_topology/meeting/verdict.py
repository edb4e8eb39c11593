"""Verdict: what the first rank says when all have answered its call, and why each rank believes it.

Who holds the token proves it by seals over the call, which holds fresh nonces of all: none is worth anything in another
round. A verdict holds every rank's answer, so each rank checks them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_topology.errors import DisagreementError, RendezvousError
from parallel_topology.meeting.cards import BYTES_A_RANK, MAX_BYTES, Answer, UnreadableError, read_object
from parallel_topology.meeting.token import Seals
from parallel_topology.topology.layout import Ranks


@dataclass(frozen=True)
class Agreed:
    """What the ranks found out about each other.

    Attributes:
        number: how many managers of this name are, or were, over this store, this one included.
        hosts: for each position of the topology, which host it is on, numbered in order of appearance.
        built: for each position, what it says of what it has built.
    """

    number: int
    hosts: Sequence[int]
    built: Sequence[str]


@dataclass(frozen=True)
class Trust:
    """How a rank shows the others of a meeting that it holds the token, and finds out whether they do.

    Attributes:
        name: of the manager.
        rank: this one.
        token: if there is none, who has one is refused.
    """

    name: str
    rank: int
    token: str | None = field(repr=False)

    def answer(self, call: str, built: str) -> Answer:
        """This rank's; the proof also says that nobody changed what is said of what it has built."""
        return Answer(self._seal("proof", call, str(self.rank), built), built)

    def proved(self, call: str, rank: int, answer: Answer) -> bool:
        """Whether this is that rank's answer to the call."""
        return self._fits(answer.proof, "proof", call, str(rank), answer.built)

    def strangers(self, call: str, answers: Mapping[int, Answer]) -> list[int]:
        """The ranks whose answers are not theirs."""
        return [rank for rank, answer in sorted(answers.items()) if not self.proved(call, rank, answer)]

    def sealed(self, call: str, verdict: str) -> str:
        """A verdict as it stands in the store."""
        return json.dumps({"verdict": verdict, "seal": self._seal("verdict", call, verdict)})

    def conclude(self, call: str, sealed: bytes, card: str, world: Ranks, first: int) -> Agreed:
        """What follows from a verdict.

        Args:
            card: this rank's; whoever agreed has the same.
            first: the rank that called.

        Raises:
            DisagreementError: the cards differ.
            RendezvousError: this is no verdict, or none of this meeting, or a rank does not hold the token.
        """
        most = MAX_BYTES + BYTES_A_RANK * len(world)
        try:
            outer = read_object(sealed, {"verdict": str, "seal": str}, most=most)
            found = read_object(outer["verdict"].encode(), _FIELDS, most=most)
        except UnreadableError as error:
            raise RendezvousError(f"{self.name}: what should be the verdict of rank {first}: {error}") from None
        if not self._fits(outer["seal"], "verdict", call, outer["verdict"]):
            raise self.stranger(first)
        if found["refusal"]:
            raise RendezvousError(found["refusal"])
        if found["complaint"]:
            raise DisagreementError(found["complaint"])
        answers = [Answer.of(one) for one in found["answers"]]
        if found["card"] != card or len(answers) != len(world):
            raise RendezvousError(f"{self.name}: the verdict is not of this meeting")
        for rank, answer in zip(world, answers, strict=True):
            if not self.proved(call, rank, answer):
                raise self.stranger(rank)
        return Agreed(number=found["number"], hosts=found["hosts"], built=[answer.built for answer in answers])

    def stranger(self, rank: int) -> RendezvousError:
        """That who came as `rank` is refused."""
        return RendezvousError(
            f"{self.name}: what came as rank {rank} does not hold the same token as rank {self.rank}, and is refused; "
            "give all ranks the same token=, or look for a stranger on this network"
        )

    def _seal(self, *parts: str) -> str:
        return Seals(self.token).of(self.name, *parts)

    def _fits(self, seal: object, *parts: str) -> bool:
        return Seals(self.token).fits(seal, self.name, *parts)


_FIELDS: dict[str, Any] = {
    "refusal": str, "complaint": str, "number": int, "card": str, "hosts": list, "answers": list,
}  # fmt: skip


def agreement(number: int, card: str, hosts: Sequence[str], answers: Sequence[Answer]) -> str:
    """The verdict that all agree.

    Args:
        hosts: each rank's, in the world's order, as `answers`.
    """
    numbers: dict[str, int] = {}
    return _verdict(
        number=number, card=card, hosts=[numbers.setdefault(host, len(numbers)) for host in hosts],
        answers=[[answer.proof, answer.built] for answer in answers],
    )  # fmt: skip


def refusal(why: str) -> str:
    """The verdict that somebody who came is not let in."""
    return _verdict(refusal=why)


def complaint(differences: str) -> str:
    """The verdict that the cards differ."""
    return _verdict(complaint=differences)


def _verdict(**said: Any) -> str:
    return json.dumps({name: kind() for name, kind in _FIELDS.items()} | said)
