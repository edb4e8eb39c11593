"""PointToPoint: tensors from one member of a group to another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parallel_topology.communicators import compiled
from parallel_topology.communicators.handle import Handle
from parallel_topology.groups.bound import BoundGroup, copying_back, nothing


class PointToPoint(BoundGroup):
    """Sending and receiving. Without a peer named, towards `next_rank` and from `prev_rank`.

    Gradients end here: what is received has none of the sender's, which pipeline schedules send back themselves.
    """

    def send(self, tensor: Tensor, dst: int | None = None, *, dst_rank: int | None = None) -> None:
        """Send to another member: to `next_rank` unless told otherwise. Returns when `tensor` may be reused.

        Args:
            dst: the destination's position in the group.
            dst_rank: or its global rank.
        """
        peer = self._other("send", self._peer("dst", dst, dst_rank, self.rank + 1))
        if torch.compiler.is_compiling():
            compiled.send(tensor.detach(), self.links.order, self.key, peer)
        else:
            self._issue("send", tensor.detach().contiguous(), nothing, False, dst=peer)

    def isend(self, tensor: Tensor, dst: int | None = None, *, dst_rank: int | None = None) -> Handle[None]:
        """Begin to send; arguments as for `send`."""
        peer = self._other("isend", self._peer("dst", dst, dst_rank, self.rank + 1))
        whole = tensor.detach().contiguous()
        return self._issue("send", whole, _holding(whole), True, dst=peer)

    def recv(self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None) -> Tensor:
        """Receive into `tensor`, which has the sender's shape and dtype: from `prev_rank` unless told otherwise.

        Args:
            src: the source's position in the group.
            src_rank: or its global rank.
        """
        peer = self._other("recv", self._peer("src", src, src_rank, self.rank - 1))
        if torch.compiler.is_compiling():
            compiled.recv_(tensor.detach(), self.links.order, self.key, peer)
            return tensor
        plain = tensor.detach()
        whole = plain.contiguous()
        return self._issue("recv", whole, copying_back(whole, plain, tensor), False, src=peer)

    def irecv(self, tensor: Tensor, src: int | None = None, *, src_rank: int | None = None) -> Handle[Tensor]:
        """Begin to receive; arguments as for `recv`."""
        peer = self._other("irecv", self._peer("src", src, src_rank, self.rank - 1))
        plain = tensor.detach()
        whole = plain.contiguous()
        return self._issue("recv", whole, copying_back(whole, plain, tensor), True, src=peer)

    def send_recv(
        self,
        tensor: Tensor,
        output: Tensor | None = None,
        dst: int | None = None,
        src: int | None = None,
        *,
        dst_rank: int | None = None,
        src_rank: int | None = None,
    ) -> Tensor:
        """Send to one member and receive from one at the same time: to `next_rank`, from `prev_rank`, as in a ring.

        In a group of one rank what is sent is what comes.

        Args:
            output: takes what comes, and has its shape and dtype; without it that of `tensor`.
            dst: the destination's position in the group.
            src: the source's position in the group.
            dst_rank: the destination's global rank instead.
            src_rank: the source's global rank instead.
        """
        to = self._peer("dst", dst, dst_rank, self.rank + 1)
        by = self._peer("src", src, src_rank, self.rank - 1)
        if self._is_alone("send_recv"):
            return tensor if output is None else output.copy_(tensor)
        to, by = self._other("send_recv", to), self._other("send_recv", by)
        output = tensor.new_empty(tensor.shape) if output is None else output
        plain = output.detach()
        whole = plain.contiguous()
        finish = copying_back(whole, plain, output)
        return self._issue("exchange", tensor.detach().contiguous(), finish, False, output=whole, dst=to, src=by)


def _holding(tensor: Tensor) -> Callable[[], None]:
    """Nothing to do, but the tensor must live until it has been sent."""

    def finish() -> None:
        _ = tensor

    return finish
