"""Transfer: nested dicts of tensors and plain values from one pipeline stage to the next.

What stands where, and of which shape, is described once and again only when it changes; the tensors follow on their own
device's group. The idea of sending each member's slice and gathering on arrival is that of vLLM's `send_tensor_dict`
(https://github.com/vllm-project/vllm/blob/v0.5.0/vllm/distributed/parallel_state.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from parallel_topology.communicators.handle import Handle, Handles
from parallel_topology.errors import GroupArgumentError, WireError
from parallel_topology.groups.collectives import Collectives
from parallel_topology.groups.objects import Objects
from parallel_topology.wire.structure import TensorSpec, flatten_tensors, tensor_specs, unflatten
from parallel_topology.wire.wire import decode, encode

MAX_DESCRIPTION = 64 * 2**20
"""The most bytes that a description may take, tensors not counted."""
_AS_BEFORE = 0
"""The length of a description that is the last one again."""


class Transfer(Objects):
    """Sending and receiving nested values."""

    def send_tensors(
        self, value: Any, dst: int | None = None, *, dst_rank: int | None = None, split: Collectives | None = None
    ) -> None:
        """Send a nested dict (list, tuple) of tensors and plain values: to `next_rank` unless told otherwise.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
            split: a group, usually tp, whose members all hold these tensors and send them to members of the
                receivers' such group: each then sends its own slice of every tensor whose size it divides.

        Raises:
            GroupArgumentError: something in `value` cannot be sent; the message says where.
        """
        self.isend_tensors(value, dst, dst_rank=dst_rank, split=split).wait()

    def isend_tensors(
        self, value: Any, dst: int | None = None, *, dst_rank: int | None = None, split: Collectives | None = None
    ) -> Handle[None]:
        """Begin to send; arguments as for `send_tensors`."""
        peer = self._other("isend_tensors", self._peer("dst", dst, dst_rank, self.rank + 1))
        structure, tensors = flatten_tensors(value)
        description = bytes(encode(structure))
        is_new = self._sent.get(peer) != description
        header = torch.tensor(
            [len(description) if is_new else _AS_BEFORE, 1 if split is None else split.size], device="cpu"
        )
        handles = [self.isend(header, peer)]
        if is_new:
            self._sent[peer] = description
            handles.append(self.isend(torch.frombuffer(bytearray(description), dtype=torch.uint8), peer))
        handles += [self.isend(_slice(tensor, split), peer) for tensor in tensors]
        return Handle(self, "isend_tensors", Handles(handles), lambda: None)

    def recv_tensors(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        split: Collectives | None = None,
        models: Iterable[type[BaseModel]] = (),
    ) -> Any:
        """Receive what `send_tensors` sends: from `prev_rank` unless told otherwise. CPU tensors come as CPU tensors.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
            split: the group over which the slices are gathered, of the size of the sender's.
            models: the pydantic models that may be built from what comes.

        Raises:
            WireError: what came is no description.
            GroupArgumentError: the sender's `split` is of another size.
        """
        return self.irecv_tensors(src, src_rank=src_rank, split=split, models=models).wait()

    def irecv_tensors(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        split: Collectives | None = None,
        models: Iterable[type[BaseModel]] = (),
    ) -> Handle[Any]:
        """Begin to receive: returns when it is known what comes. Arguments as for `recv_tensors`.

        With `split`, the slices are gathered in `wait()`, which the members of that group call in one order.
        """
        peer = self._other("irecv_tensors", self._peer("src", src, src_rank, self.rank - 1))
        structure, specs = self._described(peer, split, models)
        wholes = [torch.empty(spec.shape, dtype=spec.dtype, device=self._device_of(spec, peer)) for spec in specs]
        parts = [_slice(whole, split) for whole in wholes]
        handles = [self.irecv(part, peer) for part in parts]

        def finish() -> Any:
            if split is not None and split.size > 1:
                for whole, part in zip(wholes, parts, strict=True):
                    if part is not whole:
                        whole.view(-1).copy_(split.all_gather(part))
            return unflatten(structure, wholes)

        return Handle(self, "irecv_tensors", Handles(handles), finish)

    def _described(
        self, peer: int, split: Collectives | None, models: Iterable[type[BaseModel]]
    ) -> tuple[Any, list[TensorSpec]]:
        length, theirs = (int(number) for number in self.recv(torch.zeros(2, dtype=torch.int64, device="cpu"), peer))
        who = f"irecv_tensors on {self.label} from rank {self.ranks[peer]}"
        if length != _AS_BEFORE:
            if not 0 < length <= MAX_DESCRIPTION:
                raise WireError(f"{who}: a description of {length} bytes, expected at most {MAX_DESCRIPTION}")
            description = bytearray(length)
            self.recv(torch.frombuffer(description, dtype=torch.uint8), peer)
            self._received[peer] = description
        if peer not in self._received:
            raise WireError(f"{who}: nothing was described before")
        ours = 1 if split is None else split.size
        if ours != theirs:
            raise GroupArgumentError(
                f"{who}: the sender splits each tensor over {theirs} ranks, split= here has {ours}"
            )
        structure = decode(self._received[peer], models=models)
        return structure, tensor_specs(structure)

    def _device_of(self, spec: TensorSpec, peer: int) -> torch.device:
        if spec.device == "cpu":
            return torch.device("cpu")
        if spec.device != self.device.type:
            raise GroupArgumentError(
                f"irecv_tensors on {self.label}: rank {self.ranks[peer]} sends {spec.device} tensors, which cannot be "
                f"received on {self.device}"
            )
        return self.device


def _slice(tensor: Tensor, split: Collectives | None) -> Tensor:
    """This member's part of a tensor that all members of `split` hold, where the group's size divides it."""
    if split is None or split.size == 1 or tensor.numel() % split.size:
        return tensor
    part = tensor.numel() // split.size
    return tensor.contiguous().view(-1).narrow(0, split.rank * part, part)
