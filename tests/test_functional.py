"""Collectives with gradients: each against torch's own gradient of the same thing done in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from parallel_topology import GroupArgumentError, GroupManager, ParallelTopology, TopologyError
from parallel_topology.functional import (
    all_gather_from,
    all_to_all,
    all_to_all_v,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter_to,
    scatter_to,
)
from parallel_topology.testing import run_ranks

SHAPE = (4, 6, 12)  # of a whole; every length is divided by 1, 2 and, but for the first, 3


def random(seed: int, shape: Any = SHAPE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Forward = Callable[[Tensor, Any], Tensor]
Plain = Callable[[list[Tensor]], list[Tensor]]


def cases(size: int, dim: int, other: int) -> dict[str, tuple[Forward, Plain, bool, bool]]:
    """Name -> the operation, the same on all members' inputs at once, and whether input and output are one for all."""

    def cut(whole: Tensor) -> list[Tensor]:
        return list(whole.chunk(size, dim))

    def exchanged(inputs: list[Tensor]) -> list[Tensor]:
        parts = [one.chunk(size, dim) for one in inputs]
        return [torch.cat([parts[giver][taker] for giver in range(size)], other) for taker in range(size)]

    return {
        "copy_to": (copy_to, lambda inputs: inputs, True, False),
        "reduce_from": (reduce_from, lambda inputs: [sum(inputs, torch.zeros(()))] * size, False, True),
        "scatter_to": (lambda x, tp: scatter_to(x, tp, dim), lambda inputs: cut(inputs[0]), True, False),
        "gather_from": (
            lambda x, tp: gather_from(x, tp, dim), lambda inputs: [torch.cat(inputs, dim)] * size, False, True,
        ),
        "reduce_scatter_to": (
            lambda x, tp: reduce_scatter_to(x, tp, dim), lambda inputs: cut(sum(inputs, torch.zeros(()))), False, False,
        ),
        "all_gather_from": (
            lambda x, tp: all_gather_from(x, tp, dim), lambda inputs: [torch.cat(inputs, dim)] * size, False, False,
        ),
        "all_to_all": (lambda x, tp: all_to_all(x, tp, dim, other), exchanged, False, False),
    }  # fmt: skip


def _against_one_process(groups: GroupManager, name: str, dim: int, other: int) -> None:
    tp = groups.tp
    forward, plain, one_input, one_output = cases(tp.size, dim, other)[name]
    # One process: all members' inputs and outputs, and what the losses of all say together.
    inputs = [random(0 if one_input else member).requires_grad_() for member in range(tp.size)]
    if one_input:
        inputs = inputs[:1] * tp.size
    outputs = plain(inputs)
    weights = [random(100 if one_output else 100 + member, outputs[0].shape) for member in range(tp.size)]
    total = torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()
    (total / tp.size if one_output else total).backward()
    # This member's part of it.
    mine = random(0 if one_input else tp.rank).requires_grad_()
    result = forward(mine, tp)
    (result * weights[tp.rank]).sum().backward()
    torch.testing.assert_close(result, outputs[tp.rank])
    torch.testing.assert_close(mine.grad, inputs[tp.rank].grad)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", cases(1, 0, 0))
@given(dim=st.sampled_from([1, 2, -1]), other=st.sampled_from([0, 1, 2]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_value_and_gradient(size: int, name: str, dim: int, other: int):
    run_ranks(f"tp{size}", _against_one_process, name, dim, other)


def _in_processes(groups: GroupManager) -> None:
    for name in cases(1, 0, 0):
        _against_one_process(groups, name, 1, 2)


def test_value_and_gradient_in_processes():
    run_ranks("tp2", _in_processes, world="processes")


def _sequence_parallel_block(groups: GroupManager) -> None:
    """A normed, residual two-layer block trained for some steps: tensor- and sequence-parallel against dense."""
    tp, tokens, width, hidden = groups.tp, 6, 4, 12
    dense = [
        (random(seed, shape) / 4).requires_grad_() for seed, shape in enumerate([(width, hidden), (hidden, width)])
    ]
    mine = tp.shard(hidden)
    up = dense[0].detach()[:, mine.start : mine.stop].clone().requires_grad_()
    down = dense[1].detach()[mine.start : mine.stop].clone().requires_grad_()

    def parallel(x: Tensor) -> Tensor:
        x = scatter_to(x, tp, 0)  # each has some of the tokens
        inside = all_gather_from(functional.layer_norm(x, (width,)), tp, 0)
        x = x + reduce_scatter_to(functional.gelu(inside @ up) @ down, tp, 0)
        return gather_from(x, tp, 0)

    for step in range(5):
        x, y = random(50 + step, (tokens, width)), random(70 + step, (tokens, width))
        plain = x + functional.gelu(functional.layer_norm(x, (width,)) @ dense[0]) @ dense[1]
        losses = [functional.mse_loss(plain, y), functional.mse_loss(parallel(x), y)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[1], losses[0])
        with torch.no_grad():
            for weight in (*dense, up, down):
                weight -= 0.5 * weight.grad  # pyright: ignore[reportOperatorIssue]
                weight.grad = None
    torch.testing.assert_close(up, dense[0][:, mine.start : mine.stop])
    torch.testing.assert_close(down, dense[1][mine.start : mine.stop])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_sequence_parallel_block_trains_like_the_dense_one(size: int):
    run_ranks(f"tp{size}", _sequence_parallel_block)


def _experts(groups: GroupManager) -> None:
    """Tokens go to the rank of their expert, are scaled there, and come back: values and gradients of both."""
    ep, width = groups.tp, 3
    scales = random(7, (ep.size,)).requires_grad_()
    tokens = random(20 + groups.rank, (5, width)).requires_grad_()
    choice = torch.tensor([(groups.rank + number * number) % ep.size for number in range(5)]).sort().values
    gives = [int((choice == expert).sum()) for expert in range(ep.size)]
    takes = [row[ep.rank] for row in ep.all_gather_object(gives)]
    there = all_to_all_v(tokens, ep, takes, gives) * scales[ep.rank]
    back = all_to_all_v(there, ep, gives, takes)
    weight = random(40 + groups.rank, (5, width))
    (back * weight).sum().backward()
    torch.testing.assert_close(back, tokens * scales[choice, None])
    torch.testing.assert_close(tokens.grad, weight * scales[choice, None])
    mine = sum(
        (random(20 + r, (5, width)) * random(40 + r, (5, width)))[_chose(r, ep.rank, ep.size)].sum() for r in ep.ranks
    )
    torch.testing.assert_close(scales.grad[ep.rank], mine)  # pyright: ignore[reportOptionalSubscript]


def _chose(rank: int, expert: int, size: int) -> Tensor:
    return torch.tensor([(rank + number * number) % size for number in range(5)]).sort().values == expert


def test_tokens_go_to_their_experts_and_back():
    run_ranks("tp3", _experts)


@pytest.mark.ranks(2)
def test_inputs_are_left_alone(groups: GroupManager):
    x = torch.ones(2, 2, requires_grad=True)
    for name, (forward, *_) in cases(2, 0, 1).items():
        forward(x, groups.tp)
        assert x.tolist() == [[1, 1], [1, 1]], name


def replicated(tp: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each conjugate pair around some work of each member's own: of what all hold alike, to what all hold alike."""
    scale = torch.linspace(1, 2, 4, dtype=torch.float64) * (1 + tp.rank)
    gives = [[1, 3], [2, 2]][tp.rank] if tp.size == 2 else [4 - 2 * (tp.size - 1)] + [2] * (tp.size - 1)
    takes = (
        [[1, 2], [3, 2]][tp.rank]
        if tp.size == 2
        else [[4 - 2 * (tp.size - 1)] * tp.size, *[[2] * tp.size] * tp.size][tp.rank]
    )

    def exchanged(x: Tensor) -> Tensor:
        there = all_to_all_v(copy_to(x, tp), tp, takes, gives)
        return reduce_from(all_to_all_v((there**3) * scale[0], tp, gives, takes), tp)

    return {
        "copy_to, reduce_from": lambda x: reduce_from((copy_to(x, tp) * scale).sin(), tp),
        "scatter_to, gather_from": lambda x: gather_from(scatter_to(x, tp, 0) ** 3 * scale[0], tp, 0),
        "all_gather_from, reduce_scatter_to": lambda x: gather_from(
            reduce_scatter_to((all_gather_from(scatter_to(x, tp, 0), tp, 0) * scale).sin(), tp, 0), tp, 0
        ),
        "all_to_all": lambda x: gather_from(
            all_to_all(all_to_all(scatter_to(x, tp, 0), tp, 1, 0) ** 3 * scale[0], tp, 0, 1), tp, 0
        ),
        "all_to_all_v": exchanged,
    }


def _any_order(groups: GroupManager, name: str) -> None:
    function = replicated(groups.tp)[name]
    x = random(3, (4, 4)).requires_grad_()
    torch.manual_seed(0)  # the checks draw, and all members must draw the same
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, random(4, (4, 4)).requires_grad_())
    whole = torch.func.grad(lambda y: (function(y) * random(5, (4, 4))).sum())(x.detach())
    torch.testing.assert_close(whole, torch.autograd.grad((function(x) * random(5, (4, 4))).sum(), x)[0])
    if torch.__version__.startswith("2.8."):  # vmap fails there with what it makes of such functions
        return
    batch = random(6, (3, 4, 4))
    torch.testing.assert_close(torch.func.vmap(function)(batch), torch.stack([function(one) for one in batch]))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(lambda y: function(y).sum()), 2)(batch.movedim(0, 2)),
        torch.stack([torch.func.grad(lambda y: function(y).sum())(one) for one in batch]),
    )


def _forward_mode(groups: GroupManager) -> None:
    for function in replicated(groups.tp).values():
        torch.manual_seed(0)
        x = random(3, (4, 4)).requires_grad_()
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


def test_forward_mode():
    run_ranks("tp2", _forward_mode, world="processes", check=False)  # torch has one level of it in a process


@pytest.mark.parametrize("name", ["copy_to, reduce_from", "scatter_to, gather_from",
                                  "all_gather_from, reduce_scatter_to", "all_to_all", "all_to_all_v"])  # fmt: skip
def test_derivatives_of_any_order_and_the_transforms_of_torch_func(name: str):
    run_ranks("tp2", _any_order, name, check=False)


@pytest.mark.ranks(2)
def test_what_does_not_divide(groups: GroupManager):
    with pytest.raises(TopologyError, match="3"):
        scatter_to(torch.ones(2, 3), groups.tp)
    with pytest.raises(GroupArgumentError, match=r"does not divide by 2"):
        reduce_scatter_to(torch.ones(3), groups.tp)


@pytest.mark.ranks(2)
def test_plain_collectives_do_not_cut_gradients_silently(groups: GroupManager):
    tp, leaf = groups.tp, torch.ones(2, requires_grad=True)
    inner = leaf * 2
    for use in (
        tp.all_reduce,
        tp.all_gather,
        tp.reduce_scatter,
        tp.all_to_all,
        tp.broadcast,
        tp.gather,
        tp.all_gather_v,
    ):
        with pytest.raises(GroupArgumentError, match="the tensor requires a gradient, which this would cut"):
            use(inner)
        with torch.no_grad():
            use(inner.clone())
    assert tp.broadcast(leaf) is leaf  # as parameters are, before training: in place, and nothing leads to a leaf
    assert tp.all_reduce(leaf).tolist() == [2, 2]
    (leaf * 3).sum().backward()
    assert leaf.grad is not None


def test_in_a_group_of_one_rank_it_is_the_tensor_itself():
    with GroupManager(ParallelTopology(tp=1), rank=0) as groups:
        x = torch.ones(2, requires_grad=True)
        for forward, *_ in cases(1, 0, 0).values():
            assert forward(x, groups.tp) is x
