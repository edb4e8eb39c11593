"""Memory: what a rank needs, part by part, for training or for serving a model. In closed form.

Weights, gradients, states of the optimizer and the cache are exact: the sum of what is held of each tensor. Activations
are counted by published formulas (see `activations`), and buffers of communicators are an assumption that can be given.
Not counted: the context of the driver, workspaces of kernels, and what an allocator loses between its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil, prod
from typing import Any, get_args

from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted, require
from parallel_topology.topology.wording import listed
from parallel_topology.weights.activations import Recompute, Tokens, end_bytes, in_flight, layer_bytes
from parallel_topology.weights.checks import HEAD_AXES, TENSOR_AXES, ModelSizes, check
from parallel_topology.weights.dtypes import BITS, bytes_of, checked_dtype
from parallel_topology.weights.model import Model
from parallel_topology.weights.placed import EXPERT_DATA_AXES, pipeline_axis

OPTIMIZERS = {"adam": 2}
"""States of an optimizer, each as large as the weights: Adam has two moments."""

SHARDING_AXES = ("dp_shard", "dp", "data", "cp", "attn_dp", *EXPERT_DATA_AXES)
"""Along which ZeRO and FSDP divide where nothing else is said: of each tensor those that do not cut it.

Megatron's distributed optimizer and torchtitan's FSDP divide over context parallelism, too, and experts over the ranks
that have the same ones (megatron/core/parallel_state.py, 0.16.1: `with_context_parallel`, `expert_data_parallel_group`;
torchtitan/distributed/parallel_dims.py: `fsdp` = `dp_shard` x `cp`, `efsdp`).
"""

CONTEXT_AXES = ("cp", "pcp", "dcp", "attn_cp")
"""Along which tokens of one sequence are divided."""

COMMUNICATOR_BYTES = 512 * 2**20
"""An assumption, for each group of more than one rank: NCCL takes more with channels, peers and algorithms.

1.6 GB were seen for one communicator and 6 GB for several (https://github.com/NVIDIA/nccl/issues/864), less where their
resources are shared (https://github.com/NVIDIA/nccl/issues/986).
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained, as far as memory goes.

    Attributes:
        batch: sequences in a micro-batch, on each data-parallel rank.
        context: tokens in a sequence.
        micro_batches: in a step; None for at least as many as there are stages.
        optimizer: one of `OPTIMIZERS`. Its states are float32, and so is the copy of weights that are less (18 bytes a
            parameter with bfloat16 weights and float32 gradients: https://arxiv.org/abs/1910.02054, section 3.1, where
            gradients are float16 and it is 16).
        gradients: their dtype; Megatron's are float32 where weights are bfloat16 (megatron/training/arguments.py).
        zero: what is divided over `over`: 1 the optimizer's states, 2 gradients as well, 3 weights as well, as FSDP.
        over: axes; None for those of `SHARDING_AXES` that are there.
        recompute: what the backward pass computes again.
        sequence_parallel: what the tensor group has of the whole width is divided by tokens.
        communicator_bytes: buffers of each communicator.

    Raises:
        TopologyError: one of them cannot be.
    """

    batch: int = 1
    context: int = 4096
    micro_batches: int | None = None
    optimizer: str = "adam"
    gradients: str = "float32"
    zero: int = 0
    over: tuple[str, ...] | None = None
    recompute: Recompute = "scores"
    sequence_parallel: bool = True
    communicator_bytes: int = COMMUNICATOR_BYTES

    def __post_init__(self) -> None:
        _require(self, batch=1, context=1, zero=0, communicator_bytes=0)
        if self.micro_batches is not None:
            _require(self, micro_batches=1)
        if self.zero > 3:
            raise TopologyError(f"zero={self.zero}: expected 0, 1, 2 or 3")
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"optimizer={quoted(self.optimizer)}: expected one of {listed(OPTIMIZERS)}")
        if self.recompute not in get_args(Recompute):
            raise TopologyError(f"recompute={quoted(self.recompute)}: expected one of {listed(get_args(Recompute))}")
        require_kind(self.sequence_parallel, bool, "sequence_parallel")
        object.__setattr__(self, "gradients", checked_dtype(self.gradients))


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a model is served, as far as memory goes.

    Attributes:
        batch: sequences at a time, on each replica.
        context: tokens that each of them has in the cache.
        cache: dtype of keys and values; None for that of the weights.
        communicator_bytes: buffers of each communicator.

    Raises:
        TopologyError: one of them cannot be.
    """

    batch: int = 1
    context: int = 4096
    cache: str | None = None
    communicator_bytes: int = COMMUNICATOR_BYTES

    def __post_init__(self) -> None:
        _require(self, batch=1, context=1, communicator_bytes=0)
        if self.cache is not None:
            object.__setattr__(self, "cache", checked_dtype(self.cache))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one rank needs.

    Attributes:
        weights, gradients, optimizer: of what it keeps of them all the time.
        gathered: weights that are put together for use, under ZeRO 3: the largest layer, and the next one beside it.
        activations: what the forward pass keeps for the backward pass, at its fullest.
        cache: keys and values.
        communicators: buffers, as assumed.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    gathered: int = 0
    activations: int = 0
    cache: int = 0
    communicators: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Name -> bytes, of those that are not 0."""
        return {one.name: size for one in fields(self) if (size := getattr(self, one.name))}

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory_on(model: Model, topology: ParallelTopology, rank: int, use: Training | Serving) -> Memory:
    """What a rank needs.

    Raises:
        RankError, UnknownAxisError, TopologyError: as for `Weights.on`; or an axis of `over` is not there.
    """
    require_all(model, topology, use)
    position = topology.position(rank)
    communicators = use.communicator_bytes and use.communicator_bytes * topology.plan().created_per_rank
    if isinstance(use, Serving):
        cached = _cached(model, topology, position, use)
        return Memory(model.weights.bytes_on(topology, rank), cache=cached, communicators=communicators)
    return Memory(
        **_kept(model, topology, position, use),
        activations=_activations(model, topology, position, use),
        communicators=communicators,
    )


def require_all(model: Model, topology: ParallelTopology, use: Training | Serving) -> None:
    """Check what a question about a model on a topology is asked of.

    Raises:
        TopologyError: one of them is something else.
    """
    require_use(model, use)
    require_kind(topology, ParallelTopology, "topology")


def require_use(model: Model, use: Training | Serving) -> None:
    """Check what a question about a model is asked of, whatever the topology.

    Raises:
        TopologyError: one of them is something else.
    """
    require_kind(model, Model, "model")
    if not isinstance(use, Training | Serving):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"use={quoted(use)}: expected a Training or a Serving")


def sharding_axes(topology: ParallelTopology, use: Training) -> tuple[str, ...]:
    """The axes over which ZeRO divides here.

    Raises:
        UnknownAxisError: one that was given is not there.
    """
    if use.over is None:
        return tuple(axis for axis in SHARDING_AXES if axis in topology.all_axes)
    if unknown := [axis for axis in use.over if axis not in topology.all_axes]:
        raise UnknownAxisError(f"over: {topology} has no axis {unknown[0]!r}; it has {listed(topology.all_axes)}")
    return use.over


def require_trainable(model: Model) -> None:
    """Check that no weight is as a quantized checkpoint has it.

    Raises:
        TopologyError: one is.
    """
    for weight in model.weights.weights:
        if BITS[dtype := weight.dtype or model.weights.dtype] < 16:
            raise TopologyError(
                f"weight {weight.name!r} of {dtype} is not trained so: expected elements of 16 bits or more, as those "
                "that Weights.from_config(config, dtype='bfloat16') gives of a quantized checkpoint"
            )


def stage_of(topology: ParallelTopology, position: int) -> int:
    """The pipeline stage of a position."""
    pipeline = pipeline_axis(topology)
    return topology.factorization(pipeline).index(pipeline, position) if topology.size(pipeline) > 1 else 0


def tensor_axis(topology: ParallelTopology) -> str | None:
    """The axis of the tensor group, by either of its names."""
    return next((axis for axis in TENSOR_AXES if axis in topology.all_axes), None)


def tokens_of(topology: ParallelTopology, use: Training) -> Tokens:
    """Those of one micro-batch that a tensor group computes for."""
    tensor = tensor_axis(topology)
    size = 1 if tensor is None else topology.size(tensor)
    return Tokens(use.batch * ceil(use.context / _apart(topology)), use.context, size, use.sequence_parallel)


def keys_and_values(model: Model, topology: ParallelTopology) -> int:
    """Elements of one token's keys and values on a rank: heads over the tensor group, fewer than ranks each on several.

    Raises:
        TopologyError: the heads can be neither divided nor held equally often.
    """
    axis = next((axis for axis in HEAD_AXES if axis in topology.all_axes), None)
    ranks = 1 if axis is None else topology.size(axis)
    if model.kv_heads % ranks and ranks % model.kv_heads:
        (finding,) = check(topology, ModelSizes(kv_heads=model.kv_heads))
        raise TopologyError(f"kv_heads {finding.said}")
    return max(1, model.kv_heads // ranks) * (model.keys + model.values) // model.kv_heads


def _kept(model: Model, topology: ParallelTopology, position: int, use: Training) -> dict[str, int]:
    """Weights, gradients, states of the optimizer, and weights that are put together."""
    require_trainable(model)
    over = sharding_axes(topology, use) if use.zero else ()
    weights = gradients = optimizer = 0
    together: dict[int | str, int] = {}
    for placed, layers in model.weights.here(topology, position):
        whole, part = placed.whole_and_part(position, over)
        weights += len(layers) * bytes_of(part if use.zero == 3 else whole, placed.dtype)
        for layer in layers if use.zero == 3 else ():
            key = placed.weight.name if layer is None else layer
            together[key] = together.get(key, 0) + bytes_of(whole, placed.dtype)
        if placed.weight.name not in model.untrained:
            gradients += len(layers) * bytes_of(part if use.zero >= 2 else whole, use.gradients)
            copies = OPTIMIZERS[use.optimizer] + (placed.dtype != "float32")
            optimizer += len(layers) * copies * bytes_of(part if use.zero else whole, "float32")
    gathered = sum(sorted(together.values())[-2:])
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "gathered": gathered}


def _cached(model: Model, topology: ParallelTopology, position: int, use: Serving) -> int:
    """Keys and values of all tokens, as for `keys_and_values`; a latent is on each rank of a tensor group.

    Where attention looks back at a window, no more than that is kept, as by vLLM's hybrid cache manager
    (vllm/v1/core/kv_cache_coordinator.py, 0.33). Tokens are divided over `CONTEXT_AXES`.
    """
    apart = _apart(topology)
    elements = keys_and_values(model, topology) if model.latent is None else model.latent
    windows = dict(model.windows)
    stages = topology.size(pipeline_axis(topology))
    own = model.weights.layers_on(stage_of(topology, position), stages)
    tokens = sum(ceil(min(use.context, windows.get(layer, use.context)) / apart) for layer in own)
    return bytes_of(elements * tokens * use.batch, use.cache or model.weights.dtype)


def _activations(model: Model, topology: ParallelTopology, position: int, use: Training) -> int:
    weights, stage = model.weights, stage_of(topology, position)
    stages = topology.size(pipeline_axis(topology))
    tokens = tokens_of(topology, use)
    own = weights.layers_on(stage, stages)
    sparse = sum(layer in model.sparse for layer in own)
    each = {kind: layer_bytes(model, tokens, sparse=kind, recompute=use.recompute) for kind in (False, True)}
    kept = (len(own) - sparse) * each[False] + sparse * each[True]
    kept *= in_flight(stage, stages, weights.virtual, use.micro_batches)
    if use.recompute == "full" and own:  # the layer whose turn it is has all there is, for a while
        kept += layer_bytes(model, tokens, sparse=bool(sparse), recompute="scores")
    if stage == stages - 1:
        kept += end_bytes(model, tokens)
    return ceil(kept)


def _apart(topology: ParallelTopology) -> int:
    """Among how many ranks the tokens of one sequence are divided."""
    return prod(topology.size(axis) for axis in CONTEXT_AXES if axis in topology.all_axes)


def _require(given: Any, **least: int) -> None:
    for name, size in least.items():
        object.__setattr__(given, name, require(size, name, getattr(given, name)))
