"""Who gets which part: the layers of a pipeline stage, the shard of a tensor dim, the samples of a batch.

Every function takes what is divided, then which part is asked for and of how many: `shard(4096, tp.rank, tp.size)`.
Parts are `range` objects, so that `start`, `stop` and `len` are at hand: `tensor.narrow(dim, part.start, len(part))`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd, isqrt
from typing import Literal

from parallel_topology.errors import RankError, TopologyError
from parallel_topology.topology.whole import quoted, require, whole

Uneven = Literal["error", "chunk", "tensor_split"]
"""What to do with a size that does not divide: refuse, or divide as the torch function of that name does."""


def shard(size: int, position: int, parts: int, *, uneven: Uneven = "error") -> range:
    """The indices of a tensor dim of `size` that the member at `position` of a group of `parts` holds.

    Together the parts are `range(size)`, in order. Under `"chunk"` every part has `ceil(size / parts)` indices until
    they run out, so the last ones may be shorter or empty, where `torch.chunk` gives fewer chunks instead. Under
    `"tensor_split"` the first `size % parts` have one index more.

    >>> shard(4096, 1, 4)
    range(1024, 2048)
    >>> [len(shard(9, position, 5, uneven="chunk")) for position in range(5)]
    [2, 2, 2, 2, 1]
    >>> [len(shard(9, position, 5, uneven="tensor_split")) for position in range(5)]
    [2, 2, 2, 2, 1]
    >>> [len(shard(6, position, 4, uneven="chunk")) for position in range(4)]
    [2, 2, 2, 0]

    Raises:
        TopologyError: the size does not divide and `uneven` is `"error"`; the message lists the sizes that do.
        RankError: `position` is not one of the parts.
    """
    size = require(0, "size", size)
    position, parts = _part("position", position, parts)
    if uneven == "tensor_split":
        return _balanced(size, position, parts)
    if uneven == "error" and size % parts:
        raise TopologyError(
            f"a dim of {size} divided by {parts} leaves {size % parts} over; expected a dim of "
            f"{_neighbours(size, parts)}, one of {_divisors(size)} parts, or uneven='chunk' or 'tensor_split'"
        )
    if uneven not in ("error", "chunk"):
        raise TopologyError(f"uneven={uneven!r}: expected 'error', 'chunk' or 'tensor_split'")
    length = -(-size // parts)
    return range(min(position * length, size), min((position + 1) * length, size))


def stage_layers(
    layers: int,
    stage: int,
    stages: int,
    *,
    counts: Sequence[int] | None = None,
    first: int | None = None,
    last: int | None = None,
) -> range:
    """The layers of one pipeline stage; together the stages have `range(layers)`, in order.

    As even as can be, the first `layers % stages` stages having one layer more, as TensorRT-LLM's `Mapping.pp_layers`
    (tensorrt_llm/mapping.py). `counts` says how many layers each stage has instead, and `first` and `last` how many
    the first and the last one have, the others sharing the rest, as Megatron's `num_layers_in_first_pipeline_stage`
    (megatron/core/transformer/transformer_block.py, 0.16.1), which refuses a rest that does not divide.

    >>> [len(stage_layers(10, stage, 4)) for stage in range(4)]
    [3, 3, 2, 2]
    >>> stage_layers(10, 1, 4, counts=[1, 4, 4, 1])
    range(1, 5)
    >>> [len(stage_layers(61, stage, 16, first=4, last=1)) for stage in (0, 1, 14, 15)]
    [4, 4, 4, 1]

    Raises:
        TopologyError: a stage is left without layers (give `counts`, where 0 may stand, if it is meant to be),
            counts that do not add up, or `first` and `last` that leave nothing sensible.
        RankError: `stage` is not one of the stages.
    """
    layers = require(1, "layers", layers)
    stage, stages = _part("stage", stage, stages)
    if counts is not None:
        counts = _counted(layers, stages, counts, first, last)
        start = sum(counts[:stage])
        return range(start, start + counts[stage])
    first, last = _end("first", first), _end("last", last)
    before, rest, between = _middle(layers, stages, first, last)
    if first is not None and stage == 0:
        return range(before)
    if last is not None and stage == stages - 1:
        return range(layers - last, layers)
    part = _balanced(rest, stage - (first is not None), between)
    return range(before + part.start, before + part.stop)


def stage_chunks(
    layers: int,
    stage: int,
    stages: int,
    *,
    virtual: int,
    counts: Sequence[int] | None = None,
    first: int | None = None,
    last: int | None = None,
) -> tuple[range, ...]:
    """The layers of one stage's `virtual` model chunks in an interleaved pipeline, first chunk first.

    A micro-batch passes chunk 0 of all stages, then chunk 1 of all stages, and so on: Megatron's interleaved schedule
    (https://arxiv.org/abs/2104.04473, section 2.2; `get_transformer_layer_offset` in
    megatron/core/transformer/transformer_layer.py, 0.16.1). Each stage's layers, as `stage_layers` has them, are
    divided over its chunks equally. `counts` instead says how many layers every chunk of every stage has, in the order
    in which a micro-batch passes them: `stages * virtual` numbers.

    >>> stage_chunks(8, 1, 2, virtual=2)
    (range(2, 4), range(6, 8))
    >>> stage_chunks(8, 0, 2, virtual=2, counts=[1, 3, 3, 1])
    (range(0, 1), range(4, 7))

    Raises:
        TopologyError: a stage's layers do not divide over its chunks (the message lists the numbers of chunks that
            would do), or what `stage_layers` raises.
        RankError: `stage` is not one of the stages.
    """
    virtual = require(1, "virtual", virtual)
    layers = require(1, "layers", layers)
    stage, stages = _part("stage", stage, stages)
    if counts is not None:
        places = range(stage, stages * virtual, stages)
        counts = _counted(layers, stages * virtual, counts, first, last, f"{stages} stages x {virtual} chunks")
        starts = [sum(counts[:place]) for place in places]
        return tuple(range(start, start + counts[place]) for start, place in zip(starts, places, strict=True))
    first, last = _end("first", first), _end("last", last)
    whole = stage_layers(layers, stage, stages, first=first, last=last)
    sizes = _stage_sizes(layers, stages, first, last)
    if any(size % virtual for size in sizes):
        held = " or ".join(map(str, sorted(sizes)))
        raise TopologyError(
            f"{layers} layers over {stages} stages are {held} a stage, which {virtual} chunks do not divide; "
            f"expected one of {_divisors(gcd(*sizes))} chunks, or counts= with {stages * virtual} numbers"
        )
    step, start, length = layers // virtual, whole.start // virtual, (whole.stop - whole.start) // virtual
    return tuple(range(start + chunk * step, start + chunk * step + length) for chunk in range(virtual))


def batch_share(global_batch: int, position: int, parts: int) -> range:
    """The samples of a global batch that one data-parallel member takes: an equal share, or an error.

    >>> batch_share(32, 1, 4)
    range(8, 16)

    Raises:
        TopologyError: the batch does not divide; the message names the remainder and the sizes that would do.
        RankError: `position` is not one of the parts.
    """
    global_batch = require(0, "global_batch", global_batch)
    position, parts = _part("position", position, parts)
    if global_batch % parts:
        raise TopologyError(
            f"a global batch of {global_batch} divided over {parts} data-parallel ranks leaves {global_batch % parts} "
            f"samples over; expected a batch of {_neighbours(global_batch, parts)}, "
            f"or one of {_divisors(global_batch)} ranks"
        )
    length = global_batch // parts
    return range(position * length, (position + 1) * length)


def micro_batches(global_batch: int, micro_batch: int, parts: int) -> int:
    """How many micro-batches each data-parallel member runs for one step: global = micro x data-parallel x this.

    Megatron's `num_microbatches` (megatron/core/num_microbatches_calculator.py, 0.16.1), DeepSpeed's
    `gradient_accumulation_steps`.

    >>> micro_batches(512, 2, 32)
    8

    Raises:
        TopologyError: the batch does not divide; the message names the remainder and the sizes that would do.
    """
    global_batch = require(0, "global_batch", global_batch)
    micro_batch, parts = require(1, "micro_batch", micro_batch), require(1, "parts", parts)
    count, left = divmod(global_batch, micro_batch * parts)
    if left:
        fitting = f" or a micro-batch of {_divisors(global_batch // parts)}" if global_batch % parts == 0 else ""
        raise TopologyError(
            f"a global batch of {global_batch} divided by micro-batch {micro_batch} x {parts} data-parallel ranks = "
            f"{micro_batch * parts} leaves {left} samples over; expected a batch of "
            f"{_neighbours(global_batch, micro_batch * parts)}{fitting}"
        )
    return count


def _balanced(size: int, position: int, parts: int) -> range:
    """The first `size % parts` parts have one more."""
    length, extra = divmod(size, parts)
    start = position * length + min(position, extra)
    return range(start, start + length + (position < extra))


def _middle(layers: int, stages: int, first: int | None, last: int | None) -> tuple[int, int, int]:
    """(layers of a first stage that was given, layers left for the others, how many others there are)."""
    ends = {name: count for name, count in (("first", first), ("last", last)) if count is not None}
    given = " and ".join(f"{name}={count}" for name, count in ends.items())
    rest, between = layers - sum(ends.values()), stages - len(ends)
    if between < 0:
        raise TopologyError(f"{given}: expected one of them, for {stages} stage is both the first and the last")
    if rest < 0 or (rest and not between):
        raise TopologyError(
            f"{given} of {layers} layers leave {rest} for the {between} other stages; "
            "expected numbers that leave at least one layer for each of the others, and none over"
        )
    if rest < between:
        raise TopologyError(
            f"{rest} layers for {between} stages leave {between - rest} of them without any; "
            f"expected at most {rest} such stages, or counts= with a 0 for a stage that is to have no layers"
        )
    return first or 0, rest, between


def _stage_sizes(layers: int, stages: int, first: int | None, last: int | None) -> set[int]:
    """The different numbers of layers that the stages have."""
    _, rest, between = _middle(layers, stages, first, last)
    shared = {-(-rest // between), rest // between} if between else set[int]()
    return shared | {count for count in (first, last) if count is not None}


def _counted(
    layers: int, stages: int, given: Iterable[int], first: int | None, last: int | None, made_of: str | None = None
) -> list[int]:
    """The numbers of layers of all stages, or chunks of stages."""
    listed = list(given) if isinstance(given, Iterable) else [given]  # pyright: ignore[reportUnnecessaryIsInstance]
    if first is not None or last is not None:
        raise TopologyError(f"both counts={listed} and first={first}, last={last} were given; expected one way")
    counts = [count for count in map(whole, listed) if count is not None and count >= 0]
    if len(counts) != len(listed) or not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"counts={quoted(given)}: expected numbers of layers, whole numbers of at least 0")
    if len(counts) != stages:
        raise TopologyError(f"{len(counts)} counts were given for {made_of or f'{stages} stages'}: {counts}")
    if sum(counts) != layers:
        raise TopologyError(f"the counts {counts} make {sum(counts)} layers; expected {layers}")
    return counts


def _part(name: str, position: int, parts: int) -> tuple[int, int]:
    """Which part, and of how many, as ints."""
    count, number = require(1, "stages" if name == "stage" else "parts", parts), whole(position)
    if number is None or not 0 <= number < count:
        raise RankError(f"{name}={quoted(position)} is outside 0..{count - 1}")
    return number, count


def _end(name: str, layers: int | None) -> int | None:
    """The layers of the first or last stage, if they are given."""
    return None if layers is None else require(0, name, layers)


def _neighbours(size: int, parts: int) -> str:
    """The multiples of `parts` on either side."""
    below = size // parts * parts
    return f"{below} or {below + parts}" if below else f"{parts}"


def _divisors(number: int) -> str:
    """`1, 2, 3, 6`: the numbers that divide `number`, in the middle of a list that is long left out."""
    small = [divisor for divisor in range(1, min(isqrt(number), 100_000) + 1) if number % divisor == 0]
    return _shortened(sorted({*small, *(number // divisor for divisor in small)}))


def _shortened(numbers: Iterable[int]) -> str:
    shown = list(map(str, numbers))
    return ", ".join(shown if len(shown) <= 16 else [*shown[:8], "...", *shown[-8:]])
