"""Shares: the parts make up the whole, agree with torch's own division, and with the systems' published layouts."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from parallel_topology import RankError, TopologyError
from parallel_topology.topology.shares import (
    batch_share,
    micro_batches,
    shard,
    stage_chunks,
    stage_layers,
)

PAD: Any = "pad"
TEXT: Any = "0"

sizes = st.integers(0, 200)
group_sizes = st.integers(1, 32)
layer_counts = st.lists(st.integers(0, 9), min_size=1, max_size=16).filter(any)


def joined(parts):
    return [index for part in parts for index in part]


# Laws


@given(sizes, group_sizes)
def test_chunk_shards_are_those_of_torch_chunk(size, parts):
    shards = [list(shard(size, position, parts, uneven="chunk")) for position in range(parts)]
    chunks = [chunk.tolist() for chunk in torch.arange(size).chunk(parts)]
    assert shards == chunks + [[]] * (parts - len(chunks))


@given(sizes, group_sizes)
def test_balanced_shards_are_those_of_torch_tensor_split(size, parts):
    shards = [list(shard(size, position, parts, uneven="tensor_split")) for position in range(parts)]
    assert shards == [part.tolist() for part in torch.arange(size).tensor_split(parts)]


@given(sizes, group_sizes)
def test_equal_shards_and_batch_shares_are_equal_and_make_up_the_whole(length, parts):
    for share in (shard, batch_share):
        shares = [share(length * parts, position, parts) for position in range(parts)]
        assert joined(shares) == list(range(length * parts))
        assert {len(part) for part in shares} == {length}


@given(st.integers(1, 200), group_sizes)
def test_stages_make_up_the_layers(layers, stages):
    assume(stages <= layers)
    parts = [stage_layers(layers, stage, stages) for stage in range(stages)]
    assert joined(parts) == list(range(layers))
    assert [len(part) for part in parts] == sorted(map(len, parts), reverse=True)


@given(layer_counts)
def test_counted_stages_make_up_the_layers_and_have_their_counts(counts):
    parts = [stage_layers(sum(counts), stage, len(counts), counts=counts) for stage in range(len(counts))]
    assert joined(parts) == list(range(sum(counts)))
    assert list(map(len, parts)) == counts


@st.composite
def ends(draw):
    """(layers, stages, first, last, the rest's stages) that make a pipeline."""
    first, last = draw(st.none() | st.integers(0, 9)), draw(st.none() | st.integers(0, 9))
    given_ends = [count for count in (first, last) if count is not None]
    between = draw(st.integers(0 if given_ends and sum(given_ends) else 1, 8))
    rest = between * draw(st.integers(1, 6)) + (draw(st.integers(0, between - 1)) if between else 0)
    return sum(given_ends) + rest, between + len(given_ends), first, last


@given(ends())
def test_the_ends_have_what_they_were_given_and_the_others_share_the_rest_evenly(case):
    layers, stages, first, last = case
    parts = [stage_layers(layers, stage, stages, first=first, last=last) for stage in range(stages)]
    assert joined(parts) == list(range(layers))
    assert first is None or len(parts[0]) == first
    assert last is None or len(parts[-1]) == last
    middle = list(map(len, parts))[first is not None : stages - (last is not None)]
    assert not middle or max(middle) - min(middle) <= 1


def in_the_order_of_a_micro_batch(chunks):
    return [layer for stages in zip(*chunks, strict=True) for chunk in stages for layer in chunk]


@given(ends(), st.integers(1, 4))
def test_chunks_in_the_order_of_a_micro_batch_are_all_layers(case, virtual):
    layers, stages, first, last = case
    plan = {"first": first and first * virtual, "last": last and last * virtual}
    rest = layers - (first or 0) - (last or 0)
    between = stages - (first is not None) - (last is not None)
    assume(not between or rest % between == 0)
    chunks = [stage_chunks(layers * virtual, stage, stages, virtual=virtual, **plan) for stage in range(stages)]
    assert in_the_order_of_a_micro_batch(chunks) == list(range(layers * virtual))
    for stage, own in enumerate(chunks):
        assert len({len(chunk) for chunk in own}) == 1
        assert sum(map(len, own)) == len(stage_layers(layers * virtual, stage, stages, **plan))


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_counted_chunks_have_their_counts(stages, virtual, data):
    counts = data.draw(st.lists(st.integers(0, 5), min_size=stages * virtual, max_size=stages * virtual).filter(any))
    chunks = [stage_chunks(sum(counts), stage, stages, virtual=virtual, counts=counts) for stage in range(stages)]
    assert in_the_order_of_a_micro_batch(chunks) == list(range(sum(counts)))
    assert [len(chunk) for row in zip(*chunks, strict=True) for chunk in row] == counts


@given(st.integers(1, 9), st.integers(1, 9), group_sizes)
def test_micro_batches_multiply_to_the_global_batch(count, micro_batch, parts):
    assert micro_batches(count * micro_batch * parts, micro_batch, parts) == count


# Cases


@pytest.mark.parametrize(
    ("layers", "stages", "options", "expected"),
    [
        (32, 4, {}, [8, 8, 8, 8]),
        (10, 4, {}, [3, 3, 2, 2]),  # TensorRT-LLM, Mapping.pp_layers: torch.tensor_split
        (61, 16, {"first": 4, "last": 1}, [4, *[4] * 14, 1]),  # DeepSeek-V3 in Megatron
        (30, 4, {"first": 6}, [6, 8, 8, 8]),
        (30, 4, {"last": 3}, [9, 9, 9, 3]),
        (7, 2, {"first": 3, "last": 4}, [3, 4]),
        (5, 1, {"first": 5}, [5]),
        (8, 4, {"first": 0, "last": 0}, [0, 4, 4, 0]),  # stages for the embedding and the loss alone
        (6, 3, {"counts": (1, 4, 1)}, [1, 4, 1]),
    ],
)
def test_layers_of_a_stage(layers, stages, options, expected):
    assert [len(stage_layers(layers, stage, stages, **options)) for stage in range(stages)] == expected


# Computed with megatron-core 0.16.1's get_transformer_layer_offset and get_num_layers_to_build, chunk by chunk.
MEGATRON = [
    (8, 2, 4, {}, [[(0, 1), (2, 1), (4, 1), (6, 1)], [(1, 1), (3, 1), (5, 1), (7, 1)]]),
    (8, 2, 2, {}, [[(0, 2), (4, 2)], [(2, 2), (6, 2)]]),
    (14, 4, 2, {"first": 4, "last": 2}, [[(0, 2), (7, 2)], [(2, 2), (9, 2)], [(4, 2), (11, 2)], [(6, 1), (13, 1)]]),
    (20, 3, 2, {"last": 4}, [[(0, 4), (10, 4)], [(4, 4), (14, 4)], [(8, 2), (18, 2)]]),
]


@pytest.mark.parametrize(("layers", "stages", "virtual", "options", "expected"), MEGATRON)
def test_interleaved_layers_are_those_of_megatron(layers, stages, virtual, options, expected):
    chunks = [stage_chunks(layers, stage, stages, virtual=virtual, **options) for stage in range(stages)]
    assert [[(chunk.start, len(chunk)) for chunk in own] for own in chunks] == expected


def test_a_part_of_something_huge_costs_nothing():
    assert shard(10**30, 10**9 - 1, 10**9) == range(10**30 - 10**21, 10**30)
    assert stage_layers(10**12, 10**6, 10**9).start == 10**9
    with pytest.raises(TopologyError, match="1, 2, 4"):
        shard(10**30, 0, 3)


# Accidents


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: shard(10, 0, 4),
            "a dim of 10 divided by 4 leaves 2 over; expected a dim of 8 or 12, one of 1, 2, 5, 10 parts, "
            "or uneven='chunk' or 'tensor_split'",
        ),
        (lambda: shard(3, 0, 4), "expected a dim of 4, one of 1, 3 parts"),
        (lambda: shard(-1, 0, 4), "size=-1: expected a whole number of at least 0"),
        (lambda: shard(True, 0, 1), "size=True: expected a whole number"),
        (lambda: shard(8, 0, 0), "parts=0: expected a whole number of at least 1"),
        (lambda: shard(8, 0, 2, uneven=PAD), "uneven='pad': expected 'error', 'chunk' or 'tensor_split'"),
        (
            lambda: batch_share(10, 0, 4),
            "a global batch of 10 divided over 4 data-parallel ranks leaves 2 samples over; "
            "expected a batch of 8 or 12, or one of 1, 2, 5, 10 ranks",
        ),
        (
            lambda: micro_batches(48, 5, 4),
            "a global batch of 48 divided by micro-batch 5 x 4 data-parallel ranks = 20 leaves 8 samples over; "
            "expected a batch of 40 or 60 or a micro-batch of 1, 2, 3, 4, 6, 12",
        ),
        (lambda: micro_batches(10, 1, 4), "leaves 2 samples over; expected a batch of 8 or 12"),
        (lambda: micro_batches(8, 0, 4), "micro_batch=0: expected a whole number of at least 1"),
        (lambda: stage_layers(8, 0, 0), "stages=0: expected a whole number of at least 1"),
        (lambda: stage_layers(0, 0, 1), "layers=0: expected a whole number of at least 1"),
        (
            lambda: stage_layers(3, 0, 4),
            "3 layers for 4 stages leave 1 of them without any; expected at most 3 such stages, or counts= with a 0",
        ),
        (lambda: stage_layers(3, 0, 2, counts=[3]), "1 counts were given for 2 stages: [3]"),
        (lambda: stage_layers(3, 0, 2, counts=[1, 1]), "the counts [1, 1] make 2 layers; expected 3"),
        (lambda: stage_layers(3, 0, 2, counts=[4, -1]), "counts=[4, -1]: expected numbers of layers"),
        (lambda: stage_layers(3, 0, 2, counts=[1, 2], last=1), "both counts=[1, 2] and first=None, last=1 were given"),
        (lambda: stage_layers(8, 0, 2, first=-1), "first=-1: expected a whole number of at least 0"),
        (lambda: stage_layers(8, 0, 1, first=4, last=4), "first=4 and last=4: expected one of them"),
        (lambda: stage_layers(8, 0, 2, first=4, last=3), "first=4 and last=3 of 8 layers leave 1 for the 0 other"),
        (lambda: stage_layers(8, 0, 3, first=9), "first=9 of 8 layers leave -1 for the 2 other stages"),
        (
            lambda: stage_chunks(10, 0, 4, virtual=2),
            "10 layers over 4 stages are 2 or 3 a stage, which 2 chunks do not divide; "
            "expected one of 1 chunks, or counts= with 8 numbers",
        ),
        (lambda: stage_chunks(24, 0, 2, virtual=5), "expected one of 1, 2, 3, 4, 6, 12 chunks"),
        (lambda: stage_chunks(9, 0, 2, virtual=2, first=6, last=3), "are 3 or 6 a stage"),
        (lambda: stage_chunks(8, 0, 2, virtual=0), "virtual=0: expected a whole number of at least 1"),
        (lambda: stage_chunks(8, 0, 2, virtual=2, counts=[4, 4]), "2 counts were given for 2 stages x 2 chunks"),
        (lambda: shard(720720, 0, 17), "one of 1, 2, 3, 4, 5, 6, 7, 8, ..., 90090, 102960, 120120"),
    ],
)
def test_what_cannot_be_divided_says_why_and_what_could(call, message):
    with pytest.raises(TopologyError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shard(8, 4, 4), "position=4 is outside 0..3"),
        (lambda: batch_share(8, -1, 4), "position=-1 is outside 0..3"),
        (lambda: stage_layers(8, 2, 2), "stage=2 is outside 0..1"),
        (lambda: stage_chunks(8, 2, 2, virtual=2), "stage=2 is outside 0..1"),
        (lambda: shard(8, TEXT, 4), "position='0' is outside 0..3"),
    ],
)
def test_a_part_that_is_not_there(call, message):
    with pytest.raises(RankError) as caught:
        call()
    assert message in str(caught.value)
