"""An end that always ends: whatever still holds the groups, waits in them, hangs or raises, and in forked children."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    ClosedError,
    ClosingError,
    CollectiveError,
    Communicator,
    GroupManager,
    GroupOptions,
    LiveGraphError,
    ParallelTopology,
    ParallelTopologyError,
)
from parallel_topology.communicators.membership import Membership
from parallel_topology.testing import run_ranks
from parallel_topology.testing.threads import run_threads
from tests.groups.graphs import Graph
from tests.ports import free_port
from tests.waiting import FAR, SOON, eventually, soon

TWO = ParallelTopology(tp=2)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def connected() -> int:
    """How many connected sockets this process has."""
    return sum(map(_is_connected, map(int, os.listdir("/proc/self/fd"))))


def _is_connected(descriptor: int) -> bool:
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                return copy.family == socket.AF_INET and bool(copy.getpeername())
    return False


@pytest.fixture
def pair() -> Any:
    """Two ranks of this process, to be ended by the test."""
    yield from _two()


@pytest.fixture
def gloo_pair() -> Any:
    """Two whose calls all go over gloo."""
    only = GroupOptions(communicators=("torch",))
    yield from _two(options={"world": only, "tp": only})


def _two(**options: Any) -> Any:
    store = dist.HashStore()

    def body(rank: int) -> GroupManager:
        return GroupManager(TWO, rank=rank, store=store, timeout=FAR, name="pair", **options)

    made = run_threads(["rank"] * 2, body, timeout=30)
    yield made
    for groups in made:
        groups.abort()


class Waiting:
    """A thread that waits in an operation; `came` is when it came back, `error` with what."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.came = 0.0
        self.error: BaseException | None = None
        self._act = act
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(SOON)
        assert not self.is_over(within=0.2)  # it is inside by now

    def _run(self) -> None:
        self._begun.set()
        try:
            self._act()
        except BaseException as error:
            self.error = error
        self.came = time.monotonic()

    def is_over(self, within: float = SOON) -> bool:
        self._thread.join(within)
        return not self._thread.is_alive()


class TestConnectionsEnd:
    @pytest.mark.parametrize("end", ["close", "abort"])
    def test_though_the_caller_holds_groups_work_and_errors(self, gloo_pair: list[GroupManager], end: str):
        before = connected()
        mine, theirs = gloo_pair
        held: list[object] = [mine.tp.device_group, mine.world.cpu_group]
        held.append(mine.tp.all_reduce(torch.ones(1), async_op=True))
        theirs.tp.all_reduce(torch.ones(1))
        peer = Waiting(lambda: theirs.tp.recv(torch.ones(1)))
        begun = time.monotonic()
        assert getattr(mine, end)() == ["pair/tp[0]", "pair/world"]
        assert connected() <= before - 1
        assert peer.is_over()
        assert peer.came - begun < 5  # its own timeout is 20 s
        assert isinstance(peer.error, CollectiveError)
        assert held

    def test_nothing_stays_when_nothing_is_held(self):
        gc.collect()
        before = descriptors()
        store = dist.HashStore()

        def body(rank: int) -> None:
            with GroupManager(ParallelTopology(tp=2, pp=2), rank=rank, store=store, timeout=20) as groups:
                groups.world.barrier()
                group = groups.tp.device_group
            assert group is not None

        run_threads(["rank"] * 4, body, timeout=30)
        assert eventually(lambda: descriptors() <= before)

    @pytest.mark.parametrize("operation", ["recv", "all_reduce", "barrier", "wait"])
    def test_abort_frees_a_thread_that_waits_in_gloo(self, pair: list[GroupManager], operation: str):
        tp = pair[0].tp
        act: dict[str, Callable[[], object]] = {
            "recv": lambda: tp.recv(torch.ones(1)),
            "all_reduce": lambda: tp.all_reduce(torch.ones(1)),
            "barrier": tp.barrier,
            "wait": lambda: tp.all_reduce(torch.ones(1), async_op=True).wait(),
        }
        waiting = Waiting(act[operation])
        begun = time.monotonic()
        assert pair[0].abort() == ["pair/world"]
        assert waiting.is_over()
        assert waiting.came - begun < SOON
        assert isinstance(waiting.error, ClosedError)
        assert "closed while this was under way" in str(waiting.error)

    def test_managers_made_at_the_same_time_are_not_mixed_up(self):
        """Each cuts its own connections only, though all are in one process and were made side by side."""
        stores = [dist.HashStore() for _ in range(4)]

        def body(position: int) -> GroupManager:
            world, rank = divmod(position, 2)
            return GroupManager(TWO, rank=rank, store=stores[world], name=f"world{world}", timeout=20)

        made = run_threads(["rank"] * 8, body, timeout=40)
        for world in range(3):
            made[2 * world].abort()
            for rest in range(world + 1, 4):
                mine, theirs = made[2 * rest : 2 * rest + 2]
                handle = mine.tp.all_reduce(torch.ones(1), async_op=True)
                assert theirs.tp.all_reduce(torch.ones(1)).item() == 2
                assert handle.wait().item() == 2
        for groups in made:
            groups.abort()

    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False)
    def test_of_a_manager_over_the_default_group(self, groups: GroupManager, tmp_path: Path):
        rank = groups.rank
        dist.init_process_group("gloo", store=dist.FileStore(f"{tmp_path}/default", 2), rank=rank, world_size=2)
        before = connected()
        over = GroupManager.from_world(TWO, timeout=FAR)
        held = over.tp.device_group
        assert held is not None
        assert connected() > before
        groups.world.barrier()
        if rank == 0:
            assert over.close() == ["engine/world"]
        else:
            with soon(), pytest.raises(ParallelTopologyError):
                over.tp.recv(torch.ones(1), src=0)
            over.abort()
        assert eventually(lambda: connected() <= before)
        # The default group went first: no error
        gone = GroupManager.from_world(TWO, timeout=20, name="gone")
        dist.destroy_process_group()
        assert gone.close() == ["gone/world"]

    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False)
    def test_a_hosted_port_is_free_though_the_manager_and_a_group_are_held(self, groups: GroupManager):
        port = groups.world.broadcast_object(free_port() if groups.rank == 0 else None)
        over = GroupManager.connect(f"tcp://127.0.0.1:{port}", TWO, rank=groups.rank, timeout=20)
        held = over.tp.device_group
        over.tp.barrier()
        over.close()
        groups.world.barrier()
        if groups.rank == 0:
            socket.create_server(("127.0.0.1", port)).close()
        assert held is not None


class Own(Communicator):
    """Carries out nothing; its end is a test's."""

    name = "own"

    def __init__(self, close: Callable[[str, bool], None], label: str) -> None:
        self._close = close
        self._label = label

    def handles(self, operation: str, tensor: torch.Tensor) -> bool:
        return False

    def close(self, *, abort: bool) -> None:
        self._close(self._label, abort)


def with_own(close: Callable[[str, bool], None], rank: int, store: dist.Store) -> GroupManager:
    """tp and pp have a communicator of the test's."""

    def make(membership: Membership) -> Own:
        return Own(close, membership.label)

    options: Any = {"tp": {"communicators": ("own",)}, "pp": {"communicators": ("own",)}}
    topology = ParallelTopology(tp=2, pp=2)
    return GroupManager(
        topology, rank=rank, store=store, timeout=20, options=options, communicators={"own": make}, name="e"
    )


def make_four(close: Callable[[int, str, bool], None]) -> list[GroupManager]:
    store = dist.HashStore()
    return run_threads(
        ["rank"] * 4,
        lambda rank: with_own(lambda label, abort: close(rank, label, abort), rank, store),
        timeout=30,
    )


class TestErrors:
    def test_of_one_communicator_do_not_keep_the_others_open(self):
        before = descriptors()
        asked: list[tuple[str, bool]] = []
        fails = {"e/pp[0]"}

        def close(rank: int, label: str, abort: bool) -> None:
            if rank == 0:
                asked.append((label, abort))
                if label in fails:
                    raise OSError("it does not end")

        made = make_four(close)
        with pytest.raises(ClosingError, match="e: closing went on, but something did not end") as caught:
            made[0].close()
        assert [str(error) for error in caught.value.exceptions] == ["it does not end"]
        assert asked == [("e/pp[0]", False), ("e/tp[0]", False)]
        assert made[0].closed
        with pytest.raises(ClosedError):
            made[0].tp.barrier()
        assert made[0].close() == []  # asked once more, and in vain
        fails.clear()
        made[0].close()
        assert asked[2:] == [("e/pp[0]", False)] * 2
        assert made[0].close() == made[0].abort() == []
        assert len(asked) == 4
        for groups in made[1:]:
            groups.close()
        assert eventually(lambda: descriptors() <= before)

    def test_in_abort_are_said_in_the_log(self, caplog: pytest.LogCaptureFixture):
        def close(rank: int, label: str, abort: bool) -> None:
            if label.startswith("e/pp"):
                raise OSError("it does not end")

        made = make_four(close)
        assert made[0].abort() == ["e/tp[0]", "e/world"]  # what has really ended
        assert "it does not end" in caplog.text
        for groups in made[1:]:
            groups.abort()

    def test_an_interrupt_while_closing_leaves_the_rest_to_the_next(self):
        interrupts = [True]

        def close(rank: int, label: str, abort: bool) -> None:
            if rank == 0 and interrupts:
                interrupts.clear()
                raise KeyboardInterrupt

        made = make_four(close)
        with pytest.raises(KeyboardInterrupt):
            made[0].close()
        assert made[0].close() == ["e/pp[0]", "e/tp[0]", "e/world"]
        for groups in made[1:]:
            groups.close()

    def test_abort_overtakes_a_close_that_hangs(self):
        hangs, aborted = threading.Event(), threading.Event()

        def close(rank: int, label: str, abort: bool) -> None:
            if rank == 0 and label == "e/pp[0]":
                if abort:
                    aborted.set()
                else:
                    hangs.set()
                    assert aborted.wait(20)

        made = make_four(close)
        labels: list[str] = []
        closing = threading.Thread(target=lambda: labels.extend(made[0].close()))
        closing.start()
        assert hangs.wait(SOON)
        assert made[0].close() == []  # somebody is at it
        labels += made[0].abort()
        closing.join(SOON)
        assert not closing.is_alive()
        assert sorted(labels) == ["e/pp[0]", "e/tp[0]", "e/world"]  # each says what it has ended
        assert made[0].close() == []
        for groups in made[1:]:
            groups.close()


class TestWith:
    @pytest.mark.parametrize("raised", [KeyError("the body's"), KeyboardInterrupt(), SystemExit(3)])
    def test_ends_by_abort_and_keeps_the_bodys_error(self, pair: list[GroupManager], raised: BaseException):
        graph = Graph()
        pair[0].tp.links.graphs.append(weakref.ref(graph))
        with pytest.raises(type(raised)) as caught, pair[0]:
            raise raised
        assert caught.value is raised
        assert pair[0].closed

    def test_without_an_error_closes(self, pair: list[GroupManager]):
        graph = Graph()
        pair[0].tp.links.graphs.append(weakref.ref(graph))
        with pytest.raises(LiveGraphError), pair[0]:
            pass
        graph.live = False
        assert pair[0].close() == ["pair/world"]

    def test_abort_with_a_live_graph_keeps_its_groups_as_long_as_it_lives(self, pair: list[GroupManager]):
        graph = Graph()
        pair[0].tp.links.graphs.append(weakref.ref(graph))
        kept = weakref.ref(pair[0].tp.links.communicators[0])
        assert pair[0].abort() == []
        pair.remove(pair[0])
        gc.collect()
        assert kept() is not None
        del graph
        gc.collect()
        assert kept() is None

    def test_what_was_left_for_a_graph_can_be_ended_when_it_is_reset(self, pair: list[GroupManager]):
        graph = Graph()
        pair[0].tp.links.graphs.append(weakref.ref(graph))
        assert pair[0].abort() == []
        with pytest.raises(LiveGraphError):
            pair[0].close()
        graph.live = False
        assert pair[0].close() == ["pair/world"]
        assert pair[0].close() == []


def in_child(act: Callable[[], object]) -> tuple[int, float]:
    """Exit status and seconds of a forked child that calls this; killed after 20 s."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            act()
        except ClosedError:
            os._exit(7)
        except SystemExit:
            raise
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun


def _forked(groups: GroupManager) -> None:
    """What a child may do, one child for each; afterwards the parent's groups still work. Run in a fresh process."""
    tp, peer = groups.tp, 1 - groups.rank
    mine = torch.ones(1)
    waiting = tp.all_reduce(mine, async_op=True)
    message = tp.irecv(torch.ones(1), src=peer)
    held: list[object] = [groups, tp, waiting, message]

    def collect() -> None:
        held.clear()
        for name in ("groups", "tp", "waiting", "message"):
            frame.pop(name, None)
        gc.collect()

    def leave(error: BaseException | None) -> None:
        try:
            with groups:
                if error is not None:
                    raise error
        except KeyError:
            return

    frame: dict[str, Any] = {}
    nothing: dict[str, Callable[[], object]] = {
        "close": groups.close,
        "abort": groups.abort,
        "leave": lambda: leave(None),
        "leave after an error": lambda: leave(KeyError()),
        "collect": collect,
    }
    refused: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: tp.all_reduce(torch.ones(1)),
        "recv": lambda: tp.recv(torch.ones(1)),
        "wait": waiting.wait,
        "wait for a message": lambda: message.wait(1),
        "is_done": waiting.is_done,
        "barrier": groups.world.barrier,
        "device_group": lambda: tp.device_group,
        "set_timeout": lambda: groups.set_timeout(3),
        "rebind": lambda: groups.rebind(ParallelTopology(pp=2)),
        "diagnose": groups.diagnose,
    }
    for expected, acts in ((0, nothing), (7, refused)):
        for name, act in acts.items():
            status, seconds = in_child(act)
            assert (name, status) == (name, expected)
            assert seconds < SOON, name
    tp.send(torch.ones(1), dst=peer)
    message.wait()
    assert waiting.wait().item() == 2
    assert tp.all_reduce(torch.ones(1)).item() == 2


def _fork_and_exit(rank: int, path: str) -> int:
    """A child that ends as a program does, with everything alive; the status of it."""
    groups = GroupManager(TWO, rank=rank, store=dist.FileStore(path, 2), timeout=60)
    handle = groups.tp.all_reduce(torch.ones(1), async_op=True)
    program = os.fork()
    if program == 0:
        signal.alarm(30)
        sys.exit(5)
    _, status = os.waitpid(program, 0)
    assert handle.wait().item() == 2
    groups.close()
    return os.waitstatus_to_exitcode(status)


def _program(rank: int, path: str, results: str) -> None:
    Path(results, str(rank)).write_text(str(_fork_and_exit(rank, path)))


class TestForkedChild:
    @pytest.mark.ranks("tp2", world="processes", timeout=100, check=False)
    def test_gets_closed_error_or_nothing_at_once(self, groups: GroupManager):
        _forked(groups)

    def test_ends_as_a_program_does(self, tmp_path: Path):
        import multiprocessing

        fresh = multiprocessing.get_context("spawn")
        ranks = [fresh.Process(target=_program, args=(rank, f"{tmp_path}/s", str(tmp_path))) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(90)
            assert rank.exitcode == 0
        assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["5", "5"]


def test_the_bodys_interrupt_stays_one_on_ranks():
    def body(groups: GroupManager) -> None:
        with groups:
            if groups.rank == 0:
                raise KeyError("the body's")
            groups.tp.recv(torch.ones(1))

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks("tp2", body, timeout=30)
    assert caught.group_contains(KeyError, match="the body's")


def _state(store: dist.Store) -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": descriptors(),
        "threads": len(os.listdir("/proc/self/task")),
        "keys": store.num_keys(),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_500_cycles_leave_nothing_behind(end: str):
    """Two ranks make, use and end a manager; with abort, one of them waits in it when the other one goes."""
    store = dist.HashStore()
    seen: list[dict[str, int]] = []

    def body(rank: int) -> None:
        with GroupManager(TWO, rank=rank, store=store, timeout=60) as groups:
            groups.tp.all_reduce(torch.ones(100))
            handle = groups.tp.all_reduce(torch.ones(100), async_op=True)
            groups.tp.send_recv(torch.ones(10))
            handle.wait()
            if end == "close":
                return
            if rank == 0:
                groups.abort()
            else:
                with pytest.raises(ParallelTopologyError):
                    groups.tp.recv(torch.ones(1))
                groups.abort()

    for cycle in range(500):
        run_threads(["rank"] * 2, body, timeout=60)
        if cycle in (20, 499):
            assert eventually(lambda: connected() == 0)
            seen.append(_state(store))
    before, after = seen
    assert eventually(lambda: descriptors() <= before["descriptors"])
    assert after["threads"] <= before["threads"] + 1
    assert after["keys"] <= before["keys"]
    assert after["memory"] - before["memory"] < 20_000_000
