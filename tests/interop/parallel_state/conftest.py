from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack

import pytest

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.reads.systems import SYSTEMS
from tests.interop.parallel_state.library import TABLE


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "library", TABLE)


@pytest.fixture
def manager() -> Generator[Callable[[int], GroupManager]]:
    """Managers of one rank each, by that rank's number: what they answer to `get_rank()`."""
    with ExitStack() as made:
        yield lambda rank: made.enter_context(GroupManager(ParallelTopology(tp=1, dp=1, first_rank=rank), rank=rank))
