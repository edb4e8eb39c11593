"""Holdings: what a rank's manager holds: its way to the store, what it met the others by, its groups; and their end."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from parallel_topology.communicators.links import Links
from parallel_topology.errors import CreationError, GroupTimeoutError, ParallelTopologyError, RendezvousError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.joining import Joined, join
from parallel_topology.groups.life import Life
from parallel_topology.meeting import completion
from parallel_topology.meeting.agreement import Meeting
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.creation import Creator, Former, Released
from parallel_topology.meeting.deadline import Deadline, Overtaken, overtake
from parallel_topology.meeting.hosted import Hosted
from parallel_topology.meeting.options import Options
from parallel_topology.meeting.rendezvous import At
from parallel_topology.meeting.succession import Succession
from parallel_topology.meeting.witness import Witness
from parallel_topology.topology.plan import Plan
from parallel_topology.torch_errors import STORE_ERRORS, first_line

_log = logging.getLogger("parallel_topology")
Place = dist.Store | Callable[[Deadline], dist.Store] | None
"""A store, or what opens it."""
PAUSE = 0.1
"""Seconds between the steps in which a manager is built beside one that serves: so most of its calls notice nothing."""


@dataclass(eq=False)
class Holdings:
    """Of one rank.

    Attributes:
        plan, rank, options, backend: the manager's.
        place: where the ranks meet.
        store: that, opened.
        hosted: the store's server, if this process runs it.
        groups: by name.
        absent: those of conventional axes that the topology has not, as far as they were asked for.
        control: its own way to the store.
        witness, succession, meeting, creator: its own; None where it is alone, but for `succession`, which one that is
            alone has as soon as it is to grow.
        life: None until there is something to close.
    """

    plan: Plan
    rank: int
    options: Options
    backend: str
    place: Place
    store: dist.Store | None = None
    hosted: Hosted | None = None
    groups: dict[str, ParallelGroup] = field(default_factory=dict[str, ParallelGroup])
    absent: dict[str, ParallelGroup] = field(default_factory=dict[str, ParallelGroup])
    control: Control | None = None
    witness: Witness | None = None
    succession: Succession | None = None
    meeting: Meeting | None = None
    creator: Creator | None = None
    life: Life | None = None

    def join(self, creator: type[Creator], device: str, deadline: Deadline, at: str) -> Joined:
        """Meet the others; see `joining.join`."""
        opened = not isinstance(self.place, dist.Store)
        return join(
            self.plan, self.rank, Control(self.open(deadline), own=opened), self.options, self.backend, device, creator,
            deadline, at,
        )  # fmt: skip

    def open(self, deadline: Deadline) -> dist.Store:
        """The store.

        Raises:
            RendezvousError: there is none, or it cannot be hosted or reached.
        """
        if self.place is None:
            raise RendezvousError(
                f"{self.plan.topology} has {self.plan.topology.world_size} ranks, which need a place to meet: give "
                "store=, or use GroupManager.from_env or GroupManager.connect"
            )
        if not isinstance(self.place, dist.Store) and not callable(self.place):
            raise RendezvousError(
                f"store={self.place!r}: expected a torch.distributed.Store; for an address, use connect"
            )
        self.store = self.place if isinstance(self.place, dist.Store) else self.place(deadline)
        if isinstance(self.place, At):
            self.hosted = self.place.hosted
        return self.store

    def expect_others(self, deadline: Deadline) -> None:
        """A rank that is alone is to grow: it opens the store only now.

        Raises:
            RendezvousError: it cannot be hosted or reached.
        """
        if self.succession is None and self.place is not None:
            self.control = Control(self.open(deadline))
            keys = f"{self.options.name}@{self.rank}/{secrets.token_hex(8)}/keys"
            self.succession = Succession(self.control, keys, self.rank, [self.rank], ended=self.ended)

    def create(
        self, joined: Joined, creator: type[Creator], device: torch.device, bind: Callable[[str], object],
        deadline: Deadline, *, connects: bool, former: Former | None,
    ) -> None:  # fmt: skip
        """Make the process groups with the others.

        Args:
            bind: binds the groups to what the creator makes, under labels with a prefix.
            connects: see `Change`.
            former: what there was before.

        Raises:
            CreationError, GroupTimeoutError: they could not be made.
        """
        name, world = self.options.name, self.plan.topology.world
        self.control = control = joined.control
        self.witness = witness = Witness(control, f"{joined.meeting.keys}/witness", self.rank)
        self.succession = succession = Succession(
            control, joined.meeting.keys, self.rank, list(world), ended=self.ended, sign=joined.meeting.sign,
            went_on=joined.meeting.went_on,
        )  # fmt: skip
        witness.ended = self.ended
        self.meeting = joined.meeting

        def leave(store: dist.Store) -> None:
            succession.leave(store)
            if joined.meeting.leave(store):  # the last one takes away what all shared
                witness.clear(store)

        control.at_end(leave)
        made: list[Creator] = []

        def create() -> None:
            store = dist.PrefixStore(joined.meeting.keys, control.client())
            try:
                build(store)
            except Exception as error:
                if not isinstance(error, Overtaken) and not deadline.passed():  # else it waited for who is missing
                    reason = f"{name}: rank {self.rank} could not create its groups: {first_line(error)}"
                    completion.give_up(store, reason)
                raise

        def build(store: dist.Store) -> None:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                self.creator = creator(
                    store, witness, self.options, backend=self.backend, device=device,
                    deadline=deadline, opening=joined.opening, former=former,
                )  # fmt: skip
                made.append(self.creator)
                bind(name if joined.agreed.number == 1 else f"{name}#{joined.agreed.number}")
                # Either way nobody leaves before all have built all groups: the store may go away after this.
                self.creator.settle(self.rank, verify=self.options.verify, stay=joined.meeting.leads)
                if connects:
                    pause(deadline)
                    self.creator.connect()
                    witness.vigil.start()

        try:
            overtake(create, deadline)
        except ParallelTopologyError:
            raise
        except (Overtaken, *STORE_ERRORS) as error:
            control.renew()  # what was overtaken may wait in the old client
            cause = None if isinstance(error, Overtaken) else error
            if made:
                raise made[0].failure(self.rank, error, world) from cause
            late = cause is None or deadline.passed()
            reason = f"timed out after {deadline.seconds:g} s" if late else first_line(error)
            kind = GroupTimeoutError if late else CreationError
            raise kind(f"{name}: rank {self.rank}: {reason}, before it began to create its groups") from cause

    def ended(self, ranks: Sequence[int], thoroughly: bool) -> Collection[int]:
        """Which of these ranks are known to have ended; thoroughly, it may take a while."""
        creator = self.creator
        return creator.ended(ranks, thoroughly) if creator is not None else ()

    def is_broken(self) -> bool:
        """Whether an operation has failed at this rank."""
        return self.witness is not None and self.witness.failed

    def live_graphs(self) -> str:
        """The CUDA graphs that are alive, for errors."""
        held = {group.links.label: count for group in self.groups.values() if (count := group.links.live_graphs())}
        return ", ".join(f"{count} of {label}" for label, count in held.items())

    def links(self) -> list[Links]:
        """Those of all groups, each once."""
        found = (*self.groups.values(), *self.absent.values())
        return list({id(group.links): group.links for group in found}.values())

    def refuse_calls(self) -> None:
        """From now on no group can be used."""
        for links in self.links():
            links.closed = True

    def end(self, life: Life, *, abort: bool) -> Released:
        """Take down the groups, and leave the store; another thread may do so, too."""
        creator, control, released, witness = self.creator, self.control, Released(), self.witness
        try:
            if creator is not None:
                released = creator.release(abort=abort)
        finally:
            if witness is not None:
                witness.vigil.end()
            if control is not None:
                control.close()
            life.ended(all_of_it=creator is None or creator.has_ended)
            if life.state == "closed":
                self.creator = self.witness = self.control = self.store = self.succession = self.meeting = None
                if self.hosted is not None:
                    self.hosted.close()
        for error in released.errors:
            _log.warning("%s: %r while it ended", self.options.name, error)
        return released


def pause(deadline: Deadline) -> None:
    """Leave the processor to who serves, while something is built beside it."""
    time.sleep(min(PAUSE, deadline.left() / 20))
