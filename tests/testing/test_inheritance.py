"""What ranks that are threads get of their caller, and that they give nothing of it back; what ranks print."""

from __future__ import annotations

import random
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel_topology import GroupManager
from parallel_topology.testing import WorkerPool, run_ranks
from tests.waiting import eventually

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="nobody's")


def _settings(groups: GroupManager | None = None) -> dict[str, Any]:
    return {
        "device": torch.empty(0).device.type,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        "dtype": torch.get_default_dtype(),
        "request": REQUEST.get(),
    }


def _change_all(groups: GroupManager) -> None:
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.manual_seed(groups.rank)
    random.seed(groups.rank)
    REQUEST.set(f"rank {groups.rank}'s")
    groups.world.barrier()


@pytest.mark.parametrize(
    "inside",
    [
        lambda: torch.device("meta"),
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.float16),
    ],
    ids=["device", "grad", "inference", "autocast"],
)
def test_ranks_compute_as_their_caller_would(inside: Any):
    default = _settings()
    with inside():
        expected = _settings()
        assert expected != default
        assert run_ranks("tp2", _settings) == [expected] * 2


def test_ranks_have_their_callers_context_variables_and_default_dtype():
    token = REQUEST.set("the caller's")
    torch.set_default_dtype(torch.float64)
    try:
        assert run_ranks("tp2", _settings) == [_settings()] * 2
        assert _settings()["request"] == "the caller's"
    finally:
        torch.set_default_dtype(torch.float32)
        REQUEST.reset(token)


def test_ranks_give_nothing_back():
    def state() -> tuple[Any, ...]:
        return _settings(), torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(), sys.stdout

    before = state()
    run_ranks("tp2", _change_all)
    assert state() == before
    assert run_ranks("tp2", _settings) == [before[0]] * 2  # not to each other, nor to the next ranks, either


def _print(groups: GroupManager, folder: Path) -> None:
    print("one", end=" ")  # noqa: T201
    print("line")  # noqa: T201
    assert eventually(lambda: (folder / "heard").exists())
    sys.stdout.write("an end")


def test_what_ranks_print_is_there_at_once_and_carries_their_rank(
    world: Any, rank_workers: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each rank waits until its caller has seen what all have printed: what comes at the end only is never seen."""
    printed: list[str] = []

    class Out:
        def write(self, text: str) -> int:
            printed.append(text)
            if {"rank 0: one line\n", "rank 1: one line\n"} <= set("".join(printed).splitlines(keepends=True)):
                (tmp_path / "heard").touch()
            return len(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Out())
    run_ranks("tp2", _print, tmp_path, world=world, pool=rank_workers)
    lines = [line for line in "".join(printed).splitlines() if "[Gloo]" not in line]  # torch before 2.13 has its say
    assert sorted(lines) == [f"rank {rank}: {text}" for rank in (0, 1) for text in ("an end", "one line")]
