"""Lives of managers whose operations on the store happen in an order that is drawn: whatever comes between them, all
ranks tell the same story, nobody waits for a deadline, and nothing is left in the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, ParallelTopologyError, torch_private
from tests.turns import run_in_turns
from tests.waiting import FAR, eventually, soon

Life = Callable[[int, dist.Store], object]
parse = ParallelTopology.parse
SHORT, LONG = 4, 200
"""Orders of each life that are tried; `-m slow` tries the others."""


def made(topology: str, rank: int, store: dist.Store, name: str = "engine") -> GroupManager:
    return GroupManager(parse(topology), rank=rank, store=store, name=name, timeout=FAR)


def total(groups: GroupManager) -> int:
    return int(groups.world.all_reduce(torch.tensor([groups.rank + 1])).item())


def total_of(groups: GroupManager) -> int:
    """And its end."""
    with groups:
        return total(groups)


def told(what: Callable[[], object]) -> object:
    """What it returns, or the name of the error that it raises."""
    try:
        return what()
    except ParallelTopologyError as error:
        return type(error).__name__


def joins(store: dist.Store) -> int:
    return total_of(GroupManager(store=store, joining=True, timeout=FAR))


def one_after_the_other(rank: int, store: dist.Store) -> object:
    return [total_of(made("tp3", rank, store)) for _ in range(3)]


def two_at_once(rank: int, store: dist.Store) -> object:
    with made("tp3", rank, store, "a") as one, made("pp3", rank, store, "b") as other:
        return [total(one), total(other), total_of(one.rebind(parse("dp3")))]


def another_one_instead(rank: int, store: dist.Store) -> object:
    groups = made("tp3", rank, store)
    groups.prepare(parse("pp3"))
    groups = groups.prepare(parse("dp3")).commit()
    groups.prepare(parse("tp3"))
    return [total_of(groups.rebind(parse("pp3")))]


def called_off(rank: int, store: dist.Store) -> object:
    """By one rank, before the others have committed it or after."""
    groups = made("tp3", rank, store)
    standby = groups.prepare(parse("pp3"))
    if rank != 1 or told(standby.cancel) == "RebindError":
        committed = told(standby.commit)
        groups = committed if isinstance(committed, GroupManager) else groups
        assert committed in (groups, "RebindError")
    return [total_of(groups.rebind(parse("dp3")))]


def not_what_was_prepared(rank: int, store: dist.Store) -> object:
    """The others ask for another one; or the one that asks for it has committed it before they do."""
    groups = made("tp3", rank, store)
    standby = groups.prepare(parse("pp3"))
    error = told(lambda: groups.rebind(parse("pp3" if rank == 1 else "dp3")))
    if error == "RebindError":
        error = standby.commit()
    if isinstance(error, GroupManager):
        groups = error
    else:
        assert error == "DisagreementError"
    return [total_of(groups)]


def disagreeing(rank: int, store: dist.Store) -> object:
    with made("tp3", rank, store) as groups:
        assert told(lambda: groups.rebind(parse("pp3" if rank == 2 else "dp3"))) == "DisagreementError"
        return [total(groups), total_of(groups.rebind(parse("dp3")))]


def growing(rank: int, store: dist.Store) -> object:
    return [joins(store) if rank == 3 else total_of(made("tp3", rank, store).rebind(parse("dp4")))]


def growing_meanwhile(rank: int, store: dist.Store) -> object:
    return [joins(store) if rank == 3 else total_of(made("tp3", rank, store).prepare(parse("dp4")).commit())]


def losing(rank: int, store: dist.Store) -> object:
    groups = made("tp3", rank, store)
    if rank == 1:
        groups.abort()
        return [4]
    return [total_of(groups.rebind(parse("dp2@0,2")))]


def replacing(rank: int, store: dist.Store) -> object:
    if rank == 3:
        return [joins(store)]
    groups = made("tp3", rank, store)
    if rank == 1:
        groups.abort()
        return [6]
    return [total_of(groups.rebind(parse("dp3")))]


def losing_meanwhile(rank: int, store: dist.Store) -> object:
    """What was prepared with the one that leaves comes to nothing, and who asks for it now has it with the newcomer."""
    if rank == 3:
        return [joins(store)]
    groups = made("tp3", rank, store)
    groups.prepare(parse("dp3"))
    if rank == 1:
        groups.abort()
        return [6]
    return [total_of(groups.rebind(parse("dp3")))]


LIVES: dict[Life, tuple[int, list[int]]] = {
    one_after_the_other: (3, [6, 6, 6]),
    two_at_once: (3, [6, 6, 6]),
    another_one_instead: (3, [6]),
    called_off: (3, [6]),
    not_what_was_prepared: (3, [6]),
    disagreeing: (3, [6, 6]),
    growing: (4, [10]),
    growing_meanwhile: (4, [10]),
    losing: (3, [4]),
    replacing: (4, [6]),
    losing_meanwhile: (4, [6]),
}
"""How many ranks live so, and what each has to tell in the end."""


def left_in(store: dist.Store) -> list[str]:
    """The lobby's list stays, though nobody is on it, as there is no end of it."""
    return [key for key in torch_private.list_keys(store) if key != "lobby/engine/here"]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize(
    "orders",
    [pytest.param(range(SHORT), id="some"), pytest.param(range(SHORT, LONG), id="many", marks=[
        pytest.mark.slow, pytest.mark.timeout(3600)
    ])],
)  # fmt: skip
def test_all_tell_the_same_and_nothing_is_left(life: Life, orders: range):
    ranks, expected = LIVES[life]
    for seed in orders:
        store: Any = dist.HashStore()
        with soon():
            found = run_in_turns(store, [lambda own, rank=rank: life(rank, own) for rank in range(ranks)], seed)
        assert found == [expected] * ranks, f"order {seed}"
        assert eventually(lambda store=store: not left_in(store)), f"order {seed}: {left_in(store)}"
