"""Many changes in a row: every request is answered, rightly and once, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.groups.test_elastic import World
from tests.shm import in_shm
from tests.waiting import eventually

SETTLED = 2
"""Cycles after which nothing grows any more: what is made when it is first used has been made."""
MEGABYTES = 8
"""By which the memory of a process may differ between two looks."""


class Serving:
    """An engine of three ranks, and how many requests it was given and has answered."""

    def __init__(self, kind: str) -> None:
        self.world = World(kind)
        self.world.make("tp3", timeout=20.0, operation_timeout=20.0)
        self.asked = self.answered = 0

    def request(self, ranks: list[int]) -> None:
        self.asked += 1
        outcomes = self.world.require_well(self.world.tell(ranks, "sum", 0, "world", self.asked))
        self.answered += {outcome.value[0] for outcome in outcomes.values()} == {sum(rank + 1 for rank in ranks)}

    def five_changes(self) -> None:
        """One leaves, one comes, another layout, another one that was prepared, and one that is called off."""
        world, some, all_of_them = self.world, [0, 1], [0, 1, 2]
        world.require_well(world.tell(all_of_them, "rebind", 0, "tp2"))
        self.request(some)
        joining = world.tell([2], "join", 0, {"timeout": 20.0})
        world.require_well(world.tell(some, "rebind", 0, "tp3"))
        assert world.require_well(joining)[2].value == 2
        self.request(all_of_them)
        world.require_well(world.tell(all_of_them, "rebind", 0, "pp3"))
        self.request(all_of_them)
        for what in ("commit", "cancel"):
            world.require_well(world.tell(all_of_them, "prepare", 0, "dp3" if what == "commit" else "tp3"))
            self.request(all_of_them)
            world.await_state(all_of_them, "ready")
            self.request(all_of_them)
            world.require_well(world.tell(all_of_them if what == "commit" else [0], what, 0))
            self.request(all_of_them)
        world.await_state(all_of_them, "cancelled")

    def held(self) -> dict[str, int]:
        """Descriptors, threads, megabytes of all ranks; keys of the store; files of shared memory."""
        found = [one.value for one in self.world.require_well(self.world.tell(range(3), "held")).values()]
        return {
            "descriptors": sum(one[0] for one in found),
            "threads": sum(one[1] for one in found),
            "keys": len(self.world.keys()),
            "files of shared memory": len(in_shm()),
        }

    def megabytes(self) -> int:
        return sum(one.value for one in self.world.require_well(self.world.tell(range(3), "megabytes")).values())


@pytest.fixture
def serving(request: pytest.FixtureRequest) -> Generator[Serving]:
    made = Serving(request.param)
    yield made
    made.world.leave()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("serving", "cycles"),
    [
        ("threads", 4),
        pytest.param("threads", 22, marks=pytest.mark.slow),
        pytest.param("processes", 22, marks=pytest.mark.slow),
    ],
    indirect=["serving"],
)
def test_nothing_is_lost_and_nothing_is_left(serving: Serving, cycles: int):
    for _ in range(SETTLED):
        serving.five_changes()
    before, memory = serving.held(), serving.megabytes()
    for _ in range(cycles - SETTLED):
        serving.five_changes()
    assert serving.answered == serving.asked == 9 * cycles

    def grown() -> dict[str, int]:
        return {name: one - before[name] for name, one in serving.held().items() if one > before[name]}

    assert eventually(lambda: not grown()), grown()
    assert serving.megabytes() <= memory + MEGABYTES * 3
