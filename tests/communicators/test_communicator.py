"""The seam below the collectives: chains, preferences, factories, and calls that are checked before they are made."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology import (
    BackendError,
    Communicator,
    DisagreementError,
    GroupArgumentError,
    GroupManager,
    GroupOptions,
    MismatchError,
    MissingExtraError,
    ParallelTopology,
    UnknownAxisError,
)
from parallel_topology.communicators.factories import find_factory
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.membership import Membership
from parallel_topology.testing import run_ranks
from parallel_topology.testing.threads import run_threads


class Adding(Communicator):
    """Somebody else's: sums of float64 tensors out of an all-gather. It notes what it was asked for."""

    name = "adding"

    def __init__(self, membership: Membership) -> None:
        self.of = membership
        self.log: list[str] = []

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return operation == "all_reduce" and tensor.dtype == torch.float64

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> None:
        assert op == dist.ReduceOp.SUM
        self.log.append("all_reduce")
        parts = [torch.empty_like(tensor) for _ in range(self.of.size)]
        dist.all_gather(parts, tensor, group=self.of.links.cpu_group)
        tensor.copy_(torch.stack(parts).sum(0))

    def warmup(self) -> None:
        self.log.append("warmup")

    @contextmanager
    def capture(self) -> Generator[None]:
        self.log.append("capture")
        yield
        self.log.append("captured")

    def close(self, *, abort: bool) -> None:
        self.log.append("close")


def chained(*names: str) -> dict[str, Any]:
    return {"communicators": {"adding": Adding}, "options": {"tp": {"communicators": names}}}


def of(group: Any) -> Adding:
    return next(one for one in group.communicators if isinstance(one, Adding))


def _first_that_handles(groups: GroupManager) -> list[str]:
    doubles, floats = torch.ones(2, dtype=torch.float64), torch.ones(2)
    assert groups.tp.all_reduce(doubles).tolist() == [3, 3]
    assert groups.tp.all_reduce(floats).tolist() == [3, 3]  # not one of its own: torch's turn
    assert groups.tp.broadcast(doubles).tolist() == [3, 3]
    log = of(groups.tp).log
    # tp has the world's ranks, and its own options
    assert [one.name for one in groups.world.communicators] == ["shared_memory", "torch"]
    assert groups.tp.cpu_group is not groups.world.cpu_group
    groups.close()
    return log


def test_the_first_that_handles_a_call_carries_it_out():
    assert run_ranks("tp3", _first_that_handles, check=False, **chained("adding")) == [["all_reduce", "close"]] * 3


def _preferred(groups: GroupManager) -> None:
    tp = groups.tp
    log, ones = of(tp).log, torch.ones(2, dtype=torch.float64)
    tp.all_reduce(ones.clone())
    assert log == []  # torch's stands before it, and takes everything
    assert not tp.is_preferred("adding")
    with pytest.raises(KeyError), tp.capture(prefer="adding") as stream:  # noqa: PT012
        assert stream is None  # no graphs on the CPU
        assert tp.is_preferred("adding")
        tp.all_reduce(ones.clone())
        with tp.capture(prefer="torch"):
            assert tp.is_preferred("torch")
            tp.all_reduce(ones.clone())
        assert tp.is_preferred("adding")
        raise KeyError
    assert not tp.is_preferred("adding")
    tp.all_reduce(ones.clone())
    assert log == ["all_reduce"]
    with groups.capture(prefer="adding"):
        assert tp.is_preferred("adding")
        assert not groups.world.is_preferred("adding")
    assert not tp.is_preferred("adding")


def test_a_preference_ends_with_its_block_and_nests():
    run_ranks("tp2", _preferred, check=False, **chained("torch", "adding"))


def test_managers_do_not_see_each_others_preferences():
    store = dist.HashStore()

    def body(rank: int) -> None:
        managers = [
            GroupManager(
                ParallelTopology(tp=2), rank=rank, store=store, name=name, timeout=20, **chained("torch", "adding")
            )
            for name in ("one", "two")
        ]
        with managers[0] as one, managers[1] as two, one.tp.capture(prefer="adding"):
            assert one.tp.is_preferred("adding")
            assert not two.tp.is_preferred("adding")

    run_threads(["rank"] * 2, body, timeout=60)


def test_a_group_of_one_rank_has_nothing_to_capture():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        with groups.tp.capture(prefer="whatever") as stream:
            assert stream is None
        assert not groups.tp.is_preferred("torch")


@pytest.mark.ranks(2)
def test_what_is_preferred_must_be_there(groups: GroupManager):
    with (
        pytest.raises(
            GroupArgumentError,
            match="prefer='nccl', but its communicators are shared_memory, torch; add it with options=",
        ),
        groups.tp.capture(prefer="nccl"),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"tp": {"communicators": ["no"]}},
            BackendError,
            "communicator 'no' is not known: expected one of torch, shared_memory, nccl",
        ),
        ({"tp": {"communicators": ["nccl"]}}, BackendError, "the manager's device is cpu, expected a CUDA device"),
        (
            {"tp": {"max_ctas": 4}},
            BackendError,
            "options of 'tp': max_ctas=4: only NCCL has these; the backend is 'gloo'",
        ),
        (
            {"tp": {"max_cta": 4}},
            GroupArgumentError,
            "options: tp: max_cta=4: Extra inputs are not permitted; the fields",
        ),
        ({"tp": {"timeout": -1}}, GroupArgumentError, "options: tp: timeout=-1: Input should be greater than 0"),
        ({"dp": {"timeout": 1}}, UnknownAxisError, "options for 'dp': there is no such group; there are world, tp"),
    ],
)
def test_options_that_cannot_be(options: Any, error: type[Exception], message: str):
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks("tp2", lambda groups: None, options=options)
    for one in caught.value.exceptions:
        assert type(one) is error
        assert message in str(one)


def _by_entry_point(groups: GroupManager) -> None:
    assert groups.tp.communicators[0].name == "adding"
    assert groups.tp.all_reduce(torch.ones(1, dtype=torch.float64)).item() == 2
    assert of(groups.tp).log == ["all_reduce"]


def test_an_installed_package_offers_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    about = tmp_path / "somebodys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[parallel_topology.communicators]\nsomebodys = {__name__}:Adding\n")
    monkeypatch.syspath_prepend(tmp_path)
    run_ranks("tp2", _by_entry_point, check=False, options={"tp": {"communicators": ["somebodys"]}})


@pytest.mark.skipif(find_spec("nccl") is not None, reason="nccl4py is installed")
def test_without_nccl4py_one_line_says_what_to_install():
    membership = Membership(
        "engine/tp[0]", ParallelTopology(tp=2).world, 0, torch.device("cuda:0"), Links(), GroupOptions()
    )
    with pytest.raises(MissingExtraError, match=r"^communicator 'nccl' needs nccl4py and cuda-bindings .*\[nccl\]'$"):
        find_factory("nccl", {})(membership)


def test_ranks_must_hold_the_same_options():
    store = dist.HashStore()

    def body(rank: int) -> None:
        options = {"tp": GroupOptions(timeout=5.0 + rank)}
        with pytest.raises(DisagreementError, match=r"options"):
            GroupManager(ParallelTopology(tp=2), rank=rank, store=store, timeout=20, options=options)

    run_threads(["rank"] * 2, body, timeout=60)


def test_options_from_a_file(tmp_path: Path):
    for name, text in {"a.json": '{"tp": {"timeout": 3}}', "a.yaml": "tp:\n  timeout: 3\n"}.items():
        path = tmp_path / name
        path.write_text(text)
        if name == "a.yaml" and find_spec("yaml") is None:
            with pytest.raises(MissingExtraError, match=r"^options in YAML need PyYAML: pip install pyyaml; or write"):
                GroupOptions.load(path)
        else:
            assert GroupOptions.load(path) == {"tp": GroupOptions(timeout=3)}
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(GroupArgumentError, match="expected axis -> options"):
        GroupOptions.load(tmp_path / "b.json")
    with pytest.raises(GroupArgumentError, match="cannot read"):
        GroupOptions.load(tmp_path / "c.json")


def mismatched(rank: int, tp: Any) -> dict[str, tuple[Any, str]]:
    """Calls in which rank 2 differs, and what is said."""
    odd = rank == 2
    return {
        "shape": (lambda: tp.all_reduce(torch.ones(3 + odd)), "rank 2 differs"),
        "dtype": (lambda: tp.all_gather(torch.ones(2).to(torch.float64 if odd else torch.float32)), "rank 2: all_g"),
        "operation": (lambda: tp.barrier() if odd else tp.all_reduce(torch.ones(1)), "rank 2: barrier int8[1]"),
        "root": (lambda: tp.broadcast(torch.ones(1), src=int(odd)), "rank 2: broadcast float32[1] by shared_memory"),
        "reduction": (
            lambda: tp.all_reduce(torch.ones(1), dist.ReduceOp.MAX if odd else dist.ReduceOp.SUM),
            "ranks 0, 1: all_reduce float32[1] by shared_memory on cpu op SUM",
        ),
    }  # fmt: skip


CASES = ["shape", "dtype", "operation", "root", "reduction"]


def _mismatch(groups: GroupManager, case: str) -> None:
    call, message = mismatched(groups.rank, groups.tp)[case]
    with pytest.raises(MismatchError, match=re.escape(message)):
        call()
    assert groups.tp.all_reduce(torch.ones(1)) == 3  # nothing was sent: the group goes on


@pytest.mark.parametrize("case", CASES)
def test_a_checked_call_names_the_rank_that_differs(case: str):
    run_ranks("tp3", _mismatch, case, check=False, check_calls=True)


def _splits(groups: GroupManager) -> None:
    splits = [1, 1, 1] if groups.rank != 2 else [1, 2, 0]
    with pytest.raises(MismatchError, match="rank 2 sends 2 rows to rank 1, which expects 1"):
        groups.tp.all_to_all(torch.ones(3), splits, [1, 1, 1] if groups.rank != 2 else [1, 2, 0])


def test_checked_splits_must_fit():
    run_ranks("tp3", _splits, check=False, check_calls=True)


def _p2p(groups: GroupManager) -> None:
    tp = groups.tp
    into = torch.zeros(2)
    for begun in (False, True):
        if tp.is_first:
            tp.send(torch.ones(2))
        else:
            assert (tp.irecv(into).wait() if begun else tp.recv(into)).tolist() == [1, 1]
    assert tp.send_recv(torch.full((2,), float(tp.rank))).tolist() == [1 - tp.rank] * 2
    if tp.is_first:
        sent = tp.isend(torch.ones(3))
        tp.barrier()
        assert not sent.is_done()
    else:
        with pytest.raises(
            MismatchError, match=re.escape("rank 0 sends float32[3], but rank 1 receives into float32[2]")
        ):
            tp.recv(into)
        tp.barrier()


def test_a_checked_receive_names_the_sender():
    run_ranks("tp2", _p2p, check=False, check_calls=True)


def _all_work(groups: GroupManager) -> None:
    from tests.groups.test_collectives import Case, check

    for operation in ("all_reduce", "all_gather_v", "reduce_scatter", "gather", "scatter", "all_to_all_v", "send_recv"):
        case = Case(
            operation, 3, torch.float32, (2, 2), 0, "SUM", 1, ((1, 0, 2), (2, 2, 0), (1, 1, 1)), True, True, False
        )
        check(groups, [case])
    assert groups.tp.all_gather_object(groups.rank) == [0, 1, 2]


def test_checked_calls_give_the_same():
    run_ranks("tp3", _all_work, check=False, check_calls=True)
