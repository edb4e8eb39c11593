"""Nested values of tensors between pipeline stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel_topology import GroupArgumentError, GroupManager, MismatchError, ParallelTopology
from parallel_topology.testing import run_ranks, simulate

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.int16, torch.float8_e4m3fn]


def tensor(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


leaves = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.builds(tensor, st.integers(0, 9), st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(DTYPES)),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=8,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return not one.numel() or torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (one, other)))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def _along_the_pipeline(groups: GroupManager, sent: list[Any], split: bool, begun: bool) -> None:
    pp = groups.pp
    over = groups.tp if split else None
    for value in sent:
        if not pp.is_first:
            got = pp.irecv_tensors(split=over).wait() if begun else pp.recv_tensors(split=over)
            assert equal(got, value), (got, value)
            value = got
        if not pp.is_last:
            pp.isend_tensors(value, split=over).wait() if begun else pp.send_tensors(value, split=over)


@given(sent=st.lists(values, min_size=1, max_size=4), split=st.booleans(), begun=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_values_come_through_a_pipeline_unchanged(sent: list[Any], split: bool, begun: bool):
    run_ranks("tp2-pp3@4", _along_the_pipeline, [sent[0], *sent], split, begun)


@pytest.mark.ranks("tp2-pp2", world="processes")
def test_in_processes(groups: GroupManager):
    value = {"hidden": tensor(1, (4, 6), torch.bfloat16), "positions": tensor(2, (3,), torch.int64), "step": 1}
    _along_the_pipeline(groups, [value, value, {**value, "step": 2}], True, True)


def ten_tensors(step: int) -> dict[str, torch.Tensor]:
    return {f"layer{number}": torch.full((3, number + 1), float(step)) for number in range(10)}


def test_what_repeats_is_described_once():
    def body(groups: GroupManager) -> None:
        _along_the_pipeline(groups, [ten_tensors(step) for step in range(5)], False, False)

    calls = [
        call
        for call in simulate(
            "pp4", lambda groups: [groups.pp.send_tensors(ten_tensors(step)) for step in range(5)], check=False
        ).on(0)
        if call.operation == "send"
    ]
    heads = [call.bytes for call in calls if call.dtype == "transfer"]
    assert heads[0] > 100
    assert heads[1:] == [4] * 4  # the description was the same
    assert len(calls) == 5 * 11
    run_ranks("pp4", body)


def test_a_split_sends_each_rank_its_own_slice():
    def body(groups: Any) -> None:
        groups.pp.send_tensors({"x": torch.ones(3, 4), "odd": torch.ones(3)}, split=groups.tp)

    sizes = [call.bytes for call in simulate("tp2-pp2", body, check=False).on(0) if call.dtype == "float32"]
    assert sizes == [24, 12]


def _different(groups: GroupManager) -> dict[str, torch.Tensor]:
    return {"same": torch.arange(4096.0), "own": torch.full((4096,), float(groups.tp.rank)), "odd": torch.ones(3)}


@pytest.mark.ranks("tp2-pp2")
def test_tensors_that_differ_over_the_split_are_named(groups: GroupManager):
    """Cut, they would come as a mixture of both."""
    if groups.pp.is_first:
        groups.pp.send_tensors(_different(groups), split=groups.tp)
    else:
        with pytest.raises(MismatchError, match=r"value\['own'\] differ between the members of .*; name their keys"):
            groups.pp.recv_tensors(split=groups.tp)
    again = _different(groups)
    if groups.pp.is_first:
        groups.pp.send_tensors({"nested": [again]}, split=groups.tp, whole=("own",))
    else:
        assert equal(groups.pp.recv_tensors(split=groups.tp), {"nested": [again]})


@pytest.mark.ranks("tp2-pp2")
def test_shapes_that_differ_over_the_split_are_an_error(groups: GroupManager):
    if groups.pp.is_first:
        groups.pp.send_tensors({"x": torch.ones(4 + 4 * groups.tp.rank)}, split=groups.tp)
    else:
        with pytest.raises(MismatchError, match="other shapes"):
            groups.pp.recv_tensors(split=groups.tp)


@pytest.mark.ranks("tp2-pp2")
def test_splits_that_differ_are_named_and_the_next_receive_is_right(groups: GroupManager):
    if groups.pp.is_first:
        groups.pp.send_tensors({"x": torch.ones(40000), "y": torch.ones(4)}, split=groups.tp)
        groups.pp.send_tensors({"x": torch.ones(4)})
    else:
        with pytest.raises(GroupArgumentError, match="the sender splits each tensor over 2 ranks, split= here has 1"):
            groups.pp.recv_tensors()
        assert equal(groups.pp.recv_tensors(), {"x": torch.ones(4)})


def test_a_value_that_cannot_be_sent_says_where():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups, pytest.raises(GroupArgumentError, match="own peer"):
        groups.tp.send_tensors({})
