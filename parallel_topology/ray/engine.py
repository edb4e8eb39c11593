"""RayActors, in the order of their ranks, and RayEngine: one engine on them, as the driver sees it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from parallel_topology.errors import ClosedError, DeadRankError, GroupArgumentError, RanksFailedError, TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.meeting.deadline import seconds_of
from parallel_topology.meeting.options import DEFAULT_TIMEOUT, require_name
from parallel_topology.meeting.rendezvous import host_store
from parallel_topology.ray.calls import (
    GRACE,
    Answers,
    collect,
    failure_of,
    gather,
    own_worker,
    require_ray,
    restarted,
)
from parallel_topology.ray.places import Place, hosts_of, rank_order
from parallel_topology.ray.ticket import Ticket
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import quoted

_log = logging.getLogger("parallel_topology.ray")


@dataclass(frozen=True)
class RayActors:
    """Actors in the order in which they get ranks, node by node. A part of them, `actors[:4]`, keeps the order.

    Attributes:
        handles: Ray's handles.
        places: where each actor runs.
    """

    handles: tuple[Any, ...]
    places: tuple[Place, ...]

    @classmethod
    def find(cls, handles: Sequence[Any], *, first_node: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Ask actors of any class where they run, and put them into the order of `rank_order`.

        Args:
            first_node: the id of the node that gets the first ranks; the driver's is
                `ray.get_runtime_context().get_node_id()`.
            timeout: seconds for all actors to start and answer.

        While no answer comes, the logger `parallel_topology.ray` warns how many have.

        Raises:
            MissingExtraError: Ray is not installed.
            GroupArgumentError: something is no actor's handle, or an actor is there twice.
            TopologyError: none of the actors is on `first_node`.
            RanksFailedError: actors died, or did not answer in time; `ranks` are their places in `handles`.
        """
        timeout = seconds_of("timeout", timeout)
        if not isinstance(handles, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(
                f"handles={quoted(handles)}: expected a list of them, as Worker.remote() returns each"
            )
        for index, handle in enumerate(handles):
            if not hasattr(getattr(handle, "__ray_call__", None), "remote"):  # actor classes have one without it
                raise GroupArgumentError(f"{handle!r} is no actor: expected handles, such as Worker.remote() returns")
            if handle in handles[:index]:
                raise GroupArgumentError(f"actor {index} is {handle!r}, which is there before; expected each once")
        require_ray()
        labels = {index: f"actor {index} of those given, {handle!r}" for index, handle in enumerate(handles)}
        answers = {index: handle.__ray_call__.remote(_own_place) for index, handle in enumerate(handles)}

        def tell(answered: int) -> None:
            _log.warning("%d of %d actors answered; %s", answered, len(handles), _resources())

        places = gather(answers, labels, "asking actors where they run", timeout, tell)
        order = rank_order(places, first_node=first_node)
        return cls(tuple(handles[index] for index in order), tuple(places[index] for index in order))

    @property
    def hosts(self) -> Hosts:
        """The nodes as hosts, the actors numbered from 0: what `topology.reordered_for` and `orders_inside` take."""
        return hosts_of(self.places, range(len(self)))

    def __len__(self) -> int:
        return len(self.handles)

    def __getitem__(self, part: slice) -> Self:
        """Some of them, in the same order.

        Raises:
            GroupArgumentError: `part` is no slice.
        """
        if not isinstance(part, slice):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(
                f"actors[{quoted(part)}]: expected a part, as in actors[:4]; the handle of one is in actors.handles"
            )
        return type(self)(self.handles[part], self.places[part])


class RayEngine:
    """One engine on Ray actors: each gets a ticket, makes its `GroupManager` of it, and is called through here.

    The lowest rank is the first actor's, and so on. The ranks meet in a small process of the engine's own on the first
    actor's node, at a port that the system chooses. It is not one of the actors, so that whoever dies is named to the
    others; it ends with `close()`, or when the driver's last reference to the engine goes.

    Any number of engines may be on the same actors, or on parts of them.

    Args:
        actors: as many as the topology has ranks.
        name: of the engine, shown in errors.
        timeout: seconds for which the ranks wait for each other, when they join and in every operation.

    Attributes:
        topology: as given.
        actors: the handles, in the order of `topology.world`.
        tickets: each actor's, in the same order.
        hosts: the nodes as hosts of the topology's ranks.

    Raises:
        TopologyError: there are more or fewer actors than ranks.
        GroupArgumentError: these are no `RayActors`, or `name` or `timeout` is none.
        RanksFailedError: the process in which the ranks meet could not be started.
    """

    def __init__(
        self, actors: RayActors, topology: ParallelTopology, *, name: str = "engine", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        timeout = seconds_of("timeout", timeout)
        name = require_name(name)
        topology = require_kind(topology, ParallelTopology, "topology")
        if not isinstance(actors, RayActors):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(f"actors={quoted(actors)}: expected RayActors, as RayActors.find(handles) makes")
        if len(actors) != topology.world_size:
            raise TopologyError(
                f"{name}: {topology} has {topology.world_size} ranks, but there are {len(actors)} actors; "
                "give one for each rank, as in RayEngine(actors[:4], ...)"
            )
        ranks = sorted(topology.world)
        self.topology = topology
        self.name = name
        self.timeout = timeout
        self.hosts = hosts_of(actors.places, ranks)
        self.actors = tuple(actors.handles[ranks.index(rank)] for rank in topology.world)
        places = [actors.places[ranks.index(rank)] for rank in topology.world]
        self._labels = {rank: f"rank {rank} of {topology} {topology.coordinate(rank)}" for rank in topology.world}
        self._store, meeting = _meeting(name, actors.places[0].node, timeout) if len(actors) > 1 else (None, None)
        token = secrets.token_hex(16)
        self.tickets = tuple(
            Ticket(topology, rank, self.hosts.local_rank_of(rank), name, meeting, timeout, token, place.worker)
            for rank, place in zip(topology.world, places, strict=True)
        )
        self._closed = False
        self._unsettled: RanksFailedError | None = None
        self._waiting: dict[int, Any] = {}  # who may still be in the call that failed

    def admit(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> list[Any]:
        """Call `method(ticket, *args, **kwargs)` on every actor, each with its own ticket; else like `call`."""
        methods, timeout = self._called(method, timeout)
        calls = zip(methods, self.tickets, strict=True)
        refs = [called.remote(ticket, *args, **kwargs) for called, ticket in calls]
        return self.gather(refs, timeout=timeout, doing=method)

    def call(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> list[Any]:
        """Call `method(*args, **kwargs)` on every actor, and wait for all.

        An actor that dies does not keep this waiting, though others may be waiting for it.

        Args:
            timeout: seconds; without it a little more than the engine's, so that ranks that wait for each other in
                vain get to say so themselves.

        Returns:
            The results, in the order of `topology.world`.

        Raises:
            RanksFailedError: some died, were restarted, raised an error, or did not answer in time; the deaths come
                first. Also, before anybody is called: an earlier call failed, and was not settled.
            GroupArgumentError: the actors have no such method; nobody was called.
            ClosedError: the engine was closed.
        """
        methods, timeout = self._called(method, timeout)
        refs = [called.remote(*args, **kwargs) for called in methods]
        return self.gather(refs, timeout=timeout, doing=method)

    def gather(self, refs: Sequence[Any], *, timeout: float | None = None, doing: str = "gather") -> list[Any]:
        """Wait for references of your own, one a rank in the order of `topology.world`; else like `call`.

        Args:
            doing: what errors say was done.

        Raises:
            GroupArgumentError: these are not as many references as ranks, each another one.
        """
        timeout = self._patience(timeout)
        self._require_references(refs, doing)
        answers = collect(dict(zip(self.topology.world, refs, strict=True)), timeout)
        if not answers.failures and not answers.waiting:
            return [answers.results[rank] for rank in self.topology.world]
        lost = self._lost(answers.failures)
        for rank, error in lost.items():
            error.__cause__ = answers.failures[rank]
        answers.failures.update(lost)
        failure = failure_of(answers, self._labels, f"{doing} on {self.name}", timeout)
        if answers.waiting or any(isinstance(error, DeadRankError) for error in failure.exceptions):
            self._unsettled, self._waiting = failure, answers.waiting
        raise failure

    def settle(self, *, timeout: float | None = None) -> None:
        """After a failed call, wait until no rank is in it any more; then the engine takes calls again.

        A call in which all ranks answered is settled already. What the ranks' groups are good for after it, their
        managers know: a group in which a collective failed raises in the next one, too.

        Args:
            timeout: seconds; without it a little more than the engine's, at which ranks that wait in vain give up.

        Raises:
            RanksFailedError: ranks are still in the call; or they have died, or were restarted, and an engine does not
                replace them.
            ClosedError: the engine was closed.
        """
        self._require_open("settle")
        timeout = self._patience(timeout)
        deadline = time.monotonic() + timeout
        while self._waiting and time.monotonic() < deadline:  # what they answer is the failure's, and was told
            self._waiting = collect(self._waiting, deadline - time.monotonic()).waiting
        lost = {} if self._waiting else self._lost(self.topology.world)
        if lost or self._waiting:
            answers = Answers({}, lost, self._waiting)
            raise failure_of(answers, self._labels, f"settle on {self.name}", timeout)
        self._unsettled = None

    def close(self) -> None:
        """End the process in which the ranks met. The actors stay as they are: close their managers before this."""
        self._closed = True
        if self._store is not None:
            require_ray().kill(self._store)
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patience(self, timeout: float | None) -> float:
        """Seconds; without any a little more than the engine's."""
        return seconds_of("timeout", self.timeout + 2 * GRACE if timeout is None else timeout)

    def _called(self, method: str, timeout: float | None) -> tuple[list[Any], float]:
        """The actors' methods of that name, and how long their answers are waited for, before any is called."""
        if not isinstance(method, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(f"method={quoted(method)} on {self.name}: expected the name of a method")
        self._require_settled(method)
        seconds = self._patience(timeout)
        methods = [getattr(actor, method, None) for actor in self.actors]
        for actor, called in zip(self.actors, methods, strict=True):
            if not hasattr(called, "remote"):
                raise GroupArgumentError(f"{method!r} on {self.name}: {actor!r} has no such method")
        return methods, seconds

    def _require_references(self, refs: Sequence[Any], doing: str) -> None:
        if not isinstance(refs, Sequence) or len(refs) != len(self.actors):  # pyright: ignore[reportUnnecessaryIsInstance]
            given = len(refs) if isinstance(refs, Sequence) else f"{quoted(refs)} as"  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(
                f"{doing} on {self.name}: {given} references for {len(self.actors)} ranks; expected one for each"
            )
        kind = require_ray().ObjectRef
        if wrong := [ref for ref in refs if not isinstance(ref, kind)]:
            raise GroupArgumentError(
                f"{doing} on {self.name}: {quoted(wrong[0])} is no reference, as .remote() returns"
            )
        if len(set(refs)) != len(refs):
            raise GroupArgumentError(f"{doing} on {self.name}: one reference stands for several ranks")

    def _require_open(self, doing: str) -> None:
        if self._closed:
            raise ClosedError(f"{doing} on {self.name}: the engine is closed; make a new RayEngine")

    def _require_settled(self, doing: str) -> None:
        self._require_open(doing)
        if (before := self._unsettled) is not None:
            error = RanksFailedError(
                f"{doing} on {self.name} was not begun, as an earlier call failed and ranks may still be in it: call "
                f"settle() first ({before.message})",
                before.exceptions,
            )
            error.ranks = before.ranks
            raise error

    def _lost(self, ranks: Iterable[int]) -> dict[int, Exception]:
        """Of these, which must answer now, those whose actors died, or are other processes than they were."""
        tickets = dict(zip(self.topology.world, self.tickets, strict=True))
        handles = dict(zip(self.topology.world, self.actors, strict=True))
        answers = collect({rank: handles[rank].__ray_call__.remote(own_worker) for rank in ranks}, GRACE)
        lost: dict[int, Exception] = {
            rank: error for rank, error in answers.failures.items() if isinstance(error, DeadRankError)
        }
        for rank, worker in answers.results.items():
            if tickets[rank].worker not in ("", worker):
                lost[rank] = DeadRankError(restarted(tickets[rank].worker, worker))
        return lost

    def __repr__(self) -> str:
        return f"<RayEngine {self.name} of {self.topology} on {self.hosts}>"


class StoreHost:
    """Runs an engine's store, in a process of its own on the node of its first rank."""

    def __init__(self, timeout: float) -> None:
        self.store = host_store(require_ray().util.get_node_ip_address(), 0, timeout)

    def meeting(self) -> tuple[str, int]:
        """Host and port."""
        return self.store.host, self.store.port


def _meeting(name: str, node: str, timeout: float) -> tuple[Any, tuple[str, int]]:
    """A store on `node`: the actor that runs it, and where it is met."""
    ray = require_ray()
    strategies: Any = import_module("ray.util.scheduling_strategies")
    there = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=there)(StoreHost).remote(timeout)
    called = {0: "the store's process"}
    [meeting] = gather({0: actor.meeting.remote()}, called, f"starting the store of {name}", timeout)
    return actor, meeting


def _resources() -> str:
    """Why actors may not start: Ray waits with those for which no node has free what they ask for."""
    ray = require_ray()
    there, free = ray.cluster_resources(), ray.available_resources()
    shown = [f"{free.get(kind, 0):g} of {there[kind]:g} {kind}" for kind in ("CPU", "GPU") if kind in there]
    return f"Ray starts an actor where what it asks for is free, and has {' and '.join(shown) or 'nothing'} free"


def _own_place(_: object) -> Place:
    """Runs in an actor."""
    context = require_ray().get_runtime_context()
    devices = [device for ids in context.get_accelerator_ids().values() for device in ids]
    address = require_ray().util.get_node_ip_address()
    return Place(context.get_node_id(), address, tuple(devices), context.get_worker_id())
