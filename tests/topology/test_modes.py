"""Arithmetic on modes: what a composition is, which steps are safe, and the strides that a list of numbers has."""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from parallel_topology.topology.modes import Modes, coalesce, compose, locate, nested, offset, strided


@st.composite
def spread_modes(draw: st.DrawFn) -> Modes:
    """Steps with gaps between them, in any order: nothing is hit twice."""
    modes: list[tuple[int, int]] = []
    stride = draw(st.integers(1, 3))
    for size in draw(st.lists(st.integers(2, 4), max_size=4)):
        modes.append((size, stride))
        stride = stride * size + draw(st.integers(0, 3))
    return tuple(draw(st.permutations(modes)))


def listed(modes: Modes, start: int = 0) -> list[int]:
    return [start + offset(modes, index) for index in range(prod(size for size, _ in modes))]


@given(spread_modes(), st.data())
def test_a_composition_is_what_looking_up_one_by_one_gives(outer: Modes, data: st.DataObject):
    places = listed(outer, 5)
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=3))
    inner = tuple((size, data.draw(st.integers(1, max(1, len(places) // 2)))) for size in sizes)
    room = len(places) - 1 - sum((size - 1) * stride for size, stride in inner)
    if room < 0:
        return
    start = data.draw(st.integers(0, room))
    found = compose(outer, start, inner)
    wanted = [places[position] for position in listed(inner, start)]
    if found is not None:
        assert listed(found[1], 5 + found[0]) == wanted
        assert found[1] == coalesce(found[1])


def test_compositions():
    assert compose(((4, 10), (4, 100)), 0, ((4, 4),)) == (0, ((4, 100),))
    assert compose(((4, 10), (4, 100)), 5, ((2, 2), (2, 4))) == (110, ((2, 20), (2, 100)))
    assert compose(((4, 10), (4, 100)), 0, ((3, 1),)) == (0, ((3, 10),))
    assert compose(((4, 10), (4, 100)), 0, ((8, 2),)) == (0, ((2, 20), (4, 100)))
    for start, modes in (
        (2, ((3, 1),)),
        (0, ((6, 1),)),
        (0, ((3, 3),)),
        (0, ((5, 4),)),
        (0, ((2, 16),)),
        (1, ((2, 3),)),
    ):
        assert compose(((4, 10), (4, 100)), start, modes) is None


@given(spread_modes())
def test_nested_steps_hit_nothing_twice_and_are_found(modes: Modes):
    assert nested(modes)
    members = listed(modes)
    assert len(set(members)) == len(members)
    assert [locate(modes, member) for member in members] == list(range(len(members)))


def test_steps_that_are_not_nested():
    for modes in (((2, 1), (2, 1)), ((4, 1), (2, 3)), ((2, 2), (3, 1)), ((2, 0),)):
        assert not nested(modes)


@given(spread_modes(), st.integers(0, 9))
def test_strides_are_found_in_a_list_in_their_one_form(modes: Modes, start: int):
    assert strided(listed(modes, start)) == coalesce(modes)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True))
def test_strides_of_any_list_give_the_list_back(numbers: list[int]):
    modes = strided(numbers)
    if modes is not None:
        assert listed(modes, numbers[0]) == numbers
        assert nested(modes)


def test_lists_without_strides():
    for numbers in ([3, 2, 1], [0, 1, 3], [0, 1, 2, 4, 5, 7], [0, 1, 1, 2], [0, 1, 4, 5, 9, 8], [0, 3, 2, 5, 4, 7]):
        assert strided(numbers) is None
