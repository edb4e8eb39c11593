"""Hugging Face's Transformers and Accelerate over a manager's mesh: `pip install transformers accelerate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallel_topology import GroupManager
from parallel_topology.interop.device_mesh import as_device_mesh
from tests.interop.world import registered, run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("transformers")


def _train(groups: GroupManager) -> Any:
    from parallel_topology.examples import huggingface_tp  # pyright: ignore[reportAttributeAccessIssue]

    before = registered()
    model, tokens = huggingface_tp.parallel_model(groups), huggingface_tp.batch()
    held: Any = model.model.layers[0].mlp.up_proj.weight
    sharded = held.to_local().numel() / held.numel()
    found = huggingface_tp.losses(model, tokens, groups)
    return found, huggingface_tp.losses(huggingface_tp.whole_model(), tokens), sharded, registered() - before


@pytest.mark.parametrize("text", ["tp2-dp2", "tp4-dp1", "tp1-dp4"])
def test_a_transformers_model_trains_like_one_process(text: str):
    for found, expected, sharded, created in run_in_world(text, _train, timeout=250):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)  # it computes losses in float32
        assert found[-1] < 0.9 * found[0]
        assert sharded == 0.25
        assert created == 0


def _accelerate(groups: GroupManager) -> Any:
    from accelerate.parallelism_config import ParallelismConfig  # pyright: ignore[reportMissingImports]

    before = registered()
    config = ParallelismConfig(dp_shard_size=groups.dp_shard.size, tp_size=groups.tp.size)
    config.device_mesh = as_device_mesh(groups, [("dp_shard", "cp"), "tp"])
    mesh: Any = config.get_device_mesh("cpu")  # what Accelerator(parallelism_config=config) takes
    assert mesh[tuple(config.fsdp_dim_names)].get_group() is groups.dp_shard.device_group
    assert mesh["tp"].get_group() is groups.tp.device_group
    return registered() - before


def test_accelerate_takes_the_mesh_it_is_given():
    """An Accelerator refuses a ParallelismConfig on CPUs, so this is as far as it goes here."""
    pytest.importorskip("accelerate")
    assert run_in_world("tp2-cp1-dp_shard2", _accelerate, groups=[("dp_shard", "cp")], timeout=250) == [0] * 4
