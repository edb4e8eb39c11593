"""The gate in front of all operations: communicators move memory, and this knows of which tensors it is the values.

Conjugated and negated views say so by a bit, and their memory holds something else: what is sent is a copy, and what
comes is written back through the view. Elements of an expanded tensor share memory: they take what comes if it is one
value. Other tensors have no memory to move (sparse, quantized, nested, fake ones) and are refused.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from parallel_topology import torch_private
from parallel_topology.errors import GroupArgumentError

_PLAIN = frozenset({Tensor, Parameter})
_STRIDED = torch.strided


class Named(Protocol):
    """Who is asked: a group."""

    label: str


def require_tensor(group: Named, operation: str, tensor: Any) -> None:
    """Check that something is a tensor whose values stand in memory.

    Raises:
        GroupArgumentError: it is not; says what to do.
    """
    if (
        type(tensor) in _PLAIN
        and tensor.layout is _STRIDED
        and not tensor.is_quantized
        and not tensor.is_nested
        and not torch_private.is_transformed(tensor)
        and (tensor.data_ptr() or not tensor.numel() or tensor.is_meta)  # whose turn meta tensors are is not asked here
    ):
        return
    if (why := _why_not(tensor)) is not None:
        raise GroupArgumentError(f"{operation} on {group.label}: {why}")


def values(tensor: Tensor) -> Tensor:
    """A contiguous tensor whose memory holds the values of `tensor`: itself, where its own does."""
    if tensor.is_conj():
        tensor = tensor.resolve_conj()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor.contiguous()


def write(whole: Tensor, into: Tensor) -> None:
    """Give `into` the values of `whole`, which is contiguous, whatever its strides and bits.

    Raises:
        GroupArgumentError: elements of `into` share memory, and would have to take several values.
    """
    if into.is_inference():  # which may not be written outside, where it was made inside
        with torch.inference_mode():
            _write(whole, into)
    else:
        _write(whole, into)


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two contiguous tensors share memory; those without any do not."""
    if not _has_memory(one) or not _has_memory(other):
        return False
    first, second = one.data_ptr(), other.data_ptr()
    return first < second + other.nbytes and second < first + one.nbytes


def _write(whole: Tensor, into: Tensor) -> None:
    if into.is_contiguous() or not _shares_elements(into):
        into.copy_(whole)
        return
    span = 1 + sum((size - 1) * stride for size, stride in zip(into.shape, into.stride(), strict=True))
    memory = into.as_strided((span,), (1,))
    places = torch.arange(span, device=into.device).as_strided(into.shape, into.stride())
    memory[places.flatten()] = whole.flatten()
    if not torch.equal(_as_bytes(into), _as_bytes(whole)):
        raise GroupArgumentError(
            f"what came has several values for elements of a tensor {list(into.shape)} with strides "
            f"{list(into.stride())} that share memory; give a contiguous tensor instead"
        )


def _shares_elements(tensor: Tensor) -> bool:
    """Whether elements share memory; also said of some whose dims only interleave."""
    span = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= span:
                return True
            span += (size - 1) * stride
    return False


def _as_bytes(tensor: Tensor) -> Tensor:
    return values(tensor).reshape(-1).view(torch.uint8)


def _has_memory(tensor: Tensor) -> bool:
    """Whether its class is as plain as Tensor; others (fake, distributed ones) say themselves what operations do."""
    untyped: Any = type(tensor)
    return untyped.__torch_dispatch__ is cast("Any", Tensor).__torch_dispatch__


def _why_not(tensor: Any) -> str | None:
    """Why something cannot be moved; None for classes derived from Tensor that are as plain as it."""
    if not isinstance(tensor, Tensor):
        return f"{type(tensor).__name__} given, expected a tensor"
    kind = type(tensor)
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}); send int_repr() and what scales it, or dequantize()"
    if tensor.is_nested:
        return "a nested tensor; send its values() and offsets()"
    if tensor.layout is not _STRIDED:
        return f"a tensor of layout {tensor.layout}; make it to_dense(), or send its parts"
    if torch_private.is_transformed(tensor):
        return "a tensor inside a transform of torch.func; use the forms of parallel_topology.functional there"
    if not _has_memory(tensor):
        return f"a {kind.__name__}, whose values are not its own memory; give the tensor that it holds"
    if tensor.numel() and not tensor.data_ptr() and not tensor.is_meta:
        return "a tensor without memory; its storage was freed, or it is one of autograd's zeros: clone() that one"
    return None
