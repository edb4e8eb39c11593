"""A value as a structure and its tensors, and back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import GroupArgumentError
from parallel_topology.wire.structure import TensorSpec, flatten_tensors, tensor_specs, unflatten
from parallel_topology.wire.wire import decode, encode


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Held:
    """Made of a tensor's spec it would raise."""

    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, TensorSpec):
            raise TypeError("not a tensor")


tensors = st.builds(
    lambda shape, dtype: torch.ones(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.bool]),
)
values = st.deferred(
    lambda: (
        (tensors | st.integers() | st.text() | st.none() | st.frozensets(st.integers()))
        | (st.lists(values, max_size=3) | st.lists(values, max_size=3).map(tuple))
        | st.dictionaries(st.text(max_size=2) | st.integers(), values, max_size=3)
        | st.dictionaries(st.text(max_size=2), values, max_size=3).map(OrderedDict)
        | st.builds(Pair, values, values)
        | st.builds(Held, values)
    )
)


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = [value.value] if isinstance(value, Held) else list(value.values()) if isinstance(value, dict) else value
    return [tensor for one in inside for tensor in tensors_in(one)] if isinstance(inside, (list, tuple)) else []


def without_tensors(value: Any) -> Any:
    """The same containers and leaves, with a number for each tensor."""
    if isinstance(value, torch.Tensor):
        return ("a tensor", id(value))
    if isinstance(value, (Pair, Held)):
        return type(value)(*[without_tensors(getattr(value, name)) for name in value.__annotations__])
    if isinstance(value, dict):
        return {key: without_tensors(inner) for key, inner in value.items()}
    return type(value)(map(without_tensors, value)) if isinstance(value, (list, tuple)) else value


@settings(deadline=None)
@given(values)
def test_what_is_taken_apart_is_put_together_of_the_same_tensors(value: Any) -> None:
    structure, found = flatten_tensors(value)
    assert [*map(id, found)] == [*map(id, tensors_in(value))]
    assert not tensors_in(structure)
    assert tensor_specs(structure) == [TensorSpec(one.dtype, tuple(one.shape), "cpu") for one in found]
    assert without_tensors(unflatten(structure, found, (Pair, Held))) == without_tensors(value)


@settings(deadline=None)
@given(values)
def test_a_structure_travels_and_is_its_bytes(value: Any) -> None:
    structure, found = flatten_tensors(value)
    assert decode(encode(structure), models=(Pair, Held), in_parts=True) == structure
    again, _ = flatten_tensors(unflatten(structure, [torch.zeros_like(one) for one in found], (Pair, Held)))
    assert encode(again) == encode(structure)


def test_what_differs_has_other_bytes() -> None:
    ones = torch.ones(2)
    different = [
        {"a": ones},
        {"b": ones},
        [ones],
        (ones,),
        {"a": torch.ones(3)},
        {"a": torch.ones(1, 2)},
        {"a": ones.half()},
        {"a": ones, "b": ones},
        {"a": ones, "n": 1},
        {"n": 1, "a": ones},
        {"a": ones, "n": 2},
        {"a": ones, "n": True},
    ]
    assert len({bytes(encode(flatten_tensors(value)[0])) for value in different}) == len(different)


def test_a_tensor_at_two_places_is_sent_twice() -> None:
    shared = torch.ones(2)
    _, found = flatten_tensors({"a": shared, "b": [shared]})
    assert [*map(id, found)] == [id(shared), id(shared)]


def test_tensors_that_do_not_fit_the_structure_are_refused() -> None:
    structure, _ = flatten_tensors({"a": [torch.ones(2), torch.ones(3)]})
    with pytest.raises(GroupArgumentError, match="1 tensors for a structure with 2 places"):
        unflatten(structure, [torch.ones(2)])
    with pytest.raises(GroupArgumentError) as caught:
        unflatten(structure, [torch.ones(2), torch.ones(3).half()])
    assert str(caught.value) == ("value['a'][1]: got torch.float16 of shape (3,), expected torch.float32 of shape (3,)")
    with pytest.raises(GroupArgumentError, match=r"value\['a'\]\[0\]: got torch.float32 of shape \(2, 1\), expected"):
        unflatten(structure, [torch.ones(2, 1), torch.ones(3)])


def test_what_cannot_be_taken_out_is_named() -> None:
    for value, said in (
        ({"a": (torch.ones(2).to_sparse(),)}, r"value\['a'\]\[0\]: a tensor that is torch.sparse_coo cannot be sent"),
        ([torch.ones(2, device="meta")], r"value\[0\]: a tensor on the meta device cannot be sent"),
        ([TensorSpec(torch.half, (1,), "cpu")], r"value\[0\]: a TensorSpec, which is only to stand for a tensor"),
    ):
        with pytest.raises(GroupArgumentError, match=said):
            flatten_tensors(value)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(GroupArgumentError, match=r"nested more than 100 deep; does it contain itself\?"):
        flatten_tensors(endless)
