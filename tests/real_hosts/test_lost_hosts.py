"""A rank on another host is lost: who is left names it when it can be known, and goes on at once.

pytest -m hosts tests/real_hosts
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.groups.seats import Outcome, ProcessSeat, StoreSeat, await_start
from tests.real_hosts.namespaces import Network, why_not

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(120)]

WAITS = 1.5
"""Seconds that operations wait."""
SOON = 0.35
"""Seconds: less than `witness.GRACE`, in which nothing more could be heard of a rank that is lost."""


@pytest.fixture
def network() -> Generator[Network]:
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")
    with Network(5) as made:
        yield made


class Engine:
    """Two ranks on each of two hosts, or four on as many, and the store on host 4."""

    def __init__(self, network: Network, hosts: list[int]) -> None:
        self.store = StoreSeat(network.names[4])
        self.seats = {
            rank: ProcessSeat(rank, self.store.port, network.addresses[4], network.names[host])
            for rank, host in enumerate(hosts)
        }
        await_start(self.seats.values())
        self.all_well(self.tell(range(4), "make", 0, "dp4", {"timeout": 20.0, "operation_timeout": WAITS}))
        self.all_well(self.tell(range(4), "sum", 0, "world", 5))

    def tell(self, ranks: Any, what: str, *arguments: Any) -> dict[int, Future[Outcome]]:
        return {rank: self.seats[rank].tell(what, *arguments) for rank in ranks}

    def all_well(self, told: dict[int, Future[Outcome]]) -> list[Outcome]:
        found = [one.result(30) for one in told.values()]
        assert [outcome for outcome in found if outcome.error] == []
        return found

    def leave(self) -> None:
        for seat in (*self.seats.values(), self.store):
            seat.leave()


@pytest.fixture
def engine(network: Network, request: pytest.FixtureRequest) -> Generator[Engine]:
    made = Engine(network, request.param)
    yield made
    made.leave()


@pytest.mark.parametrize("how", ["cut off", "frozen", "killed"])
@pytest.mark.parametrize("engine", [[0, 1, 2, 3], [0, 0, 1, 3]], indirect=True, ids=["four hosts", "three hosts"])
def test_who_is_left_names_it_and_goes_on_at_once(network: Network, engine: Engine, how: str):
    told = engine.tell(range(3), "sum", 0, "world", 5)
    if how == "cut off":
        network.cut(3)
    else:
        engine.seats[3].signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    lost = time.monotonic()
    for one in told.values():
        outcome = one.result(WAITS + 5)
        assert outcome.error == ("CollectiveError" if how == "killed" else "GroupTimeoutError"), outcome
        assert "rank 3 did not report" in outcome.text, outcome
    assert time.monotonic() - lost < SOON + (0 if how == "killed" else WAITS)
    begun = time.monotonic()
    engine.all_well(engine.tell(range(3), "rebind", 0, "dp3"))
    for outcome in engine.all_well(engine.tell(range(3), "sum", 0, "world", 5)):
        assert outcome.value == [6]
    assert time.monotonic() - begun < 1
