"""Whatever is given to a bound group or a refit in place of what is meant, the error is ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

from parallel_topology import GroupArgumentError, GroupManager, ParallelTopology, ParallelTopologyError
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Weight, Weights

ALONE = ParallelTopology(tp=1)
PLAN = RefitPlan(Weights([Weight("w", "4/tp 4")], dtype="float32"), ALONE, ALONE)


def four() -> torch.Tensor:
    return torch.ones(4)


def calls(groups: GroupManager) -> dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]]:
    group = groups.tp
    have, into = {"w": torch.ones(4, 4)}, {"w": torch.zeros(4, 4)}
    return {
        "all_reduce": (group.all_reduce, [four()], {"op": "sum"}),
        "reduce": (group.reduce, [four()], {"dst": 0, "op": "sum"}),
        "broadcast": (group.broadcast, [four()], {"src": 0}),
        "all_gather": (group.all_gather, [four()], {"dim": 0, "out": None}),
        "all_gather_v": (group.all_gather_v, [four()], {"dim": 0, "sizes": None}),
        "reduce_scatter": (group.reduce_scatter, [four()], {"dim": 0, "op": "sum"}),
        "reduce_scatter_v": (group.reduce_scatter_v, [four()], {"sizes": [4], "dim": 0, "op": "sum"}),
        "gather": (group.gather, [four()], {"dst": 0, "dim": 0}),
        "scatter": (group.scatter, [four()], {"src": 0, "dim": 0}),
        "all_to_all": (group.all_to_all, [four()], {}),
        "broadcast_object": (group.broadcast_object, [1], {"src": 0}),
        "broadcast_objects": (group.broadcast_objects, [[1]], {"src": 0}),
        "all_gather_object": (group.all_gather_object, [1], {}),
        "gather_object": (group.gather_object, [1], {"dst": 0}),
        "scatter_object": (group.scatter_object, [[1]], {"src": 0}),
        "send_object": (group.send_object, [1], {"dst": 0}),
        "recv_object": (group.recv_object, [], {"src": 0}),
        "send_tensors": (group.send_tensors, [{"a": four()}], {"dst": 0}),
        "recv_tensors": (group.recv_tensors, [], {"src": 0}),
        "send": (group.send, [four()], {"dst": 0, "tag": 0}),
        "isend": (group.isend, [four()], {"dst": 0, "tag": 0}),
        "recv": (group.recv, [four()], {"src": 0, "tag": 0}),
        "irecv": (group.irecv, [four()], {"src": 0, "tag": 0}),
        "recv_any": (group.recv_any, [four()], {"tag": 0}),
        "send_recv": (group.send_recv, [four()], {"output": four(), "dst": 0, "src": 0, "tag": 0}),
        "of a rank": (groups.__getitem__, ["tp"], {}),
        "wait": (group.all_reduce(four(), async_op=True).wait, [1], {}),
        "timeout of a group": (group.set_timeout, [5], {}),
        "timeout of all": (groups.set_timeout, [5], {}),
        "diagnose": (groups.diagnose, [1], {}),
        "survivors": (groups.survivors, [1], {}),
        "require": (groups.require, [ALONE], {}),
        "rebind": (groups.rebind, ["tp1"], {}),
        "prepare": (groups.prepare, ["tp1"], {}),
        "refit": (refit, [PLAN, groups.world, have, into], {"staging_bytes": 4096, "version": 1, "progress": None}),
    }


NONSENSE: list[Callable[[], Any]] = [
    *(lambda: None, lambda: True, lambda: -1, lambda: 5, lambda: 3.5, lambda: float("nan"), lambda: 10**30, str),
    *(lambda: "sum", lambda: b"x", list, lambda: [1], lambda: ["a"], lambda: [None], dict, lambda: {"a": 1}, set),
    *(object, lambda: int, lambda: len, lambda: range(3), lambda: Fraction(1, 2), lambda: ParallelTopology(dp=2)),
    *(lambda: torch.ones(2, device="meta"), lambda: torch.ones(3).to_sparse(), lambda: torch.ones(2).to(torch.cfloat)),
    *(lambda: torch.ones(0), lambda: torch.ones(2, 2).T, lambda: [torch.ones(1), None], lambda: iter([1])),
    *(lambda: torch.nn.Parameter(torch.ones(2)), lambda: torch.float32, lambda: torch.device("cpu")),
]
FLAGS: list[Any] = [None, 0, 1, 1.0, "", "no", [], torch.tensor(True), torch.ones(2), object]
"""What Python takes for true or false, or cannot tell which."""


@pytest.mark.ranks("tp1")
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_errors_are_ours(groups: GroupManager):
    for name, (call, given, named) in calls(groups).items():
        for place in (*range(len(given)), *named):
            for make in NONSENSE:
                put, said = list(given), dict(named)
                if isinstance(place, int):
                    put[place] = make()
                else:
                    said[place] = make()
                if name in ("rebind", "prepare") and isinstance(put[0], ParallelTopology):
                    continue
                try:
                    call(*put, **said)
                except ParallelTopologyError:
                    pass
                except Exception as error:
                    raise AssertionError(f"{name}, {place}={make()!r}: {error!r}") from error


@pytest.mark.ranks("tp2-dp1")
@pytest.mark.parametrize("given", FLAGS, ids=repr)
def test_true_and_false_are_said_by_these_words(groups: GroupManager, given: Any):
    refused = partial(pytest.raises, GroupArgumentError)
    for group in (groups.tp, groups.dp):  # of two ranks, and of one
        for name in ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_v", "gather", "all_to_all"):
            with refused(match=rf"^{name} on .*/[td]p.*: async_op=.*: expected True or False$"):
                getattr(group, name)(four(), async_op=given)
        for name in ("all_reduce", "all_gather", "all_gather_v"):
            with refused(match=rf"^{name} on .*: async_op=.*: expected True or False$"):
                getattr(group, name)([four(), four()], async_op=given)
        with refused(match=r"^barrier on .*: async_op=.*: expected True or False$"):
            group.barrier(async_op=given)
        with refused(match=r"^all_reduce on .*: inplace=.*: expected True or False$"):
            group.all_reduce(four(), inplace=given)
    assert groups.tp.all_reduce(four()).tolist() == [2.0] * 4, "nothing was begun"


@pytest.mark.ranks("tp2")
@pytest.mark.parametrize(
    ("terms", "what"),
    [
        ({"unsafe_pickle": "no"}, "unsafe_pickle='no': expected True or False"),
        ({"max_bytes": "1 MB"}, "max_bytes='1 MB'; expected a whole number of bytes"),
        ({"models": None}, "models=None: expected classes"),
        ({"models": [ParallelTopology, int]}, "models has <class 'int'>: expected classes"),
    ],
)
def test_what_cannot_be_taken_on_such_terms_is_taken_on_others(groups: GroupManager, terms: dict[str, Any], what: str):
    tp = groups.tp
    for send, take in (
        (lambda: tp.send_object(7, dst=1), lambda **terms: tp.recv_object(src=0, **terms)),
        (lambda: tp.broadcast_object(7, src=0), lambda **terms: tp.broadcast_object(src=0, **terms)),
        (lambda: tp.scatter_object([0, 7], src=0), lambda **terms: tp.scatter_object(src=0, **terms)),
        (lambda: tp.gather_object(7, dst=1), lambda **terms: tp.gather_object(7, dst=1, **terms)),
        (lambda: [*tp.broadcast_objects([7], src=0)], lambda **terms: [*tp.broadcast_objects(src=0, **terms)]),
    ):
        if tp.rank == 0:
            send()
            continue
        with pytest.raises(GroupArgumentError, match=re.escape(what)):
            take(**terms)
        assert take() in (7, [7], [7, 7])
    with pytest.raises(GroupArgumentError, match=re.escape(what)):
        tp.all_gather_object(7, **terms)
    assert tp.all_gather_object(7) == [7, 7]


@pytest.mark.ranks("tp3")
def test_models_may_be_counted_out_once(groups: GroupManager):
    """An iterator has nothing left for the second of the others."""
    given = groups.tp.all_gather_object(groups.topology, models=iter([ParallelTopology]))
    assert given == [groups.topology] * 3


@pytest.mark.parametrize("name", ["verify", "check_calls", "joining"])
def test_a_manager_is_told_true_or_false(name: str):
    env = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    doors = (
        partial(GroupManager, ALONE, rank=0),
        partial(GroupManager.connect, "tcp://localhost:0", ALONE, rank=0),
        partial(GroupManager.from_env, ALONE, env=env),
    )
    for door, given in product(doors, FLAGS):
        with pytest.raises(GroupArgumentError, match=rf"^{name}=.*: expected True or False$"):
            door(**{name: given})
