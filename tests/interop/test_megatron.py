"""Megatron-core over a manager's groups: the same groups as its own, and the same numbers as one rank.

To install it, see tests/peers/test_peers.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import BackendError, GroupManager, ParallelTopology, UnknownAxisError
from parallel_topology.interop.megatron import ALONE, AXES, NOT_SEPARATE, process_group_collection
from parallel_topology.interop.modules import storage_of
from parallel_topology.testing import run_ranks
from parallel_topology.weights import Interleaved, Sharded, Storage, Weight, Weights
from tests.interop.world import fake_world, registered, run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
DECLARED = [("tp", "pp"), ("tp", "cp"), ("cp", "dp"), ("tp", "cp", "dp"), ("etp", "ep"), ("etp", "ep", "pp")]


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("megatron.core")


def _ranks(group: Any) -> list[int] | None:
    if group is None:
        return None
    if group.size() == 1:
        return [dist.get_rank()]
    return dist.get_process_group_ranks(group)


def _both_collections(groups: GroupManager, sizes: dict[str, int]) -> Any:
    """Field -> ranks, of ours and of Megatron's own; and how many process groups ours made."""
    from dataclasses import fields

    from megatron.core import parallel_state  # pyright: ignore[reportMissingImports]
    from megatron.core.process_groups_config import (  # pyright: ignore[reportMissingImports]
        ProcessGroupCollection,
    )

    before = registered()
    ours = process_group_collection(groups)
    created = registered() - before
    parallel_state.initialize_model_parallel(**sizes, create_gloo_process_groups=False)
    theirs: Any = ProcessGroupCollection.use_mpu_process_groups()
    names = [field.name for field in fields(ProcessGroupCollection)]
    found = {name: _ranks(getattr(ours, name)) for name in names if hasattr(ours, name)}
    expected = {name: _ranks(getattr(theirs, name)) for name in names if name != "hcp"}
    return found, expected, created


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (
            "tp2-cp2-dp1-pp2/expert:etp1-ep4-edp1-pp2",
            {
                "tensor_model_parallel_size": 2,
                "context_parallel_size": 2,
                "pipeline_model_parallel_size": 2,
                "expert_model_parallel_size": 4,
                "expert_tensor_parallel_size": 1,
            },
        ),
        (
            "tp2-cp1-dp4-pp1/expert:etp2-ep2-edp2-pp1",
            {
                "tensor_model_parallel_size": 2,
                "expert_model_parallel_size": 2,
                "expert_tensor_parallel_size": 2,
            },
        ),
        (
            "tp1-cp1-dp2-pp4/expert:etp1-ep2-edp1-pp4",
            {
                "pipeline_model_parallel_size": 4,
                "expert_model_parallel_size": 2,
                "expert_tensor_parallel_size": 1,
            },
        ),
    ],
)
def test_every_field_has_the_ranks_of_megatrons_own(text: str, sizes: dict[str, int]):
    stages = ParallelTopology.parse(text).pp
    for found, expected, created in run_in_world(text, _both_collections, sizes, groups=DECLARED, timeout=200):
        assert created == 0
        expected.pop("inter_dist_opt")  # None: one instance of the optimizer
        if stages > 2:  # the ends of a pipeline are a group along no axis
            assert expected.pop("embd") != found.get("pp")
        assert found == expected


def test_a_field_that_could_not_be_filled_says_what_to_declare():
    def body(groups: GroupManager) -> None:
        collection = process_group_collection(groups)
        with pytest.raises(UnknownAxisError, match=r"has no 'mp': .*GroupManager\(\.\.\., groups=\[\('tp', 'pp'\)\]\)"):
            collection.mp  # noqa: B018
        with pytest.raises(UnknownAxisError, match="has no 'ep': tp2-cp1-dp2-pp4 has no axis 'ep'"):
            collection.ep  # noqa: B018
        with pytest.raises(UnknownAxisError, match=r"has no 'embd': set it: collection\.embd = "):
            collection.embd  # noqa: B018
        with pytest.raises(AttributeError, match="'Collection' object has no attribute 'sp'"):
            collection.sp  # noqa: B018
        assert not any(hasattr(collection, field) for field in ("mp", "ep", "embd", "hcp", "inter_dist_opt"))
        collection.embd = groups.pp.device_group
        assert collection.embd is groups.pp.device_group

    with fake_world(1):
        run_ranks("tp2-cp1-dp2-pp4", body)


def test_without_a_default_group_megatron_would_take_every_group_for_one_of_size_1():
    with (
        GroupManager(ParallelTopology.parse("tp1-cp1-dp1-pp1"), rank=0) as groups,
        pytest.raises(BackendError, match="init_process_group first"),
    ):
        process_group_collection(groups)


def test_all_fields_are_known():
    from dataclasses import fields

    from megatron.core.process_groups_config import (  # pyright: ignore[reportMissingImports]
        ProcessGroupCollection,
    )

    newer = {*ALONE, *NOT_SEPARATE, *(field for field in AXES if "gtp_remat" in field)}
    known = {*AXES, *newer, "embd", "pos_embd", "hcp", "inter_dist_opt", "intra_dist_opt"}
    theirs = {field.name for field in fields(ProcessGroupCollection)}
    assert theirs in (known, known - newer)


def _layer(groups: GroupManager) -> Any:
    from parallel_topology.examples import megatron_layer  # pyright: ignore[reportAttributeAccessIssue]

    before = registered()
    found = megatron_layer.run(groups)
    held = sum(parameter.numel() for parameter in megatron_layer.layer(groups).parameters())
    with GroupManager(ParallelTopology.parse("tp1-cp1-dp1-pp1"), rank=0) as one:
        expected = megatron_layer.run(one)
        whole = sum(parameter.numel() for parameter in megatron_layer.layer(one).parameters())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    return registered() - before, held / whole


@pytest.mark.parametrize(("text", "most"), [("tp2-cp1-dp2-pp1", 0.52), ("tp4-cp1-dp1-pp1", 0.28)])
def test_a_layer_gives_one_ranks_output_and_gradient(text: str, most: float):
    for created, held in run_in_world(text, _layer, timeout=200):
        assert created == 0
        assert held < most, "the weights are sharded"


def _setup(groups: GroupManager) -> Any:
    """What Megatron's DistributedDataParallel and optimizers, which need a GPU to run, take out of the collection."""
    from types import SimpleNamespace

    ours = process_group_collection(groups)
    config, ddp = (
        SimpleNamespace(context_parallel_size=1),
        SimpleNamespace(num_distributed_optimizer_instances=1, use_distributed_optimizer=True),
    )
    before = registered()
    found = ours.setup_process_groups_for_ddp(ours, config, ddp)
    found |= ours.setup_process_groups_for_optimizer(
        ours, [SimpleNamespace(ddp_config=ddp, config=config)], use_gloo_process_groups=False
    )
    assert found["dp_group"] is found["intra_dp_cp_group"] is groups.dp.device_group
    assert found["expt_dp_group"] is groups.edp.device_group
    assert found["intra_dist_opt_group"] is groups.world.device_group
    return registered() - before


def test_its_data_parallel_and_optimizers_find_all_they_need():
    assert run_in_world("tp2-cp1-dp2-pp1/expert:etp2-ep1-edp2-pp1", _setup, timeout=200) == [0] * 4


def _wide_layer(groups: GroupManager, experts: int) -> Any:
    """A layer with grouped queries and a gated feed-forward, or experts: the same full weights under every topology."""
    from megatron.core.models.gpt.gpt_layer_specs import (  # pyright: ignore[reportMissingImports]
        get_gpt_layer_local_spec,
    )
    from megatron.core.transformer.spec_utils import build_module  # pyright: ignore[reportMissingImports]
    from megatron.core.transformer.transformer_config import (  # pyright: ignore[reportMissingImports]
        TransformerConfig,
    )

    topology = groups.topology
    among = {"num_moe_experts": experts, "expert_model_parallel_size": topology.size("ep"), "moe_ffn_hidden_size": 24}
    config = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        tensor_model_parallel_size=groups.tp.size,
        expert_tensor_parallel_size=topology.size("etp"),
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float32,
        **(among if experts else {}),
    )
    spec = get_gpt_layer_local_spec(num_experts=experts or None, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = torch.nn.Identity
    torch.manual_seed(0)
    return build_module(spec, config=config, layer_number=1, pg_collection=process_group_collection(groups))


def _stored(groups: GroupManager, experts: int) -> Any:
    """What storage_of and a declared storage say of a layer, against its parameters."""
    layer, topology, rank = _wide_layer(groups, experts), groups.topology, groups.rank
    parameters = dict(layer.named_parameters())
    held = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    storage = storage_of(layer, topology)
    assert storage.weights.bytes_on(topology, rank) == held
    first = topology.at(rank)["ep"].rank * experts // topology.size("ep")
    tensors = storage.tensors(topology, rank)
    for name, parameter in parameters.items():
        numbered = re.sub(r"(?<=local_experts\.)[0-9]+", lambda found: str(int(found[0]) + first), name)
        assert tensors.pop(numbered).shape == tuple(parameter.shape)
    assert not tensors

    qkv = "self_attention.linear_qkv.weight"
    with GroupManager(ParallelTopology.parse("tp1-cp1-dp1-pp1/expert:etp1-ep1-edp1-pp1"), rank=0) as one:
        whole = dict(_wide_layer(one, 0).named_parameters())[qkv]
        for weight in ("q", "k", "v"):
            cut = "" if topology.size("tp") > 2 else "/tp"
            size = 32 if weight == "q" else 16
            rules: list[Any] = [Interleaved(qkv, ["q", "k", "v"], groups=2)]
            heads = [Weight(name, f"{32 if name == 'q' else 16}{cut} 32") for name in ("q", "k", "v")]
            there = Storage(Weights(heads), rules)
            here = Storage(Weights(heads), [*rules, *([] if cut else [Sharded(qkv, "tp")])])
            found = torch.full((size, 32), float("nan"))
            for place in there.places(one.topology, 0, weight):
                found[slice(place.ranges[0].start, place.ranges[0].stop)] = place.view(whole.data)
            assert not found.isnan().any()
            for place in here.places(topology, rank, weight):
                rows = place.ranges[0]
                assert torch.equal(found[rows.start : rows.stop], place.view(parameters[qkv].data))
            assert here.tensors(topology, rank)[qkv].shape == tuple(parameters[qkv].shape)


@pytest.mark.parametrize(
    ("text", "experts"),
    [
        ("tp2-cp1-dp1-pp1/expert:etp1-ep1-edp2-pp1", 0),
        ("tp4-cp1-dp1-pp1/expert:etp1-ep1-edp4-pp1", 0),
        ("tp2-cp1-dp2-pp1/expert:etp1-ep4-edp1-pp1", 8),
        ("tp2-cp1-dp2-pp1/expert:etp2-ep2-edp1-pp1", 8),
    ],
)
def test_layers_keep_what_is_predicted(text: str, experts: int):
    run_in_world(text, _stored, experts, timeout=200)
