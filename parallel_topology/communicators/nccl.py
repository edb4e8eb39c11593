"""NcclCommunicator: NCCL through nccl4py, always on torch's current stream. Needs the extra `nccl`.

Torch's own NCCL groups use streams and watchdogs of their own around each call; this is one call into NCCL, as vLLM's
`pynccl` was. The calls are those of nccl4py 0.6.0 (https://pypi.org/project/nccl4py/0.6.0/).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.communicator import Communicator, Work, exercise, wait_for
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.errors import BackendError, GroupArgumentError, MissingExtraError
from parallel_topology.wire.structure import bytes_of

_OPERATIONS = frozenset(
    {"all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all", "send", "recv", "exchange"}
)
_DTYPES = frozenset(
    {
        torch.float32, torch.float64, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int8, torch.uint8,
    }
)  # fmt: skip
_REDUCTIONS = {"SUM": "SUM", "PRODUCT": "PROD", "MAX": "MAX", "MIN": "MIN", "AVG": "AVG"}
_ID_BYTES = 128


class NcclCommunicator(Communicator):
    """One NCCL communicator of a group's own. Asynchronous calls return None: they are in the stream's order.

    Raises:
        MissingExtraError: nccl4py is not installed.
        BackendError: there is no CUDA device, or NCCL cannot connect.
    """

    name = "nccl"

    def __init__(self, membership: Membership) -> None:
        if membership.device.type != "cuda":
            raise BackendError(
                f"communicator 'nccl' on {membership.label}: the manager's device is {membership.device}, expected a "
                "CUDA device (backend='nccl')"
            )
        self._nccl = _import_nccl()
        self._device = membership.device
        self._size = membership.size
        self._rank = membership.rank
        unique = _exchange_id(membership, self._nccl)
        settings = membership.options.nccl_config
        with torch.cuda.device(self._device):
            self._comm: Any = self._nccl.Communicator.init(
                membership.size, membership.rank, unique, self._nccl.NCCLConfig(**settings) if settings else None
            )

    def handles(self, operation: str, tensor: Tensor) -> bool:
        return operation in _OPERATIONS and tensor.is_cuda and tensor.dtype in _DTYPES

    def all_reduce(self, tensor: Tensor, *, op: Any, async_op: bool) -> Work | None:
        self._comm.allreduce(tensor, tensor, self._reduction(op), stream=self._stream())

    def reduce(self, tensor: Tensor, *, op: Any, dst: int, async_op: bool) -> Work | None:
        self._comm.reduce(tensor, tensor, self._reduction(op), root=dst, stream=self._stream())

    def broadcast(self, tensor: Tensor, *, src: int, async_op: bool) -> Work | None:
        self._comm.broadcast(tensor, tensor, src, stream=self._stream())

    def all_gather(self, tensor: Tensor, *, output: Tensor, async_op: bool) -> Work | None:
        self._comm.allgather(tensor, output, stream=self._stream())

    def reduce_scatter(self, tensor: Tensor, *, output: Tensor, op: Any, async_op: bool) -> Work | None:
        self._comm.reduce_scatter(tensor, output, self._reduction(op), stream=self._stream())

    def all_to_all(
        self,
        tensor: Tensor,
        *,
        output: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        async_op: bool,
    ) -> Work | None:
        stream = self._stream()
        with self._nccl.group():
            parts = (torch.split_with_sizes(*split) for split in ((tensor, input_splits), (output, output_splits)))
            for member, (given, taken) in enumerate(zip(*parts, strict=True)):
                if given.shape[0]:
                    self._comm.send(given, member, stream=stream)
                if taken.shape[0]:
                    self._comm.recv(taken, member, stream=stream)

    def send(self, tensor: Tensor, *, dst: int, async_op: bool) -> Work | None:
        self._comm.send(tensor, dst, stream=self._stream())

    def recv(self, tensor: Tensor, *, src: int, async_op: bool) -> Work | None:
        self._comm.recv(tensor, src, stream=self._stream())

    def exchange(self, tensor: Tensor, *, output: Tensor, dst: int, src: int, async_op: bool) -> Work | None:
        stream = self._stream()
        with self._nccl.group():
            self._comm.send(tensor, dst, stream=stream)
            self._comm.recv(output, src, stream=stream)

    def warmup(self) -> None:
        exercise(self, self._device, self._size, self._rank)

    def follow(self, rank: int, members: Sequence[int], *, broken: bool) -> Communicator | None:
        """NCCL's shrink, which keeps the members in their order; else it is made anew."""
        if list(members) != sorted(members):
            return None
        flags, left = self._nccl.CommShrinkFlag, [one for one in range(self._size) if one not in members]
        made = copy(self)
        made._size, made._rank = len(members), rank
        with torch.cuda.device(self._device):
            made._comm = self._comm.shrink(left, flag=flags.ABORT if broken else flags.DEFAULT)
        return made

    def suspend(self) -> None:
        """NCCL 2.29.7 and newer give back what they allocated on the device."""
        with torch.cuda.device(self._device):
            self._comm.suspend()

    def resume(self) -> None:
        with torch.cuda.device(self._device):
            self._comm.resume()

    def close(self, *, abort: bool) -> None:
        """Collective among the members of a host, unless `abort`."""
        with torch.cuda.device(self._device):
            if abort:
                self._comm.abort()
            else:
                self._comm.finalize()
                self._comm.destroy()

    def _stream(self) -> int:
        """nccl4py's own default is the default stream, which a capture would not see."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def _reduction(self, op: Any) -> Any:
        name = str(op).rpartition(".")[2]
        if name not in _REDUCTIONS:
            raise GroupArgumentError(f"communicator 'nccl' has no {name}: expected one of {', '.join(_REDUCTIONS)}")
        return getattr(self._nccl, _REDUCTIONS[name])


def _import_nccl() -> Any:
    try:
        return import_module("nccl.core")
    except ImportError as error:
        raise MissingExtraError(
            f"communicator 'nccl' needs nccl4py and cuda-bindings ({error}): pip install 'parallel-topology[nccl]'"
        ) from None


def _exchange_id(membership: Membership, nccl: Any) -> Any:
    """The first member's unique id; a zero in front of it where that member failed, so that nobody waits for it."""
    told = torch.zeros(1 + _ID_BYTES, dtype=torch.uint8)
    failure: Exception | None = None
    if membership.rank == 0:
        try:
            told = torch.frombuffer(bytearray(b"\1" + bytes(nccl.get_unique_id())), dtype=torch.uint8)
        except Exception as error:  # nccl4py's own errors have no common base
            failure = error
    over_cpu = TorchCommunicator(membership.links, torch.device("cpu"), membership.size, membership.rank)
    wait_for(over_cpu.issue("broadcast", told, src=0, async_op=False))  # so that Ctrl-C is obeyed
    if not told[0]:
        raise BackendError(
            f"communicator 'nccl' on {membership.label}: rank {membership.ranks[0]} has no NCCL"
        ) from failure
    return nccl.UniqueId.from_bytes(bytes_of(told[1:]))
