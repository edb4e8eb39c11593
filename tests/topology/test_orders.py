"""Every system's layout by name: laws of all orders, then the systems' own groups, then their formulas.

The groups under `GOLDEN` were computed by the systems' own code, from the version each entry names: run unmodified
for Megatron, vLLM, SGLang, DeepSpeed, torchtitan and nanotron 0.4, transcribed from the source where it does not
import (TensorRT-LLM, nanotron's main branch, picotron). `tests/peers` compares with those that can be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import ORDERS, ParallelTopology, TopologyError

SIZES = st.integers(1, 3)


def topology(order: str, **arguments: Any) -> ParallelTopology:
    return ParallelTopology(order=order, **arguments)


def case(order: str, **arguments: Any) -> Callable[[], ParallelTopology]:
    return partial(ParallelTopology, order=order, **arguments)


def drawn(data: st.DataObject, name: str) -> tuple[ParallelTopology, dict[str, int]]:
    """A topology of the named order in which some axes are given, and their sizes."""
    axes = ORDERS[name].axes
    given = data.draw(st.lists(st.sampled_from(axes), min_size=1, unique=True))
    sizes = {axis: data.draw(SIZES, label=axis) for axis in given}
    return topology(name, **sizes), sizes


# Laws of every order


@pytest.mark.parametrize("name", ORDERS)
@given(data=st.data())
def test_an_order_lays_its_axes_row_major_the_last_one_slowest(name: str, data: st.DataObject) -> None:
    named, sizes = drawn(data, name)
    axes = ORDERS[name].axes
    grid = np.arange(named.world_size).reshape([sizes.get(axis, 1) for axis in reversed(axes)])
    for count in range(1, len(axes) + 1):
        for along in combinations(range(len(axes)), count):
            last = [len(axes) - 1 - axis for axis in reversed(along)]  # the grid's axes stand the other way round
            rows = np.moveaxis(grid, last, range(-count, 0)).reshape(-1, prod(grid.shape[i] for i in last))
            assert sorted(map(list, named.groups(*(axes[i] for i in along)))) == rows.tolist()


@pytest.mark.parametrize("name", ORDERS)
@given(data=st.data())
def test_an_order_means_the_same_topology_through_text_and_json(name: str, data: st.DataObject) -> None:
    named, _ = drawn(data, name)
    assert ParallelTopology.parse(str(named)) == named
    assert ParallelTopology.model_validate_json(named.model_dump_json()) == named
    assert named == topology("-".join(ORDERS[name].axes), **named.sizes)


@pytest.mark.parametrize("name", ORDERS)
def test_axes_that_are_not_given_have_size_one(name: str) -> None:
    first, *absent = ORDERS[name].axes
    named = topology(name, **{first: 4})
    assert named.axes == ORDERS[name].axes
    assert named.world_size == 4
    for axis in absent:
        assert named.size(axis) == 1
        assert named.groups(axis) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("name", ORDERS)
def test_an_axis_that_the_system_does_not_have_is_an_error(name: str) -> None:
    with pytest.raises(TopologyError, match=f"the order '{name}' has no axis 'sp'; it has '{ORDERS[name].axes[0]}', "):
        topology(name, sp=2)


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_says_where_it_was_read(name: str) -> None:
    repository, path = ORDERS[name].source.split()[:2]
    assert repository.count("/") == 1
    assert path.strip(",").endswith(".py")


# The systems' own groups

GOLDEN: dict[str, tuple[Callable[[], ParallelTopology], str]] = {
    "megatron-core 0.16.1, dense": (
        case("megatron", tp=2, cp=2, dp=2, pp=2),
        """
        tp       | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        cp       | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        dp       | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        pp       | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        tp pp    | 0,1,8,9 2,3,10,11 4,5,12,13 6,7,14,15
        cp dp    | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        tp cp    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        tp dp    | 0,1,4,5 2,3,6,7 8,9,12,13 10,11,14,15
        tp cp dp | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        """,
    ),
    "megatron-core 0.16.1, experts": (
        case("megatron", tp=2, cp=2, dp=2, pp=2, views={"expert": "etp1-ep4-pp2"}),
        """
        etp       | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        ep        | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        edp       | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        etp ep    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        etp ep pp | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15
        """,
    ),
    "megatron-core 0.16.1, --use-tp-pp-dp-mapping": (
        case("megatron_tp_pp_dp", tp=2, cp=2, dp=2, pp=2),
        """
        tp       | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        cp       | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        dp       | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        pp       | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        tp pp    | 0,1,4,5 2,3,6,7 8,9,12,13 10,11,14,15
        cp dp    | 0,2,8,10 1,3,9,11 4,6,12,14 5,7,13,15
        tp cp    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        tp dp    | 0,1,8,9 2,3,10,11 4,5,12,13 6,7,14,15
        tp cp dp | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15
        """,
    ),
    "megatron-core 0.16.1, --use-tp-pp-dp-mapping, experts": (
        case("megatron_tp_pp_dp", tp=2, cp=2, dp=2, pp=2, views={"expert": "etp1-ep4-pp2-edp"}),
        """
        etp       | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        ep        | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        edp       | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        etp ep    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        etp ep pp | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        """,
    ),
    "megatron-core 0.16.1, hierarchical_context_parallel_sizes 2 2": (
        case("megatron", tp=2, cp=4, dp=2, pp=2, views={"hierarchy": "tp2-cp_inner2-cp_outer2-dp2-pp2"}),
        """
        cp       | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15 16,18,20,22 17,19,21,23 24,26,28,30 25,27,29,31
        cp_inner | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15 16,18 17,19 20,22 21,23 24,26 25,27 28,30 29,31
        cp_outer | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15 16,20 17,21 18,22 19,23 24,28 25,29 26,30 27,31
        """,
    ),
    "megatron-core 0.16.1, num_distributed_optimizer_instances 2": (
        case(
            "tp-cp-dp-pp",
            tp=2,
            cp=2,
            dp=4,
            pp=2,
            views={
                "expert": "etp2-ep2-edp_inner2-edp_outer2-pp2",
                "optimizer": "tp2-inner4-outer-pp2",
                "instance": "instance16-instances~tp-cp-pp-dp",
            },
        ),
        """
        cp dp               | 0,2,4,6,8,10,12,14 1,3,5,7,9,11,13,15 16,18,20,22,24,26,28,30 17,19,21,23,25,27,29,31
        inner               | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15 16,18,20,22 17,19,21,23 24,26,28,30 25,27,29,31
        edp_inner edp_outer | 0,4,8,12 1,5,9,13 2,6,10,14 3,7,11,15 16,20,24,28 17,21,25,29 18,22,26,30 19,23,27,31
        edp_inner           | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15 16,20 17,21 18,22 19,23 24,28 25,29 26,30 27,31
        edp_outer           | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15 16,24 17,25 18,26 19,27 20,28 21,29 22,30 23,31
        instance            | 0,1,2,3,16,17,18,19,4,5,6,7,20,21,22,23 8,9,10,11,24,25,26,27,12,13,14,15,28,29,30,31
        """,
    ),
    "megatron-core 0.16.1, hybrid_context_parallel": (
        case(
            "megatron", cp=2, dp=8, views={"two": "hybrid_two2-r", "four": "hybrid_four4-s", "eight": "hybrid_eight8-t"}
        ),
        """
        cp           | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        hybrid_two   | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        hybrid_four  | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        hybrid_eight | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        """,
    ),
    "vllm 0.33.0, dcp 2": (
        case(
            "vllm",
            tp=2,
            pcp=2,
            pp=2,
            dp=2,
            views={"expert": "ep8-pp2~tp-pcp-dp-pp-external_dp", "decode": "dcp2-replicas~pcp-tp-pp-dp-external_dp"},
        ),
        """
        tp        | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        pcp       | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        pp        | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        dp        | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        ep        | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15
        dcp       | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        tp pcp dp | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15
        """,
    ),
    "vllm 0.33.0, dcp 4": (
        case(
            "vllm",
            tp=2,
            pcp=2,
            pp=2,
            dp=2,
            views={"expert": "ep8-pp2~tp-pcp-dp-pp-external_dp", "decode": "dcp4-replicas~pcp-tp-pp-dp-external_dp"},
        ),
        """
        dcp | 0,2,1,3 4,6,5,7 8,10,9,11 12,14,13,15
        """,
    ),
    "vllm 0.33.0, dcp 2 without pcp": (
        case(
            "vllm",
            tp=4,
            pp=2,
            dp=2,
            views={"expert": "ep8-pp2~tp-pcp-dp-pp-external_dp", "decode": "dcp2-replicas~pcp-tp-pp-dp-external_dp"},
        ),
        """
        tp  | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        pcp | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        pp  | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        dp  | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        ep  | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15
        dcp | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        """,
    ),
    "vllm 0.33.0, external dp 2": (
        case(
            "vllm",
            tp=2,
            pcp=2,
            pp=2,
            dp=2,
            external_dp=2,
            views={
                "expert": "ep8-pp2-external_dp2~tp-pcp-dp-pp-external_dp",
                "decode": "dcp1-replicas~pcp-tp-pp-dp-external_dp",
            },
        ),
        """
        tp  | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15 16,17 18,19 20,21 22,23 24,25 26,27 28,29 30,31
        pcp | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15 16,18 17,19 20,22 21,23 24,26 25,27 28,30 29,31
        pp  | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15 16,20 17,21 18,22 19,23 24,28 25,29 26,30 27,31
        dp  | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15 16,24 17,25 18,26 19,27 20,28 21,29 22,30 23,31
        ep  | 0,1,2,3,8,9,10,11 4,5,6,7,12,13,14,15 16,17,18,19,24,25,26,27 20,21,22,23,28,29,30,31
        dcp | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        """,
    ),
    "vllm 0.33.0, the 8 ranks of its docstring": (
        case("vllm", tp=2, pp=4),
        """
        tp | 0,1 2,3 4,5 6,7
        pp | 0,2,4,6 1,3,5,7
        """,
    ),
    "sglang 0.5.23, both splits by 2 x 2 x 2": (
        case(
            "sglang",
            tp=8,
            pp=2,
            views={"attention": "attn_tp-attn_cp2-attn_dp2-pp2", "moe": "moe_tp-moe_ep2-moe_dp2-pp2"},
        ),
        """
        tp      | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        pp      | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        attn_tp | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        attn_cp | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        moe_tp  | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        moe_ep  | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        moe_dp  | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "sglang 0.5.23, attention 4 x 2, experts 4 x 2": (
        case(
            "sglang",
            tp=8,
            pp=1,
            views={"attention": "attn_tp-attn_cp2-attn_dp1-pp1", "moe": "moe_tp-moe_ep4-moe_dp2-pp1"},
        ),
        """
        tp      | 0,1,2,3,4,5,6,7
        pp      | 0 1 2 3 4 5 6 7
        attn_tp | 0,1,2,3 4,5,6,7
        attn_cp | 0,4 1,5 2,6 3,7
        moe_tp  | 0 1 2 3 4 5 6 7
        moe_ep  | 0,1,2,3 4,5,6,7
        moe_dp  | 0,4 1,5 2,6 3,7
        """,
    ),
    "sglang 0.5.23, attention cp 4": (
        case(
            "sglang",
            tp=8,
            pp=2,
            views={"attention": "attn_tp-attn_cp4-attn_dp1-pp2", "moe": "moe_tp-moe_ep2-moe_dp2-pp2"},
        ),
        """
        attn_tp | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        attn_cp | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        moe_tp  | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        moe_ep  | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        """,
    ),
    "sglang 0.5.23, dcp 4": (
        case("sglang", tp=8, pp=2, views={"decode": "dcp4-replicas-pp2", "moe": "moe_tp1-moe_ep8-moe_dp1-pp2"}),
        """
        dcp    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        moe_ep | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        moe_tp | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        """,
    ),
    "sglang 0.5.23, attention dp 4": (
        case(
            "sglang",
            tp=16,
            pp=1,
            views={"attention": "attn_tp-attn_cp1-attn_dp4-pp1", "moe": "moe_tp-moe_ep16-moe_dp1-pp1"},
        ),
        """
        attn_tp | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        moe_ep  | 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        """,
    ),
    "sglang 0.5.23, attention dp 8": (
        case(
            "sglang",
            tp=8,
            pp=1,
            views={"attention": "attn_tp-attn_cp1-attn_dp8-pp1", "moe": "moe_tp-moe_ep4-moe_dp1-pp1"},
        ),
        """
        attn_tp | 0 1 2 3 4 5 6 7
        attn_cp | 0 1 2 3 4 5 6 7
        moe_tp  | 0,1 2,3 4,5 6,7
        moe_ep  | 0,2,4,6 1,3,5,7
        moe_dp  | 0 1 2 3 4 5 6 7
        """,
    ),
    "deepspeed 0.19.8, PipeModelDataParallelTopology": (
        case("deepspeed", model=2, data=4, pipe=2),
        """
        model | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        data  | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        pipe  | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        """,
    ),
    "deepspeed 0.19.8, PipeDataParallelTopology": (
        case("deepspeed", data=4, pipe=2),
        """
        data | 0,1,2,3 4,5,6,7
        pipe | 0,4 1,5 2,6 3,7
        """,
    ),
    "deepspeed 0.19.8, experts strided over tp": (
        case("deepspeed", model=2, data=8, views={"expert": "model2-ep4-edp"}),
        """
        ep  | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        edp | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        """,
    ),
    "deepspeed 0.19.8, experts and pipeline": (
        case("deepspeed", model=2, data=4, pipe=2, views={"expert": "model2-ep2-edp-pipe2"}),
        """
        ep  | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        edp | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "deepspeed 0.19.8, use_data_before_expert_parallel": (
        case("deepspeed", model=2, data=4, pipe=2, views={"expert": "model2-edp-ep2-pipe2"}),
        """
        ep  | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        edp | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        """,
    ),
    "deepspeed 0.19.8, AutoEP folding": (
        case("deepspeed", model=2, data=4, pipe=2, views={"expert": "ep4-edp-pipe2"}),
        """
        model | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        data  | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        ep    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        edp   | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "torchtitan 0.3.0, 32 ranks": (
        case(
            "torchtitan", tp=2, cp=2, dp_shard=2, dp_replicate=2, pp=2, views={"sparse": "ep4-efsdp-dp_replicate2-pp2"}
        ),
        """
        tp                       | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15 16,17 18,19 20,21 22,23 24,25 26,27 28,29 30,31
        cp                       | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15 16,18 17,19 20,22 21,23 24,26 25,27 28,30 29,31
        dp_shard                 | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15 16,20 17,21 18,22 19,23 24,28 25,29 26,30 27,31
        dp_replicate             | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15 16,24 17,25 18,26 19,27 20,28 21,29 22,30 23,31
        pp                       | 0,16 1,17 2,18 3,19 4,20 5,21 6,22 7,23 8,24 9,25 10,26 11,27 12,28 13,29 14,30 15,31
        ep                       | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15 16,17,18,19 20,21,22,23 24,25,26,27 28,29,30,31
        efsdp                    | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15 16,20 17,21 18,22 19,23 24,28 25,29 26,30 27,31
        dp_shard dp_replicate    | 0,4,8,12 1,5,9,13 2,6,10,14 3,7,11,15 16,20,24,28 17,21,25,29 18,22,26,30 19,23,27,31
        cp dp_shard dp_replicate | 0,2,4,6,8,10,12,14 1,3,5,7,9,11,13,15 16,18,20,22,24,26,28,30 17,19,21,23,25,27,29,31
        """,
    ),
    "torchtitan 0.3.0, 32 ranks, partial_dtensor": (
        case("torchtitan", tp=2, cp=2, dp_shard=2, dp_replicate=2, pp=2),
        """
        cp dp_shard           | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15 16,18,20,22 17,19,21,23 24,26,28,30 25,27,29,31
        dp_shard dp_replicate | 0,4,8,12 1,5,9,13 2,6,10,14 3,7,11,15 16,20,24,28 17,21,25,29 18,22,26,30 19,23,27,31
        """,
    ),
    "torchtitan 0.3.0, 16 ranks, dp_shard inferred": (
        case(
            "torchtitan", tp=2, cp=2, dp_shard=-1, pp=2, world_size=16, views={"sparse": "ep8-efsdp-dp_replicate1-pp2"}
        ),
        """
        dp_shard     | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        dp_replicate | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        ep           | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        efsdp        | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        """,
    ),
    "TensorRT-LLM since PR #10350, helix": (
        case("tensorrt_llm", tp=2, cp=4, pp=2, views={"moe": "moe_ep4-moe_cluster1-moe_tp2-pp2"}),
        """
        cp     | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        tp     | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        pp     | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        moe_ep | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        moe_tp | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "TensorRT-LLM before PR #10350, helix": (
        case("tensorrt_llm_tp_cp_pp", tp=2, cp=4, pp=2, views={"moe": "moe_ep4-moe_cluster1-moe_tp2-pp2"}),
        """
        cp     | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        tp     | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        pp     | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        moe_ep | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        moe_tp | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "TensorRT-LLM, experts over tp": (
        case("tensorrt_llm", tp=8, pp=2, views={"moe": "moe_ep4-moe_cluster1-moe_tp2-pp2"}),
        """
        cp     | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        tp     | 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15
        pp     | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        moe_ep | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        moe_tp | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        """,
    ),
    "TensorRT-LLM, expert clusters": (
        case("tensorrt_llm", tp=8, pp=2, views={"moe": "moe_ep1-moe_cluster2-moe_tp4-pp2"}),
        """
        moe_ep      | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        moe_cluster | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        moe_tp      | 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15
        """,
    ),
    "nanotron 009b8f71, dense": (
        case("nanotron", tp=2, cp=2, dp=2, pp=2),
        """
        tp    | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        cp    | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        dp    | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        pp    | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        tp pp | 0,1,8,9 2,3,10,11 4,5,12,13 6,7,14,15
        tp cp | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        """,
    ),
    "nanotron 009b8f71, experts": (
        case("nanotron_moe", tp=2, cp=2, pp=2, dp=2, views={"expert": "ep_tp1-ep4-pp2-ep_dp2"}),
        """
        tp    | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        cp    | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        pp    | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        dp    | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        ep    | 0,1,2,3 4,5,6,7 8,9,10,11 12,13,14,15
        ep_tp | 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        ep_dp | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        """,
    ),
    "nanotron 0.4": (
        case("tp-dp-pp-expert", tp=2, dp=2, pp=2, expert=2),
        """
        tp           | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        dp           | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        pp           | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        expert       | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        tp pp expert | 0,1,4,5,8,9,12,13 2,3,6,7,10,11,14,15
        """,
    ),
    "picotron d2a551d0": (
        case("picotron", tp=2, cp=2, pp=2, dp=2),
        """
        tp    | 0,1 2,3 4,5 6,7 8,9 10,11 12,13 14,15
        cp    | 0,2 1,3 4,6 5,7 8,10 9,11 12,14 13,15
        pp    | 0,4 1,5 2,6 3,7 8,12 9,13 10,14 11,15
        dp    | 0,8 1,9 2,10 3,11 4,12 5,13 6,14 7,15
        cp dp | 0,2,8,10 1,3,9,11 4,6,12,14 5,7,13,15
        pp dp | 0,4,8,12 1,5,9,13 2,6,10,14 3,7,11,15
        """,
    ),
}
"""System and case -> the topology here, and a table of axes | groups there, in the order of their first members."""


def read(table: str) -> dict[tuple[str, ...], list[list[int]]]:
    rows = [line.split(" | ") for line in table.strip().splitlines()]
    return {tuple(axes.split()): [list(map(int, group.split(","))) for group in row.split()] for axes, row in rows}


@pytest.mark.parametrize("system", GOLDEN)
def test_groups_are_those_of_the_systems_own_code(system: str) -> None:
    make, table = GOLDEN[system]
    ours, theirs = make(), read(table)
    assert {axes: sorted(map(list, ours.groups(*axes))) for axes in theirs} == theirs


@pytest.mark.parametrize("system", GOLDEN)
def test_a_systems_views_survive_text_and_json(system: str) -> None:
    ours = GOLDEN[system][0]()
    assert ParallelTopology.parse(str(ours)) == ours
    assert ParallelTopology.model_validate_json(ours.model_dump_json()) == ours


# Facts that are more than groups


def test_decode_context_parallel_members_keep_vllms_order() -> None:
    ours = GOLDEN["vllm 0.33.0, dcp 4"][0]()
    assert [ours.at(rank).dcp.rank for rank in (0, 1, 2, 3)] == [0, 2, 1, 3]
    assert ours.at(1).dcp.prev_rank == 2


def test_megatron_refuses_experts_that_change_the_pipeline() -> None:
    # megatron-core 0.16.1: "When not using pp-last rank ordering, the data parallel size of the attention and moe
    # layers must be the same"
    with pytest.raises(TopologyError, match=r"axis 'pp' of expert is not that of the base: .* \[0, 4\], not \[0, 2\]"):
        topology("tp-cp-pp-dp", tp=2, cp=1, pp=2, dp=4, views={"expert": "etp2-ep2-pp2-edp2"})


def test_megatrons_ep_is_the_experts_unless_it_is_given() -> None:
    named = topology("megatron", tp=2, dp=4, views={"expert": "etp1-ep4"})
    assert named == topology("tp-cp-dp-pp", tp=2, cp=1, dp=4, pp=1, views={"expert": "etp1-ep4-edp2"})
    assert topology("megatron", tp=2, dp=4).ep == 1
    with pytest.raises(TopologyError, match="axis 'ep' of expert is not that of the base"):
        topology("megatron", tp=2, dp=2, ep=2, views={"expert": "etp1-ep4-edp2-pp1"})


def test_nanotrons_unchecked_expert_pipeline_is_an_error_here() -> None:
    # At 009b8f71 pp is [0, 2] and ep_pp [0, 4], and nothing there compares them.
    with pytest.raises(TopologyError, match=r"axis 'pp' of expert is not that of the base: .* \[0, 4\], not \[0, 2\]"):
        topology("nanotron_moe", tp=2, pp=2, dp=4, views={"expert": "ep_tp1-ep4-pp2-ep_dp2"})


# The systems' formulas, for every rank


@given(tp=st.integers(1, 4), pcp=SIZES, pp=SIZES, dp=SIZES, external_dp=st.integers(1, 2), data=st.data())
def test_vllms_transposes(tp: int, pcp: int, pp: int, dp: int, external_dp: int, data: st.DataObject) -> None:
    """The `reshape`, `transpose` and `view` calls of vllm 0.33.0's `initialize_model_parallel`."""
    degrees = {1, pcp, tp * pcp} if pcp > 1 else {degree for degree in range(1, tp + 1) if tp % degree == 0}
    dcp = data.draw(st.sampled_from(sorted(degrees)), label="dcp")
    walk = "tp-pcp-dp-pp-external_dp"
    ours = ParallelTopology(
        order="vllm",
        tp=tp,
        pcp=pcp,
        pp=pp,
        dp=dp,
        external_dp=external_dp,
        views={
            "expert": f"ep-pp{pp}-external_dp{external_dp}~{walk}",
            "decode": f"dcp{dcp}-replicas~pcp-tp-pp-dp-external_dp",
        },
    )
    ranks = np.arange(ours.world_size).reshape(-1, dp, pp, pcp, tp)
    theirs = {
        "tp": ranks.reshape(-1, tp),
        "dcp": ranks.swapaxes(-1, -2).reshape(-1, dcp),
        "pcp": ranks.swapaxes(3, 4).reshape(-1, pcp),
        "pp": ranks.swapaxes(2, 4).reshape(-1, pp),
        "dp": ranks.swapaxes(1, 4).reshape(-1, dp),
        "ep": ranks.swapaxes(1, 2).reshape(-1, dp * pcp * tp),
    }
    for axis, groups in theirs.items():
        assert sorted(map(list, ours.groups(axis))) == sorted(groups.tolist()), axis
    assert ours.groups("tp", "pcp", "dp") == ours.groups("ep")


@given(attention=st.tuples(SIZES, SIZES, SIZES), pp=SIZES, data=st.data())
def test_sglangs_splits(attention: tuple[int, int, int], pp: int, data: st.DataObject) -> None:
    """`derive_spawn_ranks` and the layout comment of sglang 0.5.23's runtime_context.py."""
    attn_tp, attn_cp, attn_dp = attention
    tp = attn_tp * attn_cp * attn_dp
    moe_dp = data.draw(st.sampled_from([n for n in range(1, tp + 1) if tp % n == 0]), label="moe_dp")
    moe_ep = data.draw(st.sampled_from([n for n in range(1, tp + 1) if tp // moe_dp % n == 0]), label="moe_ep")
    moe_tp = tp // moe_dp // moe_ep
    ours = topology(
        "sglang",
        tp=tp,
        pp=pp,
        views={
            "attention": f"attn_tp-attn_cp{attn_cp}-attn_dp{attn_dp}-pp{pp}",
            "moe": f"moe_tp-moe_ep{moe_ep}-moe_dp{moe_dp}-pp{pp}",
        },
    )
    for rank in range(ours.world_size):
        me = ours.at(rank)
        assert rank == tp * me.pp.rank + me.tp.rank
        assert me.tp.rank == (me.attn_dp.rank * attn_cp + me.attn_cp.rank) * attn_tp + me.attn_tp.rank
        assert me.moe_dp.rank == me.tp.rank // (tp // moe_dp)
        assert me.moe_ep.rank == me.tp.rank % (tp // moe_dp) // moe_tp
        assert me.moe_tp.rank == me.tp.rank % moe_tp


@given(moe_tp=SIZES, moe_ep=SIZES, cluster=SIZES, pp=SIZES)
def test_tensorrt_llms_expert_ranks(moe_tp: int, moe_ep: int, cluster: int, pp: int) -> None:
    """`Mapping.moe_tp_rank`, `moe_ep_rank` and `moe_cluster_rank`; a cluster has no ep there."""
    moe_ep = moe_ep if cluster == 1 else 1
    view = f"moe_ep{moe_ep}-moe_cluster{cluster}-moe_tp-pp{pp}"
    ours = topology("tensorrt_llm", tp=moe_tp * moe_ep * cluster, pp=pp, views={"moe": view})
    for rank in range(ours.world_size):
        me = ours.at(rank)
        assert me.moe_tp.rank == me.tp.rank // (moe_ep * cluster)
        assert me.moe_ep.rank == me.tp.rank % moe_ep
        assert me.moe_cluster.rank == me.tp.rank % cluster


@given(tp=SIZES, cp=SIZES, pp=SIZES)
def test_tensorrt_llms_ranks_before_and_since_cp_became_innermost(tp: int, cp: int, pp: int) -> None:
    now = topology("tensorrt_llm", tp=tp, cp=cp, pp=pp)
    before = topology("tensorrt_llm_tp_cp_pp", tp=tp, cp=cp, pp=pp)
    for rank in range(now.world_size):
        pp_rank, stage = divmod(rank, tp * cp)
        assert now.coordinate(rank) == {"cp": rank % cp, "tp": stage // cp, "pp": pp_rank}
        assert before.coordinate(rank) == {"tp": rank % tp, "cp": stage // tp, "pp": pp_rank}
    assert (now.groups("tp") == before.groups("tp")) is (tp == 1 or cp == 1)


@pytest.mark.parametrize("instances", [1, 2, 4, 8])
def test_megatrons_partial_distributed_optimizer_groups(instances: int) -> None:
    """megatron-core 0.16.1, `num_distributed_optimizer_instances`: contiguous slices of each list of dp x cp ranks."""
    view = f"tp2-intra-inter{instances}-pp2"
    topology = ParallelTopology(order="megatron", tp=2, cp=2, dp=4, pp=2, views={"optimizer": view})
    size = 8 // instances
    lists = topology.groups("dp", "cp")
    slices = [list(ranks)[start : start + size] for ranks in lists for start in range(0, 8, size)]
    assert sorted(map(list, topology.groups("intra"))) == sorted(slices)
    assert all(len(set(inter) & set(part)) <= 1 for inter in topology.groups("inter") for part in slices)
