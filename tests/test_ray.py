"""Ranks for Ray actors: the laws of their order; then, with `-m peers` and Ray installed, a real cluster of four nodes.

pip install -e '.[dev,ray]' && pytest -m peers tests/test_ray.py
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import (
    ClosedError,
    CollectiveError,
    DeadRankError,
    DisagreementError,
    GroupArgumentError,
    Hosts,
    MissingExtraError,
    ParallelTopology,
    RanksFailedError,
    RendezvousError,
    StuckRankError,
    TopologyError,
)
from parallel_topology.examples import ray_engines  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.ray import Place, RayActors, RayEngine, Ticket, rank_order
from parallel_topology.ray.places import hosts_of
from parallel_topology.ray.ticket import device_index
from tests.waiting import eventually, soon

# The order of ranks


@st.composite
def placed(draw: st.DrawFn, *, distinct: bool) -> list[Place]:
    """Actors on nodes, some of which share an address; each with a device of its own if `distinct`."""
    nodes = draw(
        st.lists(st.tuples(st.uuids(), st.ip_addresses(v=4)), min_size=1, max_size=5, unique_by=lambda n: n[0])
    )
    devices = st.integers(0, 15).map(lambda device: (str(device),))
    on = st.tuples(st.sampled_from(nodes), devices if distinct else st.just(()) | devices)
    unique_by = (lambda drawn: (drawn[0][0], drawn[1])) if distinct else None
    actors = draw(st.lists(on, min_size=1, max_size=24, unique_by=unique_by))
    return [Place(str(node), str(address), device) for (node, address), device in actors]


@given(placed(distinct=False))
def test_every_actor_gets_one_rank_and_nodes_get_consecutive_ones(places: list[Place]):
    order = rank_order(places)
    assert sorted(order) == list(range(len(places)))
    runs = [node for node, _ in groupby(places[index].node for index in order)]
    assert len(runs) == len(set(runs))


@given(placed(distinct=False), st.randoms(use_true_random=False))
def test_a_node_gets_the_same_ranks_however_the_actors_are_listed(places: list[Place], random: Random):
    shuffled = random.sample(places, len(places))
    assert [shuffled[index] for index in rank_order(shuffled)] == [places[index] for index in rank_order(places)]


@given(placed(distinct=True), st.randoms(use_true_random=False))
def test_an_actor_with_devices_of_its_own_gets_the_same_rank_however_they_are_listed(
    places: list[Place], random: Random
):
    listed = random.sample(range(len(places)), len(places))
    order = rank_order([places[index] for index in listed])
    assert [listed[index] for index in order] == rank_order(places)


@given(placed(distinct=False))
def test_actors_that_nothing_tells_apart_keep_their_order(places: list[Place]):
    order = rank_order(places)
    for _, alike in groupby(order, key=lambda index: places[index]):
        members = list(alike)
        assert members == sorted(members)


@given(placed(distinct=False), st.data())
def test_the_first_node_is_as_told_and_the_others_stay_as_they_were(places: list[Place], data: st.DataObject):
    first = data.draw(st.sampled_from(places)).node
    told, otherwise = rank_order(places, first_node=first), rank_order(places)
    count = sum(place.node == first for place in places)
    assert {places[index].node for index in told[:count]} == {first}
    assert told[count:] == [index for index in otherwise if places[index].node != first]


@given(placed(distinct=False), st.integers(0, 40))
def test_hosts_are_the_nodes(places: list[Place], first_rank: int):
    ordered = [places[index] for index in rank_order(places)]
    hosts = hosts_of(ordered, range(first_rank, first_rank + len(places)))
    assert len(hosts) == len({place.node for place in places})
    for position, place in enumerate(ordered):
        for other, elsewhere in enumerate(ordered):
            together = hosts.host_of(first_rank + position) == hosts.host_of(first_rank + other)
            assert together == (place.node == elsewhere.node)


def test_addresses_and_devices_are_compared_as_numbers():
    addresses = ["10.0.0.10", "10.0.0.9", "fd00::1", "worker-2", "9.255.0.1"]
    order = rank_order([Place(address, address) for address in addresses])
    assert [addresses[index] for index in order] == ["9.255.0.1", "10.0.0.9", "10.0.0.10", "fd00::1", "worker-2"]
    devices = [("10",), ("9",), ("GPU-1b",), ("GPU-1a",), ("0", "1")]
    order = rank_order([Place("n", "10.0.0.1", device) for device in devices])
    assert [devices[index] for index in order] == [("0", "1"), ("9",), ("10",), ("GPU-1a",), ("GPU-1b",)]


def test_a_first_node_without_actors_is_an_error():
    with pytest.raises(TopologyError, match=r"first_node='c' holds none of the actors; they are on a \(10\.0\.0\.1\)"):
        rank_order([Place("a", "10.0.0.1")], first_node="c")


@pytest.mark.parametrize(
    ("gpus", "visible", "index"),
    [
        ([3], "3", 0),  # what Ray does: it hides the others
        ([2, 3], "2,3", 0),
        (["GPU-5d"], "GPU-5d", 0),
        ([3], None, 3),  # it was told to leave CUDA_VISIBLE_DEVICES alone
        ([3], "", 3),
        ([3], "1,2,3", 2),
        ([0], "GPU-5d", 0),
    ],
)
def test_an_actor_uses_the_gpu_that_ray_gave_it(gpus: list[int | str], visible: str | None, index: int):
    assert device_index(gpus, visible) == index


def test_a_ticket_travels_and_does_not_show_its_token():
    topology = ParallelTopology(tp=2, dp=4, views={"expert": "etp1-ep8"}, first_rank=8)
    ticket = Ticket(topology, 9, 1, "actor", ("127.0.0.1", 4567), 30.0, "a secret")
    assert pickle.loads(pickle.dumps(ticket)) == ticket
    assert "secret" not in repr(ticket)


def test_what_is_mistaken_is_said_before_anybody_is_called():
    actor: Any = SimpleNamespace(join=SimpleNamespace(remote=pytest.fail))
    actors = RayActors((actor,), (Place("a", "10.0.0.9"),))
    engine = RayEngine(actors, ParallelTopology(tp=1), name="trainer")
    untyped: Any = actors
    for mistake, said in (
        (lambda: RayActors.find(actor), "expected a list of them, as Worker.remote() returns each"),
        (lambda: RayActors.find([actor]), "is no actor: expected handles, such as Worker.remote() returns"),
        (lambda: untyped[0], "actors[0]: expected a part, as in actors[:4]; the handle of one is in actors.handles"),
        (lambda: RayEngine(actor, ParallelTopology(tp=1)), "expected RayActors, as RayActors.find(handles) makes"),
        (lambda: RayEngine(actors, ParallelTopology(tp=1), name="a/b"), "name='a/b': expected a name without '/'"),
        (lambda: engine.call("joins"), "'joins' on trainer: namespace(join=namespace("),
        (lambda: engine.admit("join", timeout=0), "timeout=0"),
    ):
        with pytest.raises(GroupArgumentError, match=re.escape(said)):
            mistake()


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"^[^\n]+: pip install 'parallel-topology\[ray\]'$"):
        RayActors.find([])


# A real cluster

NODES = ("127.0.0.2", "127.0.0.10", "127.0.0.3", "127.0.0.4")
"""Each raylet has a loopback address of its own, as nodes have. The driver is on the first."""
TIMEOUT = 20.0
"""Seconds the ranks wait for each other."""

peers = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


def cluster_test(function: Any) -> Any:
    for mark in peers:
        function = mark(function)
    return function


class Worker:
    """What the tests run in actors."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.groups: dict[str, Any] = {}

    def join(self, ticket: Ticket, **options: Any) -> dict[str, Any]:
        groups = self.groups[ticket.name] = ticket.join(**options)
        return {"rank": groups.rank, "local": groups.local_rank, "coordinate": groups.coordinate, "name": groups.name}

    def gathered(self, name: str, axis: str) -> list[int]:
        groups = self.groups[name]
        return groups[axis].all_gather(torch.tensor([groups.rank])).tolist()

    def total(self, name: str, axis: str) -> float:
        groups = self.groups[name]
        return groups[axis].all_reduce(torch.tensor([2.0**groups.rank], dtype=torch.float64)).item()

    def relay(self, name: str) -> list[int]:
        """Through the pipeline; each stage adds its rank."""
        groups = self.groups[name]
        seen = torch.zeros(groups.topology.world_size, dtype=torch.int64)
        if not groups.pp.is_first:
            groups.pp.recv(seen)
        seen[groups.pp.rank] = groups.rank
        if not groups.pp.is_last:
            groups.pp.send(seen)
        return seen[: groups.pp.rank + 1].tolist()

    def total_unless(self, name: str, rank: int, fate: str) -> float:
        """The world's sum, in which `rank` takes no part: it is killed, or fails."""
        if self.groups[name].rank == rank:
            if fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError(f"no such weight on rank {rank}")
        return self.total(name, "dp")

    def rebind(self, name: str, topology: str) -> tuple[int, ...]:
        groups = self.groups[name] = self.groups[name].rebind(ParallelTopology.parse(topology))
        return groups.newcomers

    def here(self) -> int:
        """The rank; -1 of one that never joined."""
        return next((groups.rank for groups in self.groups.values()), -1)

    def idle(self) -> None:
        threading.Event().wait(120)

    def close(self, name: str) -> None:
        self.groups.pop(name).close()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    cluster = pytest.importorskip("ray.cluster_utils").Cluster()
    try:
        for address in NODES:
            cluster.add_node(
                node_ip_address=address,
                num_cpus=8,
                num_gpus=2,
                object_store_memory=100 * 2**20,
                include_dashboard=False,
            )
        ray.init(address=cluster.address, _node_ip_address=NODES[0], log_to_driver=False)
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def handles(ray: Any) -> list[Any]:
    """Eight actors in a placement group that deals them out to the nodes, each with a GPU in Ray's books."""
    group = ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 8, strategy="SPREAD")
    assert group.wait(120)
    strategies = pytest.importorskip("ray.util.scheduling_strategies")
    return [
        ray.remote(Worker)
        .options(num_cpus=1, num_gpus=1, scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(group, bundle))
        .remote()
        for bundle in range(8)
    ]


@pytest.fixture(scope="module")
def actors(handles: list[Any]) -> RayActors:
    return RayActors.find(handles)


@pytest.fixture
def few(ray: Any) -> Iterator[RayActors]:
    """Three actors of the test's own."""
    found = RayActors.find([ray.remote(num_cpus=1)(Worker).remote() for _ in range(3)])
    yield found
    for handle in found.handles:
        ray.kill(handle)


@cluster_test
def test_ranks_are_dealt_node_by_node(ray: Any, handles: list[Any], actors: RayActors):
    nodes = [place.address for place in actors.places]
    assert nodes == [address for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.10") for _ in range(2)]
    assert [place.devices for place in actors.places] == [("0",), ("1",)] * 4
    assert actors.hosts == Hosts.parse("4x2")
    as_given = [nodes[actors.handles.index(handle)] for handle in handles]
    assert any(one != two for one, two in zip(as_given[::2], as_given[1::2], strict=True)), "Ray packed them by itself"
    assert RayActors.find(handles[::-1]) == actors, "the order depends on how the actors were listed"


@cluster_test
def test_a_node_comes_first_if_told(handles: list[Any], actors: RayActors):
    told = RayActors.find(handles, first_node=actors.places[-1].node)
    assert told.handles == actors.handles[6:] + actors.handles[:6]


@cluster_test
def test_the_placement_chooses_an_order_that_keeps_tp_inside_nodes(actors: RayActors):
    wrong = ParallelTopology(tp=2, pp=4, order="pp-tp")
    assert not actors.hosts.spans(wrong, "tp").inside
    assert wrong.reordered_for(actors.hosts) == ParallelTopology(tp=2, pp=4)


@cluster_test
def test_tp2_pp4_on_eight_actors(actors: RayActors):
    topology = ParallelTopology(tp=2, pp=4)
    with RayEngine(actors, topology, timeout=TIMEOUT) as engine:
        joined = engine.admit("join")
        assert engine.hosts.spans(topology, "tp").inside
        assert engine.actors == actors.handles
        for rank, found in zip(topology.world, joined, strict=True):
            assert found == {
                "rank": rank, "local": rank % 2, "coordinate": topology.coordinate(rank), "name": "engine",
            }  # fmt: skip
        for axis in ("tp", "pp"):
            expected = [list(topology.group(axis, rank=rank)) for rank in topology.world]
            assert engine.call("gathered", "engine", axis) == expected
            assert engine.call("total", "engine", axis) == [sum(2.0**rank for rank in group) for group in expected]
        for rank, seen in zip(topology.world, engine.call("relay", "engine"), strict=True):
            stages = topology.group("pp", rank=rank)
            assert seen == list(stages)[: stages.index(rank) + 1]
        engine.call("close", "engine")


@cluster_test
def test_two_engines_on_disjoint_actors_at_once(actors: RayActors):
    trainer = RayEngine(actors[:4], ParallelTopology(tp=2, dp=2), name="trainer", timeout=TIMEOUT)
    rollout = RayEngine(actors[4:], ParallelTopology(dp=4, first_rank=4), name="rollout", timeout=TIMEOUT)
    with trainer, rollout:
        assert str(rollout.hosts) == "2x2@4"
        for engine in (trainer, rollout):
            engine.admit("join")
        calls = [[actor.gathered.remote(engine.name, "dp") for actor in engine.actors] for engine in (trainer, rollout)]
        assert rollout.gather(calls[1]) == [[4, 5, 6, 7]] * 4
        assert trainer.gather(calls[0]) == [[0, 2], [1, 3], [0, 2], [1, 3]]
        for engine in (trainer, rollout):
            engine.call("close", engine.name)


@cluster_test
def test_two_engines_on_the_same_actors(actors: RayActors):
    first = RayEngine(actors[:4], ParallelTopology(tp=2, pp=2), name="first", timeout=TIMEOUT)
    second = RayEngine(actors[:4], ParallelTopology(tp=4), name="second", timeout=TIMEOUT)
    with second:
        with first:
            for engine in (first, second):
                engine.admit("join")
            assert first.call("gathered", "first", "pp") == [[0, 2], [1, 3], [0, 2], [1, 3]]
            assert second.call("gathered", "second", "tp") == [[0, 1, 2, 3]] * 4
            first.call("close", "first")
        assert second.call("total", "second", "tp") == [15.0] * 4
        second.call("close", "second")


@cluster_test
def test_ranks_may_be_placed_explicitly(actors: RayActors):
    """Global ranks count up over the nodes; which positions they hold is the topology's business."""
    topology = ParallelTopology(tp=2, pp=2, ranks=(0, 2, 1, 3))
    with RayEngine(actors[:4], topology, name="placed", timeout=TIMEOUT) as engine:
        assert engine.actors == tuple(actors.handles[rank] for rank in topology.world)
        assert [found["rank"] for found in engine.admit("join")] == [0, 2, 1, 3]
        assert [found["local"] for found in engine.admit("join", name="again")] == [0, 0, 1, 1]
        assert engine.call("gathered", "placed", "tp") == [[0, 2], [0, 2], [1, 3], [1, 3]]
        engine.call("close", "placed")


def dies(engine: RayEngine, refs: list[Any], dead: int, within: float) -> RanksFailedError:
    """The error of a call in which the actor of rank `dead` dies."""
    begun = time.monotonic()
    with pytest.raises(RanksFailedError) as caught:
        engine.gather(refs, doing="the call")
    error = caught.value
    assert time.monotonic() - begun < within
    assert error.ranks[0] == dead
    assert [isinstance(member, DeadRankError) for member in error.exceptions] == [True] + [False] * (
        len(error.ranks) - 1
    )
    label = f"rank {dead} of dp3 {{'dp': {dead}}}"
    assert f"first {label} with DeadRankError: The actor" in str(error)
    assert error.exceptions[0].__notes__ == [f"on {label}"]
    return error


@cluster_test
@pytest.mark.parametrize(("how", "dead"), [("ray.kill", 1), ("SIGKILL", 1), ("SIGKILL", 0)])
def test_the_death_of_an_actor_is_named_to_driver_and_survivors(ray: Any, few: RayActors, how: str, dead: int):
    with RayEngine(few, ParallelTopology(dp=3), name="mortal", timeout=TIMEOUT) as engine:
        engine.admit("join")
        if how == "SIGKILL":
            refs = [actor.total_unless.remote("mortal", dead, "killed") for actor in engine.actors]
        else:
            refs = [
                actor.idle.remote() if rank == dead else actor.total.remote("mortal", "dp")
                for rank, actor in enumerate(engine.actors)
            ]
            ray.kill(engine.actors[dead])
        error = dies(engine, refs, dead, within=TIMEOUT)
        assert len(error.ranks) > 1, "no survivor was heard"
        for survivor in error.exceptions[1:]:
            assert isinstance(survivor, CollectiveError)
            assert re.search(rf"ranks? ([0-9], )*{dead}(, [0-9])* did not report: dead", str(survivor))
            assert any("in total" in note for note in survivor.__notes__), "the note lacks the traceback in the actor"
        with pytest.raises(RanksFailedError, match=f"first rank {dead} of dp3"):  # who is dead already, too
            engine.call("gathered", "mortal", "dp")
    left = RayActors.find([actor for rank, actor in enumerate(few.handles) if rank != dead])
    with RayEngine(left, ParallelTopology(tp=2), name="smaller", timeout=TIMEOUT) as smaller:
        smaller.admit("join")
        assert smaller.call("gathered", "smaller", "tp") == [[0, 1]] * 2


@cluster_test
def test_a_new_actor_takes_the_place_of_one_that_died(ray: Any, few: RayActors):
    with RayEngine(few, ParallelTopology(dp=3), name="elastic", timeout=TIMEOUT) as engine:
        engine.admit("join")
        with pytest.raises(RanksFailedError, match="first rank 1 of dp3"):
            engine.call("total_unless", "elastic", 1, "killed")
        spare = ray.remote(num_cpus=1)(Worker).remote()
        joining = spare.join.remote(engine.tickets[1], joining=True)
        told = [engine.actors[rank].rebind.remote("elastic", "dp3") for rank in (0, 2)]
        assert ray.get(told, timeout=TIMEOUT * 2) == [(1,), (1,)]
        assert ray.get(joining, timeout=TIMEOUT)["rank"] == 1
        actors = (engine.actors[0], spare, engine.actors[2])
        assert ray.get([actor.total.remote("elastic", "dp") for actor in actors], timeout=TIMEOUT) == [7.0] * 3
        ray.kill(spare)


@cluster_test
def test_a_rank_that_fails_is_named_and_those_that_wait_for_it_are_not_waited_for(few: RayActors):
    with RayEngine(few, ParallelTopology(dp=3), name="failing", timeout=120) as engine:
        engine.admit("join")
        begun = time.monotonic()
        with pytest.raises(
            RanksFailedError, match=r"first rank 2 of dp3 .* with KeyError: .*; 2 had not answered"
        ) as caught:
            engine.call("total_unless", "failing", 2, "fails")
        assert time.monotonic() - begun < 60
        [error] = caught.value.exceptions
        assert type(error) is KeyError
        assert "in total_unless" in error.__notes__[0]
        assert pickle.loads(pickle.dumps(caught.value)).ranks == (2,)


@cluster_test
def test_after_a_failed_call_the_engine_takes_none_until_it_is_settled(few: RayActors):
    with RayEngine(few, ParallelTopology(dp=3), name="unsettled", timeout=TIMEOUT) as engine:
        engine.admit("join")
        with pytest.raises(RanksFailedError, match="2 had not answered"):
            engine.call("total_unless", "unsettled", 2, "fails")
        for refused in (engine.call, engine.admit):
            with (
                soon(TIMEOUT / 2),
                pytest.raises(RanksFailedError, match=r"was not begun, .* call settle\(\) first .*KeyError") as caught,
            ):
                refused("total", "unsettled", "dp")
            assert caught.value.ranks == (2,)
        with pytest.raises(RanksFailedError, match=r"first rank 0 of dp3 .* did not answer within 0\.1 s"):
            engine.settle(timeout=0.1)
        engine.settle()
        assert engine.call("here") == [0, 1, 2]
        with pytest.raises(RanksFailedError, match="3 of 3 failed"):
            engine.call("gathered", "nothing of this name", "dp")
        assert engine.call("here") == [0, 1, 2]  # all had answered
    for refused in (engine.call, engine.admit):
        with soon(TIMEOUT / 2), pytest.raises(ClosedError, match="here on unsettled: the engine is closed"):
            refused("here")


def anew(ray: Any, actor: Any) -> bool:
    """Whether an actor is there again, and has not joined; while Ray restarts it, calls are refused."""
    try:
        return ray.get(actor.here.remote(), timeout=20) == -1
    except ray.exceptions.RayActorError:
        return False


@cluster_test
def test_an_actor_that_was_restarted_is_named_and_not_let_in(ray: Any):
    remote = ray.remote(num_cpus=1, max_restarts=1)(Worker)
    found = RayActors.find([remote.remote() for _ in range(2)])
    try:
        with RayEngine(found, ParallelTopology(tp=2), name="restarted", timeout=TIMEOUT) as engine:
            engine.admit("join")
            ray.kill(engine.actors[1], no_restart=False)
            assert eventually(lambda: anew(ray, engine.actors[1]))
            begun = time.monotonic()
            with pytest.raises(RanksFailedError, match=r"first rank 1 of tp2 .* its actor was restarted") as caught:
                engine.call("total", "restarted", "tp")
            assert isinstance(caught.value.exceptions[0], DeadRankError)
            assert isinstance(caught.value.exceptions[0].__cause__, KeyError)
            with pytest.raises(RanksFailedError, match=r"settle on restarted: 1 of 2 failed, first rank 1 of tp2 .*"):
                engine.settle()
            with pytest.raises(RanksFailedError, match="was not begun"):
                engine.admit("join")
            ref = engine.actors[1].join.remote(engine.tickets[1])
            with pytest.raises(DeadRankError, match="restarted, rank 1: its actor was restarted"):
                ray.get(ref, timeout=TIMEOUT)
            assert time.monotonic() - begun < 60
        again = RayActors.find(found.handles)
        with RayEngine(again, ParallelTopology(tp=2), name="anew", timeout=TIMEOUT) as engine:
            engine.admit("join")
            assert engine.call("gathered", "anew", "tp") == [[0, 1]] * 2
    finally:
        for handle in found.handles:
            ray.kill(handle)


@cluster_test
def test_a_rank_that_does_not_answer_is_named_at_the_deadline(few: RayActors):
    with RayEngine(few[:2], ParallelTopology(dp=2), timeout=TIMEOUT) as engine:
        refs = [engine.actors[0].idle.remote(), engine.actors[1].__ray_ready__.remote()]
        with pytest.raises(RanksFailedError, match=r"first rank 0 of dp2 .* did not answer within 2 s") as caught:
            engine.gather(refs, timeout=2)
        assert [type(error) for error in caught.value.exceptions] == [StuckRankError]


@cluster_test
def test_who_holds_another_plan_or_no_token_is_refused(actors: RayActors):
    with RayEngine(actors[:2], ParallelTopology(tp=2), timeout=TIMEOUT) as engine:
        engine.tickets = (engine.tickets[0], replace(engine.tickets[1], topology=ParallelTopology(pp=2)))
        with pytest.raises(RanksFailedError, match="2 of 2 failed") as caught:
            engine.admit("join")
        assert caught.group_contains(DisagreementError, match=r"rank 0: topology tp2, .*\n  rank 1: topology pp2, ")
        assert [type(error) for error in caught.value.exceptions] == [DisagreementError] * 2
    with RayEngine(actors[:2], ParallelTopology(tp=2), timeout=TIMEOUT) as engine:
        engine.tickets = (engine.tickets[0], replace(engine.tickets[1], token="a guess"))
        with pytest.raises(RanksFailedError, match="same token") as caught:
            engine.admit("join")
        assert [type(error) for error in caught.value.exceptions] == [RendezvousError] * 2


@cluster_test
def test_an_engine_of_one_rank_needs_no_meeting(actors: RayActors):
    with RayEngine(actors[:1], ParallelTopology(tp=1), name="alone") as engine:
        assert engine.tickets[0].meeting is None
        engine.admit("join")
        assert engine.call("total", "alone", "tp") == [1.0]
        with pytest.raises(GroupArgumentError, match="close on alone: 2 references for 1 ranks"):
            engine.gather([actors.handles[0].close.remote("alone"), None], doing="close")


@cluster_test
def test_what_cannot_be(ray: Any, handles: list[Any], actors: RayActors):
    topology = ParallelTopology(tp=2, pp=2)
    with pytest.raises(TopologyError, match="tp2-pp2 has 4 ranks, but there are 3 actors"):
        RayEngine(actors[:3], topology)
    with pytest.raises(TopologyError, match="tp2-pp2 has 4 ranks, but there are 8 actors"):
        RayEngine(actors, topology)
    with pytest.raises(GroupArgumentError, match="timeout=0"):
        RayEngine(actors[:4], topology, timeout=0)
    with pytest.raises(GroupArgumentError, match=r"actor 2 is .* expected each once"):
        RayActors.find([*handles[:2], handles[0]])
    with pytest.raises(GroupArgumentError, match="is no actor: expected handles"):
        RayActors.find([Worker()])
    with pytest.raises(GroupArgumentError, match="is no actor: expected handles"):
        RayActors.find([ray.remote(Worker)])
    with pytest.raises(TopologyError, match="first_node='nowhere' holds none"):
        RayActors.find(handles, first_node="nowhere")
    doomed = ray.remote(num_cpus=1)(Worker).remote()
    ray.kill(doomed)
    with pytest.raises(RanksFailedError, match="first actor 1 of those given") as caught:
        RayActors.find([handles[0], doomed])
    assert caught.value.ranks == (1,)


@cluster_test
def test_actors_that_ray_does_not_start_are_not_waited_for_in_silence(
    ray: Any, few: RayActors, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """As on a machine with fewer cores than actors."""
    monkeypatch.setattr("parallel_topology.ray.calls.PATIENCE", 1.0)
    never = ray.remote(num_cpus=1000)(Worker).remote()
    with pytest.raises(RanksFailedError, match="1 of 4 failed, first actor 3 of those given") as caught:
        RayActors.find([*few.handles, never], timeout=6)
    assert [type(error) for error in caught.value.exceptions] == [StuckRankError]
    said = [record.getMessage() for record in caplog.records if record.name == "parallel_topology.ray"]
    assert re.match(r"3 of 4 actors answered; Ray starts an actor where .* of 32 CPU and \d of 8 GPU free$", said[-1])
    assert len(said) == 2  # after 1 s, and after 2 more


@cluster_test
def test_an_actor_that_could_not_be_made_says_why(ray: Any):
    class Unmade:
        def __init__(self) -> None:
            raise OSError("no weights at /models/a")

    with pytest.raises(RanksFailedError, match="DeadRankError: it could not be made: OSError: no weights at /models/a"):
        RayActors.find([ray.remote(num_cpus=1)(Unmade).remote()])


@cluster_test
def test_the_pages_snippet_runs(ray: Any):
    [snippet] = re.findall(r"```py\n(.*?)```", (Path(__file__).parents[1] / "docs/ray.md").read_text(), re.DOTALL)
    assert "\nray.init(num_cpus=4)" in snippet
    scope: dict[str, Any] = {}
    exec(compile(re.sub(r"\nray\.init\(.*", "", snippet), "docs/ray.md", "exec"), scope)  # there is a cluster
    assert [result.tolist() for result in scope["results"]] == [[2.0] * 3] * 4


@cluster_test
def test_the_example_ends_with_the_weights_of_one_process(ray: Any):
    expected = ray_engines.reference()
    assert expected.abs().max() > 0.1, "nothing was learned"
    weights = ray_engines.run()
    assert len(weights) == 6
    for weight in weights:
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12)
