"""What moves between two topologies: against a look at every rank, and at sizes where nobody can look."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, TopologyError
from parallel_topology.testing.strategies import topologies, topologies_of
from tests.examples import examples

pytestmark = pytest.mark.timeout(30)

parse = ParallelTopology.parse


def coordinates(topology: ParallelTopology) -> dict[int, dict[str, int]]:
    """Rank -> index along every axis of more than one index, of views too, by looking through all groups."""
    found: dict[int, dict[str, int]] = {rank: {} for rank in topology.world}
    for axis in topology.all_axes:
        for group in topology.groups(axis) if topology.size(axis) > 1 else ():
            for index, rank in enumerate(group):
                found[rank][axis] = index
    return found


@st.composite
def viewed(draw: st.DrawFn, world_size: int | None = None) -> ParallelTopology:
    """A topology with a view, if one fits."""
    base = draw(topologies(32) if world_size is None else topologies_of(world_size))
    other = draw(topologies_of(base.world_size, ("x", "y")))
    walk = "~" + "-".join(draw(st.permutations(base.axes))) if draw(st.booleans()) else ""
    text = "-".join(f"{axis}{size}" for axis, size in other.sizes.items()) + walk
    try:
        return base.model_copy(update={"views": {"v": text}})
    except TopologyError:
        return base


@st.composite
def pairs(draw: st.DrawFn) -> tuple[ParallelTopology, ParallelTopology]:
    """Two topologies with views that have much in common: of one size or of any, at the same ranks or elsewhere."""
    one = draw(viewed())
    kind = draw(st.sampled_from(["reordered", "same size", "any"]))
    if kind == "reordered":
        order = "-".join(draw(st.permutations(one.axes)))
        try:
            return one, one.model_copy(update={"order": order})
        except TopologyError:
            return one, one
    two = draw(viewed(one.world_size if kind == "same size" else None))
    if draw(st.booleans()):
        one, two = (each.model_copy(update={"ranks": None, "first_rank": 0}) for each in (one, two))
    return one, two


@settings(max_examples=examples(2))
@given(pairs())
def test_what_looking_at_every_rank_finds(pair):
    before, after = pair
    old, new = coordinates(before), coordinates(after)
    moved = [rank for rank in before.world if rank in new and old[rank] != new[rank]]
    removed, added = [r for r in before.world if r not in new], [r for r in after.world if r not in old]
    diff = before.diff(after)
    assert [rank for rank, _, _ in diff.moved] == moved
    for ours, wanted in ((diff.removed, removed), (diff.added, added)):
        assert ours == wanted
        assert ours.size == len(ours) == len(wanted)
        assert bool(ours) == bool(wanted)
        assert [ours[index] for index in range(-len(wanted), len(wanted))] == [*wanted, *wanted]
        assert ours[1:3] == wanted[1:3]
        assert all(rank in ours for rank in wanted)
    assert bool(diff) == bool(moved or removed or added)
    assert set(diff.notes) == {*moved, *added}
    first = str(diff).splitlines()[0]
    assert first.startswith(f"{before} -> {after}: {len(moved)} of {len(old) - len(removed)} ranks move")
    for rank, was, now in diff.moved:
        assert {axis: index for axis, index in was.items() if before.size(axis) > 1} == old[rank]
        assert {axis: index for axis, index in now.items() if after.size(axis) > 1} == new[rank]


@settings(deadline=None)
@given(viewed())
def test_nothing_moves_to_where_it_is(topology):
    again = parse(str(topology))
    assert not topology.diff(again)
    assert str(topology.diff(again)) == f"{topology} -> {topology}: 0 of {topology.world_size} ranks move"


def test_a_view_that_changes_moves_experts():
    diff = parse("tp2-dp2/expert:ep4").diff(parse("tp2-dp2/expert:ep2-edp2"))
    assert diff
    assert [rank for rank, _, _ in diff.moved] == [0, 1, 2, 3]
    diff = parse("tp2-dp2/expert:ep2-edp2").diff(parse("tp2-dp2/expert:edp2-ep2"))
    assert [(rank, new["ep"], new["edp"]) for rank, _, new in diff.moved] == [(1, 0, 1), (2, 1, 0)]
    assert str(diff).splitlines()[1] == "  rank 1: tp=1 dp=0 ep=1 edp=0 -> tp=1 dp=0 edp=1 ep=0"


def test_ranks_that_are_new_or_gone_are_said_where_none_moves():
    assert str(parse("tp2-pp2").diff(parse("tp2-pp4"))) == (
        "tp2-pp2 -> tp2-pp4: 0 of 4 ranks move, 4 ranks are new\n  added: [4, 5, 6, 7]"
    )
    assert str(parse("tp2-pp3").diff(parse("tp2-pp2"))).startswith(
        "tp2-pp3 -> tp2-pp2: 0 of 4 ranks move, 2 ranks are gone\n"
    )
    assert str(parse("tp2@1").diff(parse("tp2@2"))).startswith("tp2@1 -> tp2@2: 1 of 1 ranks move\n")
    assert str(parse("tp2@0").diff(parse("tp1@5"))).startswith(
        "tp2 -> tp1@5: 0 of 0 ranks move, 2 ranks are gone, 1 rank is new\n"
    )


# Where nobody can look at each rank

LARGE = 2**40


@pytest.mark.parametrize(
    ("before", "after", "differ"),
    [
        (f"tp8-dp{LARGE}-pp16", f"tp8-cp1-dp{LARGE}-pp16", False),
        (f"tp8-dp{LARGE}-pp16", f"tp8-pp16-dp{LARGE}", True),
        (f"a{LARGE}-b{LARGE}", f"a{LARGE}-b{LARGE // 2}-c2", True),
        (f"a{LARGE}-b{LARGE}", f"a{LARGE}-b{LARGE}@1", True),
        (f"a{LARGE}-b{LARGE}", f"a{LARGE}-b{LARGE * 2}", True),
        (f"a{LARGE}-b2/v:x{LARGE}-y2", f"a{LARGE}-b2/w:x{LARGE}-y2~a-b", False),
        (f"a{LARGE}-b2/v:x{LARGE}-y2", f"a{LARGE}-b2/v:x{LARGE}-y2~b-a", True),
        (f"a{LARGE}-b2@0+{LARGE}x2+2x1", f"b2-a{LARGE}", False),
        (f"a{LARGE}-b3@0+{LARGE}x4+3x1", f"b3-a{LARGE}@0+3x1+{LARGE}x4", False),
        (f"a{LARGE}-b3@0+{LARGE}x4+3x1", f"b3-a{LARGE}@0+3x1+{LARGE}x5", True),
        (f"a{LARGE}@0+{LARGE}x4", f"a{4 * LARGE}", True),
    ],
)
def test_whether_anything_moves(before, after, differ):
    one, two = parse(before), parse(after)
    assert bool(one.diff(two)) is bool(two.diff(one)) is differ
    assert not one.diff(parse(before))
    assert str(one.diff(one)).endswith(f": 0 of {one.world_size:,} ranks move")


def test_ranks_that_come_and_go_are_not_listed():
    diff = parse(f"tp8-dp{LARGE}").diff(parse(f"tp8-dp{LARGE * 4}@8"))
    assert diff.removed == list(range(8))
    assert diff.added.size == 3 * 8 * LARGE + 8
    assert diff.added[0] == diff.before.world_size
    assert str(parse("tp8").diff(parse(f"tp8-dp{LARGE}"))).endswith(f"added: {8 * LARGE - 8:,} ranks")
    few = parse(f"dp{LARGE}").diff(parse("dp3@4,2,9"))
    assert few.removed.size == LARGE - 3
    assert few.removed[:7] == [0, 1, 3, 5, 6, 7, 8]
    with pytest.raises(TopologyError, match=r"more than len\(\) can say"):
        len(parse("dp1").diff(parse(f"dp{2**70}")).added)


def test_of_many_ranks_the_text_counts_the_first_ones():
    text = str(parse(f"tp8-dp{LARGE}-pp16").diff(parse(f"tp8-pp16-dp{LARGE}")))
    first, second, *_, last = text.splitlines()
    assert first.endswith(f"65,528 of {128 * LARGE:,} ranks move at least, as the first 65,536 show")
    assert second == "  rank 8: tp=0 dp=1 pp=0 -> tp=0 pp=1 dp=0"
    assert last == "  ... and 65,496 more"
    assert str(parse(f"tp{LARGE}").diff(parse(f"cp{LARGE}"))).startswith(
        f"tp{LARGE} -> cp{LARGE}: {LARGE:,} of {LARGE:,} ranks move\n  rank 0: tp=0 -> cp=0\n"
    )


def test_ranks_that_came_are_equal_to_the_same_ranks_alone():
    diff = ParallelTopology(tp=2).diff(ParallelTopology(tp=4))
    assert diff.added == [2, 3]
    assert diff.added != [2, 4]
    assert diff.added != [2, 3, 4]
    assert diff.added != [2]
    assert diff.removed != diff.added
