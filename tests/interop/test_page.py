"""docs/interop.md: its blocks and every row of its table run on four ranks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.interop.device_mesh import as_device_mesh
from tests.interop.world import registered, run_in_world

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
BLOCKS: dict[str, list[str]] = {"world": [], "peers": []}
for _block in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL):
    BLOCKS["peers" if "megatron" in _block else "world"].append(_block)
CELLS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| [A-Z\w].* \| `", line)]
ROWS = {target: line.strip("`") for target, line, _ in CELLS}
PEERS = ["Transformers", "Accelerate", "Megatron-core", "DeepSpeed"]
OURS = [target for target in ROWS if target not in PEERS]


def _blocks(_: GroupManager, blocks: list[str]) -> None:
    """One after the other, as a reader would; `raises:` in a comment is what a line's error says."""
    scope: dict[str, Any] = {}
    for block in blocks:
        raising = re.search(r"^    (\S+)  # raises: \"(.*)\"$", block, re.MULTILINE)
        if raising is None:
            exec(block, scope)
        else:
            with pytest.raises(Exception, match=re.escape(raising[2])):
                exec(block, scope)


def test_the_blocks_run():
    assert len(BLOCKS["world"]) == 4
    run_in_world("tp4", _blocks, BLOCKS["world"])


TOPOLOGIES = {
    "pipelining": "tp2-pp2",
    "Accelerate": "tp2-cp1-dp_shard2",
    "Transformer Engine": "tp2-cp2",
}
"""Of the rows that need others than tp2-cp1-dp2-pp1."""

TORCHS = """
from torch.distributed import checkpoint as dcp
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
"""
BEFORE = {
    "Transformer Engine": """
from parallel_topology.interop.transformer_engine import context_parallel
class Layer:
    def set_context_parallel_group(self, cp_group, cp_global_ranks, cp_stream, cp_comm_type): pass
layer, stream = Layer(), None
""",
    "Transformers": """
from transformers.distributed.tensor_parallel import apply_tensor_parallelism
from parallel_topology.examples import huggingface_tp
model = huggingface_tp.whole_model()
plan = huggingface_tp.expanded_plan(model)
""",
    "Accelerate": """
from accelerate.parallelism_config import ParallelismConfig
config = ParallelismConfig()
""",
    "Megatron-core": """
from megatron.core.transformer.spec_utils import build_module
from parallel_topology.examples import megatron_layer
from parallel_topology.interop.megatron import process_group_collection
spec, config = megatron_layer.recipe(tp=2)
""",
    "DeepSpeed": """
import deepspeed
from parallel_topology.interop.deepspeed import Mpu
optimizer, config = torch.optim.SGD(model.parameters(), lr=0.1), {"train_batch_size": 2}
""",
}
"""What a reader's program would have by then."""


def _rows(world: GroupManager, targets: list[str], folder: str) -> dict[str, Any]:
    """Of each target, how many process groups its line created, or its error."""
    os.environ["LOCAL_RANK"] = str(world.rank)
    found: dict[str, Any] = {}
    for target in targets:
        topology = ParallelTopology.parse(TOPOLOGIES.get(target, "tp2-cp1-dp2-pp1"))
        declared = [("dp_shard", "cp")] if target == "Accelerate" else []
        with GroupManager.from_world(topology, name="row", timeout=30, groups=declared) as groups:
            scope: dict[str, Any] = {
                "torch": torch,
                "groups": groups,
                "as_device_mesh": as_device_mesh,
                "mesh": as_device_mesh(groups),
                "model": torch.nn.Linear(8, 8),
                "x": torch.ones(8, 8),
                "state": {"x": torch.ones(2)},
                "folder": f"{folder}/checkpoint",
            }
            before = registered()
            try:
                exec(BEFORE.get(target, TORCHS) + ROWS[target], scope)
                found[target] = registered() - before
            except Exception as error:
                found[target] = repr(error)
    return found


def test_the_rows_run_and_create_no_process_group(tmp_path: Path):
    assert len(OURS) == 10
    for found in run_in_world("tp4", _rows, OURS, str(tmp_path)):
        assert found == dict.fromkeys(OURS, 0)


@pytest.mark.peers
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
class TestPeers:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        for package in ("transformers", "accelerate", "megatron.core", "deepspeed"):
            pytest.importorskip(package)

    def test_the_rows_run_and_create_no_process_group(self, tmp_path: Path):
        for found in run_in_world("tp4", _rows, PEERS, str(tmp_path), timeout=250):
            assert found == dict.fromkeys(PEERS, 0)

    def test_the_blocks_run(self):
        assert len(BLOCKS["peers"]) == 1
        run_in_world("tp4", _blocks, [BLOCKS["world"][0], *BLOCKS["peers"]], timeout=250)
