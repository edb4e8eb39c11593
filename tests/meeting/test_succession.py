"""Which operation the ranks of a manager are in, whatever comes between their steps at the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import DisagreementError, RebindError
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.succession import Proposal, Refused, Succession
from tests.turns import run_in_turns
from tests.waiting import FAR, soon

SIGN = "there"


def ranks_of(body: Callable[[Succession, int], object], ranks: int, seed: int) -> list[Any]:
    store = dist.HashStore()
    store.set(SIGN, "")

    def of(rank: int) -> Callable[[dist.Store], object]:
        def run(own: dist.Store) -> object:
            control = Control(own, own=True)
            return body(Succession(control, "keys", rank, range(ranks), ended=lambda ranks, late: (), sign=SIGN), rank)

        return run

    with soon():
        return run_in_turns(store, [of(rank) for rank in range(ranks)], seed)


def ask(one: Succession, topology: str, ranks: int, objection: str = "") -> Any:
    """The operation that was agreed on, or the error."""
    try:
        return one.agree(Proposal(topology, range(ranks), lambda: (objection, "")), Deadline(FAR)).number
    except (Refused, DisagreementError, RebindError) as error:
        return error


@pytest.mark.parametrize("seed", range(40))
def test_all_hear_that_they_disagree_and_agree_next(seed: int):
    def body(one: Succession, rank: int) -> list[Any]:
        return [ask(one, "tp2" if rank == 0 else "tp4", 3), ask(one, "pp4", 3)]

    found = ranks_of(body, 3, seed)
    assert all(isinstance(first, DisagreementError) for first, _ in found), found
    assert len({second for _, second in found}) == 1, found
