"""The example model against its single-process oracle, over every factorization that its sizes allow."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.examples import transformer  # pyright: ignore[reportAttributeAccessIssue]

SMALL = transformer.TransformerConfig(hidden=96, heads=24, layers=8, ffn=96, max_seq=16, dtype=torch.float64)
TOKENS = transformer.encode(b"two engines", b"one process")

FACTORIZATIONS = [
    (tp, ranks // tp)
    for ranks in (1, 2, 3, 4, 6, 8)
    for tp in range(1, ranks + 1)
    if ranks % tp == 0 and SMALL.heads % tp == 0 and SMALL.layers >= ranks // tp
]


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return transformer.dense_logits(SMALL, TOKENS)


def _check(groups: GroupManager, expected: torch.Tensor) -> None:
    logits = transformer.Transformer(SMALL, tp=groups.tp, pp=groups.pp)(TOKENS)
    assert (logits is not None) == groups.pp.is_last
    if logits is not None:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.ranks([ParallelTopology(tp=tp, pp=pp) for tp, pp in FACTORIZATIONS])
def test_every_factorization_gives_the_reference_logits(groups: GroupManager, expected: torch.Tensor):
    _check(groups, expected)


def test_all_the_factorizations_asked_for_are_there():
    assert len(FACTORIZATIONS) == 1 + 2 + 2 + 3 + 4 + 4


@pytest.mark.ranks(["tp2-pp2", "pp2-tp2", "tp3-pp1", "tp1-pp3@5", "tp2-pp2@3,1,0,2"])
def test_other_orders_and_places(groups: GroupManager, expected: torch.Tensor):
    _check(groups, expected)


@pytest.mark.ranks("tp2-pp2", world="processes")
def test_in_processes(groups: GroupManager, expected: torch.Tensor):
    _check(groups, expected)


def test_the_logits_depend_on_the_text_and_its_order():
    """The oracle and the model could agree by ignoring their input."""
    expected = transformer.dense_logits(SMALL, TOKENS)
    assert not torch.allclose(expected[0, -1], expected[1, -1])
    assert not torch.allclose(transformer.dense_logits(SMALL, TOKENS.flip(1))[0, -1], expected[0, -1])
    assert torch.equal(transformer.dense_logits(replace(SMALL), TOKENS), expected)


def test_a_model_that_does_not_divide_says_so():
    with pytest.raises(ValueError, match="heads 24 is not divisible by tp 5"):
        SMALL.require_divisible(tp=5, pp=1)
    with pytest.raises(ValueError, match="layers 8 is fewer than pp 9"):
        SMALL.require_divisible(tp=1, pp=9)


@pytest.mark.slow  # five processes import torch
def test_an_elastic_engine_loses_a_rank_and_grows_again():
    """It checks each answer itself; that it ends says that no request was lost."""
    module = "parallel_topology.examples.elastic_engine"
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        assert f"rank {rank}: tp2-dp2 -> tp3 -> tp2-dp2: requests 0 to " in done.stdout
    assert done.stdout.count("all answered right; 1 named") == 3
    assert "rank 3: tp2-dp2 -> tp2-dp2: requests " in done.stdout


@pytest.mark.slow
def test_an_elastic_engine_whose_dead_rank_torchrun_starts_again():
    """An agent for each rank, so that one's death leaves the others alone; the store is in this process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--max-restarts=3"]
    program = ["-m", "parallel_topology.examples.elastic_engine", f"tcp://127.0.0.1:{store.port}"]
    agents = [
        subprocess.Popen([*torchrun, *program, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(4)
    ]
    try:
        said = [agent.communicate(timeout=150) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    for rank, (out, errors) in enumerate(said):
        assert agents[rank].returncode == 0, errors
        before = "tp2-dp2" if rank == 3 else "tp2-dp2 -> tp3"
        assert f"rank {rank}: {before} -> tp2-dp2: requests " in out
        assert "all answered right" in out
