"""Orders by name: in which order a system lays its axes over the ranks, fastest-varying first.

| name                  | axes, fastest first                |
|-----------------------|------------------------------------|
| megatron              | tp, cp, ep, dp, pp                 |
| megatron_tp_pp_dp     | tp, cp, ep, pp, dp                 |
| vllm                  | tp, pcp, pp, dp, external_dp       |
| sglang                | tp, pp                             |
| deepspeed             | model, data, pipe                  |
| torchtitan            | tp, cp, dp_shard, dp_replicate, pp |
| tensorrt_llm          | cp, tp, pp                         |
| tensorrt_llm_tp_cp_pp | tp, cp, pp                         |
| nanotron              | tp, cp, dp, pp                     |
| nanotron_moe          | tp, cp, pp, dp                     |
| picotron              | tp, cp, pp, dp                     |

The systems' further groups are combined axes, or views; one size of a view may be left out.

>>> from parallel_topology import ParallelTopology

Megatron's dense ranks never use the `ep` of its order: its experts fold over tp x cp x dp, as a view.

>>> moe = ParallelTopology(order="megatron", tp=2, cp=2, dp=2, pp=2, views={"expert": "etp1-ep4-pp2"})
>>> moe.groups("ep"), moe.groups("edp")[0], moe.groups("dp", "cp")[0]
([0, 1, 2, 3] [4, 5, 6, 7] [8, 9, 10, 11] [12, 13, 14, 15], [0, 4], [0, 2, 4, 6])

vLLM's `ep` is tp x pcp x dp. Its decode context parallel (`dcp`) walks pcp before tp, so members may not ascend.

>>> vllm = ParallelTopology(order="vllm", tp=2, pcp=2, pp=2, dp=2,
...     views={"expert": "ep8-pp-external_dp1~tp-pcp-dp-pp-external_dp",
...            "decode": "dcp4-replicas~pcp-tp-pp-dp-external_dp"})
>>> vllm.groups("ep")
[0, 1, 2, 3, 8, 9, 10, 11] [4, 5, 6, 7, 12, 13, 14, 15]
>>> vllm.groups("dcp")
[0, 2, 1, 3] [4, 6, 5, 7] [8, 10, 9, 11] [12, 14, 13, 15]

SGLang splits `tp` twice, once for attention and once for experts; its `dcp` is a third split, `dcp4-replicas-pp2`.

>>> sglang = ParallelTopology(order="sglang", tp=8, pp=2,
...     views={"attention": "attn_tp-attn_cp2-attn_dp2-pp2", "moe": "moe_tp-moe_ep2-moe_dp2-pp2"})
>>> sglang.groups("attn_cp")[0], sglang.groups("moe_dp")[0]
([0, 2], [0, 4])

The other systems' experts: torchtitan `ep4-efsdp-dp_replicate2-pp2` (where `fsdp` is dp_shard x cp); TensorRT-LLM
`moe_ep4-moe_cluster1-moe_tp-pp2`; nanotron_moe `ep_tp1-ep4-pp2-ep_dp`; DeepSpeed `model2-ep4-edp-pipe2`, which with
`use_data_before_expert_parallelism` is `model2-edp-ep4-pipe2` and in AutoEP `ep4-edp-pipe2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT_ORDER = ("tp", "cp", "dp", "pp")
"""Megatron's, without experts."""


@dataclass(frozen=True)
class Order:
    """How one system orders its axes.

    Attributes:
        axes: fastest-varying first; those that are not given have size 1.
        source: where this was read.
        yields: axes that, when they are not given, belong to a view that has them: Megatron's experts.
    """

    axes: tuple[str, ...]
    source: str
    yields: tuple[str, ...] = ()


def _order(axes: str, source: str, *yields: str) -> Order:
    return Order(tuple(axes.split("-")), source, yields)


ORDERS: Mapping[str, Order] = MappingProxyType(
    {
        "megatron": _order(
            "tp-cp-ep-dp-pp",
            "NVIDIA/Megatron-LM megatron/core/parallel_state.py, megatron-core 0.16.1: the default `order` of "
            "initialize_model_parallel. Its dense ranks have ep = 1, its experts are a second factorization",
            "ep",
        ),
        "megatron_tp_pp_dp": _order(
            "tp-cp-ep-pp-dp",
            "NVIDIA/Megatron-LM megatron/training/initialize.py, commit 00c2c0ad: --use-tp-pp-dp-mapping",
            "ep",
        ),
        "vllm": _order(
            "tp-pcp-pp-dp-external_dp",
            "vllm-project/vllm vllm/distributed/parallel_state.py, vllm 0.33.0: "
            '"the layout order is: ExternalDP x DP x PP x PCP x TP"',
        ),
        "sglang": _order(
            "tp-pp",
            "sgl-project/sglang python/sglang/srt/distributed/parallel_state.py and srt/runtime_context.py, "
            "sglang 0.5.23; replicas (its dp_size) are worlds of their own",
        ),
        "deepspeed": _order(
            "model-data-pipe",
            "deepspeedai/DeepSpeed deepspeed/runtime/pipe/topology.py, deepspeed 0.19.8: "
            "PipeModelDataParallelTopology, and with model = 1 PipeDataParallelTopology",
        ),
        "torchtitan": _order(
            "tp-cp-dp_shard-dp_replicate-pp",
            "pytorch/torchtitan torchtitan/distributed/parallel_dims.py, torchtitan 0.3.0: the dense mesh",
        ),
        "tensorrt_llm": _order(
            "cp-tp-pp",
            "NVIDIA/TensorRT-LLM tensorrt_llm/mapping.py and _torch/device_mesh.py since PR #10350 (opened 2025-12-30, "
            "merged): cp innermost, with MPI and with device meshes",
        ),
        "tensorrt_llm_tp_cp_pp": _order(
            "tp-cp-pp",
            "NVIDIA/TensorRT-LLM tensorrt_llm/mapping.py, commit b35ac1b6, before PR #10350: Mapping with MPI "
            "(its device meshes of that time were tp-pp-cp). Without cp the same as tensorrt_llm",
        ),
        "nanotron": _order(
            "tp-cp-dp-pp",
            "huggingface/nanotron src/nanotron/parallel/context.py, commit 009b8f71, enabled_moe=False "
            "(nanotron 0.4 on PyPI: no cp, and a slowest axis `expert`)",
        ),
        "nanotron_moe": _order(
            "tp-cp-pp-dp",
            "huggingface/nanotron src/nanotron/parallel/context.py, commit 009b8f71, enabled_moe=True",
        ),
        "picotron": _order(
            "tp-cp-pp-dp",
            'huggingface/picotron picotron/process_group_manager.py, "DP * PP * CP * TP grid", '
            "read in erlebach/picotron_fork, commit d2a551d0",
        ),
    }
)
"""Name -> order, for `ParallelTopology(order=name, ...)`."""
