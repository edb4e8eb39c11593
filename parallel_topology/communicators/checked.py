"""CheckedCommunicator: members tell each other what they are about to call, and all raise if it does not match."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.channels import channels_of
from parallel_topology.communicators.communicator import Around, Communicator, Together, Work, wait_for
from parallel_topology.communicators.descriptions import described, require_equal
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.errors import MismatchError
from parallel_topology.wire.frames import CHECK_TAG, Kind
from parallel_topology.wire.structure import bytes_of

_BYTES = 512
"""Of one call's description, padded: what all members send must be of one size."""
_P2P = ("send", "recv", "exchange")
_ANNOUNCED = ("send_message", "recv_message", "recv_any")


class CheckedCommunicator(Around):
    """Asks before it lets another communicator carry out a collective: one small all-gather more over the CPU.

    A collective raises on every member; a receive on the receiver, as the sender does not wait for an answer. Messages
    over gloo have a header anyway, of which the shape is then compared, too; for others it is sent beside them.
    """

    def __init__(self, inner: Communicator, membership: Membership) -> None:
        super().__init__(inner)
        self._of = membership
        self._channels = channels_of(membership.links)
        self._channels.strict = True
        self._cpu = TorchCommunicator(membership.links, torch.device("cpu"), membership.size, membership.rank)

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation in _ANNOUNCED or (operation in _P2P and self._is_announced(tensor)):
            return self.inner.issue(operation, tensor, **arguments)
        if operation in _P2P:
            return self._issue_p2p(operation, tensor, arguments)
        stream = torch.cuda.current_stream(tensor.device) if tensor.device.type == "cuda" else None

        def call() -> Work | None:
            with torch.cuda.stream(stream):  # pyright: ignore[reportArgumentType] (None is none)
                self._compare(operation, tensor, arguments)
                return self.inner.issue(operation, tensor, **arguments)

        # Who begins a call and goes on may be what the others need, to come to theirs.
        return self._channels.turns.take(call, here=not arguments["async_op"])

    def _compare(self, operation: str, tensor: Tensor, arguments: dict[str, Any]) -> None:
        mine = described(operation, tensor, arguments, self.name)
        gathered = torch.empty(self._of.size * _BYTES, dtype=torch.uint8)
        self._now("all_gather", _packed(mine), output=gathered)
        said = [bytes_of(part).decode().rstrip() for part in gathered.view(self._of.size, _BYTES)]
        require_equal(self._of.label, self._of.ranks, dict(zip(self._of.ranks, said, strict=True)))
        if operation == "all_to_all":
            self._require_splits(arguments)

    def _require_splits(self, arguments: dict[str, Any]) -> None:
        """Each member is told by each other how much comes; all are told of the first that expects something else."""
        size = self._of.size
        gives, takes = torch.tensor(arguments["input_splits"]), torch.tensor(arguments["output_splits"])
        given, ones = torch.empty(size, dtype=torch.int64), [1] * size
        self._now("all_to_all", gives, output=given, output_splits=ones, input_splits=ones)
        wrong = [giver for giver in range(size) if given[giver] != takes[giver]]
        mine = torch.tensor([-1, 0, 0] if not wrong else [wrong[0], int(given[wrong[0]]), int(takes[wrong[0]])])
        found = torch.empty(3 * size, dtype=torch.int64)
        self._now("all_gather", mine, output=found)
        for taker, (giver, sent, expected) in enumerate(found.view(size, 3).tolist()):  # pyright: ignore
            if giver >= 0:
                ranks = self._of.ranks
                raise MismatchError(
                    f"all_to_all on {self._of.label}: rank {ranks[giver]} sends {sent} rows to rank {ranks[taker]}, "
                    f"which expects {expected}"
                )

    def _now(self, operation: str, tensor: Tensor, **arguments: Any) -> None:
        """Carry out an operation of the comparison's own, and wait so that Ctrl-C is obeyed."""
        wait_for(self._cpu.issue(operation, tensor, async_op=False, **arguments))

    def _is_announced(self, tensor: Tensor) -> bool:
        """Whether a header goes before a message anyway."""
        return isinstance(self.inner, TorchCommunicator) and tensor.device.type == "cpu"

    def _issue_p2p(self, operation: str, tensor: Tensor, arguments: dict[str, Any]) -> Work | None:
        told = heard = None
        if operation != "recv":
            told = self._channels.send(tensor, arguments["dst"], Kind.CHECK, tag=CHECK_TAG)
        if operation != "send":
            into = arguments["output"] if operation == "exchange" else tensor
            heard = self._channels.recv(into, arguments["src"], Kind.CHECK, tag=CHECK_TAG)
        return Together(heard, self.inner.issue(operation, tensor, **arguments), told)


def _packed(said: str) -> Tensor:
    text = said.encode()
    if len(text) > _BYTES:  # it names the sizes of very many members
        text = text[: _BYTES - 70] + b"... " + sha256(text).hexdigest().encode()
    return torch.frombuffer(bytearray(text.ljust(_BYTES)), dtype=torch.uint8)
