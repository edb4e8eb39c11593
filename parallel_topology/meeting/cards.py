"""Cards: what a rank shows of itself before anything is created, read with bounds, and compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from parallel_topology.topology.wording import shown_ranks

MAX_BYTES = 1 << 20
"""Longest card that is read; one of a manager with hundreds of groups has some ten thousand bytes."""

BYTES_A_RANK = 16384
"""Most bytes that a rank adds to a verdict: some dozens for each group that it has built."""

Facts = Mapping[str, "str | int | float | bool | list[str]"]
"""What must be equal on all ranks: name -> value."""


class UnreadableError(Exception):
    """What stands in the store is no card, or no verdict."""


@dataclass(frozen=True)
class Entry:
    """One rank's card, and who shows it.

    Attributes:
        rank: which it says it is.
        nonce: fresh for each meeting.
        turn: how often this one was called before, to a round that did not come off.
        host: identifies its machine.
        process: identifies its process.
        address: from which it reaches the store's host; empty where that is no matter of addresses.
        card: its facts, as JSON.
        memory: what it offers to the ranks of its host, as in `communicators.host_memory`; empty for nothing.
    """

    rank: int
    nonce: str
    turn: int
    host: str
    process: str
    address: str
    card: str
    memory: str = ""

    def text(self) -> str:
        """As it stands in the store."""
        return json.dumps(vars(self))

    @classmethod
    def read(cls, text: bytes, rank: int | None = None) -> Entry:
        """The entry that `text` is, of that rank if one is given.

        Raises:
            UnreadableError: it is none.
        """
        fields = read_object(text, {"rank": int, "nonce": str, "turn": int, "host": str, "process": str,
                                    "address": str, "card": str, "memory": str})  # fmt: skip
        entry = cls(**fields)
        read_object(entry.card.encode(), {})
        if rank is not None and entry.rank != rank:
            raise UnreadableError(f"it says that it is rank {entry.rank}")
        return entry


@dataclass(frozen=True)
class Called:
    """What a rank learns of the others when it is called.

    Attributes:
        hosts: rank -> its host, numbered.
        addresses: of each host, as its first rank sees it; empty where that is no matter of addresses.
        memories: what the first rank of each host offers to those on it.
        members: each rank that is called, the nonce of its card, and a hash of that.
    """

    hosts: Mapping[int, int]
    addresses: Sequence[str]
    memories: Sequence[str]
    members: Sequence[Any] = ()

    @classmethod
    def read(cls, call: str) -> Called:
        """Out of a call.

        Raises:
            ValueError, TypeError, KeyError: this is none.
        """
        told = json.loads(call)
        hosts = {int(member[0]): int(on) for member, on in zip(told["members"], told["on"], strict=True)}
        addresses, memories = zip(*((str(address), str(memory)) for address, memory in told["hosts"]), strict=True)
        return cls(hosts, addresses, memories, told["members"])


@dataclass(frozen=True)
class Answer:
    """What a rank says when it is called.

    Attributes:
        proof: that it holds the token, and says this of what it built.
        built: what the others need to know of that, as JSON.
    """

    proof: str
    built: str

    def text(self) -> str:
        """As it stands in the store."""
        return f"{self.proof} {self.built}"

    @classmethod
    def of(cls, pair: object) -> Answer:
        """As a verdict holds it, whatever that is."""
        match pair:
            case [str(proof), str(built)]:
                return cls(proof, built)
            case _:
                return cls("", "")

    @classmethod
    def read(cls, text: bytes) -> Answer:
        """What a rank put into the store, whatever it is."""
        proof, _, built = text[:BYTES_A_RANK].decode(errors="replace").partition(" ")
        return cls(proof, built)


def read_object(text: bytes, fields: Mapping[str, type | tuple[type, ...]], *, most: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object with these fields, of these types, and no others if any are named.

    Raises:
        UnreadableError: it is none.
    """
    if len(text) > most:
        raise UnreadableError(f"it has {len(text)} bytes, more than {most}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableError(f"{text[:40]!r} is no JSON") from None
    if not isinstance(value, dict):
        raise UnreadableError(f"{text[:40]!r} is no JSON object")
    found = cast("dict[str, Any]", value)
    if fields and found.keys() != fields.keys():
        raise UnreadableError(f"it has the fields {', '.join(found)[:200]}, expected {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise UnreadableError(f"its {name} is {str(found[name])[:40]!r}")
    return found


def differences(entries: Sequence[Entry]) -> str:
    """Which ranks hold which card, of those facts that differ; empty if none does."""
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.rank):
        holders[entry.card].append(entry.rank)
    if len(holders) == 1:
        return ""
    cards: dict[str, dict[str, Any]] = {text: json.loads(text) for text in holders}
    names = dict.fromkeys(name for card in cards.values() for name in card)
    fields = [name for name in names if len({str(card.get(name)) for card in cards.values()}) > 1]
    rows = [
        f"  {shown_ranks(ranks)}: " + ", ".join(f"{field} {_shown(cards[text].get(field))}" for field in fields)
        for text, ranks in holders.items()
    ]
    return "the ranks disagree, so no group was created:\n" + "\n".join(rows)


def _shown(value: object) -> str:
    return ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)
