"""Seats: ranks that do what they are told, one call after the other or several at once, as threads or as processes."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, ParallelTopologyError
from parallel_topology.groups.standby import Standby
from parallel_topology.meeting.rendezvous import join_store

CREATION, OPERATION = 5.0, 2.0
"""Seconds that managers wait, unless told otherwise."""


@dataclass(frozen=True)
class Outcome:
    """How one call ended.

    Attributes:
        value: what it returned.
        error: the type of what it raised; "" for nothing.
        ours: whether that is an error of this package.
        text: what it says.
        seconds: how long it took.
    """

    value: Any = None
    error: str = ""
    ours: bool = True
    text: str = ""
    seconds: float = 0.0


class Rank:
    """One rank's managers, by a number that all ranks have for the same one, and what can be done with them."""

    def __init__(self, rank: int, store: dist.Store) -> None:
        self.rank = rank
        self._store = store
        self._managers: dict[int, GroupManager] = {}
        self._standbys: dict[int, Standby[GroupManager]] = {}
        self._handles: list[Any] = []

    def do(self, what: str, *arguments: Any) -> Outcome:
        """Call a method of this; never raises an `Exception`."""
        begun = time.monotonic()
        try:
            value = getattr(self, what)(*arguments)
        except Exception as error:
            ours = isinstance(error, ParallelTopologyError)
            return Outcome(None, type(error).__name__, ours, str(error), time.monotonic() - begun)
        return Outcome(value, seconds=time.monotonic() - begun)

    def make(self, key: int, topology: str, options: dict[str, Any], late: float = 0.0) -> None:
        time.sleep(late)
        told: dict[str, Any] = {"timeout": CREATION, "operation_timeout": OPERATION} | options
        self._managers[key] = GroupManager(ParallelTopology.parse(topology), rank=self.rank, store=self._store, **told)

    def make_at(self, key: int, topology: str, port: int, launched: bool) -> None:
        """A manager that meets at a port, where rank 0 runs the store."""
        value, told = ParallelTopology.parse(topology), {"timeout": CREATION, "operation_timeout": OPERATION}
        if not launched:
            self._managers[key] = GroupManager.connect(f"tcp://127.0.0.1:{port}", value, rank=self.rank, **told)
            return
        size, rank = str(value.world_size), str(self.rank)
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size} | place
        self._managers[key] = GroupManager.from_env(value, env=env, **told)

    def rebind(self, key: int, topology: str) -> None:
        self._managers[key] = self._managers[key].rebind(ParallelTopology.parse(topology))

    def topology(self, key: int) -> str:
        return str(self._managers[key].topology)

    def members(self, key: int) -> list[int]:
        return list(self._managers[key].topology.world)

    def prepare(self, key: int, topology: str) -> str:
        """What identifies the operation."""
        self._standbys[key] = self._managers[key].prepare(ParallelTopology.parse(topology))
        return self._standbys[key].operation

    def status(self, key: int) -> tuple[str, str, tuple[int, ...]]:
        """State, reason, and which ranks are safe to stop."""
        status = self._standbys[key].status
        return status.state, status.why, status.safe_to_stop

    def commit(self, key: int) -> bool:
        """Whether this rank is in what it has now."""
        self._managers[key] = self._standbys[key].commit()
        return not self._managers[key].closed

    def cancel(self, key: int) -> None:
        self._standbys[key].cancel()

    def join(self, key: int, options: dict[str, Any]) -> int:
        """The rank that it became."""
        told: dict[str, Any] = {"timeout": CREATION} | options
        self._managers[key] = made = GroupManager(store=self._store, joining=True, **told)
        self.rank = made.rank
        return made.rank

    def waiting(self) -> int:
        """How many wait to join."""
        key = "lobby/engine/here"
        return len(self._store.get(key).splitlines()) if self._store.check([key]) else 0

    def sum(self, key: int, axis: str, size: int, late: float = 0.0) -> list[int]:
        """The distinct values of an all-reduce of rank + 1."""
        time.sleep(late)
        return self._managers[key][axis].all_reduce(torch.full((size,), self.rank + 1)).unique().tolist()

    def begin(self, key: int, axis: str) -> None:
        """An all-reduce whose handle is kept, and waited for by `finish` or never."""
        self._handles.append(self._managers[key][axis].all_reduce(torch.full((99,), self.rank + 1), async_op=True))

    def finish(self) -> list[int]:
        handles, self._handles = self._handles, []
        return [handle.wait().unique().item() for handle in handles]

    def forget(self) -> None:
        self._handles.clear()

    def ranks(self, key: int, axis: str) -> list[int]:
        return self._managers[key][axis].all_gather(torch.tensor([self.rank])).tolist()

    def objects(self, key: int, axis: str) -> list[Any]:
        return self._managers[key][axis].all_gather_object({"rank": self.rank, "text": "x" * self.rank * 5000})

    def told(self, key: int, axis: str, src: int) -> Any:
        """What the member at position `src` says."""
        group = self._managers[key][axis]
        return group.broadcast_object(["from", self.rank] if group.rank == src else None, src=src)

    def ring(self, key: int, axis: str, size: int) -> list[int]:
        """The distinct values of what the member before sent: its rank."""
        sent = torch.full((size,), self.rank)
        return self._managers[key][axis].send_recv(sent).unique().tolist()

    def refuse(self, key: int, axis: str) -> list[Any]:
        """The second member of the group does not take the first one's message, nor tensor, but what comes after."""
        group = self._managers[key][axis]
        found: list[Any] = []
        if group.rank == 0:
            group.send_object("x" * 100_000, dst=1)
            group.send(torch.ones(6), dst=1)
            group.send(torch.full((2,), 7.0), dst=1)
        elif group.rank == 1:
            for receive in (lambda: group.recv_object(src=0, max_bytes=50), lambda: group.recv(torch.ones(3), src=0)):
                try:
                    found.append(receive())
                except ParallelTopologyError as error:
                    found.append(type(error).__name__)
            found.append(group.recv(torch.zeros(2), src=0).tolist())
        return found

    def differ(self, key: int, axis: str, size: int) -> None:
        """An all-reduce of a size that is not every member's."""
        self._managers[key][axis].all_reduce(torch.ones(size))

    def wait_in_vain(self, key: int, axis: str) -> None:
        self._managers[key][axis].recv(torch.ones(1))

    def interrupted(self, after: float, what: str, *arguments: Any) -> float:
        """Seconds from Ctrl-C to the end of what waits; to be done on the main thread."""
        pressed: list[float] = []

        def press() -> None:
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        try:
            threading.Timer(after, press).start()
            getattr(self, what)(*arguments)
        except KeyboardInterrupt:
            return time.monotonic() - pressed[0]
        raise AssertionError(f"{what} ended before Ctrl-C")

    def survivors(self, key: int, timeout: float) -> list[int]:
        return self._managers[key].survivors(timeout)

    def close(self, key: int) -> None:
        self._managers[key].close()

    def abort(self, key: int, late: float = 0.0) -> float:
        """Seconds it took."""
        time.sleep(late)
        begun = time.monotonic()
        self._managers[key].abort()
        return time.monotonic() - begun

    def meet_at(self, port: int) -> None:
        """From now on managers are made over another store."""
        self._store = join_store("127.0.0.1", port, CREATION)

    def end(self) -> None:
        """Abort all there are and forget them."""
        for manager in self._managers.values():
            manager.abort()
        self._managers.clear()
        self._standbys.clear()
        self._handles.clear()
        gc.collect()

    def lose_at(self, module: str, path: str, argument: str, number: int) -> None:
        """From now on this process gets a signal where it comes to a function; only where it is called with `argument`,
        if there is one."""
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for one in outer:
            owner = getattr(owner, one)
        function = getattr(owner, name)

        def lost(*given: Any, **named: Any) -> Any:
            if not argument or argument in given:
                os.kill(os.getpid(), number)
            return function(*given, **named)

        setattr(owner, name, lost)

    def held(self) -> tuple[int, int]:
        """Descriptors and threads of this process."""
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def megabytes(self) -> int:
        """Resident memory of this process."""
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


class Seat(Protocol):
    """Where a rank is."""

    def tell(self, what: str, *arguments: Any) -> Future[Outcome]:
        """Let it do this on a thread of its own, beside what it is still doing."""
        ...

    def leave(self) -> None:
        """End it."""
        ...


class ThreadSeat:
    """A rank in this process."""

    def __init__(self, rank: int, store: dist.Store) -> None:
        self._rank = Rank(rank, store)

    def tell(self, what: str, *arguments: Any) -> Future[Outcome]:
        return _on_a_thread(lambda: self._rank.do(what, *arguments))

    def leave(self) -> None:
        pass


class ProcessSeat:
    """A rank in a process of its own, which may be killed or frozen."""

    def __init__(self, rank: int, port: int, host: str = "127.0.0.1", network: str = "") -> None:
        """`network`: the name of the network namespace to be in; without it that of this process."""
        context = _forkserver()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, rank, host, port, network), daemon=True)
        self.process.start()
        theirs.close()
        self._told: dict[int, Future[Outcome]] = {}
        self._number = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, what: str, *arguments: Any) -> Future[Outcome]:
        self._number += 1
        told = self._told[self._number] = Future()
        with suppress(OSError):  # it was killed: its listener says so
            self._pipe.send((self._number, what, arguments))
        return told

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid or 0, number)
        if number == signal.SIGKILL:
            self.process.join(10)

    def leave(self) -> None:
        self.process.kill()
        self.process.join(10)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, outcome = self._pipe.recv()
                self._told.pop(number).set_result(outcome)


class StoreSeat:
    """A store in a process of its own."""

    def __init__(self, network: str = "") -> None:
        context = _forkserver()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_host, args=(theirs, network), daemon=True)
        self.process.start()
        theirs.close()
        assert self._pipe.poll(60)
        self.port: int = self._pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid or 0, number)
        if number == signal.SIGKILL:
            self.process.join(10)

    def leave(self) -> None:
        self.process.kill()
        self.process.join(10)


def await_start(seats: Iterable[Any]) -> None:
    """Wait until these run, so that no deadline counts from when the first one does."""
    for one in [seat.tell("held") for seat in seats]:
        assert one.result(60).error == ""


def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "parallel_topology.testing.ranks"])  # as `WorkerPool` does
    return context


def _on_a_thread(act: Callable[[], Outcome]) -> Future[Outcome]:
    told: Future[Outcome] = Future()
    # Of a name that the testing kit knows: one that waits for long calls for no rank of another test.
    threading.Thread(target=lambda: told.set_result(act()), name="parallel_topology.seat", daemon=True).start()
    return told


def enter(network: str) -> None:
    """Go into a network namespace, if there is a name of one."""
    if network:
        with open(f"/run/netns/{network}") as file:
            system: Any = os  # from Python 3.12 on
            system.setns(file.fileno(), system.CLONE_NEWNET)


def _serve(pipe: Any, number: int, host: str, port: int, network: str) -> None:
    enter(network)
    torch.set_num_threads(1)
    rank = Rank(number, join_store(host, port, CREATION))
    lock = threading.Lock()

    def answer(told: int, what: str, arguments: tuple[Any, ...]) -> None:
        outcome = rank.do(what, *arguments)
        with lock:
            pipe.send((told, outcome))

    while True:
        try:
            told = pipe.recv()
        except (EOFError, OSError):
            return
        if told[1] == "interrupted":
            answer(*told)
        else:
            threading.Thread(target=answer, args=told, daemon=True).start()


def _host(pipe: Any, network: str) -> None:
    enter(network)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    pipe.send(store.port)
    with suppress(EOFError, OSError):
        pipe.recv()  # until whoever started it is gone
