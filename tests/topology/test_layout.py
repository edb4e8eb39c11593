"""The arithmetic alone: modes, their inverse, and the sequences built of them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology.topology.layout import Groups, Layout, Modes, Placement, Ranks, coalesce, locate, offset


@st.composite
def disjoint_modes(draw: st.DrawFn) -> Modes:
    """The digits of a mixed-radix number, some left out, in any order."""
    modes: list[tuple[int, int]] = []
    stride = 1
    for size in draw(st.lists(st.integers(1, 4), max_size=5)):
        modes.append((size, stride))
        stride *= size
    kept = draw(st.lists(st.sampled_from(modes), unique=True)) if modes else []
    return tuple(kept)


@given(disjoint_modes())
def test_coalescing_changes_nothing_but_the_number_of_modes(modes: Modes):
    assert list(Ranks(0, coalesce(modes))) == list(Ranks(0, modes))
    assert len(coalesce(modes)) <= len(modes)


@given(disjoint_modes())
def test_locate_is_the_inverse_of_offset(modes: Modes):
    members = [offset(modes, index) for index in range(len(Ranks(0, modes)))]
    assert len(set(members)) == len(members)
    for distance in range(-3, max(members) + 4):
        assert locate(coalesce(modes), distance) == (members.index(distance) if distance in members else None)
        assert locate(modes, distance) == locate(coalesce(modes), distance)


@given(disjoint_modes(), st.integers(0, 9), st.booleans())
def test_ranks_are_the_sequence_they_stand_for(modes: Modes, start: int, placed: bool):
    top = start + sum((size - 1) * stride for size, stride in modes)
    placement = Placement(tuple(range(top, -1, -1))) if placed else None
    ranks = Ranks(start, coalesce(modes), placement)
    plain = [ranks[i] for i in range(len(ranks))]
    assert list(ranks) == plain
    assert ranks == plain
    assert ranks == tuple(plain)
    assert hash(ranks) == hash(tuple(plain))
    assert ranks[-1] == plain[-1]
    assert ranks[1:] == plain[1:]
    assert ranks != [*plain, 99999]
    assert [ranks.index(rank) for rank in plain] == list(range(len(plain)))
    assert all((rank in ranks) == (rank in plain) for rank in range(-1, top + 2))
    assert sum(ranks.count(rank) for rank in range(top + 1)) == len(plain)
    if placement:
        assert plain == [top - (start + offset(modes, i)) for i in range(len(plain))]


def test_ranks_refuse_what_a_list_refuses():
    ranks = Ranks(0, ((4, 2),))
    with pytest.raises(IndexError, match="index 4 is outside a group of 4 ranks"):
        ranks[4]
    with pytest.raises(IndexError):
        ranks[-5]
    with pytest.raises(ValueError, match=r"rank 3 is not in \[0, 2, 4, 6\]"):
        ranks.index(3)
    with pytest.raises(ValueError, match="rank 2 is not in"):
        ranks.index(2, 2)
    assert ranks.index(6, 2) == 3
    assert "2" not in ranks
    assert ranks != "0246"


def test_long_ranks_and_groups_are_shown_short():
    assert repr(Ranks(0, ((16, 1),))).endswith("15]")
    assert repr(Ranks(0, ((1000, 1),))).endswith("15, ... 999] (1,000 ranks)")
    assert repr(Groups(Ranks(0, ((1000, 2),)), ((2, 1),))).endswith("[30, 31] ... (1,000 groups)")
    assert repr(Groups(Ranks(0, ((2, 2),)), ((2, 1),))) == "[0, 1] [2, 3]"


def test_groups_are_the_sequence_they_stand_for():
    groups = Layout.of({"a": 2, "b": 3}).groups(frozenset("a"), 10, None)
    plain = [[10, 11], [12, 13], [14, 15]]
    assert groups == plain
    assert groups != plain[:2]
    assert groups != "ab"
    assert groups[1:] == plain[1:]
    assert hash(groups) == hash(tuple(map(tuple, plain)))
    assert groups.index(groups[2]) == 2
    with pytest.raises(ValueError, match="is not among"):
        groups.index(Ranks(10, ((3, 2),)))
    with pytest.raises(ValueError, match="is not among"):
        groups.index(groups[2], 0, 2)
    with pytest.raises(ValueError, match="is not in"):
        groups.index(Ranks(11, ((2, 1),)))


def test_size_and_index_of_axes_of_several_modes():
    layout = Layout({"x": ((2, 2), (2, 1)), "y": ((3, 4),)})
    assert layout.size == 12
    assert layout.axis_size("x") == 4
    assert [layout.index("x", position) for position in range(4)] == [0, 2, 1, 3]
    assert layout.group(frozenset("x"), 5, 0, None) == [4, 6, 5, 7]
    assert layout.position({"x": 1, "y": 2}) == 10
    three = Layout({"x": ((2, 4), (2, 1), (2, 2))})
    assert [three.index("x", position) for position in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_ranks_are_found_between_bounds_as_in_a_list():
    ranks = Ranks(0, ((4, 2),))
    with pytest.raises(ValueError, match=r"^rank 4 is not in"):
        ranks.index(4, 0, 2)
    assert ranks.index(4, 0, 3) == 2
    with pytest.raises(IndexError, match=r"^index 5 is outside"):
        ranks[5]


def test_ranks_differ_when_one_rank_does():
    ranks = Ranks(1, ((2, 1),))
    for other in (Ranks(0, ((2, 1),)), Ranks(2, ((2, 1),)), Ranks(1, ((2, 2),)), Ranks(1, ((3, 1),)), Ranks(1, ())):
        assert ranks != other
        assert other != ranks
    assert ranks != [1, 3]
    assert ranks != [0, 2]
    assert ranks == Ranks(0, ((2, 1),), Placement((1, 2)))


def test_ranks_and_groups_compare_with_sequences_and_leave_the_rest_to_the_other_side():
    ranks, groups = Ranks(0, ((2, 1),)), Groups(Ranks(0, ((2, 2),)), ((2, 1),))
    assert ranks == (0, 1)
    assert ranks != range(2)  # which hashes otherwise
    assert groups == ((0, 1), (2, 3))
    assert ranks != {0, 1}  # a set has no order
    assert groups != {(0, 1): 0, (2, 3): 1}
    for sequence in (ranks, groups):
        assert sequence != 5
        assert sequence == ANY


def test_groups_under_a_placement_keep_it_in_a_slice():
    groups = Layout.of({"a": 2, "b": 2}).groups(frozenset("a"), 0, Placement((7, 5, 3, 1)))
    assert groups == [[7, 5], [3, 1]]
    assert groups[:] == [[7, 5], [3, 1]]


def test_groups_are_found_between_bounds_as_in_a_list():
    groups = Layout.of({"a": 2, "b": 3}).groups(frozenset("a"), 0, None)
    assert groups.index(groups[2], 2) == 2
    with pytest.raises(ValueError, match=r"^\[0, 1\] is not among \[0, 1\] \[2, 3\]"):
        groups.index(groups[0], 1)


def test_sixteen_are_shown_in_full_and_no_more():
    assert repr(Ranks(0, ((17, 1),))) == f"[{', '.join(map(str, range(16)))}, ... 16] (17 ranks)"
    assert repr(Groups(Ranks(0, ((16, 1),)), ())) == " ".join(f"[{rank}]" for rank in range(16))
    assert repr(Groups(Ranks(0, ((17, 1),)), ())).endswith("[15] ... (17 groups)")


def test_ranks_and_groups_have_no_dict():
    """A rank's tables hold many of them."""
    for value in (Ranks(0, ()), Groups(Ranks(0, ()), ()), Placement((0,))):
        assert not hasattr(value, "__dict__")


def test_a_layout_does_not_change():
    layout = Layout.of({"a": 2})
    with pytest.raises(FrozenInstanceError):
        layout.modes = {}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_layout_finds_the_modes_of_a_set_of_axes_once():
    layout = Layout.of({"a": 2, "b": 3, "c": 2})
    axes = frozenset("ac")
    one, other = layout.groups(axes, 0, None), layout.groups(axes, 0, None)
    assert one.modes is other.modes is layout.group(axes, 0, 0, None).modes
    assert one.starts.modes is other.starts.modes
    assert one.starts.modes != one.modes
