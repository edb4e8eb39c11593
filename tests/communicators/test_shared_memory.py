"""Collectives over shared memory: what they mean in any order, and what becomes of those who wait when others fail."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel_topology import (
    BackendError,
    ClosedError,
    CollectiveError,
    GroupManager,
    GroupTimeoutError,
    MismatchError,
    ParallelGroup,
    ParallelTopology,
    ParallelTopologyError,
)
from parallel_topology.communicators import futex, host_memory
from parallel_topology.communicators.futex import Fence
from parallel_topology.communicators.host_memory import (
    LETTERS,
    SLOT_BYTES,
    SLOTS,
    Box,
    HostMemory,
    Offer,
    Region,
    regions,
)
from parallel_topology.communicators.presence import is_gone, started
from parallel_topology.communicators.shared_memory import SharedMemoryCommunicator
from parallel_topology.groups import joining
from parallel_topology.testing import WorkerPool, run_ranks
from parallel_topology.testing.ranks import World
from parallel_topology.testing.threads import run_threads
from tests.communicators.hidden import hidden_from
from tests.shm import in_shm
from tests.waiting import FAR, SOON, soon

SMALL = {"tp": {"shared_memory_bytes": 4096}}
"""What is larger than a page goes over gloo."""


def shared(group: Any) -> SharedMemoryCommunicator:
    first = group.communicators[0]
    assert isinstance(first, SharedMemoryCommunicator)
    return first


def rounds(group: Any) -> int:
    """How many calls this member has made there."""
    return shared(group)._rounds.number


# What is called, in whatever order.

STEPS: dict[str, Callable[[Any, int], object]] = {
    "small": lambda tp, step: (
        tp.all_reduce(torch.full((3,), float(tp.rank + step))).tolist() == [tp.size * step + sum(range(tp.size))] * 3
    ),
    "large": lambda tp, step: (
        tp.all_reduce(torch.full((3000,), tp.rank + step)).unique().tolist() == [tp.size * step + sum(range(tp.size))]
    ),
    "to all": lambda tp, step: (
        tp.broadcast(torch.tensor([tp.rank + step]), src=step % tp.size).tolist() == [step % tp.size + step]
    ),
    "object": lambda tp, step: (
        tp.broadcast_object([step, "x" * (step * 700)], src=step % tp.size) == [step, "x" * (step * 700)]
    ),
    "to one": lambda tp, step: (
        (tp.gather(torch.tensor([tp.rank]), dst=step % tp.size) is not None) == (tp.rank == step % tp.size)
    ),
    "rows": lambda tp, step: (
        tp.all_to_all(torch.full((tp.size * 40 * step, 4), tp.rank))[:, 0].unique().tolist()
        == (list(range(tp.size)) if step else [])
    ),
    "uneven": lambda tp, step: (
        tp.all_gather_v(torch.full((tp.rank * step,), step)).numel() == step * sum(range(tp.size))
    ),
    "barrier": lambda tp, step: tp.barrier() is None,
}


def _in_order(groups: GroupManager, steps: list[tuple[str, int, bool]]) -> None:
    tp = groups.tp
    late: list[tuple[Any, Any]] = []
    for name, step, begun in steps:
        if begun:
            size = 3000 if name == "large" else 3
            handle = tp.all_reduce(torch.full((size,), float(tp.rank + step)), async_op=True)
            late.append((handle, tp.size * step + sum(range(tp.size))))
        else:
            assert STEPS[name](tp, step), (name, step)
    for handle, expected in late:
        assert handle.wait().unique().tolist() == [expected]


@given(
    data=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.booleans()), max_size=60),
    size=st.integers(2, 4),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_calls_of_all_kinds_keep_their_order(
    where: World, data: list[tuple[str, int, bool]], size: int, rank_workers: WorkerPool
):
    run_ranks(f"tp{size}", _in_order, data, world=where, check=False, options=SMALL, pool=rank_workers)


def _carried(groups: GroupManager) -> None:
    tp = groups.tp
    before = rounds(tp)
    tp.all_reduce(torch.ones(1024))
    assert rounds(tp) == before + 1
    work = shared(tp)._torch
    sent: list[str] = []
    issue, work.issue = work.issue, lambda operation, *a, **k: (sent.append(operation), issue(operation, *a, **k))[1]  # type: ignore[method-assign]
    tp.all_reduce(torch.ones(1024))
    tp.all_reduce(torch.ones(1025))
    assert sent == ["all_reduce"]
    assert tp.all_reduce(torch.ones(3, dtype=torch.uint8)).tolist() == [2] * 3
    with pytest.raises(Exception, match="convert the tensor first"):
        tp.all_reduce(torch.ones(3, dtype=torch.int16))


def test_what_is_large_or_of_another_dtype_goes_over_gloo():
    run_ranks("tp2", _carried, check=False, options=SMALL)


def _ahead(groups: GroupManager, name: str) -> None:
    """The source of a broadcast, and the members of a gather, do not wait for the others."""
    tp = groups.tp
    calls = SLOTS - 1
    is_ahead = tp.is_first if name == "broadcast" else not tp.is_first
    if not is_ahead:
        tp.recv(torch.zeros(1), tp.rank - 1 if tp.rank else 1)
    for number in range(calls):
        x = torch.tensor([number + 100 * tp.rank])
        if name == "broadcast":
            assert tp.broadcast(x).item() == number
        else:
            assert tp.gather(x) is None or tp.is_first
    if is_ahead:
        tp.send(torch.zeros(1), tp.rank + 1 if tp.is_first else 0)


@pytest.mark.parametrize("name", ["broadcast", "gather"])
def test_who_needs_nobody_goes_ahead(name: str):
    run_ranks("tp2", _ahead, name, check=False)


def _to_all_in_pieces(tp: ParallelGroup, values: torch.Tensor) -> None:
    """Rank 0 keeps all but 7 rows, rank 1 gives all of fewer: parts begin and end anywhere in the pieces."""
    less = values[: max(len(values) // 3, 1)]
    gives = [[max(len(values) - 7, 0), min(len(values), 7)], [len(less), 0]]
    given = [values, less + 1]
    takes = [row[tp.rank] for row in gives]
    expected = torch.cat([values[: gives[0][0]], less + 1]) if tp.is_first else values[gives[0][0] :]
    assert torch.equal(tp.all_to_all(given[tp.rank], takes, gives[tp.rank]), expected)


def _in_pieces(groups: GroupManager, sizes: list[int]) -> None:
    tp = groups.tp
    for size in sizes:
        for dtype in (torch.float32, torch.int64, torch.bfloat16):
            values = (torch.arange(size) % 50).to(dtype)
            before = rounds(tp)
            assert torch.equal(tp.all_reduce(values * (tp.rank + 1)), values * 3)
            pieces = max(-(-size * dtype.itemsize // SLOT_BYTES), 1)
            assert rounds(tp) == before + pieces
            assert torch.equal(tp.broadcast(values if tp.is_first else torch.zeros_like(values)), values)
            assert rounds(tp) == before + 2 * pieces
            assert torch.equal(tp.all_gather(values + tp.rank), torch.cat([values, values + 1]))
            assert rounds(tp) == before + 3 * pieces
            _to_all_in_pieces(tp, values)


def test_what_has_no_room_goes_in_pieces(world: World):
    sizes = [1, SLOT_BYTES // 4, SLOT_BYTES // 4 + 1, 200_001]
    run_ranks("tp2", _in_pieces, sizes, world=world, check=False)


def _far_ahead(groups: GroupManager, calls: int) -> list[int]:
    """The source goes on until it has to wait for the other one, which begins only then."""
    tp = groups.tp
    if not tp.is_first:
        attendance, words = shared(tp)._attendance, shared(tp)._memory.words
        source = attendance.posted[0]
        asleep = shared(tp)._rounds._sleepers[1] // 8
        deadline = time.monotonic() + 10
        while not words[asleep] and words[source] < calls and time.monotonic() < deadline:
            os.sched_yield()
    return [int(tp.broadcast(torch.tensor([number if tp.is_first else -1]))) for number in range(calls)]


def test_nobody_overtakes_who_has_not_read(world: World):
    calls = 4 * SLOTS
    assert run_ranks("tp2", _far_ahead, calls, world=world, check=False) == [list(range(calls))] * 2


def _many_letters(groups: GroupManager, calls: int) -> None:
    tp = groups.tp
    if tp.is_first:
        for number in range(calls):
            tp.isend(torch.full((2,), float(number)))
        groups.world.send(torch.ones(1), 1)
        tp.recv(torch.ones(1))
    else:
        groups.world.recv(torch.ones(1), 0)
        assert [tp.recv(torch.zeros(2))[0].item() for _ in range(calls)] == list(range(calls))
        tp.send(torch.ones(1))


def test_a_full_box_loses_nothing(world: World):
    run_ranks("tp2", _many_letters, 5 * LETTERS, world=world, check=False, options={"tp": {"timeout": 20}})


# Calls that do not match.

ODD: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "size": (lambda tp: tp.all_reduce(torch.ones(4)), lambda tp: tp.all_reduce(torch.ones(2))),
    "dtype": (lambda tp: tp.all_reduce(torch.ones(4)), lambda tp: tp.all_reduce(torch.ones(2, dtype=torch.float64))),
    "operation": (lambda tp: tp.all_reduce(torch.ones(1)), lambda tp: tp.barrier()),
    "reduction": (lambda tp: tp.all_reduce(torch.ones(1)), lambda tp: tp.all_reduce(torch.ones(1), "max")),
    "small and large": (lambda tp: tp.all_reduce(torch.ones(4)), lambda tp: tp.all_reduce(torch.ones(5000))),
    "large": (lambda tp: tp.all_reduce(torch.ones(6000)), lambda tp: tp.all_reduce(torch.ones(5000))),
    "gathered": (lambda tp: tp.all_gather(torch.ones(2)), lambda tp: tp.all_gather(torch.ones(3))),
    "splits": (lambda tp: tp.all_to_all(torch.ones(3), [1, 1, 1], [1, 1, 1]),
               lambda tp: tp.all_to_all(torch.ones(3), [0, 2, 1], [0, 2, 1])),
}  # fmt: skip


def _differs(groups: GroupManager, name: str) -> None:
    tp = groups.tp
    with pytest.raises(MismatchError, match="rank 1"):
        ODD[name][tp.rank == 1](tp)
    assert tp.all_reduce(torch.ones(1)) == 3  # all have taken part in the call, so the next one is right


@pytest.mark.parametrize("name", ODD)
def test_members_that_call_something_else_are_told_apart_without_check_calls(name: str):
    run_ranks("tp3", _differs, name, check=False, options=SMALL)


@pytest.mark.ranks(3, check=False)
def test_shapes_of_equal_size_are_only_told_apart_by_check_calls(groups: GroupManager):
    tp = groups.tp
    assert tp.all_reduce(torch.ones((2, 3) if tp.is_first else 6)).sum() == 18


# Those who wait.


def _outcome(act: Callable[[], object]) -> tuple[str, str, float]:
    begun = time.monotonic()
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - begun
    return "", "", time.monotonic() - begun


def _killed(groups: GroupManager, folder: str) -> None:
    """Rank 2 is killed while the others have long been waiting."""
    tp = groups.tp
    tp.barrier()
    if tp.rank == 2:
        Path(folder, "process").write_text(f"{os.getpid()} {groups.name}")
        while not all(Path(folder, f"waits {rank}").exists() for rank in (0, 1)):
            os.sched_yield()
        Path(folder, "killed").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    seen: list[float] = []
    ended = shared(tp)._attendance.end
    shared(tp)._attendance.end = lambda why, **how: (seen.append(time.monotonic()), ended(why, **how))[1]
    Path(folder, f"waits {tp.rank}").touch()
    found = _outcome(lambda: tp.all_reduce(torch.ones(1)))
    killed = float(Path(folder, "killed").read_text())
    Path(folder, f"found {tp.rank}").write_text(f"{found[0]} {seen[0] - killed} {found[1]}")


def test_a_death_is_noticed_at_once_and_leaves_nothing(tmp_path: Path):
    before = in_shm()
    with suppress(ExceptionGroup):
        run_ranks("tp3", _killed, str(tmp_path), world="processes", check=False, timeout=FAR)
    for rank in (0, 1):
        error, seconds, text = (tmp_path / f"found {rank}").read_text().split(" ", 2)
        assert error == "CollectiveError"
        assert "rank 2 has died: its process has ended" in text or "has failed before" in text
        assert float(seconds) < SOON
    assert in_shm() <= before


@pytest.mark.slow  # a promise for machines that are not busy
def test_a_death_is_noticed_within_a_tenth_of_a_second(tmp_path: Path, rank_workers: WorkerPool):
    took: list[float] = []
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with suppress(ExceptionGroup):
            run_ranks("tp3", _killed, str(folder), world="processes", check=False, timeout=FAR, pool=rank_workers)
        took.append(max(float((folder / f"found {rank}").read_text().split()[1]) for rank in (0, 1)))
    assert statistics.median(took) < 0.1, took


def _aborted(groups: GroupManager) -> tuple[str, str, float]:
    tp = groups.tp
    tp.barrier()
    if tp.is_first:
        at: list[float] = []
        timer = threading.Timer(0.2, lambda: (at.append(time.monotonic()), groups.abort()))
        timer.start()
        with pytest.raises(ClosedError, match=r"all_reduce on .*its manager was closed while this was under way"):
            tp.all_reduce(torch.ones(1))
        assert time.monotonic() - at[0] < SOON
        timer.join()
        return "", "", 0
    # Rank 2 takes no part, so that the others wait.
    return _outcome(lambda: tp.all_reduce(torch.ones(1)) if tp.rank == 1 else tp.recv(torch.ones(1), 0))


def test_abort_frees_who_waits_and_tells_the_others(world: World):
    _, waited, received = run_ranks("tp3", _aborted, world=world, check=False, timeout=FAR)
    assert (waited[0], received[0]) == ("CollectiveError", "CollectiveError")
    assert re.search("rank 0 has closed its manager|rank 2 has (closed|failed)", waited[1])
    assert waited[2] < SOON


def _late(groups: GroupManager) -> None:
    tp = groups.tp
    if tp.rank == 2:
        groups.world.recv(torch.zeros(1), 0)
        assert tp.all_reduce(torch.ones(1)) == 3  # the others had given their parts
        with pytest.raises(CollectiveError, match=r"all_reduce on .* rank . has failed before"):
            tp.all_reduce(torch.ones(1))
    else:
        with pytest.raises(
            (GroupTimeoutError, CollectiveError), match=r"timed out after 0.3 s, waiting for rank 2|failed"
        ):
            tp.all_reduce(torch.ones(1))
        with pytest.raises(CollectiveError, match="an earlier operation failed"):
            tp.barrier()
        if tp.is_first:
            groups.world.send(torch.zeros(1), 2)
    groups.abort()


def test_who_is_late_finds_that_the_others_have_given_up():
    run_ranks("tp3", _late, check=False, options={"tp": {"timeout": 0.3}}, timeout=30)


def _interrupted(groups: GroupManager) -> float:
    tp = groups.tp
    tp.barrier()
    if tp.is_first:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with soon(), pytest.raises(KeyboardInterrupt):
            tp.all_reduce(torch.ones(1))
        timer.join()
        signal.signal(signal.SIGINT, before)
        tp.send(torch.zeros(1), 1)
    else:
        tp.recv(torch.zeros(1), 0)
        assert tp.all_reduce(torch.ones(1)) == 2  # which the other one was interrupted in, and has given its part to
    return tp.all_reduce(torch.ones(1)).item()


def test_an_interrupt_ends_the_wait_and_the_group_goes_on():
    assert run_ranks("tp2", _interrupted, world="processes", check=False, timeout=FAR) == [2, 2]


# Whether there is memory to share.


def _each(
    ranks: int, patched: Callable[[int], object], body: Callable[[GroupManager], Any], **options: Any
) -> list[Any]:
    """Ranks as threads, each of which does something first."""
    store = dist.HashStore()

    def rank(number: int) -> Any:
        patched(number)
        with GroupManager(ParallelTopology(tp=ranks), rank=number, store=store, timeout=20, **options) as groups:
            return body(groups)

    return run_threads(["rank"] * ranks, rank, timeout=30)


def _over_gloo(groups: GroupManager) -> list[str]:
    assert groups.tp.all_reduce(torch.ones(1)) == 3
    assert groups.tp.broadcast_object("x" if groups.rank == 0 else None) == "x"
    return [one.name for one in groups.tp.communicators if one.handles("all_reduce", torch.ones(1))]


def test_where_one_rank_cannot_find_the_memory_all_do_without(monkeypatch: pytest.MonkeyPatch):
    assert _each(3, hidden_from(1, monkeypatch), _over_gloo) == [["torch"]] * 3


def test_ranks_of_several_hosts_do_not_share(monkeypatch: pytest.MonkeyPatch):
    here = ContextVar[int]("here")
    monkeypatch.setattr(joining, "host_identity", lambda: f"host {here.get()}")
    assert _each(3, here.set, _over_gloo) == [["torch"]] * 3
    named = {"options": {"tp": {"communicators": ["shared_memory"]}}}
    with pytest.raises(ExceptionGroup) as caught:
        _each(3, here.set, _over_gloo, **named)
    assert caught.group_contains(BackendError, match="share no memory: they are on several hosts")


def test_it_can_be_turned_off_and_must_be_there_where_it_is_named():
    for options, names in (({"communicators": ["torch"]}, ["torch"]), ({}, ["shared_memory", "torch"])):
        found = run_ranks(
            "tp2", lambda groups: [one.name for one in groups.tp.communicators], check=False, options={"tp": options}
        )
        assert found == [names] * 2


def test_an_offer_that_is_none_is_not_opened(tmp_path: Path):
    offer, other = Offer(), Offer()
    process, file, nonce = offer.text.split("/")
    (tmp_path / "file").write_bytes(b"x" * 100)
    plain = os.open(tmp_path / "file", os.O_RDWR)
    loose = os.memfd_create("parallel_topology", os.MFD_ALLOW_SEALING)  # it could be taken away under us
    os.write(loose, bytes.fromhex(nonce))
    numbers = [file, plain, 999, other.text.split("/")[1], loose]
    wrong = [f"{process}/{number}/{nonce if number != file else '0' * 32}" for number in numbers]
    for text in ("", "1", *wrong):
        with pytest.raises((OSError, ValueError)):
            host_memory._opened(text)
    memory = HostMemory([0], 0, regions({"tp": (2, 4096)}), offer, "1/2/3")
    memory.settle(shared=True)
    assert not memory.is_shared
    os.close(plain)
    os.close(loose)
    other.close()


def test_memory_has_neither_name_nor_descriptor_once_it_is_shared():
    gc.collect()
    offer = Offer()
    before = set(os.listdir("/proc/self/fd"))
    memory = HostMemory([0], 0, regions({"tp": (2, 4096)}), offer, offer.text)
    memory.settle(shared=True)
    assert memory.is_shared
    assert set(os.listdir("/proc/self/fd")) < before
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:parallel_topology" in line]
    assert all("(deleted)" in line for line in mapped)
    address = f"{memory.address:x}-"
    assert any(line.startswith(address) for line in mapped)
    del memory
    gc.collect()
    assert not any(line.startswith(address) for line in Path("/proc/self/maps").read_text().splitlines())


@given(st.dictionaries(st.text(), st.tuples(st.integers(2, 300), st.integers(1, 10**6))))
def test_regions_do_not_overlap(families: dict[str, tuple[int, int]]):
    found: list[Region] = list(regions(families).values())
    for region, (members, size) in zip(found, families.values(), strict=True):
        assert region.slot_bytes >= size
        assert region.start + region.WORDS <= region.sleepers
        assert region.sleepers + members <= region.headers
        assert region.headers + region.slots * region.HEADER <= region.data
        assert region.data + region.slots * region.slot_bytes <= region.boxes
        assert region.boxes + members * Box.BYTES <= region.used
        assert region.used + region.BLOCKS <= region.parcels
        assert region.parcels + region.PARCELS <= region.end
        assert region.start % 64 == region.headers % 64 == region.data % 4096 == 0
    for one, following in pairwise(found):
        assert one.end <= following.start


# What it stands on.


def test_a_sleeper_is_woken_or_does_not_fall_asleep():
    memory = torch.zeros(1, dtype=torch.int64)
    address = memory.data_ptr()
    with soon():
        futex.sleep(address, 1, FAR)  # it has another value
        threading.Timer(0.1, lambda: (memory.fill_(1), futex.wake(address))).start()
        while memory.item() == 0:
            futex.sleep(address, 0, FAR)
        begun = time.monotonic()
        futex.sleep(address, 1, 0.05)
        assert time.monotonic() - begun > 0.04


@pytest.mark.parametrize("call", ["all_reduce", "recv_any"])
def test_who_waits_where_others_want_the_processor_soon_sleeps(call: str, monkeypatch: pytest.MonkeyPatch):
    """To let others run takes a whole time slice there, so that all the looks before the first nap took seconds."""
    looks: list[int] = []
    monkeypatch.setattr(futex, "give_way", lambda: (looks.append(1), time.sleep(0.02)))

    def body(groups: GroupManager) -> None:
        if groups.rank == 0:
            with pytest.raises(GroupTimeoutError):
                getattr(groups.tp, call)(torch.ones(1))
            assert len(looks) < 3
        assert groups.diagnose(30) == []
        groups.abort()

    run_ranks("tp2", body, check=False, options={"tp": {"timeout": 0.2}}, timeout=60)


def test_a_fence_is_whole_after_an_interrupt():
    fence = Fence()
    fence._take()  # as an interrupt between two steps leaves it
    fence()
    fence()


def test_a_process_is_known_by_its_beginning():
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    since = started(child)
    assert since
    assert not is_gone(child, since)
    assert is_gone(child, since + 1)  # another one of that number
    os.kill(child, signal.SIGKILL)
    while started(child):
        os.sched_yield()
    assert is_gone(child, since)  # not buried yet
    os.waitpid(child, 0)
    assert is_gone(child, since)


def _busy(rank: int, folder: str) -> None:
    """Makes managers over and over, and uses them, until it is killed."""
    store = dist.FileStore(f"{folder}/store", 3)
    number = 0
    while True:
        number += 1
        with suppress(ParallelTopologyError):
            topology = ParallelTopology(tp=3)
            with GroupManager(topology, rank=rank, store=store, name=f"n{number}", timeout=5) as groups:
                Path(folder, f"made {rank}").touch()
                for _ in range(20):
                    groups.tp.all_reduce(torch.ones(70_000))
                    groups.tp.broadcast_object(["x" * 1000] if rank == 0 else None)
                    groups.tp.send_recv(torch.ones(9))


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.1, 0.3, 1.0])
def test_killed_at_any_moment_they_leave_nothing_behind(tmp_path: Path, after: float):
    before = in_shm()
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_busy, args=(rank, str(tmp_path)), daemon=True) for rank in range(3)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + 60
    while not all(Path(tmp_path, f"made {rank}").exists() for rank in range(3)) and time.monotonic() < deadline:
        os.sched_yield()
    threading.Event().wait(after)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert in_shm() <= before
