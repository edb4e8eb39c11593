"""How live modules keep their weights: what is read off their parameters is what each rank has, to the byte."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from parallel_topology import GroupManager, ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.interop.device_mesh import as_device_mesh
from parallel_topology.interop.modules import storage_of
from parallel_topology.weights import Storage, Weight, Weights
from tests.interop.world import fake_world, run_in_world

HIDDEN, LAYERS = 16, 2


class Layer(nn.Module):
    """A small Llama's: grouped queries, a gated feed-forward; or experts in stacked tensors."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.q = nn.Linear(HIDDEN, 32, bias=False)
        self.k = nn.Linear(HIDDEN, 8, bias=False)
        self.v = nn.Linear(HIDDEN, 8, bias=False)
        self.o = nn.Linear(32, HIDDEN, bias=False)
        if experts:
            self.router = nn.Linear(HIDDEN, experts, bias=False)
            self.w13 = nn.Parameter(torch.empty(experts, 24, HIDDEN))
            self.w2 = nn.Parameter(torch.empty(experts, HIDDEN, 12))
        else:
            self.gate = nn.Linear(HIDDEN, 24, bias=False)
            self.up = nn.Linear(HIDDEN, 24, bias=False)
            self.down = nn.Linear(24, HIDDEN, bias=False)


class Model(nn.Module):
    """Only its parameters are looked at."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, HIDDEN)
        self.layers = nn.ModuleList(Layer(experts) for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, 50, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def declared(experts: int = 0) -> Weights:
    """The same, written down."""
    name = "layers.{}.".__add__
    feed_forward = [
        Weight(name("router.weight"), f"{experts or 1} 16", layer=True),
        Weight(name("w13"), f"{experts or 1}/ep 24 16", layer=True),
        Weight(name("w2"), f"{experts or 1}/ep 16 12", layer=True),
    ]
    if not experts:
        feed_forward = [
            Weight(name("gate.weight"), "24/tp 16", layer=True),
            Weight(name("up.weight"), "24/tp 16", layer=True),
            Weight(name("down.weight"), "16 24/tp", layer=True),
        ]
    return Weights(
        [
            Weight("embed.weight", "50 16"),
            Weight(name("norm.weight"), "16", layer=True),
            Weight(name("q.weight"), "32/tp 16", layer=True),
            Weight(name("k.weight"), "8/tp 16", layer=True),
            Weight(name("v.weight"), "8/tp 16", layer=True),
            Weight(name("o.weight"), "16 32/tp", layer=True),
            *feed_forward,
            Weight("head.weight", "50/tp 16"),
        ],
        layers=LAYERS,
        dtype="float32",
    )


PLAN: dict[str, Any] = {
    **{f"layers.*.{name}": ColwiseParallel() for name in ("q", "k", "v", "gate", "up")},
    **{f"layers.*.{name}": RowwiseParallel() for name in ("o", "down")},
    "head": ColwiseParallel(),
}


def sharded(groups: GroupManager, experts: int) -> nn.Module:
    """By torch's own tensor parallelism, a cut over the experts, and FSDP2 over dp."""
    whole, mesh = Model(experts), as_device_mesh(groups)
    with torch.no_grad():
        for number, parameter in enumerate(whole.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + 10_000 * number)
    if groups.topology.size("tp") > 1:
        parallelize_module(whole, mesh["tp"], PLAN)
    for layer in whole.layers if experts else ():
        for name in ("w13", "w2"):
            parts = distribute_tensor(getattr(layer, name).data, mesh["ep"], [Shard(0)], src_data_rank=None)
            setattr(layer, name, nn.Parameter(parts))
    if groups.topology.size("dp") > 1:
        for layer in whole.layers:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(whole, mesh=mesh["dp"])
    return whole


def slices(box: Any) -> Any:
    return tuple(slice(one.start, one.stop, one.step) for one in box)


def compare(groups: GroupManager, experts: int) -> str:
    """What is read off and what is written down, against what the rank has; gives what was read off."""
    topology, rank = groups.topology, groups.rank
    module = sharded(groups, experts)
    local = {
        name: parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for name, parameter in module.named_parameters()
    }
    weights = declared(experts)
    held = sum(part.numel() * part.element_size() for part in local.values())
    assert held == weights.bytes_on(topology, rank, sharded_over="dp")
    found = storage_of(module, topology)
    shapes = {name: (tuple(part.shape), str(part.dtype)) for name, part in local.items()}
    for storage in found, Storage(weights, sharded_over="dp"):
        tensors = storage.tensors(topology, rank)
        assert {name: (one.shape, f"torch.{one.dtype}") for name, one in tensors.items()} == shapes
        assert sum(one.nbytes for one in tensors.values()) == held
        for number, (name, whole) in enumerate(Model(experts).named_parameters()):
            numbers = torch.arange(whole.numel()).reshape(whole.shape) + 10_000 * number
            places = storage.places(topology, rank, name)
            assert all(torch.equal(place.view(local[name]), numbers[slices(place.ranges)]) for place in places)
            assert sum(place.view(local[name]).numel() for place in places) == local[name].numel()
    return repr(found)


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "experts"), [("tp2-dp2", 0), ("dp4", 0), ("ep2-dp2", 4)])
def test_fsdp2_over_tensor_and_expert_parallelism_keeps_what_is_predicted(topology: str, experts: int):
    read_off = run_in_world(topology, compare, experts)
    assert len({*read_off}) == 1


# Placements, without anybody to communicate with


def placed(shape: tuple[int, ...], *placements: Any, names: Any = ("dp", "tp"), sizes: Any = (2, 2)) -> nn.Module:
    module = nn.Module()
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    if any(isinstance(one, Partial) for one in placements):
        parts = DTensor.from_local(whole, mesh, placements, run_check=False)
    else:
        parts = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    module.w = nn.Parameter(parts)
    return module


@pytest.mark.parametrize(
    ("shape", "placements", "text"),
    [
        ((8, 6), (Shard(0), Shard(0)), "8/dp/tp 6"),
        ((7, 6), (Shard(1), Shard(0)), "7/tp 6/dp"),
        ((8, 6), (Replicate(), Shard(-1)), "8 6/tp"),
        ((8, 6), (Replicate(), Replicate()), "8 6"),
    ],
)
def test_placements_are_cuts(shape: Any, placements: Any, text: str):
    topology = ParallelTopology.parse("tp2-dp2")
    for rank in range(4):
        with fake_world(4, rank):
            module: Any = placed(shape, *placements)
            storage = storage_of(module, topology)
            (weight,) = storage.weights.weights
            assert str(weight) == text
            local = module.w.to_local()
            assert storage.tensors(topology, rank)["w"].shape == tuple(local.shape)
            (place,) = storage.places(topology, rank, "w")
            assert torch.equal(place.view(local), torch.arange(math.prod(shape)).view(shape)[slices(place.ranges)])


def test_a_dim_of_a_mesh_may_be_several_axes():
    topology = ParallelTopology.parse("tp1-cp2-dp2")
    with fake_world(4, 1):
        module = placed((8,), Shard(0), names=("fsdp",), sizes=(4,))
        (weight,) = storage_of(module, topology, axes={"fsdp": ("dp", "cp")}).weights.weights
        assert str(weight) == "8/dp/cp"
        with pytest.raises(UnknownAxisError, match=r"'w': .*fsdp.* axes= says which axis"):
            storage_of(module, topology)
        uneven = placed((6,), Shard(0), names=("fsdp",), sizes=(4,))
        with pytest.raises(TopologyError, match=r"dim 0 of \[6\] does not divide over dp/cp, of 4 ranks"):
            storage_of(uneven, topology, axes={"fsdp": ("dp", "cp")})


@pytest.mark.parametrize(
    ("topology", "options", "said"),
    [
        ("tp2-dp2", {"placements": (Partial(), Replicate())}, "a DTensor with .*Partial.*: expected Replicate, Shard"),
        ("dp2-tp2", {"placements": (Shard(0), Replicate())}, "along 'dp' of .* stand ranks 0, 2, and along dp of"),
        ("tp4", {"placements": (Replicate(), Shard(0))}, "along 'tp' of .* stand ranks 0, 1, and along tp of"),
        ("tp2-dp2", {"placements": (Shard(0), Shard(0)), "names": None}, "has no names"),
    ],
)
def test_what_is_no_cut_of_this_topology(topology: str, options: Any, said: str):
    placements = options.pop("placements")
    with fake_world(4), pytest.raises(TopologyError, match=said):
        storage_of(placed((8,), *placements, **options), ParallelTopology.parse(topology))


# Megatron's attributes


def megatron(shape: tuple[int, ...], dim: int | None = None, blocks: int = 1, expert: bool = False) -> nn.Parameter:
    """A parameter with the attributes that Megatron's layers set."""
    parameter: Any = nn.Parameter(torch.empty(shape))
    parameter.tensor_model_parallel, parameter.partition_stride = dim is not None, blocks
    parameter.partition_dim, parameter.allreduce = -1 if dim is None else dim, not expert
    return parameter


def test_megatrons_attributes_are_cuts():
    module: Any = nn.Module()
    module.up, module.down, module.norm = megatron((4, 3), 0), megatron((3, 4), 1), megatron((3,))
    module.gated = megatron((8, 3), 0, blocks=2)
    topology = ParallelTopology(tp=2)
    storage = storage_of(module, topology)
    assert {weight.name: str(weight) for weight in storage.weights.weights} == {
        "up": "8/tp 3",
        "down": "3 8/tp",
        "norm": "3",
        "gated[0]": "8/tp 3",
        "gated[1]": "8/tp 3",
    }
    assert {name: one.shape for name, one in storage.tensors(topology, 1).items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }


def test_megatrons_experts_are_one_weight():
    module: Any = nn.Module()
    module.local_experts = nn.ModuleList()
    for _ in range(2):
        parameters = {"fc1": megatron((4, 3), 0, blocks=2, expert=True), "fc2": megatron((3, 2), 1, expert=True)}
        module.local_experts.append(nn.ParameterDict({**parameters, "bias": megatron((3,), expert=True)}))
    outer = nn.ModuleDict({"experts": module})
    topology = ParallelTopology.parse("tp2-dp2/expert:etp1-ep4")
    storage = storage_of(outer, topology)
    fc1, fc2 = "experts.local_experts.*.fc1", "experts.local_experts.*.fc2"
    assert {weight.name: str(weight) for weight in storage.weights.weights} == {
        f"{fc1}[0]": "8/ep 2/etp 3",
        f"{fc1}[1]": "8/ep 2/etp 3",
        fc2: "8/ep 3 2/etp",
        "experts.local_experts.*.bias": "8/ep 3",
    }
    assert {name: one.shape for name, one in storage.tensors(topology, 3).items()} == {
        f"experts.local_experts.{expert}.{name}": shape
        for name, shape in (("fc1", (4, 3)), ("fc2", (3, 2)), ("bias", (3,)))
        for expert in (6, 7)
    }
    assert str(storage_of(outer, ParallelTopology(tp=2)).weights.named(fc2)) == "2/ep 3 4/etp"
    with pytest.raises(TopologyError, match="'w' has experts of several ranks"):
        storage_of(nn.ParameterDict({"w": megatron((4, 3), 0, expert=True)}), topology)
