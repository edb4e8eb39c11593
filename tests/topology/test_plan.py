"""The plan: every group once, in the same order on every rank, and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.testing.strategies import topologies


@st.composite
def plans(draw: st.DrawFn):
    topology = draw(topologies())
    axes = st.lists(st.sampled_from(topology.axes), min_size=1, unique=True).map(tuple)
    names = draw(st.lists(st.sampled_from(["eplb", "other"]), unique=True))
    return topology.plan(groups=draw(st.lists(axes, max_size=3)), isolated={name: draw(axes) for name in names})


@given(plans())
def test_each_rank_takes_part_in_its_part_of_one_sequence(plan):
    sequence = list(plan.sequence)
    for rank in plan.topology.world:
        assert plan.of_rank(rank) == [(name, ranks) for name, ranks in sequence if rank in ranks]
        assert len(plan.of_rank(rank)) == plan.created_per_rank


@given(plans())
def test_groups_of_equal_ranks_are_created_once_unless_isolated(plan):
    shared = [tuple(ranks) for name, ranks in plan.sequence if name not in ("eplb", "other")]
    assert len(set(shared)) == len(shared)
    for name, family in plan.families.items():
        groups = [tuple(ranks) for ranks in plan.topology.groups(*family.axes)]
        assert (family.count, family.size) == (len(groups), len(groups[0]))
        isolated = name in ("eplb", "other")
        made = [tuple(ranks) for made_as, ranks in plan.sequence if made_as == name]
        assert made == (groups if family.creates else [])
        if not family.creates and family.size > 1:
            assert not isolated
            # a view may count the same groups in another order
            shared_with = plan.topology.groups(*plan.families[family.shares].axes)
            assert sorted(map(tuple, shared_with)) == sorted(groups)


@given(plans())
def test_totals(plan):
    assert plan.created == len(list(plan.sequence))
    naive = sum(len(plan.topology.groups(*family.axes)) for family in plan.families.values())
    assert str(plan).endswith(
        f"created: {plan.created:,} in all, at most {plan.created_per_rank:,} per rank; "
        f"created naively: {naive:,} on every rank"
    )


def test_equal_topologies_have_equal_sequences():
    one = ParallelTopology(tp=2, dp=2, pp=2).plan(groups=[("pp", "tp")])
    two = ParallelTopology.parse("tp2-dp2-pp2").plan(groups=[("tp", "pp")])
    assert list(one.sequence) == list(two.sequence)


def test_what_a_person_reads():
    topology = ParallelTopology(tp=2, cp=1, dp=2, views={"expert": "ep4"})
    plan = topology.plan(groups=[("tp", "dp")], isolated={"eplb": ("ep",)})
    assert str(plan).splitlines() == [
        "world  1 group of 4",
        "tp     2 groups of 2",
        "cp     4 groups of 1, nothing to create",
        "dp     2 groups of 2",
        "ep     1 group of 4, shared with world",
        "edp    4 groups of 1, nothing to create",
        "tp-dp  1 group of 4, shared with world",
        "eplb   1 group of 4",
        "created: 6 in all, at most 4 per rank; created naively: 16 on every rank",
    ]


def test_separate_groups_share_with_none_and_serve_none():
    topology = ParallelTopology(tp=4, pp=1)
    together = topology.plan(groups=[("tp", "pp")])
    assert {name: family.shares for name, family in together.families.items()} == {
        "world": None, "tp": "world", "pp": None, "tp-pp": "world",
    }  # fmt: skip
    apart = topology.plan(groups=[("tp", "pp")], separate=["tp"])
    assert [name for name, _ in apart.sequence] == ["world", "tp"]
    assert apart.families["tp-pp"].shares == "world"
    first = topology.plan(groups=[("tp", "pp")], separate=["world", "tp-pp"])
    assert [name for name, _ in first.of_rank(2)] == ["world", "tp", "tp-pp"]
    assert first.families["tp"].shares is None


@pytest.mark.parametrize("names", [["xp"], ("tp", "xp"), iter(["xp"])], ids=["list", "tuple", "iterator"])
def test_options_for_a_group_that_is_not_there(names):
    with pytest.raises(UnknownAxisError) as caught:
        ParallelTopology(tp=2, pp=2).plan(separate=names)
    assert str(caught.value) == "options for 'xp': there is no such group; there are world, tp, pp"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("world_size", [2**40, 2**70], ids=["2**40", "2**70"])
def test_a_plan_costs_the_same_at_any_world_size(world_size):
    topology = ParallelTopology.parse(f"tp8-dp{world_size // 128}-pp16/expert:ep64-x-pp16~tp-dp-pp")
    for part in (topology, topology.view("expert"), topology.subtopology("tp", "dp", pp=3)):
        plan = part.plan(groups=[part.axes[:2], part.axes])
        assert plan.created_per_rank == sum(family.creates for family in plan.families.values())
        assert plan.families["-".join(part.axes)].shares == "world"
        assert len(plan.of_rank(part.world[-1])) == plan.created_per_rank
        assert next(plan.sequence) == ("world", part.world)
        assert f"world  1 group of {part.world_size:,}" in " ".join(str(plan).split()).replace("world 1", "world  1")


def test_members_in_another_order_are_another_group():
    topology = ParallelTopology(tp=2, cp=2, views={"decode": "dcp4~cp-tp"})
    created = [list(ranks) for name, ranks in topology.plan().sequence if name in ("world", "dcp")]
    assert created == [[0, 1, 2, 3], [0, 2, 1, 3]]


def test_vllm_at_512_ranks_creates_three_groups_a_rank():
    """vLLM 0.33 at tp 8, dp 64 with experts makes 3,220 `new_group` calls on every rank."""
    topology = ParallelTopology(order="vllm", tp=8, dp=64, views={"expert": "ep512-external_dp1"})
    plan = topology.plan(isolated={"eplb": ("ep",)})
    assert (plan.created_per_rank, plan.created) == (4, 1 + 64 + 8 + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": ["tp"]}, UnknownAxisError, "groups='tp': expected tuples of axes, as in"),
        ({"groups": [("tp", "xp")]}, UnknownAxisError, "tp2-pp2 has no axis 'xp'; it has 'tp', 'pp'"),
        ({"groups": [()]}, UnknownAxisError, "no axis was named"),
        ({"isolated": {"tp": ("tp",)}}, TopologyError, "isolated group 'tp': there is a group of this name"),
        ({"isolated": {"world": ("tp",)}}, TopologyError, "isolated group 'world': there is a group of this name"),
        ({"isolated": {"close": ("tp",)}}, TopologyError, "'close' cannot name an axis: it is taken"),
        ({"isolated": {"x": "tp"}}, UnknownAxisError, "isolated={'x': 'tp'}: expected a tuple of axes"),
        ({"isolated": {"x": ("xp",)}}, UnknownAxisError, "tp2-pp2 has no axis 'xp'"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        ParallelTopology(tp=2, pp=2).plan(**arguments)
    assert str(caught.value).startswith(message)


def test_the_text_says_what_is_shared_and_what_is_not_created():
    assert str(ParallelTopology(tp=2, pp=1).plan()).splitlines()[:3] == [
        "world  1 group of 2",
        "tp     1 group of 2, shared with world",
        "pp     2 groups of 1, nothing to create",
    ]
