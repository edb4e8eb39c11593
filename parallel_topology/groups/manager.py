"""GroupManager: one engine's topology bound to real process groups, for one rank."""

from __future__ import annotations

import atexit
import logging
import os
import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, Self

import torch
import torch.distributed as dist

from parallel_topology import torch_private
from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.membership import Factory
from parallel_topology.errors import (
    BackendError,
    ClosedError,
    ClosingError,
    GroupArgumentError,
    LiveGraphError,
    NotPicklableError,
    RankError,
    RebindError,
    RendezvousError,
    TopologyError,
)
from parallel_topology.groups.capture import remembered
from parallel_topology.groups.declared import DeclaredView
from parallel_topology.groups.elastic import Change, Predecessor, former_of
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.holdings import Holdings, Place, pause
from parallel_topology.groups.joining import bind, plain_torch
from parallel_topology.groups.life import Life
from parallel_topology.groups.newcomer import Offer, enter
from parallel_topology.groups.standby import Standby, end_later
from parallel_topology.launch import LaunchInfo
from parallel_topology.meeting.creation import (
    BACKENDS,
    Creator,
    Former,
    Released,
    WorldCreator,
    choose_backend,
    choose_device,
)
from parallel_topology.meeting.deadline import Deadline, seconds_of
from parallel_topology.meeting.options import (
    DEFAULT_TIMEOUT,
    Options,
    caller,
    end_at_exit,
    find_local_rank,
    require_flag,
)
from parallel_topology.meeting.rendezvous import At, launched_store
from parallel_topology.meeting.token import token_from
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.topology import ParallelTopology

_log = logging.getLogger("parallel_topology")


class GroupManager(DeclaredView[ParallelGroup]):
    """A `RankView` whose groups can communicate: `groups.tp.all_reduce(x)`. One per engine instance.

    It reads no global state and leaves none behind: any number of managers live side by side in a process, of the
    same or of different topologies. Creating one is collective: every rank of the topology does it, with equal
    arguments, and the ranks compare these before any group is created.

    >>> with GroupManager(ParallelTopology(tp=1), rank=0) as groups:  # a world of one needs no store
    ...     groups.tp.size
    1

    Args:
        topology: which ranks there are and how they are divided.
        rank: this process's global rank.
        store: where the ranks meet, or what opens it, given the deadline. It stays the caller's: managers use clients
            of their own. A world of one rank needs none.
        groups: combinations of axes to create groups for besides the single axes, as in `[("tp", "pp")]`.
        isolated: name -> axes of groups that must not share a communicator with others of the same ranks, as in
            `{"eplb": ("ep",)}`: what runs beside another stream of collectives needs one of its own.
        backend: `"nccl"` or `"gloo"`; without it NCCL where CUDA is available, else gloo.
        device: where tensors are; without it `cuda:local_rank` for NCCL, else the CPU.
        local_rank: among the ranks of this topology on this host; without it the ranks find out.
        name: shown in errors and by torch's profiler, as in `actor/tp[1]`; the ranks of one manager share it.
        timeout: seconds, or a `timedelta`, for all of creation, whatever it waits for, and for every operation.
        operation_timeout: for every operation, if not `timeout`; `set_timeout` changes it later.
        token: a secret that all ranks hold; a rank without it is refused. See docs/reliability.md for what it protects.
        verify: check members and their order with a small all-gather on each group, all at once: one round trip more.
        options: axis, or other group's name -> `GroupOptions`, or their fields.
        communicators: name -> factory of communicators that `options` name, besides those of installed packages.
        check_calls: compare the calls of all members before each is made, for a small exchange more: to find out which
            rank calls something else.
        joining: take a place in a manager that others have: wait, up to `timeout` seconds, until they `rebind` to a
            topology with a rank that none of them has. Name and store are all it needs; topology, rank and what else is
            to be equal come from the others.

    Attributes:
        newcomers: the ranks that came in when this manager followed on another; they have nothing of what it held.

    Raises:
        RankError: `rank` is not in the topology.
        UnknownAxisError: a combination names an axis that is not there.
        BackendError: the backend or device cannot be used here.
        RendezvousError: no store, or it failed.
        DisagreementError: the ranks' arguments differ; raised on every rank.
        GroupTimeoutError: ranks did not come in time.
        CreationError: a process group could not be created.
    """

    world: ParallelGroup  # pyright: ignore[reportIncompatibleVariableOverride] (it is set once and never replaced)
    _held: Holdings | None

    def __init__(
        self,
        topology: ParallelTopology | None = None,
        *,
        rank: int | None = None,
        store: Place = None,
        groups: Iterable[tuple[str, ...]] = (),
        isolated: Mapping[str, tuple[str, ...]] | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        local_rank: int | None = None,
        name: str = "engine",
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        operation_timeout: float | timedelta | None = None,
        token: str | None = None,
        verify: bool = True,
        options: Mapping[str, GroupOptions | Mapping[str, Any]] | None = None,
        communicators: Mapping[str, Factory] | None = None,
        check_calls: bool = False,
        joining: bool = False,
    ) -> None:
        told = Options(
            groups, {} if isolated is None else isolated, backend, device, local_rank, name, timeout,
            operation_timeout, token, verify, GroupOptions.by_axis({} if options is None else options),
            {} if communicators is None else communicators, check_calls,
        )  # fmt: skip
        if require_flag("joining", joining):
            self._enter(topology, rank, store, told)
        else:
            self._build(topology, rank, store, told, Creator)

    def _enter(self, topology: object, rank: object, store: Place, options: Options) -> None:
        """Wait for a place in a manager that others have, and take it."""
        self._held = None
        if topology is not None or rank is not None:
            raise GroupArgumentError("joining=True takes topology and rank from those that are there: give neither")
        if store is None:
            raise RendezvousError("joining=True needs the place where the others are: give store=, or use connect")
        opened = store if isinstance(store, dist.Store) else store(Deadline(options.seconds))

        def take(place: Offer) -> None:
            self._build(
                place.topology, place.rank, opened, place.options, Creator, place.deadline, connects=place.connects,
                at=place.at,
            )  # fmt: skip

        def give_up() -> None:
            self.abort()
            self.__dict__.clear()

        self.newcomers = enter(opened, options, take, give_up)

    @plain_torch()
    def _build(
        self,
        topology: ParallelTopology | None,
        rank: int | None,
        store: Place,
        options: Options,
        creator: type[Creator],
        deadline: Deadline | None = None,
        *,
        connects: bool = False,
        former: Former | None = None,
        at: str = "",
    ) -> None:
        begun = time.perf_counter()
        self._held: Holdings | None = None
        topology = require_kind(topology, ParallelTopology, "topology")
        if rank is None:
            raise RankError(f"rank=None: expected one of {topology.world}; joining=True gets one from the others")
        deadline = deadline or Deadline(options.seconds)
        position = topology.position(rank)
        self.plan = topology.plan(groups=options.groups, isolated=options.isolated, separate=options.per_group)
        self.topology = topology
        self.rank = rank
        self.name = options.name
        self.backend = choose_backend(options.backend)
        self.newcomers: tuple[int, ...] = ()
        self._standby: Standby[Self] | None = None
        device = choose_device(options.device, self.backend, 0)
        self._held = held = Holdings(self.plan, rank, options, self.backend, store)
        self._groups, self._absent = held.groups, held.absent
        if connects:
            pause(deadline)
        joined = held.join(creator, device.type, deadline, at) if topology.world_size > 1 else None
        if connects:
            pause(deadline)
        agreed = joined.agreed if joined else None
        agreed_in = time.perf_counter() - begun
        self.local_rank = find_local_rank(options, agreed, position)
        self.device = choose_device(options.device, self.backend, self.local_rank)
        self._made_at = caller()
        self._at_exit = end_at_exit(self)
        held.life = Life()
        try:
            if joined is None:
                self._bind(self.name)
            else:
                held.create(joined, creator, self.device, self._bind, deadline, connects=connects, former=former)
            if held.witness is not None:
                held.witness.among = self._among
        except BaseException:
            deadline.expire()  # what was overtaken gives up as soon as it can
            self.abort()
            raise
        self.__dict__.update(self._groups)  # plain attributes: `groups.tp` is read in every forward
        _log.info(
            "%s: rank %d of %s, %s on %s: %d groups; agreed in %.3f s, created in %.3f s",
            self.name, rank, topology, self.backend, self.device, self.plan.created_per_rank, agreed_in,
            time.perf_counter() - begun - agreed_in,
        )  # fmt: skip

    def _bind(self, prefix: str) -> None:
        for family in self.plan.families.values():
            self._groups[family.name] = bind(
                family, self.plan, self.rank, self._groups, self.device, prefix, self._holdings.creator
            )

    def _set_timeouts(self, seconds: float) -> None:
        for group in self._groups.values():
            group.links.set_timeout(timedelta(seconds=seconds))

    @classmethod
    def connect(
        cls, url: str, topology: ParallelTopology | None = None, *, rank: int | None = None, **options: Any
    ) -> Self:
        """Meet at `tcp://host:port`, where the topology's first rank runs the store, or at `file:///path`.

        Args:
            options: as for `GroupManager`.

        Raises:
            RendezvousError: the address cannot be read, hosted or reached.
        """
        joining = require_flag("joining", options.get("joining", False))
        is_host = (
            not joining
            and rank is not None
            and require_kind(topology, ParallelTopology, "topology").position(rank) == 0
        )
        return cls(topology, rank=rank, store=At(url, is_host), **options)

    @classmethod
    def from_env(
        cls, topology: ParallelTopology | None = None, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> Self:
        """Take rank and meeting place from the launcher's environment variables; docs/launchers.md lists launchers.

        Where the launcher names no place (MPI), MASTER_ADDR and MASTER_PORT do: the host of rank 0 and a free port.

        A token may stand in PARALLEL_TOPOLOGY_TOKEN, or in the file that PARALLEL_TOPOLOGY_TOKEN_FILE names.

        Args:
            env: instead of `os.environ`.
            options: as for `GroupManager`.

        Raises:
            LaunchError: there is no launcher, or its variables are incomplete or contradict each other.
            RankError: this process's rank is not in the topology, or the topology has ranks that were not started.
        """
        env = os.environ if env is None else env
        if require_flag("joining", options.get("joining", False)):
            info = LaunchInfo.from_env(env)
            options.setdefault("local_rank", info.local_rank)
            options.setdefault("token", token_from(env))
            return cls(topology, store=partial(launched_store, info, joining=True), **options)
        topology = require_kind(topology, ParallelTopology, "topology")
        info = LaunchInfo.from_env(env)
        needed = max(topology.world) + 1
        if info.rank not in topology.world or needed > info.world_size:
            many = f"start {needed} processes, or " if needed > info.world_size else ""
            few = "" if many else ", or build managers only on its own ranks"
            raise RankError(
                f"{info.launcher} started rank {info.rank} of {info.world_size}, but {topology} has {topology.world}; "
                f"{many}give the topology as many ranks as there are (an axis dp?){few}"
            )
        options.setdefault("local_rank", info.local_rank)
        options.setdefault("token", token_from(env))
        options["store"] = partial(launched_store, info)
        return cls(topology, rank=info.rank, **options)

    @classmethod
    def from_world(cls, topology: ParallelTopology, **options: Any) -> Self:
        """Make the groups out of the default group that `torch.distributed.init_process_group` made.

        They are created by their members only and known to torch's registry of groups, as functional collectives,
        DTensor and `torch.compile` need it. The default group stays the caller's.

        Args:
            options: as for `GroupManager`, without `store`; the backend is the default group's unless given.

        Raises:
            RendezvousError: there is no default group.
            BackendError: the default group was bound to a device: torch would then split each new group off it, in
                which all its ranks would have to take part.
        """
        if not dist.is_initialized():
            raise RendezvousError("from_world needs torch.distributed.init_process_group to have been called")
        if torch_private.default_group_splits():
            raise BackendError(
                "the default group was initialised with device_id=, so torch splits every new group off it, with "
                "all ranks taking part: initialise it without, or use GroupManager(topology, rank=..., store=...)"
            )
        default_backend = str(dist.get_backend())
        options.setdefault("backend", default_backend if default_backend in BACKENDS else None)
        options["per_group"] = GroupOptions.by_axis(options.pop("options", {}))
        manager = cls.__new__(cls)
        store = dist.PrefixStore("parallel_topology", torch_private.default_store())
        manager._build(topology, dist.get_rank(), store, Options(**options), WorldCreator)
        return manager

    def rebind(self, topology: ParallelTopology) -> Self:
        """A manager of another topology over the same store, with the same options: on all ranks, or on none.

        All ranks of this manager call it, and those of the new topology go on: the same ranks, or fewer, or more, whose
        places are taken by processes that wait with `joining=True`. It may be broken: ranks that have ended are not
        waited for, and who waits may have their places. The store decides, and for one successor at most. While the new
        groups are built the old ones still serve; then this manager is closed. If a rank refuses or fails, all keep it.

        Returns:
            The new manager. On a rank that is not in `topology`, this one, which is closed.

        Raises:
            ClosedError: this manager was closed.
            TopologyError: `topology` has ranks that cannot come here, or this rank cannot leave; says why.
            LiveGraphError: CUDA graphs that captured these groups are alive.
            DisagreementError: the ranks ask for different topologies; raised on every rank.
            RebindError: another rank may not, did not come, or could not build its groups, says which and why; or
                the others went on without this one.
            ParallelTopologyError: what building it raises.
        """
        standby = self._standby
        if standby is not None and standby.is_for(topology):
            try:
                return standby.commit()
            except RebindError:
                if not standby.is_replaced():
                    raise
            # All are to hear of who asks for another one; and who has closed its manager is not waited for again.
        change = self._change(topology, "rebind")
        change.agree()
        change.build()
        change.commit()
        return self._follow(change)

    def prepare(self, topology: ParallelTopology) -> Standby[Self]:
        """Build what `rebind` would return in the background, while this manager serves; all ranks call it.

        It returns at once; `commit()` of what it returns lets the new manager take this one's place. To prepare the
        same topology again is the same operation, unless that failed; another one replaces it.

        Raises:
            ClosedError: this manager was closed.
            TopologyError: this is no topology.
        """
        if self._standby is not None and self._standby.is_for(topology):
            return self._standby
        change = self._change(topology, "prepare", connects=True)
        meeting = self._holdings.meeting
        place = meeting.round[:8] if meeting is not None else str(self.rank)
        leaving = tuple(rank for rank in self.topology.world if rank not in topology.world)
        operation = f"{self.name}-{place}-{topology.fingerprint[:8]}"
        self._standby = Standby(change, operation, leaving, self._follow_later)
        return self._standby

    def _change(self, topology: ParallelTopology, what: str, *, connects: bool = False) -> Change[Self]:
        require_kind(topology, ParallelTopology, "topology")
        if self.closed:
            raise ClosedError(f"{what}: {self.name} was closed; build a new manager instead")
        after = None
        if self._standby is not None:
            self._standby.replace(f"rank {self.rank} asks for {topology} instead", self._holdings.options.seconds)
            after, self._standby = self._standby.wait_until_given_up, None
        deadline = Deadline(self._holdings.options.seconds)
        if list(topology.world) != [self.rank]:
            self._holdings.expect_others(deadline)
        predecessor = Predecessor(
            self._holdings, self._successor, lambda made: made._holdings.ended(list(made.topology.world), False),
            lambda made: made.abort(),
        )  # fmt: skip
        return Change(predecessor, topology, deadline, connects=connects, after=after)

    def _successor(self, topology: ParallelTopology, deadline: Deadline, connects: bool, at: str) -> Self:
        held = self._holdings
        creator = type(held.creator) if held.creator is not None else Creator
        successor = type(self).__new__(type(self))
        former = None if connects else former_of(held)  # what serves cannot be followed on meanwhile
        place = held.store if held.store is not None else held.place
        successor._build(
            topology, self.rank, place, held.options, creator, deadline, connects=connects, former=former, at=at
        )
        return successor

    def _among(self, ranks: Sequence[int]) -> Self:
        """A manager of some of the ranks, beside this one, with its options: for what goes on when others are gone."""
        manager, held = type(self).__new__(type(self)), self._holdings
        options = replace(held.options, groups=(), isolated={}, per_group={"world": held.options.of("world")})
        topology = ParallelTopology(dp=len(ranks), ranks=tuple(ranks))
        creator = type(held.creator) if held.creator is not None else Creator
        manager._build(topology, self.rank, held.store, options, creator)
        return manager

    def _follow_later(self, change: Change[Self], standby: Standby[Self]) -> Self:
        """As `_follow`, but this manager ends when no rank uses it any more."""
        self._standby = None
        life = self._holdings.life
        if life is None or not change.can_wait_for_all or not life.begin_to_end(overtaking=False):
            standby.all_over()
            return self._follow(change)
        self._holdings.refuse_calls()
        self._hand_over(change)
        end_later(change, standby, life, lambda: self._follow(change))
        return self if change.successor is None else change.successor

    def _hand_over(self, change: Change[Self]) -> None:
        successor = change.successor
        if successor is not None:
            mine, theirs = self._holdings, successor._holdings
            if mine.hosted is not None:
                theirs.hosted, mine.hosted = mine.hosted, None
            successor.newcomers = change.newcomers

    def _follow(self, change: Change[Self]) -> Self:
        """What this rank has from now on; this manager ends."""
        held = self._holdings
        broken = held.is_broken()
        if change.agreement is not None and held.meeting is not None:
            held.meeting.without(change.agreement.absent)
            broken |= bool(change.agreement.absent)
        self._hand_over(change)
        self._end(abort=broken or bool(held.live_graphs()), going_on=True)
        return self if change.successor is None else change.successor

    @property
    def _holdings(self) -> Holdings:
        if self._held is None:
            raise ClosedError("this manager was not made")
        return self._held

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more: after `close()` or `abort()`, and in a forked child."""
        held = self._held
        return held is None or held.life is None or not held.life.is_open

    def require(self, topology: ParallelTopology) -> None:
        """Check that this manager was built for `topology`.

        Raises:
            TopologyError: it was built for another one; names both.
        """
        require_kind(topology, ParallelTopology, "topology")
        if topology != self.topology:
            raise TopologyError(f"{self.name} was built for {self.topology}, but {topology} is required")

    def set_timeout(self, seconds: float | timedelta) -> None:
        """Let the operations of all groups wait this long from now on; every rank calls it, and a barrier comes first.

        Raises:
            GroupArgumentError: `seconds` is not above 0.
        """
        given = seconds_of("seconds", seconds)
        self._groups["world"].barrier()
        self._set_timeouts(given)

    def diagnose(self, timeout: float | timedelta = 5.0) -> list[int]:
        """The ranks of the topology that do not answer within `timeout` seconds; every rank that can calls this.

        It goes over the store, and so works when groups are broken. All that call it get the same answer.

        Raises:
            ClosedError: this manager was closed.
            RendezvousError: the store is gone, or does not answer.
        """
        here = set(self._present("diagnose", timeout))
        return [rank for rank in self.topology.world if rank not in here]

    def survivors(self, timeout: float | timedelta = 5.0) -> list[int]:
        """The ranks of the topology that are there and call this: the same list on every one of them.

        Each waits until all have answered, or `timeout` seconds; the first whose time is up decides for all, in the
        store. It works when groups are broken, and who did not call it misses nothing of the next time.

        Raises:
            ClosedError: this manager was closed.
            RendezvousError: the store is gone, or does not answer.
        """
        return self._present("survivors", timeout)

    def _present(self, what: str, timeout: float | timedelta) -> list[int]:
        seconds = seconds_of("timeout", timeout)
        if self.closed:
            raise ClosedError(f"{what}: {self.name} was closed")
        witness = self._holdings.witness
        if witness is None:
            return [self.rank]
        try:
            return witness.present(list(self.topology.world), seconds)
        except RendezvousError as error:
            raise RendezvousError(f"{self.name}: {error}") from error

    def suspend(self) -> None:
        """Give back the memory that communicators can have again, until `resume()`; every rank calls it.

        A barrier comes first; device work that uses these groups has to be over. NCCL through nccl4py does (2.29.7 and
        newer); gloo, shared memory and torch's own NCCL groups have nothing to give back.

        Raises:
            ClosedError: this manager was closed, or is suspended.
        """
        self._groups["world"].barrier()
        for links in self._holdings.links():
            for communicator in links.communicators:
                communicator.suspend()
            links.suspended = links.closed = True

    def resume(self) -> None:
        """Let the groups be used again after `suspend()`; every rank calls it. Otherwise nothing happens.

        Raises:
            ClosedError: this manager was closed.
        """
        if self.closed:
            raise ClosedError(f"resume: {self.name} was closed")
        for links in self._holdings.links():
            if links.suspended:
                for communicator in links.communicators:
                    communicator.resume()
                links.suspended = links.closed = False

    def describe(self) -> str:
        """This rank's groups, their members, backends and state, a line each."""
        width = max(map(len, self._groups))
        lines = [
            f"{name.ljust(width)}  {group.label}: rank {group.rank} of {group.ranks}"
            + (f", shared with {shares}" if (shares := self.plan.families[name].shares) and group.size > 1 else "")
            for name, group in self._groups.items()
        ]
        return "\n".join([f"{self!r} on {self.device}, local rank {self.local_rank}, made at {self._made_at}", *lines])

    @contextmanager
    def capture(
        self, prefer: str | None = None, stream: torch.cuda.Stream | None = None
    ) -> Generator[torch.cuda.Stream | None]:
        """As `ParallelGroup.capture`, of all groups at once and on one stream.

        Args:
            prefer: a communicator, asked first in those groups that have it.
            stream: to capture on; without it a new one.
        """
        if stream is None and self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)
        with remembered(self._groups.values()), ExitStack() as inside:
            for group in self._groups.values():
                has_it = prefer in [communicator.name for communicator in group.communicators]
                inside.enter_context(group.on_stream(prefer if has_it else None, stream))
            yield stream

    def close(self) -> list[str]:
        """Take down the groups, the last one made first.

        Local, idempotent, and safe after errors and when others are gone. What was given stays the caller's: a store,
        a default group. Connections end whoever still holds the process groups. In a forked child nothing happens.

        Returns:
            The labels of the process groups that have ended; none the second time.

        Raises:
            LiveGraphError: CUDA graphs that captured these groups are alive; the manager stays open.
            ClosingError: communicators failed to close. All else has ended; `close()` again asks these once more.
        """
        held = self._held
        life = held.life if held is not None else None
        if held is None or life is None or not life.is_ours or life.state == "closed":
            return []
        if graphs := held.live_graphs():
            raise LiveGraphError(
                f"close: CUDA graphs are alive that captured collectives: {graphs}; NCCL would wait for them for ever. "
                "Call their reset() or delete them first"
            )
        again = life.state == "poisoned"
        released = self._end(abort=False)
        if released.errors and not again:
            raise ClosingError(f"{self.name}: closing went on, but something did not end", released.errors)
        return released.labels

    def abort(self) -> list[str]:
        """Like `close()`, for groups whose operations may never end: what is under way is given up, and nothing raises.

        A thread that waits in a gloo operation gets its error at once, and so do the peers; on other systems than
        Linux, at the timeout. It overtakes a `close()` that hangs in another thread. NCCL waits for CUDA graphs that
        captured its groups: where such are alive, these groups stay as long as the graphs.
        """
        return self._end(abort=True).labels

    def _end(self, *, abort: bool, going_on: bool = False) -> Released:
        """`going_on`: this ends it in the thread that has begun to, or is the first to begin."""
        held = self._held
        life = held.life if held is not None else None
        if held is None or life is None or not life.begin_to_end(overtaking=abort or going_on):
            return Released()
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.leave(f"rank {self.rank} has closed its manager")
        atexit.unregister(self._at_exit)
        held.refuse_calls()
        return held.end(life, abort=abort)

    def __del__(self) -> None:
        # Only a word: ending groups may have to happen on all ranks at once, and the collector knows no such time.
        held: Holdings | None = getattr(self, "_held", None)
        if held is None or held.life is None or not held.life.is_open:
            return
        atexit.unregister(self._at_exit)
        if self.plan.created_per_rank:
            warnings.warn(
                f"{self!r}, made at {self._made_at}, was not closed", ResourceWarning, stacklevel=2, source=self
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # peers may be in operations that this rank never comes to, and the error is not to be hidden by another
            self.abort()

    def _alone(self, name: str) -> ParallelGroup:
        links = Links(closed=self.closed)
        label = f"{self.name}/{name}"
        return ParallelGroup(name, Ranks(self.rank, ()), 0, label=label, device=self.device, links=links)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The same manager: a copy of a module that holds it speaks over the same connections."""
        return self

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("a GroupManager holds connections and cannot be pickled; send its topology instead")

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.backend
        return f"<GroupManager {self.name} of {self.topology} at rank {self.rank} ({state})>"
