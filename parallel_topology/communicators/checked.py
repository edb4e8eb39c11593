"""CheckedCommunicator: members tell each other what they are about to call, and all raise if it does not match."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.channels import channels_of
from parallel_topology.communicators.communicator import Around, Communicator, Together, Work, wait_for
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.errors import MismatchError
from parallel_topology.topology.layout import Ranks
from parallel_topology.wire.frames import CHECK_TAG, Kind
from parallel_topology.wire.structure import bytes_of

_BYTES = 512
"""Of one call's description, padded: what all members send must be of one size."""
_UNEVEN = ("all_gather_v", "reduce_scatter_v", "all_to_all")
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
        mine = _described(operation, tensor, arguments, self.name)
        gathered = torch.empty(self._of.size * _BYTES, dtype=torch.uint8)
        wait_for(self._cpu.all_gather(_packed(mine), output=gathered, async_op=False))
        calls = [_unpacked(part) for part in gathered.view(self._of.size, _BYTES)]
        _require_equal(calls, self._of)
        if operation == "all_to_all":
            _require_splits(calls, self._of)
        return self.inner.issue(operation, tensor, **arguments)

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


def _payload(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _described(operation: str, tensor: Tensor, arguments: dict[str, Any], communicator: str) -> dict[str, Any]:
    call: dict[str, Any] = {"operation": operation, "by": communicator, "on": tensor.device.type, **_payload(tensor)}
    if operation in _UNEVEN:
        call["shape"][0] = -1
    if "op" in arguments:
        call["op"] = str(arguments["op"]).rpartition(".")[2]
    return call | {
        name: value
        for name, value in arguments.items()
        if name in ("src", "dst", "sizes", "input_splits", "output_splits")
    }


def _packed(call: dict[str, Any]) -> Tensor:
    text = json.dumps(call, separators=(",", ":")).encode()
    if len(text) > _BYTES:  # splits for very many members: these are not compared
        text = json.dumps(call | {"input_splits": [], "output_splits": [], "sizes": []}).encode()
    return torch.frombuffer(bytearray(text.ljust(_BYTES)), dtype=torch.uint8)


def _unpacked(part: Tensor) -> dict[str, Any]:
    return json.loads(bytes_of(part))


def _require_equal(calls: list[dict[str, Any]], membership: Membership) -> None:
    plain = [_shown({key: value for key, value in call.items() if not key.endswith("_splits")}) for call in calls]
    kinds = Counter(plain)
    if len(kinds) == 1:
        return
    usual = kinds.most_common(1)[0][0]
    lines = [f"  {_named(plain, kind, membership.ranks)}: {kind}" for kind in kinds]
    odd = [rank for rank, kind in zip(membership.ranks, plain, strict=True) if kind != usual]
    raise MismatchError(
        f"the calls on {membership.label} = {membership.ranks} do not match: rank {odd[0]} differs\n" + "\n".join(lines)
    )


def _require_splits(calls: list[dict[str, Any]], membership: Membership) -> None:
    for giver, given in enumerate(calls):
        for taker, taken in enumerate(calls):
            if not given["input_splits"] or not taken["output_splits"]:
                continue
            gives, takes = given["input_splits"][taker], taken["output_splits"][giver]
            if gives != takes:
                ranks = membership.ranks
                raise MismatchError(
                    f"all_to_all on {membership.label}: rank {ranks[giver]} sends {gives} rows to rank {ranks[taker]}, "
                    f"which expects {takes}"
                )


def _named(plain: list[str], kind: str, ranks: Ranks) -> str:
    holders = [rank for rank, held in zip(ranks, plain, strict=True) if held == kind]
    return f"rank{'s' if len(holders) > 1 else ''} {', '.join(map(str, holders))}"


def _shown(call: dict[str, Any]) -> str:
    what = f"{call['dtype']}{call['shape']}"
    rest = [f"{key} {value}" for key, value in call.items() if key not in ("operation", "dtype", "shape")]
    return " ".join([*([call["operation"]] if "operation" in call else []), what, *rest])
