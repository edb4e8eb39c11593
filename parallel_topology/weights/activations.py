"""What the forward pass keeps for the backward pass, by the count of Korthikanti et al. 2022.

https://arxiv.org/abs/2205.05198, section 4: each tensor that a gradient needs is kept once, in the dtype of the model,
and masks of dropout in one byte. For their transformer (heads as wide as the model, 4h inside, no gate, dropout) a
layer keeps sbh (34 + 5as/h) bytes (section 4.1), over t tensor-parallel ranks sbh (10 + 24/t + 5as/(ht)) (4.2.1), with
sequence parallelism sbh/t (34 + 5as/h) (4.2.2), without the scores of attention sbh 34/t (section 5), and
2sbh where all is computed again (table 2). Here the same tensors are counted with a model's own widths: keys and values
of fewer heads, a gate (its output, the other projection's, and their product), and the experts that a token is sent to,
as many tokens to each. A latent's own few elements are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from parallel_topology.weights.dtypes import BITS
from parallel_topology.weights.model import Model

Recompute = Literal["none", "scores", "full"]
"""What the backward pass computes again: nothing, the scores of attention (as flash attention), or each layer."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one micro-batch, and over how many ranks of a group what they need is divided.

    Attributes:
        count: tokens that one rank computes for, those of its tensor group together.
        context: tokens that each of them looks back at.
        tensor: ranks of the tensor group.
        sequence_parallel: what the tensor group does not divide by width is divided by tokens.
    """

    count: int
    context: int
    tensor: int
    sequence_parallel: bool


def layer_bytes(model: Model, tokens: Tokens, *, sparse: bool, recompute: Recompute) -> Fraction:
    """What one layer keeps of one micro-batch."""
    wide = element_bytes(model)
    if recompute == "full":
        return Fraction(tokens.count * model.hidden * wide)
    whole = wide * 4 * model.hidden  # inputs of two norms, of attention and of what follows it
    divided = wide * (model.queries + model.keys + model.values + model.attended)
    if model.dropout:
        whole += 2 * model.hidden
    if recompute == "none":
        kept = 2 * wide + 1 if model.dropout else wide  # of softmax; with dropout also what it leaves, and the mask
        divided += kept * model.heads * tokens.context
    divided += wide * _inside(model, sparse)
    if sparse:  # each token, once for each expert that it is sent to; the tensor group has them divided
        divided += wide * model.experts_per_token * model.hidden
    apart = tokens.tensor if tokens.sequence_parallel else 1
    return Fraction(tokens.count * whole, apart) + Fraction(tokens.count * divided, tokens.tensor)


def end_bytes(model: Model, tokens: Tokens) -> Fraction:
    """What the last stage keeps besides: inputs of the last norm and of the head, and logits in float32.

    Section 4.3, where it is 4sbh/t (1 + v/h).
    """
    apart = tokens.tensor if tokens.sequence_parallel else 1
    norm_and_head = Fraction(2 * element_bytes(model) * tokens.count * model.hidden, apart)
    return norm_and_head + Fraction(4 * tokens.count * model.vocab, tokens.tensor)


def in_flight(stage: int, stages: int, virtual: int, micro_batches: int | None) -> Fraction:
    """Micro-batches whose activations a stage keeps at once, of all its layers.

    One forward, one backward (1F1B): as many as stages come from here on. Interleaved with `virtual` chunks, on the
    first stage p (1 + (p - 1)/(pm)) (section 4.2.3), on others as Megatron's schedule warms up:
    2 (p - stage - 1) + (m - 1) p chunks, and the one that is computed (megatron/core/pipeline_parallel/schedules.py).
    """
    chunks = stages - stage if virtual == 1 else 2 * (stages - stage - 1) + (virtual - 1) * stages + 1
    most = chunks if micro_batches is None else min(chunks, micro_batches * virtual)
    return Fraction(most, virtual)


def element_bytes(model: Model) -> int:
    """Bytes of an activation: its dtype is that of the weights, or two bytes where these have fewer."""
    return max(2, BITS[model.weights.dtype] // 8)


def _inside(model: Model, sparse: bool) -> int:
    """Elements that a token has inside a feed-forward layer: with a gate two projections and their product."""
    inner = model.experts_per_token * model.expert_inner + model.shared_inner if sparse else model.inner
    return inner * (3 if model.gated else 2)
