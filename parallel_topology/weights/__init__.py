"""Who holds what? Pure: no torch.

dtypes       how many bits an element takes
notation     "1000/tp 64": a shape, and the axes that cut it
division     one dim over several axes: who has which part, and whose parts meet a range
config       Config: the fields of a config.json, checked when they are asked for
families     the families of models: their weights as tables of rows with fields in place of sizes
quantized    what a quantized checkpoint has in place of weights
weight       Weight: one logical tensor, and how it is cut
placed       Placed: a weight on a topology; Held: what one rank has; and which ranks hold a range of elements
weights      Weights: those of a model, its layers and their stages
place        Place: a box of a weight, and the box of a rank's tensor that keeps it
forms        what a tensor is made of, whatever the topology; why two cannot be put together
given        what rules are given, checked
rules        Fused, Interleaved, Transposed, Split: how a side's tensors are made of weights
sides        Padded and Sharded: what a side does with weights before, and with tensors after
made         a tensor that rules have made, and the names of all
storage      Storage: the tensors that a side has, and where in them weights lie
model        Model: weights, and the sizes of what flows through them
activations  what the forward pass keeps for the backward pass, by published formulas
memory       Memory: what a rank needs, for Training or for Serving
flows        what the groups of a layout send in one step, by published formulas
traffic      Traffic: what of it stays inside hosts and what crosses them
fit          Load: what the ranks of each stage need, the heaviest first, and why
search       on which layouts of so many ranks a model fits, and which of them sends least across hosts
checks       will a model divide over a topology, and what would do
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_topology.weights.fit import Load, loads
    from parallel_topology.weights.memory import Memory, Serving, Training, memory_on
    from parallel_topology.weights.model import Model
    from parallel_topology.weights.place import Place
    from parallel_topology.weights.placed import Held, Placed
    from parallel_topology.weights.rules import Fused, Interleaved, Split, Transposed
    from parallel_topology.weights.sides import Padded, Sharded
    from parallel_topology.weights.storage import Storage, Stored
    from parallel_topology.weights.traffic import Traffic, traffic_on
    from parallel_topology.weights.weight import Weight
    from parallel_topology.weights.weights import Weights

__all__ = [
    "Fused",
    "Held",
    "Interleaved",
    "Load",
    "Memory",
    "Model",
    "Padded",
    "Place",
    "Placed",
    "Serving",
    "Sharded",
    "Split",
    "Storage",
    "Stored",
    "Traffic",
    "Training",
    "Transposed",
    "Weight",
    "Weights",
    "loads",
    "memory_on",
    "traffic_on",
]

_HOMES = {
    **dict.fromkeys(("Fused", "Interleaved", "Split", "Transposed"), "rules"),
    **dict.fromkeys(("Padded", "Sharded"), "sides"),
    **dict.fromkeys(("Held", "Placed"), "placed"),
    **dict.fromkeys(("Storage", "Stored"), "storage"),
    **dict.fromkeys(("Load", "loads"), "fit"),
    **dict.fromkeys(("Memory", "Serving", "Training", "memory_on"), "memory"),
    **dict.fromkeys(("Traffic", "traffic_on"), "traffic"),
    "Model": "model",
    "Place": "place",
    "Weight": "weight",
    "Weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
