"""PointToPoint: tensors from one member of a group to another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parallel_topology.communicators import compiled
from parallel_topology.communicators.channels import Source
from parallel_topology.communicators.handle import Handle
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.bound import BoundGroup, nothing
from parallel_topology.groups.prepared import shown
from parallel_topology.groups.tensors import overlap, values, write
from parallel_topology.wire.frames import TAGS


class PointToPoint(BoundGroup):
    """Sending and receiving. Without a peer named, towards `next_rank` and from `prev_rank`.

    Gradients end here: what is received has none of the sender's, which pipeline schedules send back themselves.
    """

    def send(self, tensor: Tensor, dst: int | None = None, *, dst_rank: int | None = None, tag: int = 0) -> None:
        """Send to another member: to `next_rank` unless told otherwise. Returns when `tensor` may be reused.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
            tag: of CPU tensors, 0..999: messages of one tag are received in order, whatever those of others do.
        """
        peer = self._other("send", self._peer("dst", dst, dst_rank, self.rank + 1))
        if torch.compiler.is_compiling() and not tag:
            compiled.send(tensor.detach(), self.links.order, self.key, peer)
        else:
            self._issue("send", self._values("send", tensor), nothing, False, dst=peer, **self._tagged("send", tag))

    def isend(
        self, tensor: Tensor, dst: int | None = None, *, dst_rank: int | None = None, tag: int = 0
    ) -> Handle[None]:
        """Begin to send; arguments as for `send`. Also sent, and held until then, if the handle is dropped."""
        peer = self._other("isend", self._peer("dst", dst, dst_rank, self.rank + 1))
        whole = self._values("isend", tensor)
        return self._issue("send", whole, holding(whole), True, dst=peer, **self._tagged("isend", tag))

    def recv(self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None, tag: int = 0) -> Tensor:
        """Receive into `tensor`, which has the sender's dtype and size: from `prev_rank` unless told otherwise.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
            tag: as the sender's.

        Raises:
            MismatchError: what is sent is no such tensor. It has been received, and is lost; the next one can be
                received. A tensor of more than 8,000 bytes may have been written to.
        """
        peer = self._other("recv", self._peer("src", src, src_rank, self.rank - 1))
        if torch.compiler.is_compiling() and not tag:
            compiled.recv_(tensor.detach(), self.links.order, self.key, peer)
            return tensor
        whole, finish = self._target("recv", tensor)
        return self._issue("recv", whole, finish, False, src=peer, **self._tagged("recv", tag))

    def irecv(
        self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None, tag: int = 0
    ) -> Handle[Tensor]:
        """Begin to receive; arguments and errors as for `recv`."""
        peer = self._other("irecv", self._peer("src", src, src_rank, self.rank - 1))
        whole, finish = self._target("irecv", tensor)
        return self._issue("recv", whole, finish, True, src=peer, **self._tagged("irecv", tag))

    def recv_any(self, tensor: Tensor, *, tag: int = 0) -> int:
        """Receive into a CPU tensor from whichever member sends first; returns that member's position.

        Args:
            tag: as the sender's.

        Raises:
            MismatchError: as `recv`.
        """
        if self._is_alone("recv_any"):
            raise GroupArgumentError(f"recv_any on {self.label}: there is nobody else to send anything")
        whole, finish = self._target("recv_any", tensor)
        if whole.device.type != "cpu":
            raise GroupArgumentError(f"recv_any on {self.label}: the tensor is on {tensor.device}, expected cpu")
        source = Source()
        self._issue("recv_any", whole, finish, False, source=source, **self._tagged("recv_any", tag))
        return source.position

    def send_recv(
        self,
        tensor: Tensor,
        output: Tensor | None = None,
        dst: int | None = None,
        src: int | None = None,
        *,
        dst_rank: int | None = None,
        src_rank: int | None = None,
        tag: int = 0,
    ) -> Tensor:
        """Send to one member and receive from one at the same time: to `next_rank`, from `prev_rank`, as in a ring.

        In a group of one rank what is sent is what comes.

        Args:
            output: takes what comes, and has its shape and dtype; without it that of `tensor`.
            dst: the destination's position in the group.
            src: the source's position in the group.
            dst_rank: the destination's global rank instead.
            src_rank: the source's global rank instead.
            tag: of both messages, as for `send`.
        """
        to = self._peer("dst", dst, dst_rank, self.rank + 1)
        by = self._peer("src", src, src_rank, self.rank - 1)
        if self._is_alone("send_recv"):
            return self._to_itself(tensor, output)
        to, by = self._other("send_recv", to), self._other("send_recv", by)
        sent = self._values("send_recv", tensor)
        whole, finish = self._target("send_recv", torch.empty_like(sent) if output is None else output)
        if whole.device != sent.device:
            raise GroupArgumentError(
                f"send_recv on {self.label}: a tensor on {sent.device}, its output on {whole.device}; expected one"
            )
        if overlap(sent, whole):
            sent = sent.clone()
        how = {"dst": to, "src": by, **self._tagged("send_recv", tag)}
        return self._issue("exchange", sent, finish, False, output=whole, **how)

    def _to_itself(self, tensor: Tensor, output: Tensor | None) -> Tensor:
        """What a member that is alone sends, as it comes."""
        self._admit("send_recv", tensor)
        if output is None:
            return tensor
        self._admit("send_recv", output)
        if (output.numel(), output.dtype, output.device) != (tensor.numel(), tensor.dtype, tensor.device):
            raise GroupArgumentError(
                f"send_recv on {self.label}: a tensor {shown(tensor)}, its output {shown(output)}; expected one size, "
                "dtype and device"
            )
        write(values(tensor.detach()).view(output.shape), output.detach())
        return output

    def _tagged(self, operation: str, tag: int) -> dict[str, int]:
        """The argument for a communicator, which need not know tags where there is none."""
        if not tag:
            return {}
        if type(tag) is not int or not 0 <= tag < TAGS:
            raise GroupArgumentError(f"{operation} on {self.label}: tag={tag!r}, expected 0..{TAGS - 1}")
        return {"tag": tag}


def holding(tensor: Tensor) -> Callable[[], None]:
    """Nothing to do, but the tensor must live until it has been sent."""

    def finish() -> None:
        _ = tensor

    return finish
