"""Nested values of tensors between pipeline stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel_topology import GroupArgumentError, GroupManager, ParallelTopology, WireError
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
    descriptions = [call for call in calls if call.dtype == "uint8"]
    assert len(descriptions) == 1
    assert len(calls) == 5 * 11 + 1  # a header of 16 bytes each time
    run_ranks("pp4", body)


@pytest.mark.ranks("tp2-pp2")
def test_a_split_sends_each_rank_its_own_slice(groups: GroupManager):
    sent = torch.arange(12.0).view(3, 4)
    if groups.pp.is_first:
        groups.pp.send_tensors({"x": sent}, split=groups.tp)
    else:
        before = groups.pp.recv(torch.zeros(2, dtype=torch.int64))
        description = groups.pp.recv(torch.empty(int(before[0]), dtype=torch.uint8))
        mine = groups.pp.recv(torch.empty(6))
        assert before[1] == 2
        assert len(description) == before[0]
        assert torch.equal(mine, sent.flatten().chunk(2)[groups.tp.rank])


@pytest.mark.ranks("tp2-pp2", check=False)  # the tensor is sent, and nobody takes it
def test_splits_that_differ_are_named(groups: GroupManager):
    if groups.pp.is_first:
        begun = groups.pp.isend_tensors({"x": torch.ones(4)}, split=groups.tp)
        groups.world.barrier()
        assert not begun.is_done()
    else:
        with pytest.raises(GroupArgumentError, match="the sender splits each tensor over 2 ranks, split= here has 1"):
            groups.pp.recv_tensors()
        groups.world.barrier()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("header", [[0, 1], [-5, 1], [2**50, 1]])
def test_what_is_no_description(groups: GroupManager, header: list[int]):
    if groups.tp.is_first:
        groups.tp.send(torch.tensor(header))
    else:
        with pytest.raises(WireError):
            groups.tp.recv_tensors()


def test_a_value_that_cannot_be_sent_says_where():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups, pytest.raises(GroupArgumentError, match="own peer"):
        groups.tp.send_tensors({})
