"""Each collective against what plain torch gives in one process: sizes, dtypes, shapes, strides and roots drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel_topology import GroupManager
from parallel_topology.testing import run_ranks
from parallel_topology.testing.ranks import World

OP = dist.ReduceOp
REDUCIBLE = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
MOVABLE = [*REDUCIBLE, torch.int16, torch.uint16, torch.uint32, torch.complex64, torch.float8_e4m3fn]
FLOATS = REDUCIBLE[:4]
PLAIN: dict[str, Any] = {
    "SUM": lambda stacked: stacked.any(0) if stacked.dtype is torch.bool else stacked.sum(0),
    "AVG": lambda stacked: stacked.mean(0),
    "PRODUCT": lambda stacked: stacked.all(0) if stacked.dtype is torch.bool else stacked.prod(0),
    "MAX": lambda stacked: stacked.amax(0),
    "MIN": lambda stacked: stacked.amin(0),
    "BAND": lambda stacked: _fold(torch.bitwise_and, stacked),
    "BOR": lambda stacked: _fold(torch.bitwise_or, stacked),
    "BXOR": lambda stacked: _fold(torch.bitwise_xor, stacked),
}


def _fold(operation: Any, stacked: torch.Tensor) -> torch.Tensor:
    result = stacked[0]
    for one in stacked[1:]:
        result = operation(result, one)
    return result


@dataclass(frozen=True)
class Case:
    """One call, the same on all members but for their values."""

    operation: str
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    dim: int
    op: str
    root: int
    splits: tuple[tuple[int, ...], ...]
    strided: bool
    as_handle: bool
    named_by_rank: bool

    def value(self, member: int, shape: tuple[int, ...]) -> torch.Tensor:
        """A member's tensor: small whole numbers, so that every dtype adds them exactly."""
        numbers = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(17 * member + len(shape)))
        signed = self.dtype.is_floating_point or self.dtype.is_complex or self.dtype.is_signed
        values = (numbers - 2 if signed else numbers).to(self.dtype)
        if not self.strided or not shape:
            return values
        return values.permute(*reversed(range(len(shape)))).contiguous().permute(*reversed(range(len(shape))))

    def length(self, member: int, length: int) -> tuple[int, ...]:
        return (*self.shape[: self.dim], length, *self.shape[self.dim + 1 :])


OPERATIONS = [
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_v", "reduce_scatter", "reduce_scatter_v", "gather",
    "scatter", "all_to_all", "all_to_all_v", "send_recv", "p2p",
]  # fmt: skip
REDUCING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_v")


@st.composite
def cases(draw: st.DrawFn, size: int) -> Case:
    operation = draw(st.sampled_from(OPERATIONS))
    op = draw(st.sampled_from(sorted(PLAIN))) if operation in REDUCING else "SUM"
    dtypes = {"AVG": FLOATS, "BAND": REDUCIBLE[4:], "BOR": REDUCIBLE[4:], "BXOR": REDUCIBLE[4:]}.get(op, REDUCIBLE)
    scalars = operation in ("all_reduce", "reduce", "broadcast", "all_gather", "gather", "send_recv", "p2p")
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=0 if scalars else 1, max_size=3)))
    dim = draw(st.integers(0, max(len(shape) - 1, 0))) if not operation.startswith("all_to_all") else 0
    return Case(
        operation=operation,
        size=size,
        dtype=draw(st.sampled_from(dtypes if operation in REDUCING else MOVABLE)),
        shape=shape,
        dim=dim,
        op=op,
        root=draw(st.integers(0, size - 1)),
        splits=tuple(tuple(draw(st.integers(0, 3)) for _ in range(size)) for _ in range(size)),
        strided=draw(st.booleans()),
        as_handle=draw(st.booleans()),
        named_by_rank=draw(st.booleans()),
    )


def outcome(case: Case, groups: GroupManager) -> tuple[Any, torch.Tensor | None]:
    """What the group gives this member, and what plain torch says it must; None where nothing is said."""
    tp, me = groups.tp, groups.tp.rank
    members = range(case.size)
    root = {"rank": tp.ranks[case.root]} if case.named_by_rank else {"": case.root}
    src = {f"src{'_' if key else ''}{key}": value for key, value in root.items()}
    dst = {f"dst{'_' if key else ''}{key}": value for key, value in root.items()}
    handle: dict[str, Any] = {"async_op": True} if case.as_handle else {}
    mine = case.value(me, case.shape)
    all_values = [case.value(member, case.shape) for member in members]
    op = getattr(OP, case.op)
    joined = torch.cat([one.reshape(one.shape or (1,)) for one in all_values], case.dim)
    match case.operation:
        case "all_reduce":
            return tp.all_reduce(mine, op, **handle), _reduced(case, all_values)
        case "reduce":
            result = tp.reduce(mine, op=op, **dst, **handle)
            return result, _reduced(case, all_values) if me == case.root else None
        case "broadcast":
            return tp.broadcast(mine, **src, **handle), all_values[case.root]
        case "all_gather":
            return tp.all_gather(mine, case.dim, **handle), joined
        case "gather":
            return tp.gather(mine, dim=case.dim, **dst, **handle), joined if me == case.root else None
        case "all_gather_v":
            lengths = case.splits[0]
            values = [case.value(member, case.length(member, lengths[member])) for member in members]
            sizes = lengths if case.named_by_rank else None
            return tp.all_gather_v(values[me], sizes, case.dim, **handle), torch.cat(values, case.dim)
        case "reduce_scatter":
            whole = case.length(me, case.shape[case.dim] * case.size)
            values = [case.value(member, whole) for member in members]
            expected = _reduced(case, values).chunk(case.size, case.dim) if math.prod(whole) else [mine] * case.size
            return tp.reduce_scatter(values[me], op, case.dim, **handle), expected[me]
        case "reduce_scatter_v":
            lengths = case.splits[0]
            values = [case.value(member, case.length(member, sum(lengths))) for member in members]
            expected = _reduced(case, values).split(list(lengths), case.dim)[me]
            return tp.reduce_scatter_v(values[me], lengths, op, case.dim, **handle), expected
        case "scatter":
            whole = case.value(9, case.length(me, case.shape[case.dim] * case.size))
            given = whole if me == case.root else None
            expected = whole.narrow(case.dim, me * case.shape[case.dim], case.shape[case.dim])
            return tp.scatter(torch.empty_like(mine), given, dim=case.dim, **src, **handle), expected
        case "all_to_all":
            values = [case.value(member, case.length(member, case.shape[0] * case.size)) for member in members]
            expected = torch.cat([one.narrow(0, me * case.shape[0], case.shape[0]) for one in values])
            return tp.all_to_all(values[me], **handle), expected
        case "all_to_all_v":
            values = [case.value(member, case.length(member, sum(case.splits[member]))) for member in members]
            expected = torch.cat([one.split(list(case.splits[member]))[me] for member, one in enumerate(values)])
            coming = [case.splits[member][me] for member in members]
            return tp.all_to_all(values[me], coming, case.splits[me], **handle), expected
        case "send_recv":
            return tp.send_recv(mine), all_values[me - 1]
        case _:
            return _to_everybody(case, groups, mine), all_values[case.root]


def _to_everybody(case: Case, groups: GroupManager, mine: torch.Tensor) -> torch.Tensor:
    """The root sends to each of the others."""
    tp = groups.tp
    if tp.rank != case.root:
        into = torch.empty_like(mine)
        return tp.irecv(into, case.root).wait() if case.as_handle else tp.recv(into, src_rank=tp.ranks[case.root])
    for other in [member for member in range(tp.size) if member != tp.rank]:
        if case.as_handle:
            tp.isend(mine, dst_rank=tp.ranks[other]).wait()
        else:
            tp.send(mine, other)
    return mine


def _reduced(case: Case, values: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(values)
    if case.dtype.is_floating_point:
        stacked = stacked.double()
    return PLAIN[case.op](stacked).to(case.dtype)


def check(groups: GroupManager, batch: list[Case]) -> None:
    for case in batch:
        result, expected = outcome(case, groups)
        if hasattr(result, "wait"):
            result = result.wait()
        if expected is None:
            assert result is None
            continue
        assert (result.dtype, result.shape) == (case.dtype, expected.shape), case
        assert torch.equal(_bytes(result), _bytes(expected.to(case.dtype))), (case, result, expected)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.contiguous().reshape(-1)
    return whole.view(torch.uint8) if whole.numel() else torch.empty(0, dtype=torch.uint8)


CARRIERS: dict[str, Any] = {"shared memory": {}, "gloo": {"options": {"tp": {"communicators": ["torch"]}}}}


def run(size: int, world: World, data: st.DataObject, most: int, carrier: str) -> None:
    batch = data.draw(st.lists(cases(size), min_size=1, max_size=most))
    run_ranks(f"tp{size}@5", check, batch, world=world, **CARRIERS[carrier])


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_collective_equals_plain_torch(size: int, carrier: str, data: st.DataObject):
    run(size, "threads", data, 12, carrier)


@pytest.mark.parametrize("carrier", CARRIERS)
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_collective_equals_plain_torch_in_processes(carrier: str, data: st.DataObject):
    run(3, "processes", data, 40, carrier)
