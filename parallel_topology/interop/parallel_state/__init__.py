"""Code that reads parallel_state's globals, served by a manager; and where a tree reads them.

served      `with serving(groups, "megatron"):` the functions answer from `groups`, in this thread and context
reads       where a tree asks the functions, and what to write instead: what `parallel-topology globals` prints
rows        what a function asks of a manager: the words of the tables
systems     which systems there are
megatron    the table of megatron.core.parallel_state
answers     a table's rows answered by one manager
blocks      which block is open here: contexts, generators, autograd's threads
swaps       functions whose code is another one while a block is open

`served`, `answers`, `blocks` and `swaps` need torch, the others do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_topology.interop.parallel_state.served import serving

__all__ = ["serving"]


def __getattr__(name: str) -> Any:
    if name != "serving":  # it imports torch, which the tables do without
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = import_module(f"{__name__}.served").serving
    globals()[name] = found
    return found
