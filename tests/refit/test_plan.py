"""Plans against brute force: each element that a rank needs, once, from one that holds it; both ends say the same."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from itertools import product
from math import prod
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology, RankError, RefitError, TopologyError
from parallel_topology.refit import Move, RefitPlan
from parallel_topology.refit.handing import Handing
from parallel_topology.refit.patterns import Patterns
from parallel_topology.testing.strategies import hosts_for
from parallel_topology.weights import Sharded, Storage, Weight, Weights
from tests.refit.drawing import refits

ONE = Weights([Weight("w", "8/tp 4")])


def ranks_of(plan: RefitPlan) -> list[int]:
    return sorted({*plan.source.topology.world, *plan.target.topology.world} - plan.without)


def elements(box: Any) -> set[tuple[int, ...]]:
    return set(product(*box))


def drawn_hosts(data: st.DataObject, source: ParallelTopology, target: ParallelTopology) -> Hosts | None:
    if not data.draw(st.booleans(), "with hosts"):
        return None
    both = sorted({*source.world, *target.world})
    return data.draw(hosts_for(ParallelTopology(dp=len(both), ranks=tuple(both))))


@given(refits(), st.data())
def test_each_element_arrives_once_from_a_rank_that_has_it(drawn, data):
    here, there, source, target = drawn
    hosts = drawn_hosts(data, source, target)
    plan = RefitPlan(here, source, target, target_as=there, hosts=hosts)
    plan.verify()
    sent: Counter[Move] = Counter()
    received: Counter[Move] = Counter()
    for rank in ranks_of(plan):
        for move in plan.moves(rank):
            assert rank in (move.source, move.target)
            if move.source == rank:
                sent[move] += 1
            if move.target == rank:
                received[move] += 1
    assert sent == received  # both ends say the same
    assert set(sent.values()) <= {1}
    moved = 0
    for rank in target.world:
        need = {name: elements(held.ranges) for name, held in there.on(target, rank).items()}
        have = (
            {name: elements(held.ranges) for name, held in here.on(source, rank).items()}
            if rank in source.world
            else {}
        )
        got: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in need}
        for move in (move for move in received if move.target == rank):
            got[move.weight].update(elements(move.ranges))
            moved += (move.source != rank) * plan.nbytes(move)
            if move.hop:  # handed on by a rank of the same host that has taken it across
                assert hosts is not None
                assert hosts.host_of(move.source) == hosts.host_of(rank)
                assert Counter(one.hop for one in received if one[:2] == move[:2] and one.target == move.source) == {
                    0: 1
                }
            else:
                assert elements(move.ranges) <= elements(here.on(source, move.source)[move.weight].ranges)
        for name, wanted in need.items():
            assert got[name] == Counter(wanted)
            own = [move for move in received if move.target == move.source == rank and move.weight == name]
            assert sum(prod(map(len, move.ranges)) for move in own) == len(wanted & have.get(name, set()))
    assert plan.bytes_moved == moved == plan.lower_bound == sum(map(plan.lower_bound_on, ranks_of(plan)))
    assert moved == sum(map(plan.bytes_sent, ranks_of(plan))) == sum(map(plan.bytes_received, ranks_of(plan)))
    assert plan.bytes_total == moved + sum(map(plan.bytes_kept, ranks_of(plan)))


@given(refits(), st.data())
def test_nothing_enters_a_host_twice(drawn, data):
    here, there, source, target = drawn
    both = sorted({*source.world, *target.world})
    hosts = data.draw(hosts_for(ParallelTopology(dp=len(both), ranks=tuple(both))))
    plan = RefitPlan(here, source, target, target_as=there, hosts=hosts)
    for host in {hosts.host_of(rank) for rank in target.world}:
        mine = [rank for rank in ranks_of(plan) if hosts.host_of(rank) == host]
        arrived: Counter[Any] = Counter()
        for rank in mine:
            for move in plan.moves(rank):
                if move.target == rank and hosts.host_of(move.source) != host:
                    arrived.update((move.weight, element) for element in elements(move.ranges))
        needed = {
            (name, element)
            for rank in mine
            if rank in target.world
            for name, held in there.on(target, rank).items()
            for element in elements(held.ranges)
        }
        here_already = {
            (name, element)
            for rank in mine
            if rank in source.world
            for name, held in here.on(source, rank).items()
            for element in elements(held.ranges)
        }
        assert arrived == Counter(needed - here_already)
        entering = {name: 0 for name, _ in arrived}
        for name, _ in arrived:
            entering[name] += plan.patterns.volume(there.named(name), (range(1),))
        assert plan.bytes_into(host) == plan.lower_bound_into(host) == sum(entering.values())


@given(st.sets(st.integers(0, 15), min_size=1), st.sets(st.integers(0, 15)), st.integers(0, 99), st.integers(1, 4))
def test_load_is_shared_by_replicas(having, needing, turn, per_host):
    handing = Handing(sorted(having), sorted(needing), None)
    loads = Counter({rank: sum(1 for _ in handing.given_by(rank, turn)) for rank in having})
    assert max(loads.values()) - min(loads.values()) <= 1
    with_hosts = Handing(sorted(having), sorted(needing), lambda rank: rank // per_host)
    assert with_hosts.moved == handing.moved == len(needing - having)


def test_boxes_of_one_pattern_take_turns():
    plan = RefitPlan(
        Weights([Weight("w", "8/tp 4", layer=True)], layers=8),
        ParallelTopology(tp=2, dp=4),
        ParallelTopology(tp=4, first_rank=8),
    )
    assert len({plan.bytes_sent(rank) for rank in range(8)}) == 1


def is_complete(plan: RefitPlan) -> bool:
    """Whether it is proven; else no copy is left of something."""
    try:
        plan.verify()
    except TopologyError:
        with pytest.raises(TopologyError, match="no copy is left"):
            plan.verify()
        return False
    return True


@given(refits(), st.data())
def test_who_is_gone_is_left_out(drawn, data):
    here, there, source, target = drawn
    both = sorted({*source.world, *target.world})
    gone = data.draw(st.sets(st.sampled_from(both), max_size=3))
    plan = RefitPlan(here, source, target, target_as=there, without=gone)
    left = {name for rank in {*source.world} - gone for name in here.on(source, rank)}
    if not is_complete(plan):
        return
    assert {name for rank in {*target.world} - gone for name in there.on(target, rank)} <= left
    for rank in ranks_of(plan):
        assert not {rank for move in plan.moves(rank) for rank in (move.source, move.target)} & gone


@given(refits(), st.data())
def test_only_those_that_are_asked_for_get_something(drawn, data):
    here, there, source, target = drawn
    only = data.draw(st.sets(st.sampled_from(sorted(target.world)), max_size=3))
    plan, everyone = (RefitPlan(here, source, target, target_as=there, only=who) for who in (only, None))
    if not is_complete(plan):
        return
    for rank in target.world:
        kept = 0 if rank not in source.world else everyone.bytes_kept(rank)
        assert plan.bytes_received(rank) == (everyone.bytes_received(rank) + kept if rank in only else 0)
        assert plan.lower_bound_on(rank) == plan.bytes_received(rank)
    assert plan.bytes_moved == plan.lower_bound == sum(map(plan.bytes_sent, ranks_of(plan)))
    assert (plan == everyone) == (plan.only is None)


@given(refits(8))
def test_an_unchanged_layout_moves_nothing(drawn):
    here, _, source, _ = drawn
    plan = RefitPlan(here, source, source)
    assert plan.bytes_moved == plan.lower_bound == 0
    assert all(move.source == move.target for rank in source.world for move in plan.moves(rank))


@given(refits(8), refits(8))
def test_fingerprints_are_equal_where_plans_are(first, second):
    one, other = (RefitPlan(here, a, b, target_as=there) for here, there, a, b in (first, second))
    again = RefitPlan(first[0], first[2], first[3], target_as=first[1])
    assert one.fingerprint == again.fingerprint
    assert (one.fingerprint == other.fingerprint) == (first == second)


def test_a_plan_that_is_wrong_does_not_pass(monkeypatch):
    RefitPlan(ONE, ParallelTopology(tp=2, dp=2), ParallelTopology(tp=4)).verify()
    met = Patterns.met
    wrong = {
        "reach rank": lambda self, *of: list(met(self, *of))[1:],
        "written twice": lambda self, *of: [*met(self, *of), next(met(self, *of))],
        "is not what rank": lambda self, *of: [
            type(one)((range(8), range(4)), one.handing, 0) for one in met(self, *of)
        ][:1],
    }
    for says, bad in wrong.items():
        monkeypatch.setattr(Patterns, "met", bad)
        plan = RefitPlan(ONE, ParallelTopology(tp=2, dp=2), ParallelTopology(tp=4))
        for _ in range(2):
            with pytest.raises(RefitError, match=says):
                plan.verify()


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        (ONE, Weights([Weight("x", "8/tp 4")]), r"the target has a weight 'x', which the source has not: it has 'w'"),
        (ONE, Weights([Weight("w", "8/tp 8")]), r"weight 'w' is \[8, 8\] .* but \[8, 4\]"),
        (ONE, Weights([Weight("w", "8/tp 4", layer=True)], layers=2), r"weight 'w' is \[8, 4\] in layer=True"),
        (ONE, Weights([Weight("w", "8/tp 4")], dtype="float8_e4m3fn"), "bfloat16 at the source and float8_e4m3fn"),
        (ONE, Weights([Weight("w", "8/tp 4")], dtype="int16"), "bfloat16 at the source and int16 at the target"),
        (Weights([Weight("w", "6/tp 4")]), None, "target tp4: weight 'w'.*6 elements over tp 4 leave 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(here, there, says):
    with pytest.raises(TopologyError, match=says):
        RefitPlan(here, ParallelTopology(tp=2, pp=2), ParallelTopology(tp=4), target_as=there)


@pytest.mark.parametrize("cut", [Storage(ONE, sharded_over="dp"), Storage(ONE, [Sharded("w", "dp")])])
@pytest.mark.parametrize("side", ["source_as", "target_as"])
def test_storages_that_cut_once_more_are_refused(cut: Storage, side: Any):
    """It was planned as if they were not cut, and elements were left out without a word."""
    here, there = ParallelTopology(tp=2, dp=2), ParallelTopology(dp=2, tp=2, order="dp-tp")
    given: dict[str, Any] = {side: cut}
    with pytest.raises(TopologyError, match=r"its storage cuts tensors once more over 'dp'.*Weight\('w', '8/tp/dp 4'"):
        RefitPlan(ONE, here, there, **given)
    RefitPlan(ONE, ParallelTopology(tp=2), ParallelTopology(tp=4), **given).verify()  # nothing is cut there


def test_a_plan_without_hosts_knows_none():
    plan = RefitPlan(ONE, ParallelTopology(tp=2), ParallelTopology(tp=4))
    for ask in (plan.bytes_into, plan.lower_bound_into):
        with pytest.raises(TopologyError, match="this plan knows no hosts"):
            ask(0)


def test_a_rank_of_neither_side_is_refused():
    plan = RefitPlan(ONE, ParallelTopology(tp=2), ParallelTopology(tp=2, first_rank=4))
    with pytest.raises(RankError, match="rank 3 is in neither layout"):
        plan.moves(3)


def test_planning_costs_a_rank_milliseconds_whatever_the_world():
    hidden, inner = 4096, 1536
    weights = Weights(
        [
            Weight("embed", f"151936/tp {hidden}", stage="first", pad_to=64),
            Weight("q", f"8192/tp {hidden}", units=64, layer=True),
            Weight("k", f"512/tp {hidden}", units=4, layer=True),
            Weight("o", f"{hidden} 8192/tp", layer=True),
            Weight("norm", f"{hidden}", layer=True),
            Weight("router", f"128 {hidden}", layer=True),
            Weight("up", f"128/ep {2 * inner}/etp {hidden}", layer=True),
            Weight("down", f"128/ep {hidden} {inner}/etp", layer=True),
            Weight("head", f"151936/tp {hidden}", stage="last", pad_to=64),
        ],
        layers=96,
    )
    source = ParallelTopology(tp=4, dp=4, pp=8, views={"expert": "etp1-ep16-pp8"})
    plan = RefitPlan(weights, source, ParallelTopology(tp=8, dp=16, first_rank=128))
    seconds: list[float] = []
    for rank in (0, 77, 128, 200):
        begun = process_time()
        moves = plan.moves(rank)
        seconds.append(process_time() - begun)
        assert 2000 < len(moves) < 5000
    assert min(seconds) < 2  # an enumeration of all ranks' moves takes 28
    assert plan.bytes_moved == plan.lower_bound == sum(plan.lower_bound_on(rank) for rank in range(128, 256))


def test_a_plan_is_a_value():
    weights = Weights([Weight("w", "8/tp 4"), Weight("q", "8/tp 4", layer=True)], layers=2)
    made = [RefitPlan(weights, ParallelTopology(tp=2), ParallelTopology(tp=4), without=(3,)) for _ in range(2)]
    made[0].verify()  # what is remembered makes no difference, and does not travel
    for other in (made[1], copy.deepcopy(made[0]), pickle.loads(pickle.dumps(made[0]))):
        assert other == made[0]
        assert hash(other) == hash(made[0])
        assert not other.remembered
        assert list(other.moves(0)) == list(made[0].moves(0))
    assert made[0] != RefitPlan(weights, ParallelTopology(tp=2), ParallelTopology(tp=4))
