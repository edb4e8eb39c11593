"""The systems whose globals are known; where two know one function, the later one says what to write instead."""

from __future__ import annotations

from parallel_topology.reads.deepspeed import DEEPSPEED
from parallel_topology.reads.megatron import MEGATRON
from parallel_topology.reads.rows import Table
from parallel_topology.reads.sglang import SGLANG
from parallel_topology.reads.vllm import VLLM, VLLM_2024

SYSTEMS: dict[str, Table] = {table.system: table for table in (MEGATRON, VLLM_2024, VLLM, SGLANG, DEEPSPEED)}
