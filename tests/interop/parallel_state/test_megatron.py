"""megatron.core.parallel_state, served: its answers are those after its own initialisation; unmodified models on them.

To install it, see tests/peers/test_peers.py.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, TopologyError
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.megatron import MEGATRON
from tests.interop.parallel_state.layouts import answers, names, served
from tests.interop.world import run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
DECLARED = [
    ("tp", "pp"), ("tp", "cp"), ("cp", "dp"), ("tp", "dp"), ("tp", "cp", "dp"), ("etp", "ep"), ("etp", "ep", "pp"),
]  # fmt: skip
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("tp1-cp1-dp1-pp1", {}),
    ("tp2-cp1-dp2-pp1", {"tensor_model_parallel_size": 2}),
    ("tp1-cp2-dp1-pp2", {"context_parallel_size": 2, "pipeline_model_parallel_size": 2}),
    ("tp2-pp2-dp1", {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "order": "tp-cp-ep-pp-dp"}),
    (
        "tp2-cp1-dp4-pp1/expert:etp1-ep4-edp2-pp1",
        {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 4, "expert_tensor_parallel_size": 1},
    ),
    (
        "tp2-cp2-dp1-pp2/expert:etp2-ep2-edp1-pp2",
        {
            "tensor_model_parallel_size": 2, "context_parallel_size": 2, "pipeline_model_parallel_size": 2,
            "expert_model_parallel_size": 2,
        },
    ),
    ("tp1-cp1-dp1-pp4", {"pipeline_model_parallel_size": 4}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("megatron.core")


def test_every_name_is_in_the_table_and_no_other():
    new, gone = names(MEGATRON)
    assert new == {"megatron.core.parallel_state": set()}, "new names: they need rows"
    assert gone == {"megatron.core.parallel_state": set()}, "rows of names that are gone"


def _both(groups: GroupManager, sizes: dict[str, Any]) -> Any:
    from megatron.core import parallel_state  # pyright: ignore[reportMissingImports]

    assert not parallel_state.is_initialized()
    before = served(MEGATRON, groups)
    parallel_state.initialize_model_parallel(**sizes)
    own = answers(MEGATRON)
    with serving(groups, "megatron"):
        parallel_state.initialize_model_parallel(**sizes)
        with pytest.raises(TopologyError, match="initialize_model_parallel: "):
            parallel_state.initialize_model_parallel(tensor_model_parallel_size=groups.world.size + 1)
    assert served(MEGATRON, groups) == before, "its own state makes no difference"
    assert answers(MEGATRON) == own, "and is untouched"
    return own, before


NOT_MADE = {"get_hierarchical_context_parallel_groups()", "get_inter_distributed_optimizer_instance_group()"}


@pytest.mark.parametrize(("text", "sizes"), LAYOUTS, ids=[text for text, _ in LAYOUTS])
def test_every_answer_is_megatrons_own(text: str, sizes: dict[str, Any]):
    topology = ParallelTopology.parse(text)
    declared = [axes for axes in DECLARED if all(axis in topology.all_axes for axis in axes)]
    for own, ours in run_in_world(text, _both, sizes, groups=declared, timeout=200):
        expected, found = own, ours
        if topology.pp > 2:  # the ends are a group along no axis
            assert found.pop("get_embedding_group()") in ("GroupArgumentError", expected["get_embedding_group()"])
            del expected["get_embedding_group()"]
        for name, value in expected.items():
            if value == "AssertionError":
                assert found[name] == "GroupArgumentError", name
                continue
            assert found[name] == value, name
        assert len(found) > 60


# A model that knows nothing of this: its groups are Megatron's globals


STEPS = 200
SEQ, VOCAB = 6, 64
_BUILDING = threading.Lock()
"""torch's random numbers are the process's."""


def _model(tp: int) -> Any:
    from megatron.core.models.gpt import GPTModel  # pyright: ignore[reportMissingImports]
    from megatron.core.models.gpt.gpt_layer_specs import (  # pyright: ignore[reportMissingImports]
        get_gpt_layer_local_spec,
    )
    from megatron.core.tensor_parallel.random import initialize_rng_tracker  # pyright: ignore[reportMissingImports]
    from megatron.core.transformer.transformer_config import TransformerConfig  # pyright: ignore[reportMissingImports]

    initialize_rng_tracker(inference_rng_tracker=True)  # the other one's random numbers are on a GPU
    config = TransformerConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, tensor_model_parallel_size=tp,
        attention_dropout=0.0, hidden_dropout=0.0, use_cpu_initialization=True, gradient_accumulation_fusion=False,
        params_dtype=torch.float64,
    )  # fmt: skip
    with _BUILDING:
        torch.manual_seed(0)
        spec = get_gpt_layer_local_spec(normalization="LayerNorm")
        return GPTModel(config, spec, vocab_size=VOCAB, max_sequence_length=SEQ).double()


def _train(groups: GroupManager, steps: int, meeting: threading.Barrier | None = None) -> list[float]:
    """The losses, all in one block; with `meeting`, some steps begin and some end together with another thread's."""
    batch = torch.arange(4 * SEQ).view(4, SEQ) % VOCAB
    ids = groups.dp.shard_of(batch)
    positions = torch.arange(SEQ).expand_as(ids)
    mask = torch.triu(torch.ones(SEQ, SEQ, dtype=torch.bool), 1)[None, None]
    losses: list[float] = []
    with serving(groups, "megatron"):
        model = _model(groups.tp.size)
        for step in range(steps):
            if meeting is not None and step % 10 == 0:
                meeting.wait()
            loss = model(ids, positions, mask, labels=ids.roll(1, 1) + step % 3).mean()
            loss.backward()
            losses.append(groups.dp.all_reduce(loss.detach().clone()).item() / groups.dp.size)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * groups.dp.all_reduce(parameter.grad) / groups.dp.size
                    parameter.grad = None
    return losses


def _interleaved(_: GroupManager) -> None:
    from megatron.core import parallel_state  # pyright: ignore[reportMissingImports]

    rank, code = dist.get_rank(), parallel_state.get_tensor_model_parallel_group.__code__
    with (
        GroupManager(ParallelTopology(tp=1, cp=1, dp=1, pp=1, first_rank=rank), rank=rank, name="one") as one,
        GroupManager.from_world(ParallelTopology(tp=2, cp=1, dp=1, pp=1), timeout=60, name="a") as a,
        GroupManager.from_world(ParallelTopology(tp=1, cp=1, dp=2, pp=1), timeout=60, name="b") as b,
        ThreadPoolExecutor(2) as pool,
    ):
        expected = _train(one, STEPS)
        alone = [_train(groups, STEPS) for groups in (a, b)]
        meeting = threading.Barrier(2, timeout=60)
        together = [future.result(200) for future in [pool.submit(_train, groups, STEPS, meeting) for groups in (a, b)]]
        assert together == alone
        for losses in alone:
            assert losses == pytest.approx(expected, rel=1e-5), "its softmax and loss are in float32"
        assert expected[-1] < expected[0] / 2, "it learns"
    assert not parallel_state.is_initialized()
    assert parallel_state.get_tensor_model_parallel_group.__code__ is code


@pytest.mark.slow
def test_an_unmodified_model_in_two_threads_of_two_topologies():
    """Forward and backward, 200 steps: equal to each alone, and to one process."""
    run_in_world("tp2-cp1-dp1-pp1", _interleaved, timeout=280)
