"""Messages: each is what was announced, or an error that names both sides, and the next one can be received."""

from __future__ import annotations

import gc
import itertools
import re
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from parallel_topology import CollectiveError, GroupArgumentError, GroupManager, MismatchError, WireError
from parallel_topology.communicators.channel import Channel
from parallel_topology.communicators.channels import Channels, channels_of
from parallel_topology.communicators.host_memory import HostMemory
from parallel_topology.communicators.links import Links
from parallel_topology.communicators.parcels import Parcels
from parallel_topology.testing import run_ranks
from parallel_topology.wire.frames import CHUNK, INLINE, UNIT, Frame, Header, Kind, chunks, first_tag, inline
from tests.waiting import eventually

over_all = pytest.mark.usefixtures("carrier")


@pytest.fixture(params=["shared memory", "gloo", "both"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What carries messages between ranks that are threads; `both`: half of the large ones find no room in memory."""
    if request.param == "gloo":
        monkeypatch.setattr(HostMemory, "settle", lambda self, *, shared: self.close())
    if request.param == "both":
        put, turns = Parcels.put, itertools.count()
        monkeypatch.setattr(Parcels, "put", lambda self, *given: 0 if next(turns) % 2 else put(self, *given))


LARGE = 3 * 2**20 + 5
"""Bytes: three chunks, and some behind the header."""

sizes = st.one_of(
    st.integers(0, 2**34),
    st.builds(lambda power, more: max(0, 2**power + more), st.integers(0, 34), st.integers(-2, 2)),
    st.builds(lambda units, more: max(0, units * UNIT + more), st.integers(0, 9000), st.integers(-2, 2)),
)


@given(size=sizes, tag=st.integers(0, 1023), sequence=st.integers(0, 2**40))
def test_chunks_and_what_is_behind_the_header_are_the_message(size: int, tag: int, sequence: int):
    assert inline(size) <= INLINE
    end = 0
    for wire_tag, start, length in chunks(size, tag, sequence):
        assert start == end
        assert 0 < length <= CHUNK
        assert 0 <= wire_tag < 2**31
        end += length
    assert end + inline(size) == size


@given(
    one=sizes, other=sizes, tags=st.tuples(*[st.integers(0, 1023)] * 2), turns=st.tuples(*[st.integers(0, 8191)] * 2)
)
def test_equal_tags_mean_equal_sizes(one: int, other: int, tags: tuple[int, int], turns: tuple[int, int]):
    """Or gloo would end the process that has given too little memory."""
    found: dict[int, tuple[Any, ...]] = {}
    for size, tag, turn in zip((one, other), tags, turns, strict=True):
        for wire_tag, _, length in chunks(size, tag, turn):
            assert found.setdefault(wire_tag, (length, tag, turn)) == (length, tag, turn)
    assert not {first_tag(tag) for tag in tags} & set(found)


@given(
    frame=st.builds(
        Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.integers(0, 2**40),
        st.sampled_from(["", "float8_e4m3fn"]),
        st.lists(st.integers(0, 9), max_size=8).map(tuple), st.booleans(), st.integers(0, 9), st.integers(0, 9),
        st.integers(0, 2**40),
    )
)  # fmt: skip
def test_a_header_is_read_as_it_was_written(frame: Frame):
    assert Frame.unpack(bytearray(frame.packed())) == frame
    assert Header(frame._replace(sequence=0)).numbered(frame.sequence) == frame.packed()


class Request(BaseModel):
    number: int


def _send(groups: GroupManager, *sent: Callable[[Any], object], then: Callable[[Any], object]) -> None:
    for send in sent:
        send(groups.tp)


Way = tuple[Callable[[Any], object], Callable[[Any], object], type[Exception], str]
floats, ints = torch.float32, torch.int32
WAYS: dict[str, Way] = {
    "longer": (lambda tp: tp.send(torch.ones(4)), lambda tp: tp.recv(torch.zeros(2)), MismatchError,
               "recv on engine/tp[0]: rank 0 sends float32[4], but rank 1 receives into float32[2]"),
    "shorter": (lambda tp: tp.send(torch.ones(2)), lambda tp: tp.recv(torch.zeros(4)), MismatchError,
                "rank 0 sends float32[2], but rank 1 receives into float32[4]"),
    "dtype": (lambda tp: tp.send(torch.ones(4)), lambda tp: tp.recv(torch.zeros(4, dtype=ints)), MismatchError,
              "rank 0 sends float32[4], but rank 1 receives into int32[4]"),
    "much longer": (lambda tp: tp.send(torch.ones(LARGE, dtype=torch.uint8)), lambda tp: tp.recv(torch.zeros(2)),
                    MismatchError, f"rank 0 sends uint8[{LARGE}], but rank 1 receives into float32[2]"),
    "much shorter": (lambda tp: tp.send(torch.ones(2)), lambda tp: tp.recv(torch.zeros(2**20)), MismatchError,
                     "rank 0 sends float32[2], but rank 1 receives into float32[1048576]"),
    "of some equal chunks": (lambda tp: tp.send(torch.ones(2**20 + 2**16)), lambda tp: tp.recv(torch.zeros(2**20)),
                             MismatchError, "rank 0 sends float32[1114112]"),
    "large dtype": (lambda tp: tp.send(torch.ones(2**20)), lambda tp: tp.recv(torch.zeros(2**20, dtype=ints)),
                    MismatchError, "rank 0 sends float32[1048576], but rank 1 receives into int32[1048576]"),
    "object for tensor": (lambda tp: tp.send_object("x" * 9000), lambda tp: tp.recv(torch.zeros(2)), MismatchError,
                          "rank 0 sends an object of 90"),
    "tensor for object": (lambda tp: tp.send(torch.ones(9)), lambda tp: tp.recv_object(), MismatchError,
                          "rank 0 sends float32[9], but rank 1 receives an object"),
    "tensors for tensor": (lambda tp: tp.send_tensors([torch.ones(9), torch.ones(9000)]),
                           lambda tp: tp.recv(torch.ones(9)), MismatchError, "rank 0 sends what send_tensors sends"),
    "tensor for tensors": (lambda tp: tp.send(torch.ones(9)), lambda tp: tp.recv_tensors(), MismatchError,
                           "rank 0 sends float32[9], but rank 1 receives what send_tensors sends"),
    "too large an object": (lambda tp: tp.send_object("x" * LARGE), lambda tp: tp.recv_object(max_bytes=100),
                            WireError, "from rank 0: it announces 3145"),
    "a model not named": (lambda tp: tp.send_object(Request(number=1)), lambda tp: tp.recv_object(), WireError,
                          "Request"),
    "tensors with a model": (lambda tp: tp.send_tensors([Request(number=1), torch.ones(9), torch.ones(9999)]),
                             lambda tp: tp.recv_tensors(), WireError, "Request"),
}  # fmt: skip


def _refused(groups: GroupManager, *names: str) -> None:
    tp, rounds = groups.tp, 3
    for name, turn in itertools.product(names, range(rounds)):
        send, recv, error, message = WAYS[name]
        if tp.is_first:
            send(tp)
            tp.send(torch.full((LARGE,), turn, dtype=torch.uint8))
            tp.send_object({"turn": turn})
            tp.send_tensors({"turn": turn, "x": torch.full((9000,), turn)})
        else:
            with pytest.raises(error, match=re.escape(message)):
                recv(tp)
            assert tp.recv(torch.empty(LARGE, dtype=torch.uint8)).unique().tolist() == [turn], name
            assert tp.recv_object() == {"turn": turn}
            came = tp.recv_tensors()
            assert came["turn"] == turn
            assert came["x"].unique().tolist() == [turn]
    assert tp.all_reduce(torch.ones(1)) == tp.size


@pytest.mark.parametrize("name", WAYS)
@over_all
def test_what_does_not_match_is_named_and_the_next_receive_is_right(name: str):
    run_ranks("tp2", _refused, name, check=False, timeout=20)


@over_all
def test_an_error_names_the_group_that_was_called_of_those_that_share_connections():
    def body(groups: GroupManager) -> None:
        for group in (groups.tp, groups.world):
            if groups.rank == 0:
                group.send(torch.ones(2))
                group.send(torch.ones(2))
                group.send_object("x" * 99)
            else:
                with pytest.raises(MismatchError, match=re.escape(f"recv on {group.label}: rank 0 sends")) as seen:
                    group.recv(torch.ones(3))
                assert seen.value.__cause__ is None
                with pytest.raises(MismatchError, match=re.escape(f"recv on {group.label}: rank 0 sends")):
                    group.irecv(torch.ones(3)).wait()
                with pytest.raises(WireError, match=re.escape(f"recv_object on {group.label} from rank 0: it announ")):
                    group.recv_object(max_bytes=10)

    run_ranks("tp2", body, check=False)


def test_in_processes():
    run_ranks("tp2", _refused, *WAYS, check=False, world="processes", timeout=60)


@over_all
def test_a_small_tensor_is_not_touched_by_what_does_not_match():
    def body(groups: GroupManager) -> None:
        if groups.tp.is_first:
            groups.tp.send(torch.ones(4))
        else:
            into = torch.zeros(4, dtype=torch.int32)
            with pytest.raises(MismatchError):
                groups.tp.recv(into)
            assert into.tolist() == [0] * 4

    run_ranks("tp2", body, check=False)


@over_all
def test_reverse_waits_and_receives_begun_on_both_sides():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        for count in (1, 5000, 2**19):
            into = [torch.empty(count + number) for number in range(4)]
            begun = [tp.irecv(one) for one in into]
            for number in range(4):
                tp.send(torch.full((count + number,), float(number + 10 * tp.rank)))
            for number in (3, 1, 2, 0):
                assert begun[number].wait().unique().tolist() == [number + 10 * (1 - tp.rank)]

    run_ranks("tp2", body)
    run_ranks("tp2", body, check_calls=True)


@over_all
def test_tags_are_received_in_any_order_and_from_anybody():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        if tp.rank:
            sent = [tp.isend(torch.full((9000,), float(100 * tp.rank + tag)), dst=0, tag=tag) for tag in (1, 2, 999)]
            for handle in sent:
                handle.wait()
            return
        for src, tag in ((2, 999), (1, 2), (2, 1)):
            assert tp.recv(torch.empty(9000), src=src, tag=tag).unique().tolist() == [100 * src + tag]
        into = torch.empty(9000)
        assert tp.recv_any(into, tag=999) == 1
        assert into.unique().tolist() == [1099]
        assert tp.recv_any(into, tag=1) == 1
        assert tp.recv_any(into, tag=2) == 2
        with pytest.raises(GroupArgumentError, match=r"tag=1000, expected 0\.\.999"):
            tp.recv(into, tag=1000)

    run_ranks("tp3", body)
    run_ranks("tp3", body, check_calls=True)


@over_all
def test_from_anybody_everybody():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        for count in (1, 20000):
            if tp.rank:
                tp.send(torch.full((count,), tp.rank), dst=0)
            else:
                into = torch.empty(count, dtype=torch.int64)
                found = [(tp.recv_any(into), int(into[-1])) for _ in range(tp.size - 1)]
                assert sorted(found) == [(rank, rank) for rank in range(1, tp.size)]
            tp.barrier()

    run_ranks("tp4", body)


@pytest.mark.parametrize("anybody", [False, True])
@over_all
def test_what_is_expected_comes_wherever_the_program_is(anybody: bool):
    """More than there is room for, which the receiver only waits for after what the sender does next."""
    counts = [*[4] * 30, *[9000] * 30, *[2**20] * 10, *[3 * 2**20] * 2]

    def body(groups: GroupManager) -> None:
        tp = groups.tp
        if tp.is_first:
            begun = [tp.irecv(torch.empty(count)) for count in counts]
            into = torch.empty(1)
            if anybody:
                tp.barrier()
                assert tp.recv_any(into, tag=1) == 1
            tp.barrier()
            assert [one.wait().unique().item() for one in begun] == [*range(len(counts))]
        else:
            for number, count in enumerate(counts):
                tp.send(torch.full((count,), float(number)))
            if anybody:
                tp.barrier()
                tp.send(torch.ones(1), tag=1)
            tp.barrier()

    run_ranks("tp2", body)


def test_what_cannot_be_received_before_it_is_waited_for_is_an_error_then(monkeypatch: pytest.MonkeyPatch):
    """gloo's connection may have failed; memory that nothing came into is no message."""
    monkeypatch.setattr(Parcels, "put", lambda *_: 0)

    def refuses(*_: object) -> None:
        raise RuntimeError("connection reset")

    def body(groups: GroupManager) -> None:
        if groups.tp.is_first:
            groups.tp.isend(torch.ones(9000))
            groups.tp.barrier()
        else:
            begun = groups.tp.irecv(torch.zeros(9000))
            groups.tp.barrier()
            assert eventually(lambda: channels_of(groups.tp.links).by(0)._broken != "")
            with pytest.raises(CollectiveError, match=r"recv on .* failed at rank 1: connection reset"):
                begun.wait()

    monkeypatch.setattr(Channel, "recv_chunk", refuses)
    run_ranks("tp2", body, check=False)


@over_all
def test_a_dropped_handle_loses_nothing():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        for count in (4, 5000, 2**19):
            if tp.is_first:
                for number in range(3):
                    tp.isend(torch.full((count,), float(number)))
                gc.collect()
                tp.barrier()
                sent = torch.full((count,), 9.0)
                tp.send(sent)  # those before it are through when it is
                gone = weakref.ref(sent)
                del sent
                gc.collect()
                assert gone() is None
            else:
                tp.barrier()
                for number in (0.0, 1.0, 2.0, 9.0):
                    assert tp.recv(torch.empty(count)).unique().tolist() == [number]

    run_ranks("tp2", body)


@over_all
def test_what_is_held_for_dropped_handles_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("parallel_topology.communicators.channels.MAX_DROPPED", 8)

    def body(groups: GroupManager) -> None:
        tp = groups.tp
        if tp.is_first:
            tensors = [torch.full((count,), 1.0) for count in range(1, 40)]
            known = [weakref.ref(tensor) for tensor in tensors]
            while tensors:
                tp.isend(tensors.pop(0))
            assert sum(one() is not None for one in known) <= 10
            tp.send(torch.ones(1))
        else:
            for count in range(1, 40):
                assert tp.recv(torch.empty(count)).sum() == count
            tp.recv(torch.ones(1))

    run_ranks("tp2", body)


@over_all
def test_a_dropped_receive_takes_its_message():
    def body(groups: GroupManager) -> None:
        tp = groups.tp
        if tp.is_first:
            tp.send(torch.full((5000,), 1.0))
            tp.send(torch.full((5000,), 2.0))
        else:
            tp.irecv(first := torch.zeros(5000))
            gc.collect()
            assert tp.recv(torch.zeros(5000)).unique().tolist() == [2]
            assert first.unique().tolist() == [1]

    run_ranks("tp2", body)


def _raw(groups: GroupManager, message: bytearray) -> None:
    first = channels_of(groups.tp.links).to(1).send_first(torch.frombuffer(message, dtype=torch.uint8))
    assert first.wait(groups.tp.links.timeout)


def _framed(frame: Frame) -> bytearray:
    return bytearray(frame.packed().ljust(8192))


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        (bytearray(b"hello" * 30), WireError, "which is not the header of a message"),
        (_framed(Frame(Kind.OBJECT, 0, 2**60)), WireError, "rank 0: it announces 1152921504606846976 bytes"),
        (
            _framed(Frame(Kind.OBJECT, 0, 10**4, place=2**40)),
            WireError,
            "rank 0: a peer announces",
        ),
        (
            _framed(Frame(Kind.OBJECT, 7, 10)),
            MismatchError,
            "out of step: message 7, an object of 10 bytes, came in place",
        ),
    ],
)
@over_all
def test_a_channel_that_cannot_go_on_says_why_at_every_call(message: bytearray, error: type[Exception], said: str):
    def body(groups: GroupManager) -> None:
        if groups.tp.is_first:
            _raw(groups, message)
            groups.tp.recv(torch.zeros(1))  # the other direction still works
        else:
            with pytest.raises(error, match=re.escape(said)):
                groups.tp.recv_object()
            for call in (groups.tp.recv_object, groups.tp.recv_tensors, lambda: groups.tp.recv(torch.ones(1))):
                with pytest.raises(CollectiveError, match="nothing more can be received on this channel: "):
                    call()
            groups.tp.send(torch.ones(1))

    run_ranks("tp2", body, check=False)


def test_threads_that_use_a_group_for_the_first_time_count_the_same_messages(monkeypatch: pytest.MonkeyPatch):
    """Two that each made channels of their own sent two messages 0: `is out of step`."""
    both, plain, found = threading.Barrier(2), Channels.__init__, list[Channels]()

    def made_by_both(self: Channels, links: Links) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # where the other one makes some, too, it comes
        plain(self, links)

    monkeypatch.setattr(Channels, "__init__", made_by_both)
    links = Links()
    threads = [threading.Thread(target=lambda: found.append(channels_of(links))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [links.channels] * 2


@over_all
def test_two_threads_share_a_channel():
    def body(groups: GroupManager) -> None:
        tp, found = groups.tp, list[float]()

        def work(tag: int) -> None:
            for number in range(30):
                if tp.is_first:
                    tp.send(torch.full((3000,), float(number)), tag=tag)
                else:
                    found.append(float(tp.recv(torch.empty(3000), tag=tag)[-1]) - number)

        threads = [threading.Thread(target=work, args=(tag,)) for tag in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(found)
        assert len(found) == (0 if tp.is_first else 90)

    run_ranks("tp2", body, check=False)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30000), st.sampled_from([torch.uint8, torch.float32, torch.int16])),
        min_size=1, max_size=8,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
@over_all
def test_any_messages_in_any_order_of_waits(messages: list[tuple[int, int, torch.dtype]], random: Any):
    order = list(range(len(messages)))
    random.shuffle(order)

    def body(groups: GroupManager) -> None:
        tp = groups.tp
        values = [torch.arange(count).to(dtype) for _, count, dtype in messages]
        begun = [
            tp.isend(value, tag=tag) if tp.is_first else tp.irecv(torch.zeros_like(value), tag=tag)
            for value, (tag, _, _) in zip(values, messages, strict=True)
        ]
        for number in order:
            came = begun[number].wait()
            assert came is None or torch.equal(came, values[number])

    run_ranks("tp2", body)
