"""How tensors are made of weights: the rules of a `Storage`. Each says what it takes, what it makes, what has to agree.

In the name of what is made `{}` stands for the layer's number, as in a weight's; without it `.3` is appended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import require
from parallel_topology.weights.forms import Form, differences
from parallel_topology.weights.given import dim_of, named, put, said, several, whole_dim
from parallel_topology.weights.place import Arranged, interleaved, joined

INDEX = "{index}"
"""In the name of tensors that are split: which one."""

Kept: TypeAlias = Mapping[int | None, Arranged]
"""What one rank has of a form: a tensor, by None; or where it is split those of its indices."""


class Rule(ABC):
    """A step from the tensors that are there to another."""

    name: str
    """Of what it makes."""

    @property
    @abstractmethod
    def takes(self) -> tuple[str, ...]:
        """The names of what it makes this of; they are there no more."""

    @abstractmethod
    def form(self, forms: Sequence[Form]) -> Form:
        """What comes of these.

        Raises:
            TopologyError: they do not fit.
        """

    @abstractmethod
    def kept(self, forms: Sequence[Form], parts: Sequence[Kept]) -> Kept:
        """What one rank has of it, by what it has of the parts."""


@dataclass(frozen=True)
class Fused(Rule):
    """The parts one after the other along a dim, of each what the rank has: `q | k | v`, `gate | up`.

    So vLLM's QKVParallelLinear and MergedColumnParallelLinear keep them (vllm/model_executor/layers/linear.py at
    0036d38), and along dim 1, behind the experts, the `w13_weight` of its FusedMoE; and Megatron `gate | up`
    (`linear_fc1`, the `glu` of megatron/core/transformer/mlp.py, 0.16.1). Of one part, it is another name for it.

    >>> Fused("qkv", ["q", "k", "v"])
    Fused(name='qkv', parts=('q', 'k', 'v'), dim=0)
    """

    name: str
    parts: Sequence[str]
    dim: int = 0

    def __post_init__(self) -> None:
        put(self, name=named(self, self.name), parts=several(self, self.parts), dim=whole_dim(self, self.dim))

    @property
    def takes(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def form(self, forms: Sequence[Form]) -> Form:
        return _together(self, forms, dim_of(self, self.dim, forms[0]))

    def kept(self, forms: Sequence[Form], parts: Sequence[Kept]) -> Kept:
        dim = self.dim % len(forms[0].dims)
        return {index: joined([part[index] for part in parts], dim) for index in parts[0]}


@dataclass(frozen=True)
class Interleaved(Rule):
    """A block of each part in turn along a dim: `groups` blocks each, of the whole weights.

    With as many groups as key and value heads, Megatron's `linear_qkv`: the query heads of a group, its key, its value
    (`get_query_key_value_tensors`, megatron/core/transformer/attention.py, 0.16.1). With as many as there are indices,
    one of each in turn: `gate_up_proj` of GPT-OSS (transformers/models/gpt_oss/modeling_gpt_oss.py, 5.24).

    >>> Interleaved("linear_qkv", ["q", "k", "v"], groups=8)
    Interleaved(name='linear_qkv', parts=('q', 'k', 'v'), groups=8, dim=0)
    """

    name: str
    parts: Sequence[str]
    groups: int
    dim: int = 0

    def __post_init__(self) -> None:
        put(self, name=named(self, self.name), parts=several(self, self.parts), dim=whole_dim(self, self.dim))
        put(self, groups=require(1, f"{said(self)}: groups", self.groups))

    @property
    def takes(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def form(self, forms: Sequence[Form]) -> Form:
        dim = dim_of(self, self.dim, forms[0])
        for form in forms:
            along = form.dims[dim]
            if len(along) != 1:
                raise TopologyError(
                    f"{said(self)}: along dim {dim} of {form.name!r}, {form}, run several weights; expected one"
                )
            if along[0].size % self.groups:
                raise TopologyError(
                    f"{said(self)}: dim {dim} of {form.name!r}, {form}, is no multiple of groups={self.groups}"
                )
        return _together(self, forms, dim)

    def kept(self, forms: Sequence[Form], parts: Sequence[Kept]) -> Kept:
        dim = self.dim % len(forms[0].dims)
        widths = [form.dims[dim][0].size // self.groups for form in forms]
        found: dict[int | None, Arranged] = {}
        for index in parts[0]:
            mine = [part[index] for part in parts]
            self._require_same_groups(forms, mine, dim, widths)
            found[index] = interleaved(mine, dim, widths)
        return found

    def _require_same_groups(
        self, forms: Sequence[Form], parts: Sequence[Arranged], dim: int, widths: Sequence[int]
    ) -> None:
        first: tuple[int, int] | None = None
        for form, part, width in zip(forms, parts, widths, strict=True):
            start, length = cast("int", part.starts[dim]), part.shape[dim]
            if start % width or length % width:
                raise TopologyError(
                    f"{said(self)}: a rank has {start}..{start + length} of dim {dim} of {form.name!r}, {form}, which "
                    f"are no whole groups of {width}; expected a cut between groups, as with units={self.groups}"
                )
            groups = start // width, length // width
            first = first or groups
            if groups != first:
                raise TopologyError(
                    f"{said(self)}: a rank has groups {_run(first)} of {forms[0].name!r} and {_run(groups)} of "
                    f"{form.name!r}; expected the same of all"
                )


@dataclass(frozen=True)
class Transposed(Rule):
    """With its last two dims exchanged; it keeps its name."""

    name: str

    def __post_init__(self) -> None:
        put(self, name=named(self, self.name))

    @property
    def takes(self) -> tuple[str, ...]:
        return (self.name,)

    def form(self, forms: Sequence[Form]) -> Form:
        (form,) = forms
        if len(form.dims) < 2:
            raise TopologyError(f"{said(self)}: {form} has {len(form.dims)} dims; expected at least 2")
        return replace(form, dims=(*form.dims[:-2], form.dims[-1], form.dims[-2]))

    def kept(self, forms: Sequence[Form], parts: Sequence[Kept]) -> Kept:
        last = len(forms[0].dims) - 1
        return {index: part.swapped(last - 1, last) for index, part in parts[0].items()}


@dataclass(frozen=True)
class Split(Rule):
    """A tensor for each index of dim 0, which they lack: one an expert. `{index}` in the name says which.

    It is the index in the logical tensor, whatever rank has it.

    >>> Split("up", "layers.{}.experts.{index}.up")
    Split(part='up', name='layers.{}.experts.{index}.up')
    """

    part: str
    name: str

    def __post_init__(self) -> None:
        put(self, part=named(self, self.part), name=named(self, self.name))
        _require_index(self)

    @property
    def takes(self) -> tuple[str, ...]:
        return (self.part,)

    def form(self, forms: Sequence[Form]) -> Form:
        (form,) = forms
        if not form.dims or len(form.dims[0]) > 1:
            what = "has no dims" if not form.dims else "has several weights along dim 0"
            raise TopologyError(f"{said(self)}: {form.name!r} {what}; expected one weight's, such as experts")
        if form.split:
            raise TopologyError(f"{said(self)}: {form.name!r} is split already; expected what is not")
        return replace(form, name=self.name, dims=form.dims[1:], split=True)

    def kept(self, forms: Sequence[Form], parts: Sequence[Kept]) -> Kept:
        whole = parts[0][None]
        start = cast("int", whole.starts[0])
        return {start + index: one for index, one in enumerate(whole.without_first())}


def _together(rule: Rule, forms: Sequence[Form], dim: int) -> Form:
    """One tensor of several, along a dim."""
    first = forms[0]
    for form in forms[1:]:
        for what in differences(first, form, dim):
            raise TopologyError(f"{said(rule)}: {first.name!r} and {form.name!r} differ in {what}; expected the same")
    weights = tuple(weight for form in forms for weight in form.weights)
    dims = (*first.dims[:dim], tuple(one for form in forms for one in form.dims[dim]), *first.dims[dim + 1 :])
    if first.split:
        _require_index(rule)
    return replace(first, name=rule.name, weights=weights, dims=dims)


def _require_index(rule: Rule) -> None:
    if rule.name.count(INDEX) != 1:
        raise TopologyError(f"{said(rule)}: expected {INDEX} once in the name, as in 'experts.{INDEX}.up'")


def _run(groups: tuple[int, int]) -> str:
    return f"{groups[0]}..{groups[0] + groups[1]}"
