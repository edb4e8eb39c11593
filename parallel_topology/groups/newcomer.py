"""Newcomer: a process that joins a manager with nothing but its name and a store; the others tell it the rest."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch.distributed as dist

from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.errors import (
    CreationError,
    GroupArgumentError,
    GroupTimeoutError,
    ParallelTopologyError,
    RendezvousError,
)
from parallel_topology.meeting.control import Control, Patience, delete, read
from parallel_topology.meeting.deadline import LAST, Deadline, Overtaken
from parallel_topology.meeting.lobby import LAST_WORDS, Call, Lobby, agreed, answer
from parallel_topology.meeting.operations import (
    Operations,
    committed_key,
    key_of,
    meeting_place,
    say_ready,
    withdraw_if_over,
)
from parallel_topology.meeting.options import Options
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.torch_errors import STORE_ERRORS

T = TypeVar("T")
LOOK = 0.1
"""Seconds between looks whether what is being built is still wanted."""
_ITS_OWN = {"name", "timeout", "token", "device", "local_rank", "communicators"}
"""Options that concern one process, or its way in; all others it takes from those that are there."""


def told_of(options: Options, backend: str) -> dict[str, Any]:
    """What a newcomer is told of a manager's options, as JSON has it."""
    told: dict[str, Any] = {
        "groups": [list(axes) for axes in options.groups],
        "isolated": {name: list(axes) for name, axes in options.isolated.items()},
        "backend": backend,
        "per_group": {axis: given.model_dump(exclude_defaults=True) for axis, given in options.per_group.items()},
        "timeout": options.seconds,
        "operation_timeout": options.operations_wait(""),
        "verify": options.verify,
        "check_calls": options.check_calls,
    }
    return told


@dataclass(frozen=True)
class Offer:
    """What a newcomer was given.

    Attributes:
        topology, rank, newcomers, options: of the manager that it is to build.
        connects: whether its groups are to connect at once.
        at: where its ranks meet.
        deadline: by which all have to have built.
    """

    topology: ParallelTopology
    rank: int
    newcomers: tuple[int, ...]
    options: Options
    connects: bool
    at: str
    deadline: Deadline


class Newcomer:
    """One that wants a place; it may wait for one several times, if what it was called to came to nothing."""

    def __init__(self, control: Control, own: Options) -> None:
        """`own`: what this process was told.

        Raises:
            GroupArgumentError: something of it is not its own affair.
        """
        plain = Options()
        theirs = [one.name for one in fields(own) if getattr(own, one.name) != getattr(plain, one.name)]
        if theirs := [name for name in theirs if name not in _ITS_OWN]:
            raise GroupArgumentError(
                f"joining=True takes {', '.join(theirs).replace('per_group', 'options')} from those that are there: "
                f"give {', '.join(sorted(_ITS_OWN))} only, where they are needed"
            )
        self._control = control
        self._own = own
        self._lobby = Lobby(own.name, own.token)
        self._deadline = Deadline(own.seconds)
        self._who = ""
        self._called: list[str] = []
        self._call: Call | None = None
        self._refused = False

    def wait(self) -> Offer:
        """Wait for a place until the deadline.

        Raises:
            GroupTimeoutError: nobody called to one in time.
            RendezvousError: the store is gone, or does not answer, or a stranger called.
            TopologyError, GroupArgumentError: what it was told makes no topology, or no options.
        """
        try:
            call, newcomers = self._ask(self._wait, self._deadline)
        except Exception:
            raise
        except BaseException:  # Ctrl-C: nobody is to call this one
            with suppress(Overtaken, *STORE_ERRORS):
                self._control.ask(self._withdraw, Deadline(LAST_WORDS))
            raise
        self._call, self._refused = call, False
        topology = ParallelTopology.parse(call.topology)
        options, connects = self._options(call.told), call.told["connects"] is True
        at = meeting_place(call.keys, call.number)
        return Offer(topology, call.place, newcomers, options, connects, at, Deadline(call.seconds))

    def build(self, place: Offer, build: Callable[[Offer], object]) -> BaseException | None:
        """Build, and give that up as soon as what it is for has come to nothing; what was raised."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(place, over), name="parallel_topology newcomer", daemon=True)
        watch.start()
        try:
            build(place)
        except BaseException as error:  # the others are told
            return error
        finally:
            over.set()
            watch.join(LAST)
        return None

    def may_try_again(self, failure: BaseException | None) -> bool:
        """Whether another place may be had after this one came to nothing."""
        if failure is None or isinstance(failure, (GroupTimeoutError, CreationError)):
            return True
        return self._refused and isinstance(failure, ParallelTopologyError)

    def built(self, failure: BaseException | None) -> bool:
        """Say that this rank has built what it needs, or why not; whether it was committed. Then it is in."""
        call = self._call
        if call is None:
            return False
        why = f"{type(failure).__name__}: {failure}" if failure is not None else ""

        def ask(store: dist.Store) -> bool:
            say_ready(store, call.keys, call.number, call.place, why)
            return not why and self._is_committed(store, call)

        try:
            return self._ask(ask, Deadline(max(self._deadline.left(), call.seconds) + 4 * LAST_WORDS))
        except RendezvousError:
            if failure is None:
                raise
            return False

    def _wait(self, store: dist.Store) -> tuple[Call, tuple[int, ...]]:
        try:
            while True:
                self._who = secrets.token_hex(8)
                call = self._lobby.wait(store, self._deadline, self._who)
                self._called.append(self._who)
                if not answer(store, call, self._who):
                    continue
                newcomers = agreed(store, call, self._who, Deadline(call.seconds + LAST_WORDS))
                if newcomers is not None:
                    return call, tuple(sorted(newcomers))
        finally:  # it is decided, or this one waits no more, and nobody calls to these
            self._forget(store)

    def _forget(self, store: dist.Store) -> None:
        called, self._called = self._called, []
        for who in called:
            self._lobby.forget(store, who)

    def _withdraw(self, store: dist.Store) -> None:
        self._lobby.withdraw(store, self._who)
        self._forget(store)

    def _watch(self, place: Offer, over: threading.Event) -> None:
        while not over.wait(LOOK) and not self._refused:
            with suppress(Overtaken, *STORE_ERRORS):
                self._refused = self._control.ask(self._is_refused, Deadline(place.deadline.left()))
        if self._refused:
            place.deadline.expire()

    def _is_refused(self, store: dist.Store) -> bool:
        call = self._call
        return call is not None and Operations(call.keys).is_over(store, call.number)

    def _is_committed(self, store: dist.Store, call: Call) -> bool:
        """Wait for it; where this one's time is up first, it is called off, unless it is committed.

        The manager before, and its keys, may be gone as soon as it is committed: that is told under a key of its own.
        """
        built, committed = Deadline(call.seconds + 2 * LAST_WORDS), committed_key(self._who)
        steps, looks = [key_of(call.keys, call.number, step) for step in ("built", "outcome")], Patience(1)
        told: Deadline | None = None
        while read(store, committed) is None and (told is None or not told.passed()):
            said = [json.loads(found) for key in steps if (found := read(store, key)) is not None]
            if any(one["why"] for one in said) or (not said and built.passed()):
                return False
            if read(store, key_of(call.keys, call.number, "asked")) is None and read(store, committed) is None:
                return False  # long ago: its keys were taken away, which is after all have been told
            if told is None and len(said) == len(steps):
                told = Deadline(LAST_WORDS)  # who committed it is about to say so, unless it has died
            if told is None and self._deadline.passed():
                no = json.dumps({"why": f"rank {call.place}: its time is up", "kind": "", "until": 0})
                found = store.compare_set(steps[1], "", no).decode(errors="replace")
                withdraw_if_over(store, call.keys, call.number, "outcome")
                if found == no:
                    return False
            looks.pause(Deadline(1))
        delete(store, committed)
        return True

    def _options(self, told: Mapping[str, Any]) -> Options:
        given = {name: told[name] for name in ("backend", "timeout", "operation_timeout", "verify", "check_calls")}
        groups = tuple(tuple(axes) for axes in told["groups"])
        isolated = {name: tuple(axes) for name, axes in told["isolated"].items()}
        per_group = GroupOptions.by_axis(told["per_group"], "options of those that are there")
        return replace(self._own, groups=groups, isolated=isolated, per_group=per_group, **given)

    def _ask(self, act: Callable[[dist.Store], T], deadline: Deadline) -> T:
        return self._control.answer(act, deadline, grace=LAST_WORDS, name=self._own.name)


def enter(
    store: dist.Store, options: Options, build: Callable[[Offer], object], give_up: Callable[[], object]
) -> tuple[int, ...]:
    """Wait for a place, and build what belongs there, until that is committed; the newcomers of it.

    Args:
        give_up: ends what was built, as the others failed or called it off: this one waits again.

    Raises:
        GroupTimeoutError: nobody called to a place in time.
        ParallelTopologyError: what building raises; what of `Newcomer.wait`.
    """
    control = Control(store)
    try:
        newcomer = Newcomer(control, options)
        while True:
            place = newcomer.wait()
            failure = newcomer.build(place, build)
            if newcomer.built(failure):
                return place.newcomers
            if failure is not None and not newcomer.may_try_again(failure):
                raise failure
            give_up()
    finally:
        control.close()
