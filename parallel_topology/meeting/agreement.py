"""Agreement before creation: every rank shows the others what it is about to build, and all build it or none does.

Each rank counts itself in and shows a card; whoever completes the count compares the cards and writes one verdict, that
all read: a handful of store operations a rank, however large the world, and two for each card for the one who judges.
Cards and verdict are JSON, never pickled. With a token each carries a keyed hash (HMAC-SHA-256), and the verdict
repeats every rank's nonce, so that neither can be made, or replayed, without the token.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, cast

import torch.distributed as dist

from parallel_topology.errors import (
    DisagreementError,
    GroupTimeoutError,
    ParallelTopologyError,
    RendezvousError,
)
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.wording import shown_ranks
from parallel_topology.torch_errors import STORE_ERRORS, first_line


@dataclass(frozen=True)
class Card:
    """What must be equal on all ranks before any group is created."""

    topology: str
    groups: tuple[str, ...]
    backend: str
    library: str
    torch: str
    options: tuple[str, ...] = ()
    checks: bool = False
    """Whether calls are compared before they are made; those that do not would not answer."""


@dataclass(frozen=True)
class Agreed:
    """What the ranks found out about each other.

    Attributes:
        round: how many managers of this name the ranks have built over this store, this one included.
        store: for this manager's keys alone.
        hosts: for each position of the topology, which host it is on, numbered in order of appearance.
    """

    round: int
    store: dist.Store
    hosts: Sequence[int]


@dataclass(frozen=True)
class Meeting:
    """One rank's part in one agreement.

    Attributes:
        store: where the ranks meet.
        name: of the manager; ranks of one name meet.
        world: the ranks that are to come.
        rank: this one.
        host: identifies the machine this rank is on.
        timeout: seconds.
        token: if given, a rank without it is refused.
    """

    store: dist.Store
    name: str
    world: Ranks
    rank: int
    host: str
    timeout: float
    token: str | None = None

    def agree(self, card: Card) -> Agreed:
        """Wait for all ranks of `world` and compare their cards.

        Raises:
            DisagreementError: the cards differ; raised on every rank, naming which ranks hold what.
            GroupTimeoutError: ranks did not come in time; names them.
            RendezvousError: the store failed or holds garbage, or a rank does not have the token.
        """
        try:
            return self._agree(card)
        except ParallelTopologyError:
            raise
        except STORE_ERRORS as error:
            raise RendezvousError(
                f"{self.name}: the store failed, or holds what is not ours, while rank {self.rank} waited for the "
                f"others: {type(error).__name__}: {first_line(error)}"
            ) from error

    def _agree(self, card: Card) -> Agreed:
        deadline = time.monotonic() + self.timeout
        turn = self.store.add(f"{self._place}/joined/{self.rank}", 1)
        table = dist.PrefixStore(f"{self._place}/{turn}", self.store)
        mine = json.dumps({**asdict(card), "world": len(self.world)})
        nonce = secrets.token_hex(8)
        number = table.add("arrived", 1)
        shown = {"rank": self.rank, "host": self.host, "card": mine, "nonce": nonce}
        table.set(f"card/{number}", self._sealed(turn, shown))
        if wait_for(table, "card/1", deadline):
            enough = min(len(self.world), json.loads(_opened(table.get("card/1"))["card"])["world"])
            if number >= enough and not table.check(["verdict"]):
                # The first verdict stands: some may have read it already.
                table.compare_set("verdict", "", self._sealed(turn, self._judge(table, turn, number, deadline)))
        if not wait_for(table, "verdict", deadline):
            raise GroupTimeoutError(self._missing(table, turn))
        try:
            verdict = self._unsealed(turn, table.get("verdict"), "who gave the verdict")
        except RendezvousError:
            self._refuse_strangers(table, turn)
            raise
        if verdict["refusal"]:
            raise RendezvousError(verdict["refusal"])
        if verdict["card"] != mine:
            raise DisagreementError(verdict["complaint"] or self._late_difference(mine, verdict["card"]))
        if verdict["nonces"][self.world.index(self.rank)] != nonce:
            raise RendezvousError(f"{self.name}: the verdict is not of this meeting; somebody replays an old one")
        return Agreed(round=turn, store=table, hosts=verdict["hosts"])

    @cached_property
    def _place(self) -> str:
        # By the first rank, so that managers of one name on different parts of a job do not meet; not by all ranks, so
        # that those who disagree about how many there are do.
        first = self.world.start if self.world.placement is None else min(self.world)
        return f"{self.name}@{first}"

    def _judge(self, table: dist.Store, turn: int, count: int, deadline: float) -> dict[str, Any]:
        """The verdict on the cards of the first `count` to arrive: what all agreed on, or who differs in what."""
        verdict: dict[str, Any] = {"card": None, "complaint": None, "refusal": None}
        cards: list[dict[str, Any]] = []
        for number in range(1, count + 1):  # a rank counts itself in just before it shows its card
            if not wait_for(table, f"card/{number}", deadline):
                return verdict | {"refusal": f"{self.name}: arrival {number} counted itself in and showed no card"}
            try:
                cards.append(self._card(table, turn, number))
            except RendezvousError as error:
                return verdict | {"refusal": str(error)}
        cards.sort(key=lambda card: card["rank"])
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for card in cards:
            holders[card["card"]].append(card["rank"])
        if len(holders) > 1 or count != len(self.world):
            return verdict | {"complaint": _differences(holders)}
        hosts: dict[str, int] = {}
        of_rank = {card["rank"]: (hosts.setdefault(card["host"], len(hosts)), card["nonce"]) for card in cards}
        return verdict | {
            "card": cards[0]["card"],
            "hosts": [of_rank[rank][0] for rank in self.world],
            "nonces": [of_rank[rank][1] for rank in self.world],
        }

    def _refuse_strangers(self, table: dist.Store, turn: int) -> None:
        """Raise for the first card whose seal is not ours."""
        for number in range(1, table.add("arrived", 0) + 1):
            if table.check([f"card/{number}"]):
                self._card(table, turn, number)

    def _card(self, table: dist.Store, turn: int, number: int) -> dict[str, Any]:
        text = table.get(f"card/{number}")
        return self._unsealed(turn, text, f"what came as rank {_opened(text).get('rank')}")

    def _sealed(self, turn: int, content: dict[str, Any]) -> str:
        text = json.dumps(content)
        return json.dumps({"content": text, "seal": self._seal(turn, text)})

    def _unsealed(self, turn: int, sealed: bytes, what: str) -> dict[str, Any]:
        outer = json.loads(sealed)
        if not hmac.compare_digest(outer["seal"], self._seal(turn, outer["content"])):
            raise RendezvousError(
                f"{self.name}: {what} does not hold the same token as rank {self.rank}, and is refused; "
                "give all ranks the same token=, or look for a stranger on this network"
            )
        return json.loads(outer["content"])

    def _seal(self, turn: int, text: str) -> str:
        if self.token is None:
            return ""
        return hmac.new(self.token.encode(), f"{self.name}/{turn}/{text}".encode(), hashlib.sha256).hexdigest()

    def _late_difference(self, mine: str, theirs: str) -> str:
        ours, agreed = json.loads(mine), json.loads(theirs)
        fields = [field for field in ours if ours[field] != agreed[field]]
        return f"rank {self.rank} came to {self.name!r} with " + ", ".join(
            f"{field} {_shown(ours[field])}, where the others agreed on {_shown(agreed[field])}" for field in fields
        )

    def _missing(self, table: dist.Store, turn: int) -> str:
        """Who did not come; where a rank is known to stand in another round, that."""
        arrived = range(1, table.add("arrived", 0) + 1)
        present = {
            _opened(table.get(f"card/{number}"))["rank"] for number in arrived if table.check([f"card/{number}"])
        }
        absent = [other for other in self.world if other not in present]
        elsewhere = [
            f"rank {other} has joined {count} times"
            for other in self.world[:1024]
            if self.store.check([f"{self._place}/joined/{other}"])
            and (count := int(self.store.get(f"{self._place}/joined/{other}"))) != turn
        ]
        hint = f"; this is round {turn} of {self.name!r}, but {', '.join(elsewhere)}" if elsewhere else ""
        return (
            f"{self.name}: {shown_ranks(absent)} did not come within {self.timeout:g} s; rank {self.rank} waited with "
            f"{len(self.world) - len(absent)} of {len(self.world)} present{hint}"
        )


def wait_for(store: dist.Store, key: str, deadline: float) -> bool:
    """Whether the key came before the deadline (of `time.monotonic`)."""
    try:
        store.wait([key], timedelta(seconds=max(deadline - time.monotonic(), 0.001)))
    except RuntimeError:  # each kind of store has its own type and words for lateness
        if time.monotonic() < deadline - 0.1:
            raise
        return store.check([key])
    return True


def _opened(sealed: bytes) -> dict[str, Any]:
    """The content, unverified: only to say whose it claims to be."""
    return json.loads(json.loads(sealed)["content"])


def _differences(holders: dict[str, list[int]]) -> str:
    cards = {text: json.loads(text) for text in holders}
    fields = [field for field in next(iter(cards.values())) if len({str(card[field]) for card in cards.values()}) > 1]
    lines = [
        f"  {shown_ranks(ranks)}: " + ", ".join(f"{field} {_shown(cards[text][field])}" for field in fields)
        for text, ranks in holders.items()
    ]
    return "the ranks disagree, so no group was created:\n" + "\n".join(lines)


def _shown(value: object) -> str:
    return ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)
