"""Parcels: what was put is there until it is taken, wherever and in whatever order, and its room is used again."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import WireError
from parallel_topology.communicators.host_memory import HostMemory, Offer, Region, regions
from parallel_topology.communicators.parcels import BLOCK, Parcels

RANKS = (7, 3)


@pytest.fixture(scope="module")
def both() -> list[Parcels]:
    """Two members', of memory that both are in."""
    offer = Offer()
    memory = HostMemory(RANKS, RANKS[0], regions({"other": (2, 9000), "tp": (2, 4096)}), offer, offer.text)
    memory.settle(shared=True)
    return [Parcels(memory, "tp", RANKS, member, 2**30) for member in range(2)]


def empty(both: list[Parcels]) -> None:
    """An example that was not gone through to its end leaves something."""
    for member, parcels in enumerate(both):
        used, _ = parcels._area(member)
        parcels._memory.bytes[used : used + Region.BLOCKS] = bytes(Region.BLOCKS)


sizes = st.one_of(
    st.integers(1, 3 * BLOCK),
    st.builds(lambda blocks, more: blocks * BLOCK + more, st.integers(1, Region.BLOCKS // 2 - 1), st.integers(-1, 1)),
)


steps = st.lists(st.tuples(st.integers(0, 1), st.booleans(), sizes, st.integers(0, 255)), max_size=25)


@given(steps, st.randoms(use_true_random=False))
def test_what_is_put_is_taken_as_it_was(both: list[Parcels], steps: list[tuple[int, bool, int, int]], random: Random):
    empty(both)
    lying: list[tuple[int, int, int, int]] = []  # sender, place, bytes, and what each of them is

    def take(number: int) -> None:
        sender, place, nbytes, value = lying.pop(number)
        came = torch.full((nbytes,), 255 - value, dtype=torch.uint8)
        both[1 - sender].take(sender, place, nbytes, came.data_ptr())
        assert bool((came == value).all())

    for sender, takes_one, nbytes, value in steps:
        if takes_one and lying:
            take(random.randrange(len(lying)))
        used = {place + number for who, place, size, _ in lying if who == sender for number in range(-(-size // BLOCK))}
        source = torch.full((nbytes,), value, dtype=torch.uint8)
        place = both[sender].put(source.data_ptr(), nbytes)
        needed = -(-nbytes // BLOCK)
        free = "".join("u" if block in used else "f" for block in range(1, Region.BLOCKS + 1))
        assert bool(place) == ("f" * needed in free)
        if place:
            assert used.isdisjoint(range(place, place + needed))
            lying.append((sender, place, nbytes, value))
    while lying:
        take(random.randrange(len(lying)))


@given(st.integers(-3, 2**70), st.integers(-3, 2**70))
def test_what_is_nowhere_is_refused(both: list[Parcels], place: int, nbytes: int):
    inside = 0 < nbytes <= Region.PARCELS // 2 and 0 < place <= Region.BLOCKS + 1 - -(-nbytes // BLOCK)
    if inside:
        both[0].take(1, place, nbytes, None)
    else:
        with pytest.raises(WireError, match=f"announces {nbytes} bytes at place {place} of {Region.BLOCKS}"):
            both[0].take(1, place, nbytes, None)


def test_what_is_forgotten_makes_room(both: list[Parcels]):
    empty(both)
    source = torch.ones(BLOCK * Region.BLOCKS // 2, dtype=torch.uint8)
    for _ in range(3):
        places = [both[0].put(source.data_ptr(), len(source)) for _ in range(3)]
        assert places == [1, Region.BLOCKS // 2 + 1, 0]
        for place in places[:2]:
            both[1].take(0, place, len(source), None)


def test_areas_of_members_are_apart(both: list[Parcels]):
    empty(both)
    tensors = [torch.full((BLOCK * Region.BLOCKS // 2,), member, dtype=torch.uint8) for member in range(2)]
    for member in (0, 1, 0, 1):
        both[member].put(tensors[member].data_ptr(), len(tensors[member]))
    for member in range(2):
        for place in (1, Region.BLOCKS // 2 + 1):
            both[1 - member].take(member, place, len(came := torch.empty_like(tensors[member])), came.data_ptr())
            assert torch.equal(came, tensors[member])
