"""A network that falls into two parts: one part at most goes on, and who was left behind does not come back unseen.

pytest -m hosts tests/real_hosts
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, await_start
from tests.real_hosts.namespaces import Network, why_not
from tests.waiting import LATE, eventually

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

TIMEOUT = 4.0
GONE = {"GroupTimeoutError", "CollectiveError"}
ROUNDS = 6
Told = Mapping[int, Future[Outcome]]


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    if not hasattr(os, "setns"):
        pytest.skip("no os.setns: Python 3.12 has it")


class Cluster:
    """Ranks 0 to 3 on hosts of their own, with a manager of `dp4`, and the store on one of these, or on host 4."""

    def __init__(self, network: Network, store_at: int) -> None:
        self.network = network
        self.store = StoreSeat(network.names[store_at])
        address = network.addresses[store_at]
        self.seats = {rank: ProcessSeat(rank, self.store.port, address, network.names[rank]) for rank in range(4)}
        await_start(self.seats.values())
        options = {"timeout": TIMEOUT, "operation_timeout": TIMEOUT / 2}
        self.all_well(self.tell(range(4), "make", 0, "dp4", options), 60)
        self.add_up(range(4))

    def tell(self, ranks: Any, what: str, *arguments: Any) -> Told:
        return {rank: self.seats[rank].tell(what, *arguments) for rank in ranks}

    def all_well(self, told: Told, within: float = TIMEOUT) -> dict[int, Outcome]:
        found = {rank: one.result(within + LATE) for rank, one in told.items()}
        assert {rank: outcome for rank, outcome in found.items() if outcome.error} == {}
        return found

    def all_fail(self, told: Told, errors: set[str], words: str = "") -> None:
        for rank, one in told.items():
            outcome = one.result(TIMEOUT + LATE)
            assert outcome.error in errors, (rank, outcome)
            assert words in outcome.text, (rank, outcome)

    def rebind(self, ranks: Any, topology: str) -> Told:
        return self.tell(ranks, "rebind", 0, topology)

    def sum(self, ranks: Any) -> Told:
        return self.tell(ranks, "sum", 0, "world", 5)

    def add_up(self, ranks: Any) -> None:
        for outcome in self.all_well(self.sum(ranks)).values():
            assert outcome.value == [sum(rank + 1 for rank in ranks)]

    def come_back(self) -> None:
        """Ranks 2 and 3 leave what they had, and come in as newcomers."""
        self.all_well(self.tell([2, 3], "abort", 0))
        joining = self.tell([2, 3], "join", 0, {"timeout": 20.0})
        assert eventually(lambda: self.all_well(self.tell([0], "waiting"))[0].value == 2)
        self.all_well(self.rebind([0, 1], "dp4"))
        found = self.all_well(joining)
        self.seats.update({found[rank].value: self.seats[rank] for rank in (2, 3)})
        self.add_up(range(4))

    def leave(self) -> None:
        for seat in (*self.seats.values(), self.store):
            seat.leave()


@pytest.fixture
def network() -> Generator[Network]:
    with Network(5) as made:
        yield made


@pytest.fixture
def cluster(network: Network, request: pytest.FixtureRequest) -> Generator[Cluster]:
    made = Cluster(network, request.param)
    yield made
    with suppress(OSError):
        network.heal(2, 3)
    made.leave()


@pytest.mark.parametrize("cluster", [0, 4], indirect=True)
def test_the_half_that_has_the_store_goes_on_and_the_other_cannot(cluster: Cluster):
    cluster.network.split(2, 3)
    cluster.all_fail(cluster.sum(range(4)), GONE)
    there = cluster.rebind([2, 3], "dp2@2,3")
    cluster.all_well(cluster.rebind([0, 1], "dp2"))
    cluster.all_fail(there, {"RendezvousError"}, "the store does not answer")
    cluster.add_up([0, 1])
    cluster.network.heal(2, 3)
    cluster.all_fail(cluster.sum([2, 3]), GONE)  # of the manager that was
    left = "was left out: ranks 0, 1 went on to dp2 without it"
    cluster.all_fail(cluster.rebind([2, 3], "dp2@2,3"), {"RebindError"}, left)
    cluster.all_fail(cluster.rebind([2, 3], "dp4"), {"RebindError"}, left)
    cluster.add_up([0, 1])
    cluster.come_back()


@pytest.mark.parametrize("cluster", [4], indirect=True)
def test_without_the_store_s_host_nobody_goes_on_and_all_are_told(cluster: Cluster):
    cluster.network.cut(4)
    cluster.add_up(range(4))  # what is there needs no store
    cluster.all_fail(cluster.rebind([0, 1], "dp2"), {"RendezvousError"}, "the store does not answer")
    cluster.all_fail(cluster.rebind(range(4), "pp4"), {"RendezvousError"}, "the store does not answer")
    cluster.add_up(range(4))
    cluster.network.mend(4)
    cluster.all_well(cluster.rebind(range(4), "tp4"))
    cluster.add_up(range(4))


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_rank_beside_the_store_that_is_cut_off_with_it_goes_on_and_all_others_cannot(cluster: Cluster):
    cluster.network.cut(0)
    cluster.all_fail(cluster.sum(range(4)), GONE)
    there = cluster.rebind([1, 2, 3], "dp3@1,2,3")
    cluster.all_well(cluster.rebind([0], "dp1"))
    cluster.all_fail(there, {"RendezvousError"}, "the store does not answer")
    cluster.network.mend(0)
    cluster.all_fail(cluster.rebind([1, 2, 3], "dp3@1,2,3"), {"RebindError"}, "was left out")


@pytest.mark.parametrize("cluster", [0], indirect=True)
@pytest.mark.parametrize("how", ["rebind", "commit"])
def test_a_partition_at_any_moment_of_a_change_lets_one_half_go_on_at_most(cluster: Cluster, how: str):
    """The store's half is of one mind; the others have what all agreed on, or must come in as newcomers."""
    for turn in range(ROUNDS):
        if how == "commit":
            cluster.all_well(cluster.tell(range(4), "prepare", 0, "pp4"))
        told = cluster.tell(range(4), how, 0, *(["pp4"] if how == "rebind" else []))
        time.sleep(turn * 0.02)  # it falls into another moment each time
        cluster.network.split(2, 3)
        found = {rank: one.result(2 * TIMEOUT + LATE) for rank, one in told.items()}
        went_on = {rank for rank, outcome in found.items() if not outcome.error}
        assert not went_on or {0, 1} <= went_on, found
        for rank in {2, 3} - went_on if went_on else ():  # it had built: it is told who may have gone on
            assert found[rank].error == "RebindError", found
            assert f"does not know whether ranks 0, 1, {5 - rank} went on" in found[rank].text, found
        cluster.all_fail(cluster.rebind([2, 3], "dp2@2,3"), {"RendezvousError"})
        cluster.all_well(cluster.rebind([0, 1], "dp2"))
        cluster.add_up([0, 1])
        cluster.network.heal(2, 3)
        cluster.all_fail(cluster.rebind([2, 3], "dp2@2,3"), {"RebindError"}, "was left out")
        cluster.come_back()
