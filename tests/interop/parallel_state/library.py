"""A library that keeps its groups in module globals, as the real ones do, and the table of its functions."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from parallel_topology.reads.rows import (
    Constant,
    Kept,
    Options,
    Own,
    Refused,
    Required,
    Row,
    Table,
    ask,
)

_rank: int | None = None
_stage: int | None = None


def get_rank() -> Any:
    """The docstring."""
    assert _rank is not None, "not initialized"
    return _rank


def get_group(check: bool = True, *, wide: bool = False) -> Any:
    return None if _rank is None else f"group of {_rank}{wide}"


def get_name() -> str:
    """Asks another one."""
    return f"rank {get_rank()}"


def set_stage(stage: Any) -> None:
    global _stage
    _stage = stage


def get_stage() -> Any:
    return _stage


def initialize(tp: int = 1) -> None:
    global _rank
    _rank = 0


def destroy() -> None:
    global _rank
    _rank = None


def is_there() -> bool:
    return False


def no_row() -> str:
    return "own"


def _private() -> str:
    return "own"


def _decorated(function: Any) -> Any:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@_decorated
def get_size(default: int = -1) -> int:
    return default


@contextmanager
def captured() -> Generator[int]:
    yield get_rank()


ROWS: dict[str, Row | Options] = {
    "get_rank": ask("tp.first_rank"),
    "get_group": Options({(): ask("tp.device_group"), ("wide",): ask("tp-dp.device_group")}),
    "get_name": Own("groups.name"),
    "set_stage": Kept("stage", ""),
    "get_stage": Kept("stage", ""),
    "initialize": Required(sizes={"tp": "tp"}, order="tp-dp"),
    "destroy": Refused("it is the manager's"),
    "is_there": Constant(True, "True"),
    "get_size": ask("tp.size"),
    "captured": Own(""),
}
TABLE = Table("library", "some-library", "library 1", {__name__: ROWS}, optional="check")
