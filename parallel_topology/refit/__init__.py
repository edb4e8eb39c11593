"""What moves when the layout changes? The plan is pure; from `given` on torch is needed.

handing     who gives a box of elements to whom
sides       Side: the weights on one topology, as that side stores them
common      the logical tensors that both have, and the dtype in which each travels
patterns    the boxes that both sides have in common, and who hands each to whom
plan        RefitPlan: each rank's moves, the bytes, and the lower bound
proof       that a plan writes every element once, from a rank that holds it
facts       who sends how much to whom, and a tensor's way in words
schedule    a rank's moves as messages of bounded size, in an order that cannot deadlock
given       the tensors of a rank: that they are what its side says
boxes       boxes of logical tensors in the tensors that a side stores
staging     buffers, never more than was allowed
slips       what a rank and a reader of its buffers tell each other
neighbours  ranks of one host, which read each other's buffers
transfer    one rank's messages, sent and received
execute     refit: a plan carried out over a group
background  start_refit: the same beside other work
checkpoint  load: a rank's tensors out of safetensors files
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_topology.refit.background import Refitting, start_refit
    from parallel_topology.refit.execute import Refitted, refit
    from parallel_topology.refit.plan import Move, RefitPlan

__all__ = ["Move", "RefitPlan", "Refitted", "Refitting", "refit", "start_refit"]

_HOMES = {
    "Move": "plan",
    "RefitPlan": "plan",
    "Refitted": "execute",
    "Refitting": "background",
    "refit": "execute",
    "start_refit": "background",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
