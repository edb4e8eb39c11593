"""What torch raises, and how to read it: it has few types of its own, and says the rest in words."""

from __future__ import annotations

STORE_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, MemoryError)
"""What a store that fails, or holds garbage, raises: torch's own errors, and those of reading what is not ours."""


def is_timeout(error: BaseException) -> bool:
    """Whether one of torch's errors says that time ran out; it has no type for that in all backends.

    gloo says of a peer that is gone "timed out connecting: SO_ERROR: Connection refused", at once (torch 2.8, 2.13).
    """
    said = str(error).lower()
    return ("timed out" in said or "timeout" in said) and "connection refused" not in said


def first_line(error: BaseException) -> str:
    """torch's errors carry C++ stacks below their first line."""
    return next(iter(str(error).splitlines()), "")
