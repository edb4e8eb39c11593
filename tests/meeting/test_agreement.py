"""Agreement: whoever comes meets, whatever others left in the store; and nobody else is let in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_topology import (
    CollectiveError,
    DisagreementError,
    GroupArgumentError,
    GroupManager,
    GroupTimeoutError,
    LaunchError,
    ParallelTopology,
    ParallelTopologyError,
    RendezvousError,
)
from parallel_topology.meeting.agreement import Meeting
from parallel_topology.meeting.cards import MAX_BYTES
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.token import Seals, digest, token_from
from parallel_topology.testing.threads import run_threads
from tests.waiting import FAR, soon

TP2 = ParallelTopology(tp=2)


class Killed(BaseException):
    """As SIGKILL: nothing runs after it."""


class Mortal(dist.Store):
    """A store whose user dies after some operations."""

    def __init__(self, store: dist.Store, operations: int) -> None:
        super().__init__()
        self.store = store
        self.left = operations

    def __getattribute__(self, name: str) -> Any:
        if name not in ("get", "set", "add", "check", "wait", "compare_set", "delete_key"):
            return super().__getattribute__(name)
        if self.left == 0:
            raise Killed
        self.left -= 1
        return getattr(self.store, name)


def meeting(world: int, rank: int, timeout: float = 20, **told: Any) -> Meeting:
    topology = ParallelTopology(tp=world)
    fields: dict[str, Any] = {
        "name": "engine",
        "host": "here",
        "process": f"process {rank}",
        "address": "",
        "token": None,
    }
    fields["card"] = json.dumps({"topology": str(topology)})
    return Meeting(world=topology.world, rank=rank, deadline=Deadline(timeout), **fields | told)


def outcomes(world: int, body: Callable[[int], object], timeout: float = 60) -> list[Any]:
    """What each rank's thread returned, or the error of ours that it raised."""

    def caught(rank: int) -> object:
        try:
            return body(rank)
        except ParallelTopologyError as error:
            return error

    return run_threads(["rank"] * world, caught, timeout=timeout)


def names(store: dist.Store, world: int, lives: list[int | None], timeout: float) -> list[str | None]:
    """The round each rank finds; None for who dies, after as many operations as `lives` has for it, or gives up."""

    def body(rank: int) -> str | None:
        life = lives[rank] if rank < len(lives) else None
        own = store if life is None else Mortal(store, life)
        mine = meeting(world, rank, timeout)
        try:
            mine.agree(own)
        except Killed:
            return None
        return mine.round

    return [None if isinstance(found, Exception) else found for found in outcomes(world, body)]


@settings(max_examples=12, deadline=None)
@given(
    earlier=st.lists(
        st.tuples(st.integers(2, 4), st.lists(st.none() | st.integers(0, 14), max_size=4)), min_size=1, max_size=3
    ),
    world=st.integers(2, 4),
)
@example(earlier=[(2, [])], world=2)
@example(earlier=[(4, [None, None, None, 0])], world=4)
@example(earlier=[(2, [8, None])], world=2)  # the first rank dies after it has called
def test_all_meet_in_a_new_round_after_any_earlier_starts(earlier: list[tuple[int, list[int | None]]], world: int):
    """As torchrun's agents keep the store when they start their workers again."""
    store = dist.HashStore()
    before: set[str | None] = set()
    for size, lives in earlier:  # nobody waits long for the dead
        before |= set(names(store, size, lives, timeout=0.1 if any(life is not None for life in lives) else 20))
    found = names(store, world, [], timeout=20)
    assert len(set(found)) == 1
    assert found[0] is not None
    assert not before & set(found)


class TestRetries:
    """A rank that gives up withdraws, so whoever tries again meets."""

    @pytest.mark.parametrize("late", [0, 1])
    @pytest.mark.parametrize("kind", ["hash", "tcp", "file", "left-over file"])
    def test_ranks_that_retry_meet(self, late: int, kind: str, tmp_path: Path):
        path = tmp_path / "store"
        opened = {"hash": dist.HashStore, "tcp": lambda: dist.TCPStore("127.0.0.1", 0, is_master=True)}
        store = opened[kind]() if kind in opened else dist.FileStore(str(path), -1)
        if kind.startswith("left"):  # by ranks that were killed while they waited
            for rank in range(2):
                store.set(f"engine@0/came/{rank}", meeting(2, rank)._entry.text())
        first_tries = threading.Semaphore(0)

        def body(rank: int) -> int:
            """How often it gave up."""
            if rank == late:
                assert first_tries.acquire(timeout=FAR)  # the other has given up once, and tries again
            given_up = 0
            while True:  # the other's first ones are short
                try:
                    own = dist.FileStore(str(path), -1) if "file" in kind else store
                    seconds = 0.3 if rank != late and given_up < 3 else FAR
                    with GroupManager(TP2, rank=rank, store=own, timeout=seconds, operation_timeout=FAR) as groups:
                        assert groups.tp.all_reduce(torch.ones(1)).item() == 2
                    return given_up
                except (GroupTimeoutError, RendezvousError):
                    given_up += 1
                    first_tries.release()
                except CollectiveError:  # the other gave up when all had agreed, and it had not come in yet
                    assert rank == late

        assert run_threads(["rank"] * 2, body, timeout=1.5 * FAR)[late] == 0

    def test_a_card_that_a_dead_rank_left_is_replaced_by_who_comes(self):
        store = dist.HashStore()
        store.set("engine@0/came/1", meeting(2, 1, card='{"topology": "another"}')._entry.text())
        called = threading.Event()

        def body(rank: int) -> str:
            mine = meeting(2, rank)
            if rank == 1:
                assert called.wait(20)
            else:
                threading.Thread(target=lambda: (store.wait(["engine@0/open"]), called.set())).start()
            mine.agree(store)
            return mine.round

        assert len(set(run_threads(["rank"] * 2, body, timeout=60))) == 1

    def test_who_gave_up_at_the_same_time_had_come(self):
        store = dist.HashStore()
        for rank, error in enumerate(outcomes(3, lambda rank: meeting(4, rank, 0.5).agree(store))):
            assert str(error) == (
                f"engine: rank 3 did not come within 0.5 s; rank {rank} waited with 3 of 4 present for tp4"
            )

    def test_all_came_and_the_first_rank_gives_no_verdict(self):
        store = dist.HashStore()
        store.set("engine@0/came/0", meeting(2, 0)._entry.text())
        with pytest.raises(GroupTimeoutError, match=r"rank 0 gave no verdict within 0.3 s, though all ranks had come"):
            meeting(2, 1, 0.3).agree(store)

    def test_a_rank_number_that_is_used_twice_is_named(self):
        store = dist.HashStore()
        found = outcomes(2, lambda position: meeting(3, 1, 1, process=f"process {position}").agree(store))
        assert all(isinstance(error, GroupTimeoutError) for error in found)
        assert any("rank 1 has joined 2 times, before in process " in str(error) for error in found)


class TestParts:
    def test_parts_of_a_job_then_all_of_it(self):
        """Ranks 0 and 1 build one manager while 2 and 3 wait for the next; same names, and other ones."""
        for first in ("actor", "all"):
            store = dist.HashStore()

            def body(rank: int, store: dist.Store = store, first: str = first) -> float:
                if rank < 2:
                    with GroupManager(TP2, rank=rank, store=store, name=first, timeout=20) as part:
                        assert part.tp.all_reduce(torch.ones(1)).item() == 2
                with GroupManager(ParallelTopology(tp=4), rank=rank, store=store, name="all", timeout=20) as groups:
                    return groups.tp.all_reduce(torch.ones(1)).item()

            assert run_threads(["rank"] * 4, body, timeout=60) == [4.0] * 4

    def test_threads_of_one_rank_that_build_managers_of_one_name(self):
        store = dist.HashStore()

        def body(position: int) -> float:
            with GroupManager(TP2, rank=position % 2, store=store, timeout=20) as groups:
                return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_threads(["rank"] * 8, body, timeout=60) == [2.0] * 8


class TestStrangers:
    """Other jobs at the same store, and what is no card at all."""

    @pytest.mark.parametrize("token", [None, "theirs"])
    @pytest.mark.parametrize("alive", [False, True])
    def test_another_jobs_rank_at_this_store_harms_nobody(self, token: str | None, alive: bool):
        store = dist.HashStore()
        gave_up = threading.Event()
        waits = threading.Event()

        def stranger() -> None:
            try:
                waits.set()
                meeting(2, 1, 1.0, token=token, process="process of another job").agree(store)
            except ParallelTopologyError:
                gave_up.set()

        other = threading.Thread(target=stranger)
        other.start()
        assert waits.wait(20)
        store.wait(["engine@0/came/1"])
        if not alive:
            assert gave_up.wait(20)

        def body(rank: int) -> float:
            if rank == 0:
                store.wait(["came"])  # its own rank 1 is there: the newest counts
            else:
                threading.Thread(target=lambda: (_until_other(store), store.set("came", ""))).start()
            with GroupManager(TP2, rank=rank, store=store, timeout=20, token="ours") as groups:
                return groups.tp.all_reduce(torch.ones(1)).item()

        def _until_other(store: dist.Store) -> None:
            deadline = time.monotonic() + 20
            while "another job" in store.get("engine@0/came/1").decode() and time.monotonic() < deadline:
                time.sleep(0.01)

        assert run_threads(["rank"] * 2, body, timeout=60) == [2.0, 2.0]
        other.join(20)
        assert gave_up.is_set()

    @pytest.mark.parametrize(
        ("card", "why"),
        [
            ("[]", "is no JSON object"),
            ("garbage", "is no JSON"),
            ("[" * 100_000, "is no JSON"),
            ("{}", "it has the fields"),
            ('{"rank": 0}', "it has the fields rank"),
            ("x" * (MAX_BYTES + 1), f"it has {MAX_BYTES + 1} bytes"),
            (meeting(2, 0)._entry.text(), "it says that it is rank 0"),
            (meeting(2, 1)._entry.text().replace('"turn": 0', '"turn": true'), "its turn is 'True'"),
            (meeting(2, 1, card="[]")._entry.text(), "is no JSON object"),
        ],
    )
    def test_what_is_no_card_is_an_error_on_every_rank_at_once(self, card: str, why: str):
        store = dist.HashStore()
        store.set("engine@0/came/2", card)

        def body(rank: int) -> object:
            return meeting(3, rank, FAR).agree(store)

        with soon():
            found = outcomes(2, body)
        for error in found:
            assert isinstance(error, RendezvousError)
            assert "what came as rank 2 shows no card: " in str(error)
            assert why in str(error)

    @pytest.mark.parametrize("verdict", ["[]", "{}", "x", "[" * 100_000, '{"verdict": "[]", "seal": ""}'])
    def test_what_is_no_verdict(self, verdict: str):
        store = dist.HashStore()

        def stranger() -> None:
            store.wait(["engine@0/came/1"])
            entry = json.loads(store.get("engine@0/came/1"))
            members = [[1, entry["nonce"], digest(json.dumps(entry))]]
            store.set("engine@0/r/call", json.dumps({"members": members, "on": [0], "hosts": [["", ""]]}))
            store.set(f"engine@0/called/{entry['nonce']}/0", "r")
            store.set("engine@0/r/end", verdict)

        threading.Thread(target=stranger).start()
        with pytest.raises(RendezvousError, match="what should be the verdict of rank 0"):
            meeting(2, 1, 20).agree(store)


class TestToken:
    @pytest.mark.parametrize("token", ["", "   ", 5, b"bytes"])
    def test_what_is_no_secret_is_refused(self, token: Any):
        with pytest.raises(GroupArgumentError, match="token: expected a secret text"):
            GroupManager(ParallelTopology(tp=1), rank=0, token=token)

    def test_an_empty_one_in_the_environment_is_refused(self, tmp_path: Path):
        (tmp_path / "token").write_text("\n")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\xd8")
        for env in (
            {"PARALLEL_TOPOLOGY_TOKEN": ""},
            {"PARALLEL_TOPOLOGY_TOKEN_FILE": str(tmp_path / "token")},
            {"PARALLEL_TOPOLOGY_TOKEN_FILE": str(tmp_path / "bytes")},
        ):
            with pytest.raises(LaunchError, match="PARALLEL_TOPOLOGY_TOKEN"):
                token_from(env)

    def test_a_copied_card_and_proof_of_an_earlier_job_are_worth_nothing(self):
        """A stranger comes as rank 1 with all that rank 1 ever put into a store."""
        store = dist.HashStore()
        earlier = self.an_earlier_job()

        def stranger() -> None:
            store.set("engine@0/came/1", earlier["card"])
            store.wait(["engine@0/open"])
            store.set(f"engine@0/{store.get('engine@0/open').decode()}/ack/1", earlier["ack"])

        threading.Thread(target=stranger).start()
        with pytest.raises(RendezvousError, match="what came as rank 1 does not hold the same token as rank 0"):
            meeting(2, 0, 20, token="secret").agree(store)

    def test_an_old_call_and_verdict_are_worth_nothing(self):
        """A stranger comes as the first rank, calls, and gives the verdict of an earlier job."""
        earlier = self.an_earlier_job()
        for call in (None, earlier["call"]):  # one that names the rank there is, or the old one
            store = dist.HashStore()

            def stranger(call: str | None = call, store: dist.Store = store) -> None:
                store.wait(["engine@0/came/1"])
                entry = store.get("engine@0/came/1").decode()
                nonce = json.loads(entry)["nonce"]
                old = json.loads(earlier["call"])["members"][0]
                mine = {"members": [old, [1, nonce, digest(entry)]], "on": [0, 0], "hosts": [["", ""]]}
                store.set("engine@0/r/call", call or json.dumps(mine))
                store.set("engine@0/r/end", earlier["end"])
                store.set(f"engine@0/called/{nonce}/0", "r")

            threading.Thread(target=stranger).start()
            refused = "called to a meeting that is not its own" if call else "rank 0 does not hold the same token"
            with pytest.raises(RendezvousError, match=refused):
                meeting(2, 1, 20, token="secret").agree(store)

    @staticmethod
    def an_earlier_job() -> dict[str, str]:
        """What it left in its store, its second rank's card among that."""
        store = dist.HashStore()
        ranks = [meeting(2, rank, 20, token="secret") for rank in range(2)]
        card = ranks[1]._entry.text()
        run_threads(["rank"] * 2, lambda rank: ranks[rank].agree(store), timeout=60)
        here = f"engine@0/{ranks[1].round}"
        left = {key: store.get(f"{here}/{key}").decode() for key in ("call", "end")}
        return {"card": card, "ack": store.get(f"{here}/ack/1").decode(), **left}

    @pytest.mark.parametrize("tampered", ["the proof", "where it listens"])
    def test_each_rank_checks_the_proof_of_each_other(self, tampered: str):
        """A first rank that holds the token cannot vouch for who has not proved it, nor say what that one did not."""
        store = dist.HashStore()
        seals, built = Seals("secret"), '{"tp": [["127.0.0.1", 1]]}'

        def first() -> None:
            store.wait(["engine@0/came/2"])
            entry = store.get("engine@0/came/2").decode()
            call = json.dumps(
                {"members": [[2, json.loads(entry)["nonce"], digest(entry)]], "on": [0], "hosts": [["", ""]]}
            )
            store.set("engine@0/r/call", call)
            answers = [[seals.of("engine", "proof", call, str(rank), built), built] for rank in range(3)]
            proof, said = answers[1]
            answers[1] = ["0" * 64, said] if tampered == "the proof" else [proof, said.replace("1]", "2]")]
            verdict = json.dumps({
                "refusal": "", "complaint": "", "number": 1, "card": json.loads(entry)["card"], "hosts": [0, 0, 0],
                "answers": answers,
            })  # fmt: skip
            sealed = {"verdict": verdict, "seal": seals.of("engine", "verdict", call, verdict)}
            store.set("engine@0/r/end", json.dumps(sealed))
            store.set(f"engine@0/called/{json.loads(entry)['nonce']}/0", "r")

        threading.Thread(target=first).start()
        with pytest.raises(RendezvousError, match="what came as rank 1 does not hold the same token as rank 2"):
            meeting(3, 2, 20, token="secret").agree(store)

    def test_it_stands_in_no_text_of_ours(self):
        assert "hush" not in repr(meeting(2, 0, token="hush")) + repr(Seals("hush"))


class TestTheCard:
    """Whatever changes which collectives creation runs, or what the groups do, is compared."""

    @pytest.mark.parametrize(
        ("theirs", "difference"),
        [
            ({"verify": False}, "rank 1: verify False"),
            ({"check_calls": True}, "rank 1: check_calls True"),
            ({"timeout": 21}, "rank 1: operation_timeout 21.0"),
            ({"operation_timeout": 3}, "rank 1: operation_timeout 3.0"),
            ({"options": {"tp": {"timeout": 3}}}, 'rank 1: options tp={"timeout":3.0'),
            ({"communicators": {"mine": lambda _: None}}, "rank 1: communicators mine"),
            ({"isolated": {"eplb": ("tp",)}}, "rank 1: groups world(tp), tp(tp), eplb(tp), isolated eplb"),
        ],
    )
    def test_arguments_that_differ_are_named_on_every_rank(self, theirs: dict[str, Any], difference: str):
        store = dist.HashStore()

        def body(rank: int) -> object:
            told: dict[str, Any] = {"timeout": FAR} | (theirs if rank == 1 else {})
            return GroupManager(TP2, rank=rank, store=store, **told).close()

        with soon():
            messages = [str(error) for error in outcomes(2, body) if isinstance(error, DisagreementError)]
        assert len(messages) == 2
        assert messages[0] == messages[1]
        for part in difference.removeprefix("rank 1: ").split(", "):
            assert part in messages[0].splitlines()[-1]

    def test_what_may_differ(self):
        store = dist.HashStore()

        def body(rank: int) -> float:
            told: dict[str, Any] = {"timeout": 20 + rank, "operation_timeout": 9, "local_rank": rank}
            with GroupManager(TP2, rank=rank, store=store, **told) as groups:
                return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_threads(["rank"] * 2, body, timeout=60) == [2.0, 2.0]


class TestNothingStays:
    """Whoever leaves first, last or never, the store holds no key of a manager that all have left."""

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_each_rank_leaves_all_its_managers_before_the_next_one_does(self, order: tuple[int, ...]):
        store = dist.HashStore()
        topology = ParallelTopology(tp=3)
        made: dict[int, list[GroupManager]] = {rank: [] for rank in range(3)}

        def body(rank: int) -> None:
            made[rank] += [GroupManager(topology, rank=rank, store=store, timeout=20) for _ in range(3)]

        outcomes(3, body)
        for rank in order:
            for groups in made[rank]:
                groups.abort()
        assert store.num_keys() == 0

    def test_one_never_leaves(self):
        store = dist.HashStore()
        topology = ParallelTopology(tp=3)
        forgotten: list[GroupManager] = []

        def body(rank: int) -> None:
            groups = GroupManager(topology, rank=rank, store=store, timeout=20)
            if rank == 2:
                forgotten.append(groups)
            else:
                groups.abort()

        kept: list[int] = []
        for _ in range(4):
            outcomes(3, body)
            kept.append(store.num_keys())
        assert kept[1] == kept[2] == kept[3]  # of the last one only
        for groups in forgotten:
            groups.abort()
        assert store.num_keys() == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_who_was_given_up_meets_nobody(rank: int):
    """A store that was frozen lets an attempt go on whose caller has gone: it must not take the others' next one."""
    store = dist.HashStore()
    given_up = meeting(2, rank)
    given_up.deadline.expire()
    store.set("engine@0/came/" + str(1 - rank), meeting(2, 1 - rank)._entry.text())
    with pytest.raises(GroupTimeoutError):
        given_up.agree(store)
    assert not store.check(["engine@0/number"])
    assert not store.check(["engine@0/open"])  # it called nobody
    assert [found.round for found in retried(store)] == [store.get("engine@0/open").decode()] * 2


def retried(store: dist.Store) -> list[Meeting]:
    """Both ranks meet."""

    def body(rank: int) -> Meeting:
        mine = meeting(2, rank)
        mine.agree(store)
        return mine

    return outcomes(2, body)
