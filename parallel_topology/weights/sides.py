"""What a side does with weights before they are put together, and with tensors after: Padded, Sharded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_topology.errors import TopologyError
from parallel_topology.weights.forms import Form
from parallel_topology.weights.given import dim_of, named, put, said, whole_dim
from parallel_topology.weights.notation import axes_over


@dataclass(frozen=True)
class Sharded:
    """A tensor, as the rules have made it, is cut once more along a dim: each rank keeps a part, as of `torch.chunk`.

    So FSDP2 keeps each parameter along dim 0 (`sharded_over=` of a storage does it for all tensors), torchtitan some
    experts along dim 1, and Megatron `linear_qkv` where there are fewer groups than ranks: of the whole, interleaved
    tensor each rank has a part, be it a query head without its key (`num_query_groups < world_size`,
    megatron/core/transformer/attention.py, 0.16.1). Over no axes it is not cut, whatever `sharded_over=` says.

    Args:
        name: of the tensor; nothing can be made of it any more.
        over: an axis that cuts none of its weights; or several, whose ranks together are one group.
        dim: of the tensor.
    """

    name: str
    over: str | Sequence[str]
    dim: int = 0

    def __post_init__(self) -> None:
        put(self, name=named(self, self.name), dim=whole_dim(self, self.dim), over=axes_over(said(self), self.over))

    def of(self, form: Form) -> Cut:
        """The cut of this tensor.

        Raises:
            TopologyError: it has no such dim, or one of the axes cuts a weight already.
        """
        for axis in self.over:
            if any(axis in along.axes for dim in form.dims for along in dim):
                raise TopologyError(f"{said(self)}: {form} is cut over {axis!r} already; expected another axis")
        return Cut(tuple(self.over), dim_of(self, self.dim, form), required=True)


@dataclass(frozen=True)
class Cut:
    """A cut of a tensor that is made.

    Attributes:
        axes, dim: over which, and of the tensor.
        required: whether all the axes have to stand in one factorization with what cuts its weights; or those count
            that do.
    """

    axes: tuple[str, ...]
    dim: int
    required: bool


@dataclass(frozen=True)
class Padded:
    """Dim 0 of a weight is padded otherwise on this side, or not at all; a transfer touches logical elements only.

    Args:
        weight: its name.
        to: each part is a multiple of this. So Megatron pads a vocabulary, to 128 (`--make-vocab-size-divisible-by`,
            megatron/training/arguments.py).
        whole_to: all of it is a multiple of this, however it is cut. So vLLM does, to 64 (`pad_vocab_size`,
            vllm/model_executor/layers/vocab_parallel_embedding.py at 00db011).
    """

    weight: str
    to: int | None = None
    whole_to: int | None = None

    def __post_init__(self) -> None:
        put(self, weight=named(self, self.weight))

    @property
    def name(self) -> str:
        return self.weight
