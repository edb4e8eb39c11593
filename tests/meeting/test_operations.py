"""What came to nothing is remembered as long as a rank may come for it, and no longer, however many came after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from parallel_topology import RebindError, torch_private
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.operations import CALLED_OFF, KEPT
from parallel_topology.meeting.succession import Proposal, Refused, Succession
from parallel_topology.testing.threads import run_threads
from tests.waiting import eventually

SIGN = "there"


def succession(store: dist.Store, rank: int) -> Succession:
    store.set(SIGN, "")
    return Succession(Control(store), "keys", rank, [0, 1], ended=lambda ranks, late: (), sign=SIGN)


def call_off(store: dist.Store, one: Succession, topology: str, until: float) -> None:
    """A rank asks for it, alone, and calls it off at once."""

    def stop() -> tuple[str, str]:
        return "changed its mind", CALLED_OFF

    with pytest.raises(Refused):
        one.agree(Proposal(topology, [0, 1], stop), Deadline(until))


def test_a_rank_that_comes_late_hears_of_what_was_called_off_many_operations_ago():
    store: Any = dist.HashStore()
    first, second = succession(store, 0), succession(store, 1)
    for number in range(4 * KEPT):
        call_off(store, first, f"tp{number + 2}", 30)
    with pytest.raises(Refused, match="rank 0: changed its mind"):
        second.agree(Proposal("tp2", [0, 1]), Deadline(5))


def test_what_nobody_comes_for_any_more_is_forgotten():
    store: Any = dist.HashStore()
    first = succession(store, 0)
    for number in range(3):
        call_off(store, first, f"tp{number + 2}", 0.2)
    after: list[str] = []

    def settled() -> bool:
        for number in range(KEPT + 1):
            call_off(store, first, f"dp{number + 2}", 0.01)
        past = [str(store.get(key)) for key in torch_private.list_keys(store) if key.endswith("/past")]
        after.append("".join(past))
        return "tp" not in after[-1]

    assert eventually(settled), after


def test_both_ask_for_the_same_again_after_it_was_called_off():
    store: Any = dist.HashStore()
    ranks = [succession(store, 0), succession(store, 1)]

    def body(rank: int) -> int:
        with pytest.raises(Refused):
            ranks[rank].agree(Proposal("pp2", [0, 1], lambda: ("no" if rank else "", "")), Deadline(20))
        return ranks[rank].agree(Proposal("pp2", [0, 1]), Deadline(20)).number

    assert run_threads(["rank"] * 2, body, timeout=30) == [1, 1]


def test_who_commits_long_after_all_is_over_is_left_out_and_leaves_nothing():
    store: Any = dist.HashStore()
    ranks = [succession(store, 0), succession(store, 1)]

    def agree(rank: int) -> int:
        agreement = ranks[rank].agree(Proposal("pp2", [0, 1]), Deadline(20))
        ranks[rank].ready(agreement, "", Deadline(20))
        return agreement.number

    assert run_threads(["rank"] * 2, agree, timeout=30) == [0, 0]
    ranks[0].commit(0, (), Deadline(20))
    store.delete_key(SIGN)
    ranks[0].clear(store)
    with pytest.raises(RebindError, match="rank 1 was left out"):
        ranks[1].commit(0, (), Deadline(20))
    assert torch_private.list_keys(store) == []


def test_who_was_left_out_hears_who_went_on():
    store: Any = dist.HashStore()
    first, second = succession(store, 0), succession(store, 1)
    agreement = first.agree(Proposal("pp1", [0], suspects=[1]), Deadline(20))
    first.ready(agreement, "", Deadline(20))
    first.commit(agreement.number, (), Deadline(20))
    with pytest.raises(RebindError, match="rank 1 was left out: rank 0 went on to pp1"):
        second.agree(Proposal("dp2", [0, 1]), Deadline(20))
