"""Names of dtypes, as torch has them, and how many bits an element takes."""

from __future__ import annotations

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted
from parallel_topology.topology.wording import listed

BITS = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 64),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 16),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int8", "uint8", "bool"), 8),
    **dict.fromkeys(("float4_e2m1fn", "int4"), 4),
    "complex128": 128,
}
"""`float4_e2m1fn` and `int4` are two elements a byte, as torch packs them (`torch.float4_e2m1fn_x2`)."""


def checked_dtype(given: object) -> str:
    """The name of a dtype; torch's own dtypes say theirs, so that `torch.bfloat16` may be given, too.

    Raises:
        TopologyError: there is no such dtype.
    """
    name = str(given).removeprefix("torch.").removesuffix("_x2")
    if name not in BITS:
        raise TopologyError(f"dtype={quoted(given)}: expected one of {listed(BITS)}")
    return name


def bytes_of(elements: int, dtype: str) -> int:
    """Whole bytes; half a byte left over takes one."""
    return -(-elements * BITS[dtype] // 8)
