"""What torch raises, and how to read it: it has few types of its own, and says the rest in words."""

from __future__ import annotations

STORE_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, MemoryError)
"""What a store that fails, or holds garbage, raises: torch's own errors, and those of reading what is not ours.

gloo takes lengths from the store: garbage there can ask for more memory than there is.
"""


def is_timeout(error: BaseException) -> bool:
    """Whether one of torch's errors says that time ran out; it has no type for that in all backends."""
    return any(word in str(error).lower() for word in ("timed out", "timeout"))


def first_line(error: BaseException) -> str:
    """torch's errors carry C++ stacks below their first line."""
    return next(iter(str(error).splitlines()), "")
