"""Nothing grows with the world: at 2**40 ranks and beyond Python's `len`, every answer takes next to no time.

What looked at each rank would meet the limit in time, or in memory.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, TopologyError
from parallel_topology.topology.layout import HASHED_AS_TUPLE, Groups, Placement, Ranks
from parallel_topology.topology.modes import coalesce
from tests.topology.test_modes import spread_modes

pytestmark = pytest.mark.timeout(10)

WORLDS = [2**40, 2**70]


def large(world_size: int) -> ParallelTopology:
    return ParallelTopology.parse(f"tp8-dp{world_size // 128}-pp16/expert:ep64-x-pp16~tp-dp-pp")


@pytest.fixture(params=WORLDS, ids=["2**40", "2**70"])
def topology(request: pytest.FixtureRequest) -> ParallelTopology:
    return large(request.param)


def test_groups_compare_contain_and_hash(topology: ParallelTopology):
    again = large(topology.world_size)
    last = topology.world_size - 1
    for ranks, other in ((topology.world, again.world), (topology.group("dp", rank=5), again.group("dp", rank=13))):
        assert ranks == other
        assert hash(ranks) == hash(other)
        assert ranks != Ranks(ranks.start + 1, ranks.modes)
        assert ranks != [0, 1]
        assert ranks[-1] in ranks
        assert ranks.index(ranks[-1]) == ranks.size - 1
    assert last in topology.world
    assert last + 1 not in topology.world
    groups, others = topology.groups("tp"), again.groups("tp")
    assert groups == others
    assert hash(groups) == hash(others)
    assert groups != topology.groups("pp")
    assert groups[groups.size - 1] in groups
    assert groups.index(list(range(last - 7, last + 1))) == groups.size - 1
    assert [1, 2] not in groups
    assert repr(topology.world).endswith(f"({topology.world_size:,} ranks)")
    assert repr(groups).endswith(f"({groups.size:,} groups)")


def test_a_view_is_a_topology_of_its_own(topology: ParallelTopology):
    view = topology.view("expert")
    assert (view.ep, view.pp, view.world_size) == (64, 16, topology.world_size)
    last = topology.world_size - 1
    assert view.group("ep", rank=last) == topology.group("ep", rank=last)


def test_parts(topology: ParallelTopology):
    stage = topology.world_size // 16
    assert str(topology.subtopology(pp=1)) == f"tp8-dp{stage // 8}@{stage}"
    ends = topology.subtopology("tp", "pp", dp=3)
    assert str(ends) == f"tp8-pp16@24+8x1+16x{stage}"
    assert ends.at(24 + stage).pp.next_rank == 24 + 2 * stage
    column = topology.subtopology("dp", tp=5, pp=2)
    assert str(column) == f"dp{stage // 8}@{2 * stage + 5}+{stage // 8}x8"
    for part in (ends, column):
        assert_one_value(part)
        assert part.world == topology.group(*part.axes, rank=part.world[0])


def assert_one_value(topology: ParallelTopology) -> None:
    """Whichever way it travels, it is the same value, with the same text."""
    for again in (
        ParallelTopology.parse(str(topology)),
        ParallelTopology.model_validate_json(topology.model_dump_json()),
        ParallelTopology.model_validate(topology.model_dump()),
        ParallelTopology(**topology.model_dump()),
        copy.deepcopy(topology),
        pickle.loads(pickle.dumps(topology)),
    ):
        assert again == topology
        assert str(again) == str(topology)
        assert again.ranks == topology.ranks
        assert again.world == topology.world


def test_a_view_that_walks_in_another_order():
    world_size = 2**40
    topology = ParallelTopology.parse(f"tp8-dp{world_size // 8}/decode:dcp{world_size}~dp-tp")
    view = topology.view("decode")
    assert str(view) == f"dcp{world_size}@0+{world_size // 8}x8+8x1"
    assert_one_value(view)
    assert view.world[world_size // 8] == 1
    assert view.position(1) == world_size // 8
    assert view.group("dcp", rank=3) == topology.group("dcp", rank=3)
    assert hash(view.world) == hash(topology.groups("dcp")[0])
    assert view.world != topology.world


def test_the_length_of_what_python_cannot_count():
    topology = large(2**70)
    for sequence in (topology.world, topology.groups("tp"), topology.at(5).dp, topology.view("expert").world):
        with pytest.raises(TopologyError, match=r"is more than len\(\) can say: use \.size$"):
            len(sequence)
        assert sequence.size > sys.maxsize
    assert topology.world
    assert topology.groups("tp")
    assert topology.world[2**70 - 2 :] == [2**70 - 2, 2**70 - 1]
    with pytest.raises(IndexError):
        topology.world[2**70]


# Strided placements


@settings(deadline=None, max_examples=50)
@given(spread_modes(), st.integers(0, 9), st.data())
def test_the_same_ranks_are_the_same_topology_however_they_are_given(modes, start, data):
    strides = Ranks(start, coalesce(modes))
    listed = list(strides)
    size = len(listed)
    first = data.draw(st.sampled_from([part for part in range(1, size + 1) if size % part == 0]))
    sizes = {"a": first, "b": size // first}
    text = f"{start}" + "".join(f"+{count}x{step}" for count, step in modes)
    one = ParallelTopology(order="a-b", ranks=listed, **sizes)
    for ranks in (strides, tuple(listed), Ranks(0, ((size, 1),), Placement(tuple(listed))), *([text] if modes else [])):
        assert ParallelTopology(order="a-b", ranks=ranks, **sizes) == one
    assert_one_value(one)
    assert list(one.world) == listed
    assert ("+" in str(one)) == (size > 16 and strides.modes != ((size, 1),))
    assert [one.position(rank) for rank in listed] == list(range(size))
    for rank in listed[:: max(1, size // 3)]:
        at = one.coordinate(rank)
        for axes in (("a",), ("b",), ("a", "b")):
            along = {axis: range(one.size(axis)) if axis in axes else [at[axis]] for axis in "ab"}
            plain = [listed[i + first * j] for j in along["b"] for i in along["a"]]
            group = one.group(*axes, rank=rank)
            assert group == plain
            assert list(group) == plain
            assert rank in group
            assert hash(group) == hash(tuple(plain))
    assert one.groups("a") == [list(group) for group in one.groups("a")]
    assert max(listed) + 1 not in one.world


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("0+32x0", "ranks='0+32x0': expected counts and steps of at least 1"),
        ("0+0x3", "ranks='0+0x3': expected counts and steps of at least 1"),
        ("0+16x1+2x8", "ranks='0+16x1+2x8': expected ranks of at least 0, and steps that are longer than all"),
        ("0+16x2", "16 ranks were given for a 32 = 32 positions"),
        ("0+x2", "cannot read '@0+x2' in 'a32@0+x2': expected the first rank"),
        ("+32x2", "cannot read '@+32x2' in 'a32@+32x2': expected the first rank"),
    ],
)
def test_strides_that_make_no_placement(places, message):
    with pytest.raises(TopologyError) as caught:
        ParallelTopology.parse(f"a32@{places}")
    assert str(caught.value).startswith(message)


def test_strides_as_text_that_cannot_be_read():
    with pytest.raises(TopologyError, match=r"^ranks='0-32x2': expected a rank and steps"):
        ParallelTopology(order="a", a=32, ranks="0-32x2")


# Equality and hashes


@given(spread_modes(), st.integers(0, 9), st.booleans())
def test_what_is_equal_hashes_alike(modes, start, placed):
    ranks = Ranks(start, modes)
    if placed:
        top = max(ranks)
        ranks = Ranks(0, ((ranks.size, 1),), Placement(tuple(top - rank for rank in ranks)))
    plain = tuple(ranks)
    equals = [Ranks(ranks.start, coalesce(modes) if not placed else ranks.modes, ranks.placement), plain]
    equals += [Ranks(0, ((len(plain), 1),), Placement(plain)), range(plain[0], plain[-1] + 1)]
    for other in equals:
        assert ranks != other or hash(ranks) == hash(other)
        assert (ranks == other) == (other == ranks)
    assert ranks == equals[0]
    assert ranks == equals[1] == equals[2]
    assert ranks != (*plain, 5)
    assert ranks != (*plain[:-1], plain[-1] + 1)


def test_more_ranks_than_are_hashed_one_by_one():
    ranks = Ranks(0, ((HASHED_AS_TUPLE + 1, 2),))
    assert hash(ranks) == hash(Ranks(0, ((1, 5), (HASHED_AS_TUPLE + 1, 2))))
    assert ranks == Ranks(0, ((1, 5), (HASHED_AS_TUPLE + 1, 2)))
    few = Groups(Ranks(0, ((2, 1),)), ((HASHED_AS_TUPLE, 2),))
    assert few != tuple(few)
    assert hash(few) == hash(Groups(Ranks(0, ((2, 1),)), ((HASHED_AS_TUPLE, 2),)))


def test_equal_groups_under_equal_placements():
    places = (7, 5, 3, 1)
    one, other = (Groups(Ranks(0, ((2, 2),)), ((2, 1),), Placement(places)) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one == [[7, 5], [3, 1]]
    assert one != Groups(Ranks(0, ((2, 2),)), ((2, 1),))
    assert one.index((3, 1)) == 1
    assert [7, 5] in one
    assert [5, 7] not in one
    assert "75" not in one
    assert one.count([7, 5]) == 1


def test_ranks_and_groups_do_not_change():
    ranks, groups = Ranks(0, ((2, 1),)), Groups(Ranks(0, ((2, 2),)), ((2, 1),))
    for value, name in [(ranks, "start"), (ranks, "modes"), (groups, "starts"), (groups, "other")]:
        with pytest.raises(AttributeError, match="do not change"):
            setattr(value, name, 5)
        with pytest.raises(AttributeError, match="do not change"):
            delattr(value, name)
    assert ranks == [0, 1]
    for value in (ranks, groups, Ranks(0, ((2, 1),), Placement((4, 2)))):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value
    assert json.loads(json.dumps({"world": ranks, "tp": groups}, default=list)) == {
        "world": [0, 1],
        "tp": [[0, 1], [2, 3]],
    }


def test_numbers_of_other_kinds():
    numpy = pytest.importorskip("numpy")
    ranks = Ranks(0, ((4, 2),))
    assert ranks.index(numpy.int64(4)) == 2
    assert numpy.int64(4) in ranks
    for other in (True, 2.0, "2", None, numpy.bool_(True)):
        assert other not in Ranks(1, ((4, 1),))
