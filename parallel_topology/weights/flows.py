"""What the groups of a layout send in one step: bytes by axes and phase, in closed form and wherever the hosts are.

A collective over n ranks that makes or takes N bytes on each sends (n-1) N in all where it gathers or scatters, twice
that where it reduces for all, whatever the algorithm (NCCL's notes on bandwidth, nccl-tests doc/PERFORMANCE.md: a rank
sends (n-1)/n and 2(n-1)/n of N), and all-to-all (n-1)/n of what all its ranks have. Which there are:

- tensor: two all-reduces of the hidden states in the forward pass of a layer, two in the backward pass (Megatron-LM,
  https://arxiv.org/abs/1909.08053, section 3). With sequence parallelism each is an all-gather and a reduce-scatter,
  and what was gathered is gathered again in the backward pass instead of being kept (Korthikanti et al. 2022,
  https://arxiv.org/abs/2205.05198, section 4.2.2). At the ends of the pipeline one for the embedding and one for the
  logits, and three numbers a token for the loss (megatron/core/tensor_parallel/cross_entropy.py).
- experts: each rank sends its tokens, of which the ranks of a tensor group have a part each, to as many experts as
  the router says, and gets them back; in the backward pass once more. A token that goes to several experts of one rank
  is sent as often, and all experts get equally many (Megatron's all-to-all dispatcher,
  megatron/core/transformer/moe/token_dispatcher.py). Ranks that cut an expert gather what each of them got.
- pipeline: hidden states to the next stage and their gradients back; with v chunks a stage v times (Narayanan et al.
  2021, https://arxiv.org/abs/2104.04473, section 2.2). Of a tensor group each rank sends its tokens, and all of them
  where there is no sequence parallelism. First and last stage sum the gradient of a tied embedding.
- context: keys and values are gathered; in the backward pass again, and their gradients scattered (Llama 3,
  https://arxiv.org/abs/2407.21783, section 3.3.2). A ring that hands them on (https://arxiv.org/abs/2310.01889) sends
  as much.
- data: gradients are summed once a step. Under ZeRO 1 they are scattered, and weights gathered; ZeRO 2 scatters them
  after each micro-batch, ZeRO 3 gathers weights before each forward and backward pass, too: 3 times the model where it
  was 2 (https://arxiv.org/abs/1910.02054, section 7). Where the ranks that divide are not all that have the same, parts
  are summed over the others. Under sequence parallelism the gradients of what a tensor group has whole are summed, too.

Left out: few numbers, as the router's counts and the norm for clipping; padding of tokens; heads that several ranks
hold, whose gradients these would sum. Compressed attention gathers hidden states here, where Megatron gathers latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.crossings import Pattern
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.weights.activations import element_bytes
from parallel_topology.weights.checks import DATA_AXES
from parallel_topology.weights.dtypes import BITS
from parallel_topology.weights.memory import (
    CONTEXT_AXES,
    SHARDING_AXES,
    Serving,
    Training,
    keys_and_values,
    require_all,
    require_trainable,
    sharding_axes,
    tensor_axis,
    tokens_of,
)
from parallel_topology.weights.model import Model
from parallel_topology.weights.placed import expert_axis, pipeline_axis

Phase = Literal["forward", "backward", "gradients", "parameters"]
_Sends: TypeAlias = Iterator[tuple[Phase, tuple[str, ...], Pattern, Fraction | int]]
"""(phase, axes, pattern, bytes that a group's ranks send together)"""


@dataclass(frozen=True, slots=True)
class Flow:
    """What groups send in a step.

    Attributes:
        phase: what for.
        axes: along which the groups run.
        pattern: who sends to whom; each message of it is as large.
        stages: the groups of these pipeline stages; None for groups along the pipeline.
        nbytes: that all ranks of one group send together, the mean of the groups.
    """

    phase: Phase
    axes: tuple[str, ...]
    pattern: Pattern
    stages: tuple[int, ...] | None
    nbytes: Fraction


def flows(model: Model, topology: ParallelTopology, use: Training | Serving) -> list[Flow]:
    """What is sent in one step: of training, all micro-batches; of serving, one token of each sequence.

    It is the same for all orders of the axes. Micro-batches that are not given are as many as there are stages.

    Raises:
        UnknownAxisError, TopologyError: as for `memory_on`; or tokens of one sequence are divided while serving.
    """
    require_all(model, topology, use)
    reader = _Reader(model, topology, use)
    found: dict[tuple[Phase, tuple[str, ...], Pattern, tuple[int, ...] | None], Fraction] = {}
    for stages in model.stages_alike(reader.stages):
        for phase, axes, pattern, nbytes in reader.of_stage(stages[0]):
            key = phase, axes, pattern, tuple(stages)
            found[key] = found.get(key, Fraction()) + nbytes
    for phase, axes, pattern, nbytes in reader.between_stages():
        key = phase, axes, pattern, None
        found[key] = found.get(key, Fraction()) + nbytes
    return [Flow(*key, nbytes) for key, nbytes in found.items() if nbytes]


class _Reader:
    """Sizes that the formulas share."""

    def __init__(self, model: Model, topology: ParallelTopology, use: Training | Serving) -> None:
        self.model, self.topology, self.use = model, topology, use
        self.pipeline = pipeline_axis(topology)
        self.stages = topology.size(self.pipeline)
        self.context = tuple(axis for axis in CONTEXT_AXES if axis in topology.all_axes and topology.size(axis) > 1)
        if isinstance(use, Serving):
            if self.context:
                raise TopologyError(
                    f"{topology}: {self.context[0]} divides the tokens of a sequence; expected an axis of size 1, as "
                    "what is sent while serving depends on the engine then"
                )
            self.repeats = 1
            self.tokens = use.batch
        else:
            require_trainable(model)
            self.repeats = self.stages if use.micro_batches is None else use.micro_batches
            self.tokens = tokens_of(topology, use).count
        self.together = isinstance(use, Training) and use.sequence_parallel
        self.tensor = tensor_axis(topology)
        self.tensors = 1 if self.tensor is None else topology.size(self.tensor)
        self.hidden = self.tokens * model.hidden * element_bytes(model)  # bytes of the hidden states of a tensor group

    # Within a stage

    def of_stage(self, stage: int) -> _Sends:
        own = self.model.weights.layers_on(stage, self.stages)
        sparse = sum(layer in self.model.sparse for layer in own)
        passes: tuple[Phase, ...] = ("forward",)
        if isinstance(self.use, Training):
            passes = ("forward", "forward", "backward") if self.use.recompute == "full" else ("forward", "backward")
        for number, phase in enumerate(passes):
            when: Phase = "backward" if number else "forward"  # also of what is computed again
            for _, axes, pattern, nbytes in self._of_layers(phase, len(own) - sparse, sparse):
                yield when, axes, pattern, self.repeats * nbytes
        for phase, axes, pattern, nbytes in self._of_ends(stage):
            yield phase, axes, pattern, self.repeats * nbytes
        if isinstance(self.use, Training):
            yield from self._of_weights(self.use, stage)

    def _of_layers(self, phase: Phase, dense: int, sparse: int) -> _Sends:
        """Of one micro-batch in so many layers."""
        experts, cut = self._axis("ep"), self._axis("etp")
        gathers = 3 if phase == "backward" and self.together else 2  # in what a tensor group computes in parts
        whole = dense * 2 * gathers + sparse * gathers * (1 + bool(self.model.shared_inner))
        if sparse and experts and not self.together:
            whole += sparse  # what each rank of the tensor group has got back from experts
        yield from self._tensor(phase, whole * self.hidden)
        if sparse:
            own = Fraction(self.hidden, self.tensors)
            if experts:
                own *= self.model.experts_per_token
                yield phase, (experts,), "pairs", sparse * 2 * (self.topology.size(experts) - 1) * own
            if cut:
                size = self.topology.size(cut)
                yield phase, (cut,), "ring", sparse * 2 * (size - 1) * size * own
        if self.context and isinstance(self.use, Training):
            size = self.topology.size(*self.context)
            kept = self.tokens * keys_and_values(self.model, self.topology) * element_bytes(self.model)
            times = 2 if phase == "backward" else 1
            yield phase, self.context, "ring", (dense + sparse) * times * (size - 1) * size * kept

    def _of_ends(self, stage: int) -> _Sends:
        """Embedding and logits."""
        training = isinstance(self.use, Training)
        if stage == 0:
            yield from self._tensor("forward", self.hidden * (1 if self.together else 2))
            if self.together:
                yield from self._tensor("backward", self.hidden)
        if stage == self.stages - 1:
            if not training:
                yield from self._tensor("forward", self.tokens * self.model.vocab * element_bytes(self.model))
                return
            if self.together:
                yield from self._tensor("forward", self.hidden)
            yield from self._tensor("backward", 2 * self.hidden)
            yield from self._tensor("forward", 2 * 3 * 4 * self.tokens)

    def _tensor(self, phase: Phase, gathered: int) -> _Sends:
        """All-gathers and reduce-scatters in the tensor group, of so many bytes each once it is whole."""
        if self.tensor is not None:
            yield phase, (self.tensor,), "ring", (self.tensors - 1) * gathered

    def _axis(self, name: str) -> str | None:
        """The axis of experts that stands for `name`, unless it is of size 1."""
        axis = expert_axis(self.topology, name)
        return axis if axis is not None and axis in self.topology.all_axes and self.topology.size(axis) > 1 else None

    # Gradients and weights

    def _of_weights(self, use: Training, stage: int) -> _Sends:
        there = self.topology.all_axes
        over = sharding_axes(self.topology, use) if use.zero else ()
        others = tuple(
            axis for axis in dict.fromkeys((*SHARDING_AXES, *DATA_AXES)) if axis in there and axis not in over
        )
        often = self.repeats if use.zero >= 2 else 1
        for placed, layers in self.model.weights.on_stage(self.topology, stage):
            elements = len(layers) * placed.mean_elements
            gradients, weights = (elements * BITS[dtype] / 8 for dtype in (use.gradients, placed.dtype))
            divided, rest = placed.further(over), placed.further(others)
            if divided.count > 1:
                times = 2 * self.repeats if use.zero == 3 else 1
                yield "parameters", divided.names, "ring", times * (divided.count - 1) * weights
            if placed.weight.name in self.model.untrained:
                continue
            if divided.count > 1:
                yield "gradients", divided.names, "ring", often * (divided.count - 1) * gradients
            if rest.count > 1:
                yield "gradients", rest.names, "ring", often * 2 * (rest.count - 1) * gradients / divided.count
            if self.together and self.tensor is not None and (whole := placed.further((self.tensor,))).count > 1:
                yield "gradients", whole.names, "ring", 2 * (whole.count - 1) * gradients

    # Between stages

    def between_stages(self) -> _Sends:
        if self.stages == 1:
            return
        axes, chunks = (self.pipeline,), self.model.weights.virtual
        sent = self.repeats * (Fraction(self.hidden, self.tensors) if self.together else self.hidden)
        phases: tuple[Phase, ...] = ("forward", "backward") if isinstance(self.use, Training) else ("forward",)
        for phase in phases:
            yield phase, axes, "chain", (self.stages - 1) * chunks * sent
            yield phase, axes, "ends", (chunks - 1) * sent
        if isinstance(self.use, Training):
            for placed, _ in self.model.weights.on_stage(self.topology, 0):
                if placed.weight.stage == "tied":
                    yield "gradients", axes, "ends", 2 * placed.mean_elements * BITS[self.use.gradients] / 8
