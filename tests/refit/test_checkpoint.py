"""Any layout loads any other's files, and reads no more than it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from parallel_topology import MissingExtraError, ParallelTopology, RefitError
from parallel_topology.refit.checkpoint import ALONE, load
from parallel_topology.refit.sides import Side, stored
from parallel_topology.weights import Fused, Sharded, Storage
from tests.refit import test_execute as refits

FILES = {
    "each": stored(refits.MODEL),
    "vllm": refits.VLLM,
    "megatron": refits.MEGATRON,
}


@pytest.fixture(params=FILES)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """Two files with all tensors, as one side stores them."""
    storage = FILES[request.param]
    tensors = refits.stored(Side("file", storage, ALONE), 0, refits.whole(refits.MODEL))
    names = list(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name].contiguous() for name in part}, tmp_path / f"{number}.safetensors")
    return tmp_path, storage


@pytest.mark.parametrize("text", ["tp1", "tp4", "tp2-pp2", "tp2-dp2-pp2/expert:etp1-ep4-pp2"])
@pytest.mark.parametrize("storage", [refits.VLLM, refits.MEGATRON], ids=["vllm", "megatron"])
def test_any_layout_loads_them(files: Any, text: str, storage: Any):
    folder, files_as = files
    topology = ParallelTopology.parse(text)
    side = Side("target", storage, topology)
    for rank in topology.world:
        into = refits.stored(side, rank, None)
        read = load(folder, storage, topology, rank, into, files_as=files_as)
        expected = refits.stored(side, rank, refits.whole(refits.MODEL))
        assert all(refits.same_bits(tensor, expected[name]) for name, tensor in into.items())
        held = storage.weights.on(topology, rank)
        assert read == sum(
            torch.Size(map(len, one.ranges)).numel() * (4 if name.startswith("norm") else 2)
            for name, one in held.items()
        )


@pytest.mark.parametrize(
    "storage",
    [
        Storage(refits.MODEL, sharded_over="dp"),
        Storage(refits.MODEL, [Fused("qkv", ["q", "k", "v"]), Sharded("qkv", "dp")]),
        Storage(refits.MODEL, [Fused("w13", ["gate", "up"], dim=1)], sharded_over=("dp", "pp")),
    ],
    ids=["each", "fused", "two axes"],
)
@pytest.mark.parametrize("text", ["tp2-dp2", "dp3-tp2", "dp2-pp2"])
def test_what_a_storage_cuts_once_more_is_loaded_whole(files: Any, text: str, storage: Storage):
    """As FSDP2 keeps it: each element that a rank has is written, also where a chunk goes through several weights."""
    folder, files_as = files
    topology = ParallelTopology.parse(text)
    if "pp" in storage.sharded_over and topology.size("pp") > 1:
        storage = Storage(refits.MODEL, storage.rules, sharded_over="dp")  # stages are no group of shards
    side = Side("target", storage, topology)
    for rank in topology.world:
        into = refits.stored(side, rank, None)
        load(folder, storage, topology, rank, into, files_as=files_as)
        expected = refits.stored(side, rank, refits.whole(refits.MODEL))
        assert all(refits.same_bits(tensor, expected[name]) for name, tensor in into.items())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    into = refits.stored(Side("target", stored(refits.MODEL), ALONE), 0, None)
    load_into = (refits.MODEL, ALONE, 0, into)
    with pytest.raises(RefitError, match=r"there is no '.*/\*.safetensors': expected safetensors files"):
        load(tmp_path, *load_into)
    save_file({"embed": torch.zeros(999, 16, dtype=torch.bfloat16)}, tmp_path / "some.safetensors")
    with pytest.raises(RefitError, match=r"'embed' is \[999, 16\] in the files, expected \[1000, 16\]"):
        load(tmp_path, *load_into)
    save_file({"embed": torch.zeros(1000, 16, dtype=torch.bfloat16)}, tmp_path / "some.safetensors")
    with pytest.raises(RefitError, match=r"the files lack 'q.0'; they have 'embed'"):
        load([tmp_path / "some.safetensors"], *load_into)
    Path(tmp_path, "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(RefitError, match=r"bad\.safetensors cannot be read"):
        load(tmp_path / "bad.safetensors", *load_into)
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parallel-topology\[checkpoint\]'"):
        load(tmp_path, *load_into)
