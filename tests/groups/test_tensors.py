"""The gate: tensors whose memory is not their values give the right result, or are refused before anything is sent."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel_topology import GroupArgumentError, GroupManager, NotPicklableError, ParallelTopology, torch_private
from parallel_topology.testing import run_ranks

# -- memory that is not the values ------------------------------------------------------------------------------------

_c10d: Any = dist

SHARED: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda values: values[:1, :1].clone().expand(values.shape),
    "windows": lambda values: values[:1, :1].repeat(1, 7).view(-1).as_strided((4, 4), (1, 1)),
}
"""How elements share memory, and so are one value."""
REAL: dict[str, Callable[[Tensor], Tensor]] = SHARED | {
    "neg": lambda values: torch.complex(torch.zeros_like(values), -values).conj().imag,
    "neg and strides": lambda values: torch.complex(torch.zeros_like(values), -values).t().contiguous().t().conj().imag,
    "inference": lambda values: _in_inference(values.t()).t(),
    "leaf": lambda values: values.clone().requires_grad_(),
}
COMPLEX: dict[str, Callable[[Tensor], Tensor]] = SHARED | {
    "conj": lambda values: values.conj().clone().conj(),
    "conj and strides": lambda values: values.conj().clone().t().contiguous().conj().t(),
    "inference": lambda values: _in_inference(values.conj()).conj(),
    "leaf": lambda values: values.clone().requires_grad_(),
}
VIEWS = {torch.float32: REAL, torch.complex64: COMPLEX}


def _in_inference(values: Tensor) -> Tensor:
    with torch.inference_mode():
        return values.clone(memory_format=torch.contiguous_format)


def _values(seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(-4, 5, (4, 4), generator=generator).float() for _ in range(2)]
    return torch.complex(*parts) if dtype.is_complex else parts[0]


def _operations(tp: Any) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """Of a tensor to be read and one to be written, or one for both; what the same on plain tensors gives is right."""
    to, by = (tp.rank + 1) % tp.size, (tp.rank - 1) % tp.size
    last = tp.size - 1
    return {
        "all_reduce": lambda x, _: tp.all_reduce(x),
        "all_reduce new": lambda x, _: tp.all_reduce(x, inplace=False),
        "all_reduce later": lambda x, _: tp.all_reduce(x, async_op=True).wait(),
        "reduce": lambda x, _: tp.reduce(x, last),
        "broadcast": lambda x, _: tp.broadcast(x, last),
        "all_gather": lambda x, _: tp.all_gather(x, 1),
        "all_gather out": lambda x, y: tp.all_gather(x[:1], out=y[: tp.size]),
        "all_gather_v": lambda x, _: tp.all_gather_v(x, dim=1),
        "reduce_scatter": lambda x, _: tp.reduce_scatter(x[:1].repeat(tp.size, 1) if tp.size == 3 else x),
        "reduce_scatter_v": lambda x, _: tp.reduce_scatter_v(x, [4] + [0] * last, dim=1),
        "gather": lambda x, _: tp.gather(x, last),
        "scatter": lambda x, y: tp.scatter(y[:1], x[: tp.size] if tp.rank == last else None, last),
        "all_to_all": lambda x, _: tp.all_to_all(x[: tp.size]),
        "send_recv": lambda x, y: tp.send_recv(x, y),
        "send_recv in place": lambda x, _: tp.send_recv(x, x),
        "p2p": lambda x, y: _sent_and_received(tp.isend(x, to), tp.recv(y, by)),
        "p2p later": lambda x, y: _sent_and_received(tp.isend(x, to), tp.irecv(y, by).wait()),
        "list": lambda x, y: tp.all_reduce([x, y]),
        "gathered list": lambda x, y: tp.all_gather([x, y.real], 1),
        "uneven list": lambda x, y: tp.all_gather_v([x[: tp.rank + 1], y.real[: tp.rank + 1]]),
    }


def _sent_and_received(sent: Any, received: Tensor) -> Tensor:
    sent.wait()
    return received


OPERATIONS = list(_operations(ParallelTopology(tp=2).at(0).tp))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _like_plain_tensors(groups: GroupManager, drawn: list[tuple[str, torch.dtype, str, str]]) -> None:
    tp = groups.tp
    for operation, dtype, view, other in drawn:
        if other in SHARED and (view not in SHARED or operation == "all_gather out"):
            continue  # what comes would not be one value: below
        read, written = (VIEWS[dtype][kind](_values(at + tp.rank, dtype)) for kind, at in ((view, 0), (other, 50)))
        with torch.no_grad():
            plain = [
                one.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format) for one in (read, written)
            ]
            result = _operations(tp)[operation](read, written)
            expected = _operations(tp)[operation](*plain)
        _assert_same(result, expected, (operation, view, other))
        _assert_same(read, plain[0], (operation, view, other, "read"))
        if other not in SHARED:  # of which what is written to a part changes the rest
            _assert_same(written, plain[1], (operation, view, other, "written"))


def _assert_same(result: Any, expected: Any, what: object) -> None:
    if isinstance(expected, list):
        for one, other in zip(result, expected, strict=True):
            _assert_same(one, other, what)
    elif expected is None:
        assert result is None
    else:
        assert torch.equal(result.detach(), expected), (what, result, expected)


@st.composite
def uses(draw: st.DrawFn) -> tuple[str, torch.dtype, str, str]:
    dtype = draw(st.sampled_from(sorted(VIEWS, key=str)))
    views = st.sampled_from(sorted(VIEWS[dtype]))
    return draw(st.sampled_from(OPERATIONS)), dtype, draw(views), draw(views)


@pytest.mark.parametrize("size", [2, 3])
@given(drawn=st.lists(uses(), min_size=1, max_size=20))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_view_is_as_good_as_a_plain_tensor(size: int, drawn: list[tuple[str, torch.dtype, str, str]]):
    run_ranks(f"tp{size}", _like_plain_tensors, drawn)


@pytest.mark.ranks(2)
def test_every_view_with_every_operation(groups: GroupManager):
    for operation in OPERATIONS:
        for dtype, views in VIEWS.items():
            _like_plain_tensors(groups, [(operation, dtype, view, view) for view in views])


def _spelled_out(groups: GroupManager) -> None:
    tp = groups.tp
    x = (torch.tensor([1 + 2j]) * (tp.rank + 1)).conj()
    assert tp.all_reduce(x) is x
    assert x.tolist() == [3 - 6j]
    x = torch.tensor([1j * (tp.rank + 1)]).conj().imag
    assert x.is_neg()
    assert tp.all_reduce(x).tolist() == [-3]
    assert tp.send_recv((torch.tensor([1 + 2j]) * (tp.rank + 1)).conj()).tolist() == [(1 - 2j) * (2 - tp.rank)]


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_conjugated_and_negated_in_threads_and_processes(where: Any):
    run_ranks("tp2", _spelled_out, world=where)


@pytest.mark.ranks(2)
def test_elements_that_share_memory_take_one_value_only(groups: GroupManager):
    tp, wide = groups.tp, torch.zeros(1).expand(2)
    with (
        pytest.raises(GroupArgumentError, match=r"several values for elements of a tensor \[2\]")
        if tp.rank
        else nullcontext()
    ):
        tp.broadcast(wide if tp.rank else torch.tensor([1.0, 2.0]))
    assert tp.all_reduce(torch.ones(1)).item() == 2  # everybody took part, so the group goes on
    source = torch.full((1,), 5.0).expand(3)
    assert tp.broadcast(source if tp.is_first else torch.zeros(3)).tolist() == [5, 5, 5]


@pytest.mark.ranks(2)
def test_output_that_is_input(groups: GroupManager):
    tp = groups.tp
    large = torch.full((200_000,), float(tp.rank))
    for _ in range(10):
        mine = large.clone()
        assert tp.send_recv(mine, mine) is mine
        assert mine.eq(1 - tp.rank).all()
    ring = torch.arange(6.0) + 10 * tp.rank
    tp.send_recv(ring[:4], ring[2:])
    assert ring.tolist() == [10 * tp.rank, 1 + 10 * tp.rank, *(n + 10 * (1 - tp.rank) for n in range(4))]
    buffer = torch.arange(4.0) + 10 * tp.rank
    assert tp.all_gather(buffer[1:3], out=buffer) is buffer
    assert buffer.tolist() == [1, 2, 11, 12]
    buffer = torch.arange(4.0) + 10 * tp.rank
    assert tp.all_to_all(buffer, out=buffer).tolist() == [
        2 * tp.rank,
        1 + 2 * tp.rank,
        10 + 2 * tp.rank,
        11 + 2 * tp.rank,
    ]
    buffer = torch.arange(4.0) + 10 * tp.rank
    assert tp.reduce_scatter(buffer, out=buffer[1:3]).tolist() == [10 + 4 * tp.rank, 12 + 4 * tp.rank]
    whole = torch.arange(4.0)
    tp.scatter(whole[2:] if tp.is_first else whole[:2], whole if tp.is_first else None)
    assert whole.tolist() == ([0, 1, 0, 1] if tp.is_first else [2, 3, 2, 3])


# -- what cannot be moved ---------------------------------------------------------------------------------------------


def _freed() -> Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(3)


class Wrapping(Tensor):
    """Its values are another's, as those of DTensor are."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs or {})  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue, reportUnknownVariableType]


class Named(Tensor):
    """As plain as Tensor."""


IMMOVABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "a quantized tensor"),
    "channels": (
        lambda: torch.quantize_per_channel(torch.ones(3, 3), torch.ones(3), torch.zeros(3), 0, torch.qint8),
        "a quantized tensor",
    ),
    "sparse": (lambda: torch.ones(3).to_sparse(), "a tensor of layout torch.sparse_coo; make it to_dense()"),
    "csr": (lambda: torch.ones(3, 3).to_sparse_csr(), "a tensor of layout torch.sparse_csr; make it to_dense()"),
    "mkldnn": (lambda: torch.ones(3).to_mkldnn(), "a tensor of layout torch._mkldnn; make it to_dense()"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "a nested tensor",
    ),
    "fake": (_fake, "a FakeTensor, whose values are not its own memory"),
    "wrapping": (lambda: torch.ones(3).as_subclass(Wrapping), "a Wrapping, whose values are not its own memory"),
    "meta": (lambda: torch.ones(4, 4, device="meta"), "the tensor is on meta, expected cpu"),
    "freed": (_freed, "a tensor without memory"),
    "zeros": (lambda: torch._efficientzerotensor(3), "a tensor without memory"),  # pyright: ignore[reportPrivateUsage]
    "None": (lambda: None, "given, expected a tensor"),
    "a number": (lambda: 3.0, "float given, expected a tensor"),
    "a list of numbers": (lambda: [3.0], "given, expected a tensor"),
    "numbers": (lambda: {1: 2}, "dict given, expected a tensor"),
}  # fmt: skip


def _refusals(tp: Any, tensor: Any) -> dict[str, Callable[[], Any]]:
    good = torch.ones(4, 4)
    return {
        "all_reduce": lambda: tp.all_reduce(tensor),
        "all_reduce in a list": lambda: tp.all_reduce([good, tensor]),
        "reduce": lambda: tp.reduce(tensor),
        "broadcast": lambda: tp.broadcast(tensor, async_op=True),
        "all_gather": lambda: tp.all_gather(tensor),
        "all_gather in a list": lambda: tp.all_gather([tensor]),
        "all_gather out": lambda: tp.all_gather(good, out=3 if tensor is None else tensor),
        "all_gather_v": lambda: tp.all_gather_v(tensor),
        "reduce_scatter": lambda: tp.reduce_scatter(tensor),
        "reduce_scatter_v": lambda: tp.reduce_scatter_v(tensor, [1, 2]),
        "gather": lambda: tp.gather(tensor),
        "scatter": lambda: tp.scatter(tensor, good if tp.is_first else None),
        "all_to_all": lambda: tp.all_to_all(tensor),
        "send": lambda: tp.send(tensor),
        "isend": lambda: tp.isend(tensor),
        "recv": lambda: tp.recv(tensor),
        "irecv": lambda: tp.irecv(tensor),
        "send_recv": lambda: tp.send_recv(tensor),
        "send_recv into": lambda: tp.send_recv(good, 3 if tensor is None else tensor),
    }


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", IMMOVABLE)
@pytest.mark.filterwarnings("ignore")  # torch's, about its own prototypes
def test_what_has_no_memory_to_move_is_refused_before_anything_is_sent(groups: GroupManager, kind: str):
    make, message = IMMOVABLE[kind]
    for operation, use in _refusals(groups.tp, make()).items():
        with pytest.raises(GroupArgumentError) as caught:
            use()
        of_its_shape = kind == "meta" and not str(caught.value).startswith(
            f"{operation} on engine/tp[0]: the tensor is"
        )
        assert message in str(caught.value) or of_its_shape, (operation, str(caught.value))
    groups.tp.barrier()  # nothing was sent


@pytest.mark.ranks(2)
def test_a_class_as_plain_as_tensor_is_a_tensor(groups: GroupManager):
    assert groups.tp.all_reduce(torch.ones(2).as_subclass(Named)).tolist() == [2, 2]
    assert groups.tp.all_reduce(torch.nn.Parameter(torch.ones(2))).tolist() == [2, 2]


@pytest.mark.ranks(2)
def test_inside_torch_func_the_plain_collectives_are_refused(groups: GroupManager):
    tp = groups.tp
    for transform in (torch.vmap, torch.func.grad):
        with pytest.raises(GroupArgumentError, match=r"inside a transform of torch\.func; use the forms of"):
            transform(lambda x: tp.all_reduce(x, inplace=False).sum())(torch.ones(2))


@pytest.mark.ranks(2)
def test_arguments_of_other_kinds(groups: GroupManager):
    tp: Any = groups.tp
    x = torch.ones(2)
    for use, message in (
        (lambda: tp.broadcast(x, "0"), "src='0', src_rank=None; expected a whole number"),
        (lambda: tp.send(x, dst_rank=1.5), "dst=None, dst_rank=1.5; expected a whole number"),
        (lambda: tp.all_gather(x, "x"), "dim='x' of a tensor of shape [2]"),
        (lambda: tp.all_gather(x, None), "dim=None of a tensor of shape [2]"),
        (lambda: tp.all_gather_v(x, [1.5, 2]), "sizes=[1.5, 2]; expected 2 whole numbers"),
        (lambda: tp.all_gather_v(x, 3), "sizes=3; expected 2 whole numbers"),
        (lambda: tp.all_to_all(x, [1, 1], "ab"), "input_splits=ab; expected 2 whole numbers"),
        (
            lambda: tp.all_gather(x, out=torch.ones(3)),
            "out=torch.float32 [3] on cpu; expected torch.float32 [4] on cpu",
        ),
        (lambda: tp.all_gather(x, out=torch.ones(4).double()), "expected torch.float32 [4] on cpu"),
        (lambda: tp.all_gather([x], out=x), "out= with a list of tensors"),
        (lambda: tp.all_reduce([x, x.double()]), "a list of torch.float32 [2] on cpu and torch.float64 [2] on cpu"),
        (lambda: tp.all_gather_v([x, torch.ones(3)]), "tensors with lengths [2, 3] along dim 0; expected one length"),
        (lambda: tp.gather(x, 1 - tp.rank, out=torch.ones(4)), "on a member that gets no result"),
    ):
        with pytest.raises(GroupArgumentError) as caught:
            use()
        assert message in str(caught.value)
    np = pytest.importorskip("numpy")
    assert tp.broadcast(x.clone(), np.int64(1), async_op=True).wait().tolist() == [1, 1]
    assert tp.all_gather(x.view(1, 2), np.int64(1)).tolist() == [[1, 1, 1, 1]]


# -- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.ranks(2)
def test_reductions_by_name_and_wrapped(groups: GroupManager):
    tp = groups.tp
    for name, value in {"sum": 5, "AVG": 2.5, "product": 6, "min": 2, "Max": 3}.items():
        for op in (name, getattr(dist.ReduceOp, name.upper()), dist.ReduceOp(getattr(dist.ReduceOp, name.upper()))):
            x = torch.full((2,), 2.0 + tp.rank)
            assert tp.all_reduce(x.clone(), op).tolist() == [value] * 2
            assert tp.reduce_scatter(x.clone(), op).tolist() == [value]
            assert tp.reduce_scatter_v(x.clone(), [1, 1], op).tolist() == [value]
            reduced = tp.reduce(x.clone(), op=op)
            assert reduced.tolist() == [value] * 2 if reduced is not None else tp.rank == 1
    for name, value in {"band": 2, "bor": 3, "bxor": 1}.items():
        assert tp.all_reduce(torch.tensor([2 + tp.rank]), name).item() == value


REFUSED_REDUCTIONS: list[tuple[Any, torch.dtype, str]] = [
    ("band", torch.float32, "RedOpType.BAND of a torch.float32 tensor; expected an integer dtype"),
    (dist.ReduceOp(dist.ReduceOp.BAND), torch.float32, "RedOpType.BAND of a torch.float32 tensor"),
    (dist.ReduceOp(dist.ReduceOp.AVG), torch.int32, "RedOpType.AVG of a torch.int32 tensor; expected a floating-point"),
    ("max", torch.complex64, "RedOpType.MAX of a torch.complex64 tensor; expected sum or avg"),
    ("product", torch.complex64, "RedOpType.PRODUCT of a torch.complex64 tensor; expected sum or avg"),
    (dist.ReduceOp.PREMUL_SUM, torch.float32, "PREMUL_SUM of a tensor on cpu: only NCCL has it"),
    (_c10d._make_nccl_premul_sum(2.0), torch.float32, "PREMUL_SUM of a tensor on cpu"),
    ("mean", torch.float32, "op='mean': expected one of 'sum', 'avg'"),
    (None, torch.float32, "op=None: expected one of"),
    (3, torch.float32, "op=3: expected one of"),
]


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("op", "dtype", "message"), REFUSED_REDUCTIONS, ids=[m[:40] for *_, m in REFUSED_REDUCTIONS])
def test_reductions_that_cannot_be(groups: GroupManager, op: Any, dtype: torch.dtype, message: str):
    tp, x = groups.tp, torch.ones(2, dtype=dtype)
    for use in (
        lambda: tp.all_reduce(x, op), lambda: tp.reduce(x, op=op), lambda: tp.reduce_scatter(x, op),
        lambda: tp.reduce_scatter_v(x, [1, 1], op), lambda: tp.all_reduce([x], op),
    ):  # fmt: skip
        with pytest.raises(GroupArgumentError) as caught:
            use()
        assert f"on engine/tp[0]: {message}" in str(caught.value)


@pytest.mark.ranks(2)
def test_complex_numbers_are_summed(groups: GroupManager):
    tp, x = groups.tp, torch.tensor([1 + 2j, 3 - 1j])
    assert tp.all_reduce(x.clone(), "avg").tolist() == x.tolist()
    assert tp.reduce_scatter(x).tolist() == [2 * x[tp.rank].item()]
    assert tp.reduce_scatter_v(x, [2, 0]).tolist() == ([] if tp.rank else (2 * x).tolist())


# -- lists, results of the caller's, later ----------------------------------------------------------------------------


@pytest.mark.ranks(2)
def test_lists_are_one_call(groups: GroupManager):
    tp, r = groups.tp, groups.tp.rank
    scalar, matrix, integers = torch.tensor(1.0 + r), torch.full((2, 3), 1.0 + r).t(), torch.tensor([r, 7])
    given = [scalar, matrix]
    result = tp.all_reduce(given, "max")
    assert [one is other for one, other in zip(result, given, strict=True)] == [True, True]
    assert (scalar.item(), matrix.eq(2).all()) == (2, True)
    fresh = tp.all_reduce((torch.ones(2), torch.ones(1)), inplace=False, async_op=True).wait()
    assert [one.tolist() for one in fresh] == [[2, 2], [2]]
    gathered = tp.all_gather([torch.tensor(1.5 + r), integers.view(2, 1), torch.zeros(2, 0, dtype=torch.int8)], -1)
    assert [one.tolist() for one in gathered[:2]] == [[1.5, 2.5], [[0, 1], [7, 7]]]
    assert gathered[2].shape == (2, 0)
    uneven = tp.all_gather_v([torch.full((2, r + 1), r), torch.full((2, r + 1), r > 0)], dim=1, async_op=True).wait()
    assert [one.tolist() for one in uneven] == [[[0, 1, 1]] * 2, [[False, True, True]] * 2]
    assert tp.all_reduce([]) == tp.all_gather([]) == tp.all_gather_v([]) == []


@pytest.mark.ranks(2)
def test_results_into_the_callers_tensors(groups: GroupManager):
    tp, x = groups.tp, torch.arange(4.0).view(2, 2) + 10 * groups.tp.rank
    for name, arguments in {
        "all_gather": (), "all_gather_v": ([2, 2],), "reduce_scatter": (), "reduce_scatter_v": ([1, 1],),
        "gather": (1,),
    }.items():  # fmt: skip
        for dim in (0, 1):
            how = {"dim": dim}
            expected = getattr(tp, name)(x, *arguments, **how)
            if expected is None:  # the others do it twice more
                assert [getattr(tp, name)(x, *arguments, **how) for _ in range(2)] == [None, None]
                continue
            for out in (torch.empty_like(expected), torch.empty_like(expected.t().contiguous()).t()):
                assert getattr(tp, name)(x, *arguments, **how, out=out) is out
                assert out.equal(expected)
            if name != "gather":
                assert getattr(tp, name)(x, *arguments, **how, out=out, async_op=True).wait() is out
    out = torch.empty(2, 2)
    assert tp.all_to_all(x, out=out) is out
    assert out.equal(tp.all_to_all(x))


def test_alone_results_go_into_the_callers_tensors_too():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        tp: Any = groups.tp
        x = torch.arange(4.0)
        for use in (tp.all_gather, tp.reduce_scatter, tp.all_to_all, tp.gather, tp.all_gather_v):
            out = torch.zeros(4)
            assert use(x, out=out) is out
            assert out.equal(x)
        assert tp.all_reduce([x])[0] is x
        assert tp.barrier(async_op=True).wait() is None
        with pytest.raises(GroupArgumentError, match="op='no'"):
            tp.all_reduce(x, "no")
        with pytest.raises(GroupArgumentError, match="NoneType given, expected a tensor"):
            tp.all_reduce(None)


@pytest.mark.ranks(3)
def test_a_barrier_to_wait_for_later(groups: GroupManager):
    begun = groups.tp.barrier(async_op=True)
    x = groups.tp.all_reduce(torch.ones(1))
    assert begun.wait() is None
    assert x.item() == 3


# -- copies -----------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """Holds what a user's layers hold."""

    def __init__(self, groups: GroupManager) -> None:
        super().__init__()
        self.groups, self.tp, self.weight = groups, groups.tp, torch.nn.Parameter(torch.ones(2))


@pytest.mark.ranks(2)
def test_copies_of_a_module_hold_the_same_groups_and_to_pickle_one_says_so(groups: GroupManager):
    layer = Layer(groups)
    for copied in (copy.deepcopy(layer), copy.copy(layer)):
        assert copied.tp is groups.tp
        assert copied.groups is groups
        assert copied.tp.all_reduce(copied.weight.detach().clone()).tolist() == [2, 2]
    assert copy.deepcopy(layer).weight is not layer.weight
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    assert averaged.module.tp is groups.tp
    for held in (groups, groups.tp, layer):
        with pytest.raises(NotPicklableError, match="cannot be pickled; send"):
            pickle.dumps(held)


# -- where a manager is made, and what a version of torch gets wrong --------------------------------------------------


def _made_inside(groups: GroupManager, folder: str, context: Any) -> None:
    store = dist.FileStore(f"{folder}/{len(groups.tp.ranks)}", groups.world.size)
    with context():
        made = GroupManager(ParallelTopology(tp=2), rank=groups.rank, store=store, timeout=30)
    with made:
        assert made.tp.all_reduce(torch.ones(2)).tolist() == [2, 2]
        assert made.tp.all_gather_object(groups.rank) == [0, 1]
        with context():
            made.tp.barrier()
            assert made.tp.all_gather_v(torch.full((1 + groups.rank,), 1.0, device="cpu")).shape == (3,)
        made.tp.links.order.add_(1)  # as compiled collectives do


def _under_a_default_device() -> Any:
    return torch.device("meta")


@pytest.mark.parametrize("context", [_under_a_default_device, torch.inference_mode, torch.no_grad])
def test_a_manager_made_under_a_mode_works_outside(tmp_path: Path, context: Any):
    run_ranks("tp2", _made_inside, str(tmp_path), context, check=False)


def _large_and_uneven(groups: GroupManager) -> None:
    tp = groups.tp
    mine = torch.full((100_000 * tp.rank, 3), float(tp.rank))
    whole = tp.all_gather_v(mine)
    assert whole.shape == (100_000 * sum(range(tp.size)), 3)
    for member, part in enumerate(whole.split([100_000 * member for member in range(tp.size)])):
        assert part.eq(member).all()
    assert tp.all_gather_v(mine, async_op=True).wait().equal(whole)


@pytest.mark.ranks(3)
def test_large_uneven_gathers(groups: GroupManager):
    _large_and_uneven(groups)


@pytest.mark.ranks(3)
def test_where_gloo_scatters_sums_all_reductions_are_right(groups: GroupManager, monkeypatch: pytest.MonkeyPatch):
    """As in torch 2.8; the same calls over the group's own reduce-scatter are in test_collectives."""
    tp = groups.tp
    monkeypatch.setattr(torch_private, "GLOO_SCATTERS_SUMS", True)
    for op, plain in {"max": torch.amax, "min": torch.amin, "avg": torch.mean, "product": torch.prod}.items():
        values = torch.stack([_values(member, torch.float32)[:3] for member in range(3)])
        expected = plain(values, 0)
        assert tp.reduce_scatter(values[tp.rank], op).equal(expected[tp.rank][None])
        assert tp.reduce_scatter(values[tp.rank], op, async_op=True).wait().equal(expected[tp.rank][None])
        sizes = [2, 0, 1]
        assert tp.reduce_scatter_v(values[tp.rank], sizes, op).equal(expected.split(sizes)[tp.rank])
