"""A rank's moves as messages of bounded size, in one order for all: pure.

Both ends of a pair cut its moves into the same messages, since they know the same moves. All ranks take messages in the
order of their keys, so that of all that are not through the first one is the next on both of its ends: nothing can
deadlock, whatever window of messages each has under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from parallel_topology.refit.plan import Move, RefitPlan
from parallel_topology.weights.dtypes import BITS, bytes_of
from parallel_topology.weights.place import Box

OF_ITS_OWN = 2 * 2**20
"""From how many bytes on a piece is a message of its own, which may need no copy."""

Sized = tuple[str, Box, int]
"""(weight, box, bytes)"""
Key = tuple[int, int, int, int, int]
"""(stretch of tensors, hop, number in the pair, how far the target is from the source, source)"""


class Piece(NamedTuple):
    """A box in a message.

    Attributes:
        weight, box: of which logical tensor, and which elements.
        offset, nbytes: where it is in the message.
    """

    weight: str
    box: Box
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Message:
    """What goes from one rank to another at once."""

    key: Key
    source: int
    target: int
    pieces: tuple[Piece, ...]
    nbytes: int

    @property
    def stretch(self) -> int:
        return self.key[0]

    @property
    def hop(self) -> int:
        return self.key[1]


@dataclass(frozen=True)
class Schedule:
    """What one rank does.

    Attributes:
        kept: by stretch, what goes from its old memory to its new one.
        messages: by their keys.
        stretches: how many there are.
        nbytes: of all messages, and of what is kept.
    """

    kept: Mapping[int, list[Move]]
    messages: list[Message]
    stretches: int
    nbytes: int


def schedule(plan: RefitPlan, rank: int, largest: int) -> Schedule:
    """A rank's part of a plan, in messages of at most `largest` bytes, if no element is larger. Made once."""
    found = plan.remembered.get((rank, largest))
    if found is None:
        found = plan.remembered[rank, largest] = _made(plan, rank, largest)
    return found


def _made(plan: RefitPlan, rank: int, largest: int) -> Schedule:
    stretch_of = stretches(plan)
    kept: dict[int, list[Move]] = {}
    pairs: dict[tuple[int, int, int, int], list[Move]] = {}
    for move in plan.moves(rank) if rank in plan.ranks else ():  # others may be in the group
        stretch = stretch_of[move.weight]
        if move.source == move.target:
            kept.setdefault(stretch, []).append(move)
        else:
            pairs.setdefault((stretch, move.hop, move.source, move.target), []).append(move)
    messages: list[Message] = []
    for (stretch, hop, source, target), moves in pairs.items():
        moves.sort(key=lambda move: (plan.order[move.weight], [part.start for part in move.ranges]))
        for number, pieces in enumerate(_filled(plan, _cut(plan, moves, largest), largest)):
            key = stretch, hop, number, (target - source) % plan.span, source
            messages.append(Message(key, source, target, tuple(pieces), sum(piece.nbytes for piece in pieces)))
    messages.sort(key=lambda message: message.key)
    nbytes = sum(message.nbytes for message in messages)
    nbytes += sum(plan.nbytes(move) for moves in kept.values() for move in moves)
    return Schedule(kept, messages, max(stretch_of.values(), default=-1) + 1, nbytes)


def stretches(plan: RefitPlan) -> dict[str, int]:
    """The number of the stretch that each tensor is in: equal for those of a layer."""
    found: dict[str, int] = {}
    number, last = -1, None
    for name in plan.order:
        layer = plan.target.weights.home(name)[1]
        if layer is None or layer != last:
            number += 1
        found[name], last = number, layer
    return found


def _cut(plan: RefitPlan, moves: Iterable[Move], largest: int) -> Iterator[Sized]:
    """Boxes of at most `largest` bytes: halves of what is larger, along the first dim that has more than one index."""
    for move in moves:
        dtype = plan.dtype(move.weight)
        left = [move.ranges]
        while left:
            box = left.pop()
            nbytes = bytes_of(prod(map(len, box)), dtype)
            dim = next((dim for dim, part in enumerate(box) if len(part) > 1), None)
            if nbytes <= largest or dim is None:
                yield move.weight, box, nbytes
                continue
            part = box[dim]
            rows = max(1, len(part) * largest // nbytes)
            cuts = range(part.start, part.stop, rows)
            left += [
                (*box[:dim], range(start, min(start + rows, part.stop)), *box[dim + 1 :]) for start in reversed(cuts)
            ]


def _filled(plan: RefitPlan, cut: Iterable[Sized], largest: int) -> Iterator[list[Piece]]:
    """Messages: small pieces together, large ones alone."""
    small: list[Sized] = []
    total = 0
    for one in cut:
        if one[2] >= OF_ITS_OWN:
            yield [Piece(*one[:2], 0, one[2])]
            continue
        if small and total + one[2] > largest:
            yield _packed(plan, small)
            small, total = [], 0
        small.append(one)
        total += one[2]
    if small:
        yield _packed(plan, small)


def _packed(plan: RefitPlan, small: Iterable[Sized]) -> list[Piece]:
    """One after the other, those of the widest elements first: so each is aligned, and nothing is between them."""
    end = 0
    pieces: list[Piece] = []
    for weight, box, nbytes in sorted(small, key=lambda one: -BITS[plan.dtype(one[0])]):
        pieces.append(Piece(weight, box, end, nbytes))
        end += nbytes
    return pieces
