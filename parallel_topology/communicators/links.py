"""Links: what one set of ranks communicates over, shared by all groups of a manager that have these ranks."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.communicator import Communicator, Work
from parallel_topology.communicators.connections import Connections
from parallel_topology.communicators.contacts import Contacts
from parallel_topology.communicators.forked import this_process
from parallel_topology.communicators.late import Gloo, Late
from parallel_topology.communicators.mail import Letter, Mail
from parallel_topology.communicators.waiting import Interrupts

_c10d: Any = dist  # its functions are not typed


class Call(NamedTuple):
    """What a rank calls on a group.

    Attributes:
        number: of a collective, counted from 1: the same on all members, which call the same ones in the same order.
            None where not all members take part.
    """

    operation: str
    number: int | None = None


class Vigil(Protocol):
    """Told in which operations threads wait: `meeting.vigil`."""

    def begins(self, group: str, call: Call, timeout: timedelta, since: float) -> None: ...
    def is_over(self) -> None: ...


class Witness(Protocol):
    """Asked who was where when an operation fails, and what came of it: `meeting.witness`."""

    among: Callable[[Sequence[int]], Any]

    @property
    def vigil(self) -> Vigil: ...
    def report(self, group: str, ranks: Sequence[int], call: Call) -> str: ...
    def begin(self, what: str) -> int: ...
    def concluded(
        self, what: str, number: int, ranks: Sequence[int], timeout: float, outcome: str = ""
    ) -> tuple[str, list[int]]: ...


def holds_capture(graph: Any) -> bool:
    """Whether a `torch.cuda.CUDAGraph` has captured something, and was not reset since."""
    try:
        graph.pool()
    except RuntimeError:  # it says so where there is nothing
        return False
    return True


def _order() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int8)


@dataclass(eq=False)
class Links:
    """The process groups and communicators of one set of ranks.

    Attributes:
        communicators: asked in this order who carries a call out; the last one is torch's.
        connections: the sockets of the gloo group; None where they cannot be found.
        contacts: how its members come to them; None where all are connected from the beginning.
        label: the name under which they were created.
        ranks: the members' global ranks, in group order.
        timeout: how long operations wait.
        witness: asked who was where when an operation fails.
        interrupts: lets Ctrl-C end waits for gloo's messages; one for a manager.
        order: what compiled code says each operation changes, so that none goes before another; one for a manager.
        graphs: CUDA graphs that were captured with these, as far as they are alive.
        process: the process that made them; a forked child has no part in their connections.
        closed: by the manager; nothing may use these any more.
        suspended: by the manager, until it is resumed; meanwhile they are closed.
        mail: carries small messages through shared memory, where all members have it: `communicators.mail`.
        channels: messages between members, `communicators.channels`; made when first asked for.
        making: held while they are made.
        lent: the process groups were given to other code, so what is under way in them is not known.
        late: makes the gloo group when it is first asked for; None where it is there, or none is needed.
    """

    communicators: tuple[Communicator, ...] = ()
    connections: Connections | None = None
    contacts: Contacts | None = None
    label: str = ""
    ranks: Sequence[int] = ()
    timeout: timedelta = timedelta()
    witness: Witness | None = None
    interrupts: Interrupts | None = None
    order: torch.Tensor = field(default_factory=_order)
    graphs: list[weakref.ref[Any]] = field(default_factory=list[weakref.ref[Any]])
    process: int = field(default_factory=lambda: this_process.id)
    closed: bool = False
    suspended: bool = False
    mail: Mail | None = None
    channels: Any = None
    making: threading.Lock = field(default_factory=threading.Lock)
    lent: bool = False
    late: Late | None = None
    _device_group: dist.ProcessGroup | None = None
    _cpu_group: dist.ProcessGroup | None = None
    _collectives: int = 0
    _last_begun: float = 0.0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _closed: list[Communicator] = field(default_factory=list[Communicator])

    @property
    def device_group(self) -> dist.ProcessGroup | None:
        """For tensors on the manager's device; None in a group of one rank, which needs none, and after the end."""
        if self._device_group is None:
            self._open()
        return self._device_group

    @property
    def cpu_group(self) -> dist.ProcessGroup | None:
        """gloo, for CPU tensors and control; the same object as `device_group` when that is gloo."""
        if self._cpu_group is None:
            self._open()
        return self._cpu_group

    def _open(self) -> None:
        late = self.late
        if late is not None:
            late.open()

    def bind(self, gloo: Gloo, *, for_device: bool) -> None:
        """This is the gloo group. `for_device`: it is for the manager's device, too."""
        self.contacts, self.connections = gloo.contacts, gloo.connections
        self._cpu_group = gloo.group
        if for_device:
            self._device_group = gloo.group

    def bind_device(self, group: dist.ProcessGroup) -> None:
        """This is the group of the manager's device."""
        self._device_group = group

    def made_for_device(self) -> dist.ProcessGroup | None:
        """The device's group, if it was made."""
        return self._device_group

    def holding(self) -> tuple[object, ...]:
        """What keeps the process groups, also one that is made from now on, as long as it is held."""
        return self._device_group, self._cpu_group, self.late

    def live_graphs(self) -> int:
        """How many of the CUDA graphs are alive, and were not reset."""
        return len(list(self._alive()))

    def cut(self) -> None:
        """End gloo's connections: all that is under way on them fails at once, here and at the peers."""
        if self.late is not None:
            self.late.cut()
        if self.contacts is not None:
            waits = self._collectives > 0 and time.monotonic() - self._last_begun < self.contacts.patience
            self.contacts.end(waited_for=self.lent or waits)
        if self.connections is not None:
            self.connections.cut()

    def give_up(self, why: str) -> None:
        """This member takes part in nothing here any more: what others wait for from it fails at once."""
        for communicator in self.communicators:
            communicator.fail(why)
        self.cut()

    def close_communicators(self, *, abort: bool) -> list[Exception]:
        """Close those that are not closed yet; what they raised. One that raised is asked again the next time."""
        errors: list[Exception] = []
        for communicator in self._unclosed():
            try:
                communicator.close(abort=abort)
            except Exception as error:
                errors.append(error)
            else:
                self._closed.append(communicator)
        return errors

    def end_groups(self, end: Callable[[dist.ProcessGroup], object]) -> tuple[int, list[Exception]]:
        """End the process groups that have not ended yet; how many did now, made or not, and what was raised."""
        errors: list[Exception] = []
        ended = int(self.late is not None and self.late.end())
        self.late = None
        for group in self._distinct():
            try:
                end(group)
            except Exception as error:
                errors.append(error)
            # It is nobody's from now on even so: its connections are cut, and there is no second way to end it.
            ended += self._drop(group)
        if not self._distinct():
            self.witness = None  # it holds the store
        return ended, errors

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be closed."""
        return self.late is None and not self._distinct() and not self._unclosed()

    def keep_while_captured(self) -> None:
        """NCCL waits for graphs that captured its groups, also in an abort: the groups live as long as the graphs."""
        for graph in self._alive():
            weakref.finalize(graph, _let_go, self._device_group, self.communicators).atexit = False

    def refusal(self) -> str:
        """Why these cannot be used any more."""
        if self.process != this_process.id:
            return (
                f"its manager belongs to process {self.process}, of which this one was forked; make a manager of its "
                "own here"
            )
        return "its manager is suspended: resume() comes first" if self.suspended else "its manager was closed"

    def held(self) -> Iterator[object]:
        """What a forked child must leave alone."""
        yield from (self._device_group, self._cpu_group, *self.communicators)

    def forked(self) -> None:
        """This is a child: these are of no use here."""
        self.closed = True

    def has_met(self, peer: int) -> bool:
        """Whether gloo has a connection to the member at a position for sure."""
        if self._cpu_group is None:
            self._open()
        return self.contacts is None or peer in self.contacts.met

    def post(self, peer: int, begin: Callable[[], Work]) -> Work:
        """Begin a message of gloo's to or from the member at a position, without waiting, also if they never met."""
        return begin() if self.contacts is None else self.contacts.post(peer, begin)

    def begun(self) -> None:
        """A collective of gloo's is under way."""
        with self._counting:
            self._collectives += 1
            self._last_begun = time.monotonic()

    def ended(self) -> None:
        """A collective of gloo's is over."""
        with self._counting:
            self._collectives -= 1

    def look(self) -> None:
        """End gloo's connections if a member has ended with whom there may be none that would have told."""
        if self.contacts is not None and self.contacts.gone():
            self.cut()

    def start_gather(self, number: torch.Tensor) -> Callable[[], list[int]]:
        """Begin to gather one number of each member, over the device group; call the result to wait for it."""
        numbers = [torch.empty_like(number) for _ in self.ranks]
        work = _c10d.all_gather(numbers, number, group=self.device_group, async_op=True)

        def finish() -> list[int]:
            work.wait()
            return [int(one) for one in numbers]

        return finish

    def wait_for_message(self, work: Any, timeout: timedelta) -> bool:
        """Wait for a message, once; whether it arrived. Ctrl-C ends the wait, and gloo's connections."""
        if isinstance(work, Letter):
            return work.wait(timeout)
        if self.interrupts is None or self.connections is None:
            return work.wait(timeout)
        return self.interrupts.wait(work, timeout, self.cut)

    def set_timeout(self, timeout: timedelta) -> None:
        """How long operations wait from now on."""
        self.timeout = timeout
        for group in self._distinct():
            torch_private.set_timeout(group, timeout)

    def _alive(self) -> Iterator[Any]:
        for known in self.graphs:
            graph = known()
            if graph is not None and holds_capture(graph):
                yield graph

    def _unclosed(self) -> list[Communicator]:
        return [one for one in self.communicators if not any(one is other for other in self._closed)]

    def _drop(self, group: dist.ProcessGroup) -> bool:
        """Whether it still was there: another thread may have been faster."""
        was_there = self._device_group is group or self._cpu_group is group
        if self._device_group is group:
            self._device_group = None
        if self._cpu_group is group:
            self._cpu_group = None
        return was_there

    def _distinct(self) -> list[dist.ProcessGroup]:
        """The process groups that were made, each once: with gloo, device and CPU group are the same object."""
        groups = {id(group): group for group in (self._device_group, self._cpu_group) if group is not None}
        return list(groups.values())


def _let_go(*_: object) -> None:
    """What a graph's end leads to: it drops the last references."""
