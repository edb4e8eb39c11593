"""Creating process groups, over a store or out of torch's default group, and taking them down again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.checked import CheckedCommunicator
from parallel_topology.communicators.communicator import Communicator, wait_for
from parallel_topology.communicators.connections import new_connections
from parallel_topology.communicators.contacts import refusing
from parallel_topology.communicators.doorkeeper import Attended, Doorkeeper
from parallel_topology.communicators.factories import find_factory
from parallel_topology.communicators.forked import leave_to_parent
from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.host_memory import HostMemory
from parallel_topology.communicators.late import Gloo, Late
from parallel_topology.communicators.links import Call, Links
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.presence import is_gone
from parallel_topology.communicators.shared_memory import SharedMemoryCommunicator
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.communicators.two_levels import why_not
from parallel_topology.communicators.waiting import Interrupts
from parallel_topology.errors import BackendError, CreationError, GroupTimeoutError
from parallel_topology.meeting.completion import BUILT, DONE, complete
from parallel_topology.meeting.control import delete, read_all
from parallel_topology.meeting.control import wait_for as wait_for_keys
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.meeting.greeting import greet
from parallel_topology.meeting.opening import Opened, Opening
from parallel_topology.meeting.options import Options
from parallel_topology.meeting.witness import Witness
from parallel_topology.topology.layout import Ranks
from parallel_topology.torch_errors import first_line, is_timeout

BACKENDS = ("gloo", "nccl")
_GONE_WITHIN = 0.05
"""Seconds that the end waits for gloo's thread to close what was cut; it takes a tenth of a millisecond."""


@dataclass(frozen=True)
class Former:
    """What a manager had that this one follows on.

    Attributes:
        groups: family -> its members' global ranks, and its communicators.
        broken: operations of it have failed.
    """

    groups: Mapping[str, tuple[Sequence[int], Sequence[Communicator]]]
    broken: bool


@dataclass
class Released:
    """What has ended, and what was raised by what has not."""

    labels: list[str] = field(default_factory=list[str])
    errors: list[Exception] = field(default_factory=list[Exception])


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
    if backend == "gloo" and chosen.type != "cpu":
        raise BackendError(
            f"device {str(chosen)!r} does not fit backend 'gloo', whose groups carry CPU tensors: expected "
            "'cpu', or backend='nccl'"
        )
    if backend == "nccl" and not str(chosen).startswith("cuda:"):
        raise BackendError(f"device {str(chosen)!r} does not fit backend 'nccl': expected one such as 'cuda:0'")
    return chosen


class Creator:
    """Makes the process groups of one manager over a store, with no default group, and takes them down.

    Attributes:
        opens: whether each rank opens its groups by itself, before it knows the others.
    """

    opens = True

    def __init__(
        self, store: dist.Store, witness: Witness, options: Options, *, backend: str, device: torch.device,
        deadline: Deadline, opening: Opening, former: Former | None = None,
    ) -> None:  # fmt: skip
        """`store` holds this manager's keys alone; `opening` is what this rank has built already."""
        self._former = former
        self._store = store
        self._witness = witness
        self._options = options
        self._backend = backend
        self._device = device
        self._deadline = deadline
        self._opening = opening
        self._memory = opening.memory
        self._order = torch.zeros(1, dtype=torch.int8, device=device)
        self._interrupts = Interrupts()
        self._made: list[tuple[Links, Ranks]] = []
        self._families: list[str] = []
        self._door: Doorkeeper | None = None
        self._doing = ("the groups could not be created", "creation")
        leave_to_parent(self)

    def make(self, family: str, ranks: Ranks, rank: int, *, label: str) -> Links:
        """The process groups of `ranks`, as its member `rank` (a position) sees them. All members must call this.

        It waits for the others without an end of its own: call it where the deadline can overtake it.

        Raises:
            RuntimeError: what torch raises; `failure` says what happened.
            BackendError: a communicator cannot work here, or an option has no meaning for the backend.
        """
        options = self._options.of(family)
        self._require_meaning(options, family)
        self._doing = (f"group {label} = {ranks} could not be created", label)
        links = Links(
            label=label, ranks=ranks, timeout=self._deadline.timedelta(), witness=self._witness,
            interrupts=self._interrupts, order=self._order,
        )  # fmt: skip
        self._made.append((links, ranks))
        leave_to_parent(links)
        self._families.append(family)
        self._connect(links, ranks, rank, family, options)
        if self._deadline.passed():  # whoever waited has given up, and has taken down what was there then
            links.cut()
            links.end_groups(lambda group: self._end(group, abort=True))
            raise Overtaken
        member = Membership(
            label, ranks, rank, self._device, links, options, family, self._memory, self._opening.hosts,
            self._opening.sharing,
        )  # fmt: skip
        links.communicators = self._chain(member)
        if links.mail is not None and self._memory is not None:
            self._attend_to(links.mail, self._memory, ranks[rank])
        return links

    def _attend_to(self, one: Attended, memory: HostMemory, rank: int) -> None:
        self._door = self._door or Doorkeeper(memory, rank)
        self._door.attend_to(one)

    def _require_meaning(self, options: GroupOptions, family: str) -> None:
        only_nccl = options.nccl_config | ({"high_priority_stream": True} if options.high_priority_stream else {})
        if only_nccl and self._backend != "nccl":
            given = ", ".join(f"{name}={value!r}" for name, value in only_nccl.items())
            raise BackendError(f"options of {family!r}: {given}: only NCCL has these; the backend is {self._backend!r}")

    def _chain(self, membership: Membership) -> tuple[Communicator, ...]:
        """The communicators asked for, torch's last unless placed."""
        names = membership.options.communicators or self._for_memory(membership)
        chain: list[Communicator] = []
        for name in names if "torch" in names else (*names, "torch"):
            if name == "torch":
                made: Communicator = TorchCommunicator(
                    membership.links, membership.device, membership.size, membership.rank
                )
            else:
                left = self._following(name, membership)
                made = left or find_factory(name, self._options.communicators)(membership)
            if self._options.check_calls:
                made = _checked(made, membership)
            chain.append(made)
        return tuple(chain)

    def _following(self, name: str, membership: Membership) -> Communicator | None:
        """Made out of the one of that name that the manager before had, if all members were in its group."""
        if self._former is None or membership.family not in self._former.groups:
            return None
        ranks, communicators = self._former.groups[membership.family]
        if not set(ranks).issuperset(membership.ranks):
            return None
        members = [ranks.index(rank) for rank in membership.ranks]
        found = [one for one in communicators if one.name == name]
        return found[0].follow(membership.rank, members, broken=self._former.broken) if found else None

    def _for_memory(self, membership: Membership) -> tuple[str, ...]:
        """What a group has where nothing was asked for; the same on all members."""
        if self._memory is not None and self._memory.has(membership.family, membership.ranks):
            return ("shared_memory",)
        return ("two_levels",) if why_not(membership) is None else ()

    def settle(self, rank: int, *, verify: bool, stay: bool) -> None:
        """Wait until all have built all groups, and from then on as long as operations are to wait.

        Args:
            verify: look who the neighbours in the world are: one round of messages. Otherwise gloo connects nobody yet.
            stay: this rank may host the store, and stays until nobody needs it.

        Raises:
            RuntimeError: what torch raises; `failure` says what happened.
            CreationError: a group has other members, or these in another order.
        """
        self._doing = ("the new groups failed", "verification")
        if self._door is not None:
            self._door.look()
        ranks = len(self._made[0][1])
        if self._makes_more():  # before they use each other: who could not build says so here
            complete(self._store, BUILT, ranks, self._deadline, wait=True)
        if verify:
            self._verify(rank)
        for (links, _), family in zip(self._made, self._families, strict=True):
            links.set_timeout(timedelta(seconds=self._options.operations_wait(family)))
        complete(self._store, DONE, ranks, self._deadline, wait=stay)

    def connect(self) -> None:
        """Do what otherwise happens when a group is first used: neighbours connect over gloo, memory is taken."""
        tensor = torch.zeros(8, dtype=torch.int64)
        for links, _ in self._made:
            over_gloo = TorchCommunicator(links, torch.device("cpu"), len(links.ranks), 0)
            first = next(one for one in links.communicators if one.handles("all_reduce", tensor))
            for communicator in (first,) if links.late is not None else (over_gloo, first):
                wait_for(communicator.issue("all_reduce", tensor, op=dist.ReduceOp.SUM, async_op=False))

    def _makes_more(self) -> bool:
        """Whether there is more than what each rank opened by itself, which was there when all had agreed."""
        alone = self.opens and self._backend == "gloo"
        named = {name for family in self._families for name in self._options.of(family).communicators}
        return not alone or not named <= {"torch", "shared_memory", "two_levels"}

    def _verify(self, rank: int) -> None:
        """Neighbours in the world greet each other; NCCL's groups, connected anyhow, gather all ranks."""
        mine = torch.tensor([rank], device=self._device)
        on_device = self._made if self._backend == "nccl" else []
        gathered = [(links, ranks, links.start_gather(mine)) for links, ranks in on_device]
        greet(self._made[0][0], rank, self._deadline, self._opening.known())
        for links, ranks, finish in gathered:
            if (members := finish()) != list(ranks):
                raise CreationError(f"group {links.label} has the members {members}, expected {ranks} in this order")

    def failure(self, rank: int, error: BaseException, world: Ranks) -> CreationError | GroupTimeoutError:
        """What to raise for an error of `make` or `settle`, or as they have not ended: where, and who is missing."""
        what, where = self._doing
        late = isinstance(error, Overtaken) or self._deadline.passed()
        reason = f"timed out after {self._deadline.seconds:g} s" if late else first_line(error)
        ranks = next((ranks for links, ranks in self._made if links.label == where), world)
        said = self._witness.report(where, ranks, Call("its creation"))
        kind = GroupTimeoutError if late or is_timeout(error) else CreationError
        return kind(f"{what} at rank {rank}: {reason}; {said}")

    def _connect(self, links: Links, ranks: Ranks, rank: int, family: str, options: GroupOptions) -> None:
        def make() -> Gloo:
            return self._group_of(self._opening.open(family, ranks), links, rank)

        def bind(gloo: Gloo) -> None:
            links.bind(gloo, for_device=self._backend == "gloo")

        if self._memory is not None and self._opening.is_late(family, ranks):
            links.late = Late(make, bind, self._memory, family, ranks, rank)
            self._attend_to(links.late, self._memory, ranks[rank])
        else:
            exchange = partial(self._exchanged, links.label, rank, len(ranks))
            bind(self._group_of(self._opening.take(family, ranks, exchange), links, rank))
        if self._backend == "nccl":
            store = dist.PrefixStore(f"{links.label}/nccl", self._store)
            nccl = torch_private.nccl_backend(store, rank, len(ranks), _nccl_options(links, options), self._device)
            made = torch_private.new_process_group(
                store, rank, len(ranks), description=links.label, key=f"{links.label}/nccl", kind="nccl",
                backends={"cuda": nccl}, device=self._device,
            )  # fmt: skip
            links.bind_device(made)

    def _group_of(self, opened: Opened, links: Links, rank: int) -> Gloo:
        label = links.label
        store = dist.PrefixStore(f"{label}/gloo", self._store)
        group = torch_private.new_process_group(
            store, rank, len(links.ranks), description=label, key=f"{label}/gloo", kind="gloo",
            backends={"cpu": opened.backend},
        )  # fmt: skip
        torch_private.set_timeout(group, links.timeout)
        return Gloo(group, opened.contacts, opened.connections)

    def _exchanged(self, label: str, rank: int, size: int, said: str) -> list[str]:
        """What the members of a group say, by position."""
        keys = [f"{label}/at/{position}" for position in range(size)]
        self._store.set(keys[rank], said)
        if not wait_for_keys(self._store, keys, self._deadline):
            raise Overtaken
        told = [value.decode(errors="replace") for value in read_all(self._store, keys)]
        if self._store.add(f"{label}/at", 1) == size:
            delete(self._store, *keys, f"{label}/at")
        return told

    def release(self, *, abort: bool) -> Released:
        """Take down what is left, the last one made first. Whatever raises, the rest ends all the same.

        Connections end whoever still holds the groups. Called again, also while another thread hangs in it, it goes on
        with what has not ended.

        Args:
            abort: for groups whose operations may never end: what is under way is given up.
        """
        released = Released()
        remaining = [links for links, _ in reversed(self._made)]
        captured = [links for links in remaining if links.live_graphs()]  # only when aborting
        remaining = [links for links in remaining if links not in captured]
        cut = [links for links, _ in self._made]
        if abort:
            _cut(cut)
        for links in captured:
            links.keep_while_captured()
        for links in remaining:
            released.errors += links.close_communicators(abort=abort)
        _cut(cut)
        device_groups = [group for links in remaining if (group := links.made_for_device()) is not None]
        with torch_private.ended_together(device_groups) if abort else nullcontext():
            for links in remaining:
                ended, errors = links.end_groups(lambda group: self._end(group, abort))
                released.errors += errors
                if links.has_ended:
                    released.labels += [links.label] * ended
        del device_groups
        self._made = [(links, ranks) for links, ranks in self._made if not links.has_ended]
        for one in (ends for links in cut for ends in (links.contacts, links.connections) if ends is not None):
            one.wait_until_gone(_GONE_WITHIN)
        if not self._made:
            if self._door is not None:
                self._door.end()
            self._opening.end()
            self._interrupts.close()
        return released

    def ended(self, ranks: Sequence[int], thoroughly: bool) -> list[int]:
        """Which of these ranks are known to have ended: their processes, on this host, or where they listened.

        Args:
            thoroughly: look on other hosts, too, which may take a quarter of a second.
        """
        memory = self._memory if self._memory is not None and self._memory.is_shared else None
        near = set(memory.ranks).intersection(ranks) if memory is not None else set[int]()
        gone = [rank for rank in near if memory is not None and is_gone(*memory.process(rank))]
        at = {rank: self._opening.address_of(rank) for rank in ranks if rank not in near} if thoroughly else {}
        return gone + refusing({rank: address for rank, address in at.items() if address is not None})

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be released."""
        return not self._made

    def held(self) -> Iterator[object]:
        """What a forked child must leave alone: nothing besides what the links hold."""
        yield from ()

    def forked(self) -> None:
        """The links know by themselves."""
        self._interrupts.forked()

    def _end(self, group: dist.ProcessGroup, abort: bool) -> None:
        if abort:
            group.abort()
        else:
            group.shutdown()


class WorldCreator(Creator):
    """Makes the groups out of a default group, known to torch's registry; the default group stays the caller's."""

    opens = False

    def _connect(self, links: Links, ranks: Ranks, rank: int, family: str, options: GroupOptions) -> None:
        label = links.label
        if self._backend == "nccl":
            nccl_options = _nccl_options(links, options)
            links.bind_device(self._registered("nccl", links, ranks, rank, label, nccl_options))
        # torch makes a gloo device for each of these; they are made while other threads may make others
        group, connections = new_connections(lambda: self._registered("gloo", links, ranks, rank, label))
        links.bind(Gloo(group, None, connections), for_device=self._backend == "gloo")

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
        if torch_private.is_registered(group):  # not after destroy_process_group() of them all
            dist.destroy_process_group(group)
        else:
            group.shutdown()


def _cut(cut: Sequence[Links]) -> None:
    for links in cut:
        links.cut()


def _checked(made: Communicator, membership: Membership) -> Communicator:
    """Members compare their calls before each is made; over shared memory they do anyway."""
    return made.checked() if isinstance(made, SharedMemoryCommunicator) else CheckedCommunicator(made, membership)


def _nccl_options(links: Links, options: GroupOptions) -> Any:
    return torch_private.nccl_options(
        links.timeout, high_priority=options.high_priority_stream, config=options.nccl_config
    )
