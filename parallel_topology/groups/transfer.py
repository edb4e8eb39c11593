"""Transfer: nested dicts of tensors and plain values from one pipeline stage to the next.

What stands where, and of which shape, is described once and again only when it changes; the tensors follow on their own
device's group. The idea of sending each member's slice and gathering on arrival is that of vLLM's `send_tensor_dict`
(https://github.com/vllm-project/vllm/blob/v0.5.0/vllm/distributed/parallel_state.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.channels import MAX_DESCRIPTION, Incoming, channels_of
from parallel_topology.communicators.handle import Handle, Handles
from parallel_topology.communicators.links import Call
from parallel_topology.errors import GroupArgumentError, MismatchError, ParallelTopologyError, WireError
from parallel_topology.groups.bound import nothing
from parallel_topology.groups.collectives import Collectives
from parallel_topology.groups.objects import Objects
from parallel_topology.groups.p2p import holding
from parallel_topology.wire.frames import Frame, Kind, pack_transfer
from parallel_topology.wire.structure import (
    Path,
    TensorSpec,
    digest_of,
    flatten_tensors,
    keys_of,
    places,
    shown,
    tensor_specs,
    unflatten,
)
from parallel_topology.wire.wire import Class, decode, encode

_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")


class Transfer(Objects):
    """Sending and receiving nested values."""

    def send_tensors(
        self,
        value: Any,
        dst: int | None = None,
        *,
        dst_rank: int | None = None,
        split: Collectives | None = None,
        whole: Collection[str] = (),
    ) -> None:
        """Send a nested dict (list, tuple) of tensors and plain values: to `next_rank` unless told otherwise.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
            split: a group, usually tp, whose members all hold these tensors and send them to members of the
                receivers' such group: each then sends its own slice of every tensor whose size it divides.
            whole: keys, at any depth, under which the members of `split` hold different tensors: each sends its own.

        Raises:
            GroupArgumentError: something in `value` cannot be sent; the message says where.
        """
        self.isend_tensors(value, dst, dst_rank=dst_rank, split=split, whole=whole).wait()

    def isend_tensors(
        self,
        value: Any,
        dst: int | None = None,
        *,
        dst_rank: int | None = None,
        split: Collectives | None = None,
        whole: Collection[str] = (),
    ) -> Handle[None]:
        """Begin to send; arguments as for `send_tensors`."""
        peer = self._other("isend_tensors", self._peer("dst", dst, dst_rank, self.rank + 1))
        if isinstance(whole, str):
            raise GroupArgumentError(f"isend_tensors on {self.label}: whole={whole!r}, expected keys: ({whole!r},)")
        over = 1 if split is None else split.size

        def is_cut(tensor: Tensor, path: Path) -> bool:
            return over > 1 and tensor.numel() % over == 0 and not any(key in whole for key in keys_of(path))

        structure, tensors = flatten_tensors(value, is_cut)
        specs = tensor_specs(structure)
        description, channels = bytes(encode(structure)), channels_of(self.links)
        digests = [
            _digest(tensor, strict=channels.strict) for tensor, spec in zip(tensors, specs, strict=True) if spec.cut
        ]
        channel = channels.to(peer)
        is_new, channel.described = channel.described != description, description
        message = torch.frombuffer(pack_transfer(digests, description if is_new else b""), dtype=torch.uint8)
        said = {"parts": sum(tensor.device.type == "cpu" for tensor in tensors), "split": over}
        handles = [self._issue("send_message", message, nothing, True, dst=peer, kind=Kind.TRANSFER, **said)]
        for tensor, spec in zip(tensors, specs, strict=True):
            handles.append(self._send_part(_slice(tensor, split) if spec.cut else tensor, peer))
        return Handle(self, Call("isend_tensors"), Handles(handles), lambda: None)

    def recv_tensors(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        split: Collectives | None = None,
        models: Iterable[Class] = (),
    ) -> Any:
        """Receive what `send_tensors` sends: from `prev_rank` unless told otherwise. CPU tensors come as CPU tensors.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
            split: the group over which the slices are gathered, of the size of the sender's.
            models: the classes that may be built from what comes, as for `recv_object`.

        Raises:
            WireError: what came is no description, or holds what is not among `models`.
            GroupArgumentError: the sender's `split` is of another size.
            MismatchError: something else was sent; or a tensor that was cut differs between the senders of `split`.
        """
        return self.irecv_tensors(src, src_rank=src_rank, split=split, models=models).wait()

    def irecv_tensors(
        self,
        src: int | None = None,
        *,
        src_rank: int | None = None,
        split: Collectives | None = None,
        models: Iterable[Class] = (),
    ) -> Handle[Any]:
        """Begin to receive: returns when it is known what comes. Arguments as for `recv_tensors`.

        With `split`, the slices are gathered in `wait()`, which the members of that group call in one order.
        """
        peer = self._other("irecv_tensors", self._peer("src", src, src_rank, self.rank - 1))
        classes = tuple(models)
        coming = self._announced(peer, split, classes)
        wholes = [torch.empty(spec.shape, dtype=spec.dtype, device=self._device_of(spec)) for spec in coming.specs]
        parts = [_slice(whole, split) if spec.cut else whole for whole, spec in zip(wholes, coming.specs, strict=True)]
        handles = [self._recv_part(part, peer) for part in parts]

        def finish() -> Any:
            if split is not None and split.size > 1:
                self._gather(coming, wholes, parts, split)
            return unflatten(coming.structure, wholes, classes)

        return Handle(self, Call("irecv_tensors"), Handles(handles), finish)

    def _send_part(self, part: Tensor, peer: int) -> Handle[None]:
        if part.device.type != "cpu":
            return self.isend(part, peer)
        whole = part.detach().contiguous()
        return self._issue("send_message", whole, holding(whole), True, dst=peer, kind=Kind.PART)

    def _recv_part(self, part: Tensor, peer: int) -> Handle[Any]:
        if part.device.type != "cpu":
            return self.irecv(part, peer)
        return self._issue("recv_message", part, nothing, True, src=peer, kind=Kind.PART)

    def _announced(self, peer: int, split: Collectives | None, classes: Iterable[Class]) -> _Coming:
        """What will come. Where it is refused it is received, and lost."""
        who = f"irecv_tensors on {self.label} from rank {self.ranks[peer]}"
        incoming, channel = Incoming("irecv_tensors", MAX_DESCRIPTION), channels_of(self.links).by(peer)
        try:
            self._issue("recv_message", _NOTHING, nothing, False, src=peer, kind=Kind.TRANSFER, incoming=incoming)
            digests = channel.note(incoming.data)
            if not (description := channel.described):
                raise WireError(f"{who}: nothing was described before")
            ours, theirs = 1 if split is None else split.size, incoming.frame.split
            if ours != theirs:
                raise GroupArgumentError(
                    f"{who}: the sender splits each tensor over {theirs} ranks, split= here has {ours}"
                )
            structure = decode(description, models=classes, in_parts=True)
            specs = tensor_specs(structure)
            self._require_expected(who, specs, digests, incoming.frame)
        except ParallelTopologyError:
            self._lose(incoming, peer)
            raise
        return _Coming(who, structure, specs, digests)

    def _require_expected(self, who: str, specs: list[TensorSpec], digests: list[int], frame: Frame) -> None:
        devices = [spec.device for spec in specs]
        if odd := [device for device in devices if device not in ("cpu", self.device.type)]:
            raise GroupArgumentError(f"{who}: it sends {odd[0]} tensors, which cannot be received on {self.device}")
        if devices.count("cpu") != frame.parts or sum(spec.cut for spec in specs) != len(digests):
            raise WireError(f"{who}: {frame.parts} tensors are announced, {len(specs)} described")

    def _lose(self, incoming: Incoming, peer: int) -> None:
        """Receive the tensors of a transfer that is refused, as far as they are messages of ours."""
        if incoming.frame.kind == Kind.TRANSFER:
            for _ in range(incoming.frame.parts):
                self._issue("recv_message", _NOTHING, nothing, False, src=peer, kind=Kind.ANY)

    def _device_of(self, spec: TensorSpec) -> torch.device:
        return torch.device("cpu") if spec.device == "cpu" else self.device

    def _gather(self, coming: _Coming, wholes: list[Tensor], parts: list[Tensor], split: Collectives) -> None:
        mine = zlib.crc32(repr([(spec.dtype, spec.shape) for spec in coming.specs if spec.cut]).encode())
        if any(int(other) != mine for other in split.all_gather(torch.tensor([mine], device="cpu"))):
            raise MismatchError(f"{coming.who}: the members of {split.label} were sent tensors of other shapes, cut")
        digests, strict = iter(coming.digests), channels_of(self.links).strict
        differ: list[str] = []
        for whole, part, (spec, path) in zip(wholes, parts, places(coming.structure), strict=True):
            if spec.cut:
                whole.view(-1).copy_(split.all_gather(part.view(-1)))
                if _digest(whole, strict=strict) != next(digests):
                    differ.append(shown(path))
        if differ:
            raise MismatchError(
                f"{coming.who}: {', '.join(differ)} differ between the members of {split.label} that sent slices of "
                "them; name their keys in whole=(...), so that each is sent whole"
            )


@dataclass(frozen=True)
class _Coming:
    """What a sender said that it sends."""

    who: str
    structure: Any
    specs: list[TensorSpec]
    digests: list[int]


def _slice(tensor: Tensor, split: Collectives | None) -> Tensor:
    """This member's part of a tensor that all members of `split` hold."""
    if split is None:
        return tensor
    part = tensor.numel() // split.size
    return tensor.contiguous().view(-1).narrow(0, split.rank * part, part)


def _digest(tensor: Tensor, *, strict: bool) -> int:
    """On a device it would have to be waited for: there only calls that are checked compare."""
    return digest_of(tensor) if strict or tensor.device.type == "cpu" else 0
