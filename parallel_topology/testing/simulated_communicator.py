"""SimulatedCommunicator: records what it is asked for, and gives results as if all members held what this one holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.communicator import Communicator
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.testing.calls import Call
from parallel_topology.testing.recording import describe


class SimulatedCommunicator(Communicator):
    """The only communicator of a `SimulatedGroup`; takes tensors of any device, fake and meta ones too."""

    name = "simulated"

    def __init__(self, group: ParallelGroup, calls: list[Call], channel: str) -> None:
        self._group = group
        self._calls = calls
        self._channel = channel

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return True

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> None:
        self._calls.extend(describe(self._group, self._channel, operation, tensor, arguments))
        output: Tensor | None = arguments.get("output")
        if operation == "scatter" and arguments["source"] is not None:
            tensor.copy_(self._part(arguments["source"]))
        if output is not None:
            output.copy_(self._result(operation, tensor, output, arguments))

    def _result(self, operation: str, tensor: Tensor, output: Tensor, arguments: dict[str, Any]) -> Tensor:
        if operation in ("all_gather", "gather"):
            return tensor.repeat(self._group.size, *[1] * (tensor.dim() - 1))
        if operation == "reduce_scatter":
            return self._part(tensor)
        if operation == "reduce_scatter_v":
            return self._row(tensor, arguments["sizes"])
        if operation == "exchange" and output.shape == tensor.shape:
            return tensor
        if operation == "all_gather_v":
            return self._placed(tensor, output, arguments["sizes"])
        if operation == "all_to_all":
            return self._placed(self._row(tensor, arguments["input_splits"]), output, arguments["output_splits"])
        return torch.zeros_like(output)

    def _part(self, whole: Tensor) -> Tensor:
        rows = whole.shape[0] // self._group.size
        return whole.narrow(0, self._group.rank * rows, rows)

    def _row(self, whole: Tensor, sizes: Sequence[int]) -> Tensor:
        return whole.narrow(0, sum(sizes[: self._group.rank]), sizes[self._group.rank])

    def _placed(self, mine: Tensor, output: Tensor, sizes: Sequence[int]) -> Tensor:
        """This member's own part where it belongs; also the others' where all are as long as it."""
        if all(size == mine.shape[0] for size in sizes):
            return mine.repeat(len(sizes), *[1] * (mine.dim() - 1))
        placed = torch.zeros_like(output)
        self._row(placed, sizes).copy_(mine)
        return placed
