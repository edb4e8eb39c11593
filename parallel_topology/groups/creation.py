"""Creating process groups, over a store or out of torch's default group, and taking them down again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology.errors import BackendError, CreationError, GroupTimeoutError
from parallel_topology.groups import torch_private
from parallel_topology.groups.agreement import STORE_ERRORS, first_line
from parallel_topology.groups.rendezvous import gloo_device
from parallel_topology.groups.witness import Witness
from parallel_topology.layout import Ranks

BACKENDS = ("gloo", "nccl")
_c10d: Any = dist  # its functions are not typed


@dataclass
class Links:
    """The process groups of one set of ranks, shared by all groups of a manager that have these ranks.

    Attributes:
        device_group: for tensors on the manager's device; None in a group of one rank, which needs none.
        cpu_group: gloo, for CPU tensors and control; the same object as `device_group` when that is gloo.
        label: the name under which they were created.
        timeout: how long operations wait.
        witness: asked who was where when an operation fails.
        process: the process that made them; a forked child has no part in their connections.
        closed: by the manager; nothing may use these any more.
    """

    device_group: dist.ProcessGroup | None = None
    cpu_group: dist.ProcessGroup | None = None
    label: str = ""
    timeout: timedelta = timedelta()
    witness: Witness | None = None
    process: int = field(default_factory=os.getpid)
    closed: bool = False

    def taken(self) -> list[dist.ProcessGroup]:
        """The process groups, each once, which are nobody's here from now on."""
        self.closed = True
        groups = self._distinct()
        self.device_group = self.cpu_group = None
        return groups

    def start_gather(self, number: torch.Tensor) -> Callable[[], list[int]]:
        """Begin to gather one number from each member over the CPU group; call the result to wait for all of them."""
        numbers = [torch.empty_like(number) for _ in range(_c10d.get_world_size(self.cpu_group))]
        work = _c10d.all_gather(numbers, number, group=self.cpu_group, async_op=True)

        def finish() -> list[int]:
            work.wait()
            return [int(one) for one in numbers]

        return finish

    def set_timeout(self, timeout: timedelta) -> None:
        """How long operations wait from now on."""
        self.timeout = timeout
        for group in self._distinct():
            torch_private.set_timeout(group, timeout)

    def _distinct(self) -> list[dist.ProcessGroup]:
        """The process groups, each once: with gloo, device and CPU group are the same object."""
        groups = {id(group): group for group in (self.device_group, self.cpu_group) if group is not None}
        return list(groups.values())


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
    chosen = torch.device(device)
    if backend == "nccl" and not str(chosen).startswith("cuda:"):
        raise BackendError(f"device {str(chosen)!r} does not fit backend 'nccl': expected one such as 'cuda:0'")
    return chosen


class Creator:
    """Makes the process groups of one manager over a store, with no default group, and takes them down."""

    def __init__(
        self, store: dist.Store, witness: Witness, *, backend: str, device: torch.device, timeout: float
    ) -> None:
        self._store = store
        self._witness = witness
        self._backend = backend
        self._device = device
        self._timeout = timedelta(seconds=timeout)
        self._gloo_device = gloo_device(store)
        self._made: list[tuple[Links, Ranks]] = []

    def make(self, ranks: Ranks, rank: int, *, label: str) -> Links:
        """The process groups of `ranks`, as its member `rank` (a position) sees them. All members must call this.

        Raises:
            GroupTimeoutError: a member did not come in time.
            CreationError: a backend could not connect to all members.
        """
        links = Links(label=label, timeout=self._timeout, witness=self._witness)
        self._made.append((links, ranks))
        try:
            self._connect(links, ranks, rank, label)
        except STORE_ERRORS as error:
            raise self._failure(
                f"group {label} = {ranks} could not be created", label, ranks[rank], ranks, error
            ) from error
        return links

    def verify(self, rank: int) -> None:
        """Gather the members' ranks on all groups, at once: as many messages as one by one, one round of waiting.

        Raises:
            GroupTimeoutError: a member did not take part in time.
            CreationError: a group does not work, or has other members, or these in another order.
        """
        mine = torch.tensor([rank])
        try:
            begun = [links.start_gather(mine) for links, _ in self._made]
            found = [finish() for finish in begun]
        except STORE_ERRORS as error:
            world = self._made[0][1]
            raise self._failure("the new groups failed", "verification", rank, world, error) from error
        for (links, ranks), members in zip(self._made, found, strict=True):
            if members != list(ranks):
                raise CreationError(f"group {links.label} has the members {members}, expected {ranks} in this order")

    def _failure(
        self, what: str, where: str, rank: int, ranks: Ranks, error: BaseException
    ) -> CreationError | GroupTimeoutError:
        said = self._witness.report(where, ranks, "its creation")
        kind = GroupTimeoutError if is_timeout(error) else CreationError
        return kind(f"{what} at rank {rank}: {first_line(error)}; {said}")

    def _connect(self, links: Links, ranks: Ranks, rank: int, label: str) -> None:
        size = len(ranks)
        store = dist.PrefixStore(f"{label}/gloo", self._store)
        gloo = torch_private.gloo_backend(store, rank, size, self._timeout, self._gloo_device)
        links.device_group = links.cpu_group = torch_private.new_process_group(
            store, rank, size, description=label, key=f"{label}/gloo", kind="gloo", backends={"cpu": gloo}
        )
        if self._backend == "nccl":
            store = dist.PrefixStore(f"{label}/nccl", self._store)
            nccl = torch_private.nccl_backend(store, rank, size, self._timeout, self._device)
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

    def _connect(self, links: Links, ranks: Ranks, rank: int, label: str) -> None:
        links.device_group = links.cpu_group = self._registered(self._backend, ranks, rank, label)
        if self._backend == "nccl":
            links.cpu_group = self._registered("gloo", ranks, rank, label)

    def _registered(self, backend: str, ranks: Ranks, rank: int, label: str) -> dist.ProcessGroup:
        return torch_private.new_registered_group(
            self._store, list(ranks), rank,
            name=f"{label}@{ranks[0]}/{backend}", description=label, backend=backend, timeout=self._timeout,
        )  # fmt: skip

    def _end(self, group: dist.ProcessGroup, abort: bool) -> None:
        if abort:
            group.abort()
        dist.destroy_process_group(group)


def is_timeout(error: BaseException) -> bool:
    """Whether one of torch's errors says that time ran out; it has no type for that in all backends."""
    return any(word in str(error).lower() for word in ("timed out", "timeout"))
