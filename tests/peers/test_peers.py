"""Agreement with other systems' own rank calculators, on 1,000 random cases each.

Deselected by default, and skipped where a system is not installed. To install and run, from the repository root,
with Python 3.11 and no GPU:

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install torch==2.13.0
    pip install -e . pytest pytest-timeout hypothesis numpy packaging einops hjson psutil py-cpuinfo tqdm msgpack ninja tyro
    pip install --no-deps megatron-core==0.16.1 torchtitan==0.3.0 spmd_types==0.2.3
    DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation deepspeed==0.19.8
    pytest -m peers tests/peers
"""  # noqa: E501 (a command to copy)

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import combinations
from math import prod
from random import Random
from typing import Any

import pytest

from parallel_topology import ParallelTopology, TopologyError

# Their imports warn; ours is not in question here.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

CASES = 1000


def sizes(random: Random, *axes: str, world: int = 64) -> dict[str, Any]:
    """Random sizes of at most `world` ranks; often 1, and not only powers of two."""
    while True:
        drawn = {axis: random.choice((1, 1, 2, 2, 3, 4, 5, 6, 8)) for axis in axes}
        if prod(drawn.values()) <= world:
            return drawn


def divisor(random: Random, number: int) -> int:
    return random.choice([n for n in range(1, number + 1) if number % n == 0])


def subsets(axes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count))


# Megatron: RankGenerator


@pytest.fixture
def rank_generator() -> Any:
    return pytest.importorskip("megatron.core.parallel_state").RankGenerator


def test_megatrons_groups_along_every_combination_in_every_order(rank_generator: Any) -> None:
    random = Random(0)
    axes = ("tp", "cp", "ep", "dp", "pp")
    for case in range(CASES):
        given = sizes(random, *axes)
        given[random.choice(("ep", "cp"))] = 1  # RankGenerator takes only one of them
        first_rank = random.choice((0, 0, 8, 13))
        order = ("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp", "-".join(random.sample(axes, 5)))[case % 3]
        theirs = rank_generator(**given, order=order, rank_offset=first_rank)
        name = {"tp-cp-ep-dp-pp": "megatron", "tp-cp-ep-pp-dp": "megatron_tp_pp_dp"}.get(order, order)
        ours = ParallelTopology(order=name, first_rank=first_rank, **given)
        for along in subsets(axes):
            token = "-".join(random.sample(along, len(along)))  # the order of the arguments does not matter
            assert ours.groups(*along) == theirs.get_ranks(token), (str(ours), along)


def test_megatrons_expert_groups(rank_generator: Any) -> None:
    """As initialize_model_parallel builds its two generators, and where it refuses, so do we."""
    random = Random(1)
    refused = 0
    for case in range(CASES):
        dense = sizes(random, "tp", "cp", "dp", "pp")
        etp = divisor(random, prod(dense.values()) // dense["pp"])
        ep = divisor(random, prod(dense.values()) // dense["pp"] // etp)
        edp = prod(dense.values()) // dense["pp"] // etp // ep
        order = "tp-cp-ep-dp-pp" if case % 4 else "-".join(random.sample(("tp", "cp", "ep", "dp", "pp"), 5))
        decoder = rank_generator(ep=1, order=order, **dense)
        expert = rank_generator(tp=etp, ep=ep, dp=edp, pp=dense["pp"], cp=1, order=order)
        renamed = {"tp": f"etp{etp}", "ep": f"ep{ep}", "dp": f"edp{edp}", "pp": f"pp{dense['pp']}"}
        arguments: dict[str, Any] = {
            "order": "-".join(axis for axis in order.split("-") if axis != "ep"),
            "views": {"expert": "-".join(renamed[axis] for axis in order.split("-") if axis != "cp")},
            **dense,
        }
        if decoder.get_ranks("pp") != expert.get_ranks("pp"):
            refused += 1
            with pytest.raises(TopologyError, match="axis 'pp' of expert is not that of the base"):
                ParallelTopology(**arguments)
            continue
        ours = ParallelTopology(**arguments)
        for along in subsets(("tp", "cp", "dp", "pp")):
            assert ours.groups(*along) == decoder.get_ranks("-".join(along)), (str(ours), along)
        for along in subsets(("tp", "ep", "dp", "pp")):
            here = [{"tp": "etp", "dp": "edp"}.get(axis, axis) for axis in along]
            assert ours.groups(*here) == expert.get_ranks("-".join(along)), (str(ours), here)
    assert 20 < refused < CASES / 4, "the cases no longer cover both answers"


# DeepSpeed: PipeModelDataParallelTopology and its expert groups


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DS_BUILD_OPS", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return pytest.importorskip("deepspeed")


def test_deepspeeds_pipe_data_model_topology(deepspeed: Any) -> None:
    peer = pytest.importorskip("deepspeed.runtime.pipe.topology")
    random = Random(2)
    for _ in range(CASES):
        given = sizes(random, "model", "data", "pipe")
        theirs = peer.PipeModelDataParallelTopology(num_pp=given["pipe"], num_mp=given["model"], num_dp=given["data"])
        ours = ParallelTopology(order="deepspeed", **given)
        for axis in given:
            assert sorted(map(list, ours.groups(axis))) == sorted(theirs.get_axis_comm_lists(axis)), (str(ours), axis)
        for rank in range(ours.world_size):
            assert ours.coordinate(rank) == theirs.get_coord(rank)._asdict()
            assert theirs.get_rank(**ours.coordinate(rank)) == rank
        stage = random.randrange(given["pipe"])
        assert [r for r in ours.world if ours.coordinate(r)["pipe"] == stage] == theirs.filter_match(pipe=stage)


def test_deepspeeds_pipe_data_topology(deepspeed: Any) -> None:
    peer = pytest.importorskip("deepspeed.runtime.pipe.topology")
    random = Random(3)
    for _ in range(CASES):
        given = sizes(random, "data", "pipe")
        theirs = peer.PipeDataParallelTopology(num_pp=given["pipe"], num_dp=given["data"])
        ours = ParallelTopology(order="deepspeed", **given)
        for axis in given:
            assert sorted(map(list, ours.groups(axis))) == sorted(theirs.get_axis_comm_lists(axis)), str(ours)


def test_deepspeeds_expert_groups(deepspeed: Any) -> None:
    peer = pytest.importorskip("deepspeed.utils.groups")
    random = Random(4)
    for case in range(CASES):
        given = sizes(random, "model", "data", "pipe")
        ep = divisor(random, given["data"])
        data_first = bool(case % 2)
        split = f"edp-ep{ep}" if data_first else f"ep{ep}-edp"
        ours = ParallelTopology(
            order="deepspeed", views={"expert": f"model{given['model']}-{split}-pipe{given['pipe']}"}, **given
        )
        theirs = peer._get_expert_parallel_ranks(
            world_size=ours.world_size,
            tensor_parallel_size_=given["model"],
            expert_parallel_size_=ep,
            pipeline_parallel_size_=given["pipe"],
            use_data_before_expert_parallel_=data_first,
        )
        for axis, groups in zip(("ep", "edp"), theirs, strict=True):
            assert sorted(map(list, ours.groups(axis))) == sorted(groups), (str(ours), axis)


def test_deepspeeds_folded_expert_groups(deepspeed: Any) -> None:
    peer = pytest.importorskip("deepspeed.module_inject.auto_ep_folding")
    random = Random(5)
    for _ in range(CASES):
        given = sizes(random, "model", "data", "pipe")
        stage = given["model"] * given["data"]
        ep = divisor(random, stage)
        ours = ParallelTopology(order="deepspeed", views={"expert": f"ep{ep}-edp-pipe{given['pipe']}"}, **given)
        theirs = peer.expected_folding_group_tables(
            peer.ParallelFoldingSpec(
                world_size=ours.world_size,
                pp_size=given["pipe"],
                stage_size=stage,
                tp_size=given["model"],
                dp_size=given["data"],
                ep_size=ep,
                etp_size=1,
                edp_size=stage // ep,
            )
        )
        tables = {
            "model": theirs.tp_groups,
            "data": theirs.dense_dp_groups,
            "ep": theirs.ep_groups,
            "edp": theirs.edp_groups,
        }
        for axis, groups in tables.items():
            assert sorted(map(tuple, ours.groups(axis))) == sorted(groups), (str(ours), axis)


# torchtitan: ParallelDims


def test_torchtitans_meshes() -> None:
    """Every mesh of one axis that a rank of ParallelDims holds, over a fake process group."""
    peer = pytest.importorskip("torchtitan.distributed.parallel_dims")
    dist = pytest.importorskip("torch.distributed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    random = Random(6)
    compared: dict[str, int] = {}
    device_type, peer.device_type = peer.device_type, "cpu"
    logging.disable(logging.INFO)
    try:
        for case in range(CASES):
            given = sizes(random, "tp", "cp", "dp_shard", "dp_replicate", "pp")
            ep = divisor(random, given["dp_shard"] * given["cp"] * given["tp"])
            sparse = f"ep{ep}-efsdp-dp_replicate{given['dp_replicate']}-pp{given['pp']}"
            ours = ParallelTopology(order="torchtitan", views={"sparse": sparse}, **given)
            rank = random.randrange(ours.world_size)
            backend = ("spmd_types", "full_dtensor", "partial_dtensor")[case % 3]
            dist.init_process_group("fake", store=fake.FakeStore(), rank=rank, world_size=ours.world_size)
            try:
                theirs = peer.ParallelDims(world_size=ours.world_size, spmd_backend=backend, ep=ep, **given)
                theirs.build_mesh()
                meshes = {name: mesh.mesh.flatten().tolist() for name, mesh in theirs._single_axis_meshes.items()}
            finally:
                dist.destroy_process_group()
            unions = {
                "batch": ("dp_shard", "dp_replicate"),
                "dp": ("dp_shard", "dp_replicate"),
                "fsdp": ("cp", "dp_shard"),
                "loss": ("cp", "dp_shard", "dp_replicate"),
            }
            for name, ranks in meshes.items():
                assert ours.group(*unions.get(name, (name,)), rank=rank) == ranks, (str(ours), backend, rank, name)
                compared[name] = compared.get(name, 0) + 1
    finally:
        peer.device_type = device_type
        logging.disable(logging.NOTSET)
    assert {"pp", "batch", "loss", "dp_replicate", "dp_shard", "fsdp", "cp", "tp", "ep", "efsdp"} <= compared.keys()
