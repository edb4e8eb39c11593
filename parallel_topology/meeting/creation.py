"""Creating process groups, over a store or out of torch's default group, and taking them down again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.checked import CheckedCommunicator
from parallel_topology.communicators.communicator import Communicator
from parallel_topology.communicators.factories import find_factory
from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.errors import BackendError, CreationError, GroupTimeoutError
from parallel_topology.meeting.addresses import gloo_devices
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.meeting.options import Options
from parallel_topology.meeting.witness import Witness
from parallel_topology.topology.layout import Ranks
from parallel_topology.torch_errors import first_line, is_timeout

BACKENDS = ("gloo", "nccl")
_PLAIN = GroupOptions()


def choose_backend(backend: str | None) -> str:
    """`backend` if it can be used here, else an error; without a choice NCCL where CUDA is, else gloo.

    Raises:
        BackendError: the choice is unknown, or cannot be used on this machine.
    """
    has_nccl = dist.is_nccl_available() and torch.cuda.is_available()
    if backend is None:
        return "nccl" if has_nccl else "gloo"
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is not known: expected {' or '.join(map(repr, BACKENDS))}")
    if backend == "nccl" and not has_nccl:
        lacks = "torch was built without NCCL" if not dist.is_nccl_available() else "torch finds no CUDA device"
        raise BackendError(f"backend 'nccl' cannot be used here: {lacks}; use backend='gloo' on CPUs")
    return backend


def choose_device(device: torch.device | str | None, backend: str, local_rank: int) -> torch.device:
    """The device the groups' tensors are on: always with an index for NCCL, which must not guess it.

    Raises:
        BackendError: NCCL was chosen with a device that is no CUDA device.
    """
    if device is None:
        return torch.device("cuda", local_rank) if backend == "nccl" else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"device {device!r}: {first_line(error)}") from error
    if backend == "nccl" and not str(chosen).startswith("cuda:"):
        raise BackendError(f"device {str(chosen)!r} does not fit backend 'nccl': expected one such as 'cuda:0'")
    return chosen


class Creator:
    """Makes the process groups of one manager over a store, with no default group, and takes them down."""

    def __init__(
        self, store: dist.Store, witness: Witness, options: Options, *, backend: str, device: torch.device,
        deadline: Deadline, others: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`store` holds this manager's keys alone; `others` are the addresses of ranks on other hosts."""
        self._store = store
        self._witness = witness
        self._options = options
        self._backend = backend
        self._device = device
        self._deadline = deadline
        self._others = others
        self._gloo_devices: list[Any] = []
        self._order = torch.zeros(1, dtype=torch.int8, device=device)
        self._made: list[tuple[Links, Ranks]] = []
        self._families: list[str] = []
        self._doing = ("the groups could not be created", "creation")

    def make(self, family: str, ranks: Ranks, rank: int, *, label: str) -> Links:
        """The process groups of `ranks`, as its member `rank` (a position) sees them. All members must call this.

        It waits for the others without an end of its own: call it where the deadline can overtake it.

        Raises:
            RuntimeError: what torch raises; `failure` says what happened.
            BackendError: a communicator cannot work here, or an option has no meaning for the backend.
        """
        options = self._options.per_group.get(family, _PLAIN)
        self._require_meaning(options, family)
        self._doing = (f"group {label} = {ranks} could not be created", label)
        links = Links(
            label=label, ranks=ranks, timeout=self._deadline.timedelta(), witness=self._witness, order=self._order
        )
        self._made.append((links, ranks))
        self._families.append(family)
        self._gloo_devices = self._gloo_devices or gloo_devices(self._store, self._others)
        self._connect(links, ranks, rank, label, options)
        if self._deadline.passed():  # whoever waited has given up, and has taken down what was there then
            for group in links.taken():
                self._end(group, abort=True)
            raise Overtaken
        links.communicators = self._chain(Membership(label, ranks, rank, self._device, links, options))
        return links

    def _require_meaning(self, options: GroupOptions, family: str) -> None:
        only_nccl = options.nccl_config | ({"high_priority_stream": True} if options.high_priority_stream else {})
        if only_nccl and self._backend != "nccl":
            given = ", ".join(f"{name}={value!r}" for name, value in only_nccl.items())
            raise BackendError(f"options of {family!r}: {given}: only NCCL has these; the backend is {self._backend!r}")

    def _chain(self, membership: Membership) -> tuple[Communicator, ...]:
        """The communicators asked for, torch's last unless placed."""
        names = membership.options.communicators
        chain: list[Communicator] = []
        for name in names if "torch" in names else (*names, "torch"):
            if name == "torch":
                made: Communicator = TorchCommunicator(
                    membership.links, membership.device, membership.size, membership.rank
                )
            else:
                made = find_factory(name, self._options.communicators)(membership)
            chain.append(CheckedCommunicator(made, membership) if self._options.check_calls else made)
        return tuple(chain)

    def settle(self, rank: int, *, verify: bool) -> None:
        """Wait until all have built all groups, and from then on as long as operations are to wait.

        Args:
            verify: gather the members' ranks on all groups, at once: as many messages as one by one, one round of
                waiting. Otherwise only on the world.

        Raises:
            RuntimeError: what torch raises; `failure` says what happened.
            CreationError: a group has other members, or these in another order.
        """
        self._doing = ("the new groups failed", "verification")
        mine = torch.tensor([rank])
        begun = [links.start_gather(mine) for links, _ in (self._made if verify else self._made[:1])]
        found = [finish() for finish in begun]
        for (links, ranks), members in zip(self._made, found, strict=False):
            if members != list(ranks):
                raise CreationError(f"group {links.label} has the members {members}, expected {ranks} in this order")
        for (links, _), family in zip(self._made, self._families, strict=True):
            links.set_timeout(timedelta(seconds=self._options.operations_wait(family)))

    def failure(self, rank: int, error: BaseException) -> CreationError | GroupTimeoutError:
        """What to raise for an error of `make` or `settle`, or as they have not ended: where, and who is missing."""
        what, where = self._doing
        late = isinstance(error, Overtaken) or self._deadline.passed()
        reason = f"timed out after {self._deadline.seconds:g} s" if late else first_line(error)
        ranks = next((ranks for links, ranks in self._made if links.label == where), self._made[0][1])
        said = self._witness.report(where, ranks, "its creation")
        kind = GroupTimeoutError if late or is_timeout(error) else CreationError
        return kind(f"{what} at rank {rank}: {reason}; {said}")

    def _connect(self, links: Links, ranks: Ranks, rank: int, label: str, options: GroupOptions) -> None:
        size = len(ranks)
        store = dist.PrefixStore(f"{label}/gloo", self._store)
        gloo = torch_private.gloo_backend(store, rank, size, links.timeout, *self._gloo_devices)
        links.device_group = links.cpu_group = torch_private.new_process_group(
            store, rank, size, description=label, key=f"{label}/gloo", kind="gloo", backends={"cpu": gloo}
        )
        if self._backend == "nccl":
            store = dist.PrefixStore(f"{label}/nccl", self._store)
            nccl = torch_private.nccl_backend(store, rank, size, _nccl_options(links, options), self._device)
            links.device_group = torch_private.new_process_group(
                store, rank, size, description=label, key=f"{label}/nccl", kind="nccl",
                backends={"cuda": nccl}, device=self._device,
            )  # fmt: skip

    def release(self, *, abort: bool) -> list[str]:
        """Take everything down, the last one made first; the labels of what was released.

        Args:
            abort: for groups whose operations may never end: what is under way is given up.
        """
        released: list[str] = []
        while self._made:
            links, _ = self._made.pop()
            if links.live_graphs():  # only when aborting: NCCL would wait for them, also in an abort
                links.taken()
                continue
            for communicator in links.communicators:
                communicator.close(abort=abort)
            for group in links.taken():
                self._end(group, abort)
                released.append(links.label)
        return released

    def _end(self, group: dist.ProcessGroup, abort: bool) -> None:
        if abort:
            group.abort()
        else:
            group.shutdown()


class WorldCreator(Creator):
    """Makes the groups out of a default group, known to torch's registry; the default group stays the caller's."""

    def _connect(self, links: Links, ranks: Ranks, rank: int, label: str, options: GroupOptions) -> None:
        nccl_options = _nccl_options(links, options) if self._backend == "nccl" else None
        links.device_group = self._registered(self._backend, links, ranks, rank, label, nccl_options)
        links.cpu_group = links.device_group
        if self._backend == "nccl":
            links.cpu_group = self._registered("gloo", links, ranks, rank, label)

    def _registered(
        self, backend: str, links: Links, ranks: Ranks, rank: int, label: str, options: Any = None
    ) -> dist.ProcessGroup:
        return torch_private.new_registered_group(
            self._store, list(ranks), rank, name=f"{label}@{ranks[0]}/{backend}", description=label,
            backend=backend, timeout=links.timeout, options=options,
        )  # fmt: skip

    def _end(self, group: dist.ProcessGroup, abort: bool) -> None:
        if abort:
            group.abort()
        dist.destroy_process_group(group)


def _nccl_options(links: Links, options: GroupOptions) -> Any:
    return torch_private.nccl_options(
        links.timeout, high_priority=options.high_priority_stream, config=options.nccl_config
    )
