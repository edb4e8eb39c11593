"""NumPy's arrays and scalars as dtype, shape and bytes. NumPy itself is only used where it is there."""

from __future__ import annotations

import re
import sys
from typing import Any

from parallel_topology.errors import MissingExtraError, WireError

_DTYPE = re.compile(r"[<>|=](?:[biufc](?:1|2|4|8|16|32)|[SU][0-9]{1,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,7}\])?)")
"""Dtypes whose values are their bytes: numbers, strings of one length, times."""


def parts_of(value: Any) -> tuple[str, str, list[int], bytes] | None:
    """Tag, dtype, shape and contents of an array or a scalar; None for anything else.

    Raises:
        ValueError: its values are more than bytes.
    """
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
        return None
    dtype: str = value.dtype.str
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(
            f"a NumPy array or scalar of {value.dtype} cannot be sent: expected numbers, times or strings of one length"
        )
    tag = "ndarray" if type(value) is numpy.ndarray else "scalar"
    return tag, dtype, list(value.shape), value.tobytes()


def itemsize_of(dtype: str) -> int:
    """Bytes of one value of a dtype that a peer named.

    Raises:
        WireError: there is none of this name, or its values are more than bytes.
    """
    return _dtype_of(dtype).itemsize


def made_of(tag: str, dtype: str, shape: tuple[int, ...], contents: bytearray) -> Any:
    """The array, or the scalar.

    Raises:
        WireError: a scalar of more values than one.
    """
    if tag == "scalar" and shape:
        raise WireError(f"a peer sent a NumPy scalar of shape {shape}")
    array = _numpy().ndarray(shape, _dtype_of(dtype), contents)
    return array if tag == "ndarray" else array[()]


def _dtype_of(dtype: str) -> Any:
    if not _DTYPE.fullmatch(dtype):
        raise WireError(f"a peer sent an array of {dtype!r:.80}, whose values are more than bytes")
    try:
        return _numpy().dtype(dtype)
    except TypeError as error:
        raise WireError(f"a peer sent an array of {dtype!r:.80}, which NumPy does not have here: {error}") from error


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise MissingExtraError(
            "a peer sent a NumPy array, and NumPy is not installed here: pip install numpy"
        ) from error
    return numpy
