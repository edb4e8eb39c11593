"""How managers begin and end: over torch's default group, on parts of a job, in cycles, rebound, forked, forgotten."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
import threading
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    BackendError,
    ClosedError,
    DisagreementError,
    GroupArgumentError,
    GroupManager,
    LaunchError,
    LiveGraphError,
    ParallelTopology,
    ParallelTopologyError,
    RebindError,
    RendezvousError,
    TopologyError,
    torch_private,
)
from parallel_topology.communicators.membership import Membership
from parallel_topology.communicators.torch_communicator import TorchCommunicator
from parallel_topology.testing import rank_fixture, run_ranks
from parallel_topology.testing.threads import run_threads
from tests.groups.graphs import Graph
from tests.ports import free_port
from tests.waiting import FAR, LATE, soon


@pytest.fixture
def store() -> dist.Store:
    """For ranks that are threads and make managers of their own."""
    return dist.HashStore()


@rank_fixture
def default_group(groups: GroupManager, tmp_path: Path):
    """torch's own, of all ranks; its store's folder is the test's."""
    size = groups.world.size
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{tmp_path}/default", size), rank=groups.rank, world_size=size
    )
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
@pytest.mark.ranks("tp2-pp2", world="processes", timeout=60)
def test_from_world_is_known_to_torch_and_leaves_the_default_group(
    groups: GroupManager, topology: ParallelTopology, default_group: None
):
    import torch.distributed._functional_collectives as functional

    mine = torch.tensor([groups.rank])
    with GroupManager.from_world(topology, timeout=20, name="actor") as over:
        tp, pp = over.tp.device_group, over.pp.device_group
        assert tp is not None
        assert pp is not None
        assert over.tp.all_reduce(mine.clone()).item() == sum(over.tp.ranks)
        assert over.pp.all_reduce(mine.clone()).item() == sum(over.pp.ranks)
        assert dist.get_process_group_ranks(tp) == list(topology.group("tp", rank=groups.rank))
        assert functional.all_reduce(mine, "sum", pp).item() == sum(over.pp.ranks)
        twice = lambda x: functional.all_reduce(x, "sum", tp) * 2  # noqa: E731
        if over.tp.is_first:  # what compiles takes seconds to import, on each rank
            twice = torch.compile(twice, fullgraph=True, backend="eager")
        assert twice(mine).item() == 2 * sum(over.tp.ranks)
        assert tp.group_desc == f"actor/tp[{groups.rank // 2}]"
    after = torch.ones(1)
    dist.all_reduce(after)
    assert after.item() == dist.get_world_size() == 4
    assert len(dist.distributed_c10d._world.pg_names) == 1


@pytest.mark.ranks("tp6", world="processes", timeout=60)
def test_managers_on_parts_of_a_job_are_built_at_the_same_time(groups: GroupManager, default_group: None):
    part = ParallelTopology(tp=2) if groups.rank < 2 else ParallelTopology(tp=2, pp=2, first_rank=2)
    with GroupManager.from_world(part, timeout=20) as over:
        assert over.world.all_reduce(torch.tensor([groups.rank])).item() == (1 if groups.rank < 2 else 14)


@pytest.mark.ranks("tp2-pp2", world="processes", timeout=60)
def test_from_world_again_and_again(groups: GroupManager, topology: ParallelTopology, default_group: None):
    """torch would give each group its predecessor's name, under which the store still has that one's addresses."""
    for name in ("actor", "actor", "critic", "actor"):
        with GroupManager.from_world(topology, timeout=10, name=name) as over:
            assert over.world.all_reduce(torch.tensor([groups.rank])).item() == 6


@pytest.mark.ranks("tp6")
def test_managers_on_parts_of_a_job_over_one_store_of_its_own(groups: GroupManager, store: dist.Store):
    part = ParallelTopology(tp=2) if groups.rank < 2 else ParallelTopology(tp=2, pp=2, ranks=(5, 2, 3, 4))
    with GroupManager(part, rank=groups.rank, store=store, timeout=20) as own:
        assert own.world.all_reduce(torch.tensor([groups.rank])).item() == (1 if groups.rank < 2 else 14)


@pytest.mark.ranks("tp4", world="processes", timeout=60)
def test_members_out_of_order_over_the_world(groups: GroupManager, default_group: None):
    unordered = ParallelTopology(tp=2, cp=2, views={"decode": "dcp4~cp-tp"})
    with GroupManager.from_world(unordered, timeout=20) as over:
        assert over.dcp.all_gather(torch.tensor([groups.rank])).tolist() == [0, 2, 1, 3]


@pytest.mark.ranks("tp2", world="processes", timeout=60)
def test_registries_may_hold_different_numbers_of_groups(groups: GroupManager, default_group: None):
    """From that number torch would derive different names on different ranks, which would wait for each other."""
    if groups.rank == 0:
        dist.new_group([0], use_local_synchronization=True)
    with GroupManager.from_world(ParallelTopology(tp=2), timeout=10) as over:
        assert over.tp.all_reduce(torch.tensor([groups.rank])).item() == 1


def test_from_world_without_a_default_group():
    with pytest.raises(RendezvousError, match=r"from_world needs torch\.distributed\.init_process_group"):
        GroupManager.from_world(ParallelTopology(tp=2))


@pytest.mark.ranks("tp2", world="processes", timeout=60)
def test_beside_somebody_elses_default_group_with_other_ranks(
    groups: GroupManager, default_group: None, tmp_path: Path
):
    with GroupManager.connect(
        f"file://{tmp_path}/own", ParallelTopology(tp=2), rank=1 - groups.rank, timeout=20
    ) as own:
        assert own.tp.all_gather(torch.tensor([groups.rank])).tolist() == [1, 0]
    total = torch.tensor([groups.rank])
    dist.all_reduce(total)
    assert total.item() == 1


@pytest.mark.ranks("tp2", world="processes", timeout=100)
def test_fifty_cycles_leave_nothing_behind(groups: GroupManager, tmp_path: Path):
    def state() -> tuple[int, int, int]:
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident

    store = dist.FileStore(f"{tmp_path}/store", -1)
    seen: list[tuple[int, int, int]] = []
    for _ in range(50):
        with GroupManager(ParallelTopology(tp=2, pp=1), rank=groups.rank, store=store, timeout=20) as own:
            own.tp.all_reduce(torch.ones(1000))
            own.world.barrier()
        seen.append(state())
    # The end of a cycle may be seen in the next one: what 45 cycles leave shows in all of the last ones.
    early, late = zip(*seen[:5], strict=True), zip(*seen[-5:], strict=True)
    descriptors, tasks, memory = (min(after) - max(before) for before, after in zip(early, late, strict=True))
    assert descriptors <= 0
    assert tasks <= 0
    assert memory < 4_000_000


@pytest.mark.ranks("tp2", world="processes", check=False)
def test_use_in_a_forked_child(groups: GroupManager, tmp_path: Path):
    told = tmp_path / f"child of {groups.rank}"
    child = os.fork()
    if child == 0:
        try:
            groups.tp.all_reduce(torch.ones(1))
        except ClosedError as error:
            told.write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    groups.tp.barrier()
    expected = r"all_reduce on engine/tp\[0\]: its manager belongs to process \d+, of which this one"
    assert re.match(expected, told.read_text())


class TestRebind:
    @pytest.mark.ranks("tp2-pp2", world=["threads", "processes"])
    def test_to_another_topology_of_the_same_ranks(self, groups: GroupManager):
        assert groups.tp.all_reduce(torch.tensor([groups.rank])).item() == sum(groups.tp.ranks)
        successor = groups.rebind(ParallelTopology(tp=4))
        assert groups.closed
        with successor:
            assert successor.name == "engine"
            assert successor.tp.all_reduce(torch.tensor([groups.rank])).item() == 6

    @pytest.mark.ranks("tp2-pp2")
    def test_that_fails_leaves_the_old_one_serving(self, groups: GroupManager):
        with pytest.raises(DisagreementError):
            groups.rebind(ParallelTopology(tp=4) if groups.rank else ParallelTopology(pp=4))
        assert groups.tp.all_reduce(torch.ones(1)).item() == 2

    @pytest.mark.ranks("tp4", world=["threads", "processes"])
    def test_one_rank_refuses_so_none_is_bound(self, groups: GroupManager):
        graph = Graph()
        if groups.rank == 2:
            groups.tp.links.graphs.append(weakref.ref(graph))
        expected, text = (LiveGraphError, "1 of engine/world") if groups.rank == 2 else (RebindError, "rank 2: LiveGr")
        with soon(), pytest.raises(expected, match=text):
            groups.rebind(ParallelTopology(pp=4))
        assert groups.tp.all_reduce(torch.ones(1)).item() == 4
        graph.live = False
        with groups.rebind(ParallelTopology(pp=4)) as successor:
            assert successor.pp.all_reduce(torch.ones(1)).item() == 4

    @pytest.mark.ranks("tp2-pp2")
    def test_one_rank_wants_other_ranks(self, groups: GroupManager):
        with pytest.raises(DisagreementError, match=r"rank [0-3] asks for tp[24], rank [0-3] for tp[24]"):
            groups.rebind(ParallelTopology(tp=2 if groups.rank == 0 else 4))
        assert groups.tp.all_reduce(torch.ones(1)).item() == 2

    @pytest.mark.ranks("tp2", world="processes", timeout=60, check=False)
    def test_creation_fails_on_one_rank(self, groups: GroupManager, tmp_path: Path):
        made: list[str] = []

        def factory(membership: Membership) -> Any:
            made.append(membership.label)
            if groups.rank == 1 and len(made) == 2:
                raise BackendError("not this time")
            return TorchCommunicator(membership.links, membership.device, membership.size, membership.rank)

        store = dist.FileStore(f"{tmp_path}/store", 2)
        options: Any = {"tp": {"communicators": ("own",)}}
        own = GroupManager(
            ParallelTopology(tp=2), rank=groups.rank, store=store, timeout=20, options=options,
            communicators={"own": factory},
        )  # fmt: skip
        expected, text = (BackendError, "not this time") if groups.rank == 1 else (ParallelTopologyError, "rank 1")
        with pytest.raises(expected, match=text):  # rank 0 sees rank 1 leave, or hears why
            own.rebind(ParallelTopology(tp=2, pp=1))
        assert own.tp.all_reduce(torch.ones(1)).item() == 2
        with own.rebind(ParallelTopology(tp=2, dp=1)) as successor:
            assert own.closed
            assert successor.tp.all_reduce(torch.ones(1)).item() == 2

    @pytest.mark.parametrize("late", [0, 2])
    def test_a_rank_does_not_come_and_is_in_time_for_the_next(self, late: int):
        store, over = dist.HashStore(), threading.Event()
        here = [rank for rank in range(3) if rank != late]

        def body(rank: int) -> None:
            with GroupManager(ParallelTopology(tp=3), rank=rank, store=store, timeout=2) as groups:
                if rank == late:
                    assert over.wait(20)
                else:
                    with (
                        soon(2 + LATE),
                        pytest.raises(RebindError, match=f"rank {late} did not come within 2 s; all ranks keep tp3"),
                    ):
                        groups.rebind(ParallelTopology(pp=3))
                    if groups.rank == here[0]:
                        groups.tp.send(torch.ones(1), dst=here[1])
                    else:
                        groups.tp.recv(torch.ones(1), src=here[0])
                    over.set()
                groups.set_timeout(10)
                with groups.rebind(ParallelTopology(pp=3)) as successor:
                    assert successor.pp.all_reduce(torch.ones(1)).item() == 3
                    assert store.num_keys() < 60  # of which the managers' own are most

        run_threads(["rank"] * 3, body, timeout=30)

    def test_refused(self):
        groups = GroupManager(ParallelTopology(tp=1), rank=0)
        with pytest.raises(TopologyError, match="rebind from tp1 to tp2: rank 0 is alone, without a store"):
            groups.rebind(ParallelTopology(tp=2))
        assert groups.rebind(ParallelTopology(pp=1)).pp.size == 1
        with pytest.raises(ClosedError, match="rebind: engine was closed"):
            groups.rebind(ParallelTopology(pp=1))


class TestTheEnd:
    @pytest.mark.ranks("tp2-pp2")
    def test_the_report_names_what_was_released(self, groups: GroupManager):
        assert groups.close() == [groups.pp.label, groups.tp.label, "engine/world"]
        assert groups.close() == groups.abort() == []

    def test_a_forgotten_manager_is_named_with_its_place(self):
        def body(position: int, store: dist.Store) -> None:
            GroupManager(ParallelTopology(tp=2), rank=position, store=store)

        expected = (
            rf"<GroupManager engine of tp2 at rank \d \(gloo\)>, made at {re.escape(__file__)}:\d+, was not closed"
        )
        with pytest.warns(ResourceWarning, match=expected):  # noqa: PT031 (the collector has to run inside)
            run_threads(["rank"] * 2, body, dist.HashStore(), timeout=20)
            gc.collect()

    def test_a_forgotten_manager_of_one_rank_owns_nothing(self, recwarn: pytest.WarningsRecorder):
        GroupManager(ParallelTopology(tp=1), rank=0)
        gc.collect()
        assert not recwarn.list

    def test_at_interpreter_exit_nothing_hangs(self):
        program = (
            "import torch.distributed as dist, threading\n"
            "from parallel_topology import GroupManager, ParallelTopology\n"
            "store, managers = dist.HashStore(), []\n"
            "def rank(r): managers.append(GroupManager(ParallelTopology(tp=2), rank=r, store=store))\n"
            "threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]\n"
            "[t.start() for t in threads]; [t.join() for t in threads]\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "" or torch_private.GLOO_TELLS

    def test_errors_while_closing_do_not_hide_the_bodys(self):
        def body(groups: GroupManager) -> None:
            groups.close()
            raise KeyError("the body's")

        with pytest.raises(ExceptionGroup) as caught:
            run_ranks("tp2", body)
        assert caught.group_contains(KeyError, match="the body's")


class TestTime:
    @pytest.fixture
    def over(self) -> threading.Event:
        """Set by the rank that is under test; the others wait for it outside of any group."""
        return threading.Event()

    @pytest.mark.ranks("tp2-pp2")
    def test_changed_at_run_time_for_all_groups_and_for_one(self, groups: GroupManager, over: threading.Event):
        groups.set_timeout(FAR)
        groups.pp.set_timeout(1)
        if groups.rank == 0:
            with soon(), pytest.raises(ParallelTopologyError, match=r"failed at rank 0: .*[Tt]imed? ?out"):
                groups.pp.recv(torch.ones(1))
            over.set()
        assert over.wait(FAR)

    @pytest.mark.ranks("tp2", operation_timeout=0.7)
    def test_one_for_creation_and_one_for_operations(self, groups: GroupManager, over: threading.Event):
        if groups.rank == 0:
            with pytest.raises(ParallelTopologyError, match=r"failed at rank 0: .*[Tt]imed? ?out"):
                groups.tp.recv(torch.ones(1))
            over.set()
        assert over.wait(20)

    @pytest.mark.parametrize("seconds", [0, -1, True, "5", float("nan"), float("inf")])
    def test_refused(self, seconds: Any):
        for name in ("timeout", "operation_timeout"):
            with pytest.raises(
                GroupArgumentError, match=f"{name}={re.escape(repr(seconds))}: expected a number of sec"
            ):
                GroupManager(ParallelTopology(tp=1), rank=0, **{name: seconds})
        with GroupManager(ParallelTopology(tp=1), rank=0) as groups, pytest.raises(GroupArgumentError):
            groups.set_timeout(seconds)

    @pytest.mark.ranks("tp3")
    def test_diagnose_names_who_does_not_answer(self, groups: GroupManager, over: threading.Event):
        assert groups.diagnose(10) == []
        if groups.rank == 2:
            assert over.wait(20)
        else:
            assert groups.diagnose(0.5) == [2]
            over.set()


class TestTokens:
    @pytest.mark.ranks("tp2", token="secret", world=["threads", "processes"])
    def test_with_the_same_token(self, groups: GroupManager):
        assert groups.tp.all_reduce(torch.ones(1)).item() == 2

    def test_a_token_is_never_shown(self, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.DEBUG)

        def body(groups: GroupManager) -> str:
            return groups.describe() + repr(groups) + repr(groups._holdings.options)

        assert "hush" not in "".join(run_ranks("tp2", body, token="hush")) + caplog.text

    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.mark.ranks("tp2")
    def test_from_the_environment(self, groups: GroupManager, port: int, tmp_path: Path):
        env = {"RANK": str(groups.rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if groups.rank == 0:
            env["PARALLEL_TOPOLOGY_TOKEN"] = "secret"
        else:
            (tmp_path / "token").write_text("secret\n")
            env["PARALLEL_TOPOLOGY_TOKEN_FILE"] = str(tmp_path / "token")
        with GroupManager.from_env(ParallelTopology(tp=2), env=env, timeout=10) as started:
            assert started._holdings.options.token == "secret"
            assert started.tp.all_reduce(torch.ones(1)).item() == 2

    def test_a_token_file_that_cannot_be_read(self):
        env = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(LaunchError, match="PARALLEL_TOPOLOGY_TOKEN_FILE=/nowhere: No such file"):
            GroupManager.from_env(ParallelTopology(tp=1), env={**env, "PARALLEL_TOPOLOGY_TOKEN_FILE": "/nowhere"})


class TestWhatCanBeSeen:
    def test_one_line_in_the_log(self, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.INFO, "parallel_topology")
        run_ranks("tp2-pp2", lambda groups: None, name="actor")
        lines = [record.getMessage() for record in caplog.records if record.name == "parallel_topology"]
        assert len(lines) == 4
        expected = r"actor: rank \d of tp2-pp2, gloo on cpu: 3 groups; agreed in \d\.\d+ s, created in \d\.\d+ s"
        assert all(re.fullmatch(expected, line) for line in lines)

    @pytest.mark.ranks("tp2-cp1-pp2")
    def test_describe(self, groups: GroupManager):
        if groups.rank != 3:
            return
        lines = groups.describe().splitlines()
        assert re.match(
            r"<GroupManager engine of tp2-cp1-pp2 at rank 3 \(gloo\)> on cpu, local rank 3, made at ", lines[0]
        )
        assert lines[1:] == [
            "world  engine/world: rank 3 of [0, 1, 2, 3]",
            "tp     engine/tp[1]: rank 1 of [2, 3]",
            "cp     engine/cp[3]: rank 0 of [3]",
            "pp     engine/pp[1]: rank 1 of [1, 3]",
        ]


class TestScale:
    class Counting(dist.Store):
        """A real store that counts the operations on it."""

        def __init__(self, inner: dist.Store) -> None:
            super().__init__()
            self.inner = inner
            self.count = 0

        def set(self, key: str, value: Any) -> None:
            self.count += 1
            self.inner.set(key, value)

        def get(self, key: str) -> bytes:
            self.count += 1
            return self.inner.get(key)

        def add(self, key: str, value: int) -> int:
            self.count += 1
            return self.inner.add(key, value)

        def check(self, keys: list[str]) -> bool:
            self.count += 1
            return self.inner.check(keys)

        def wait(self, keys: list[str], timeout: Any = timedelta(seconds=60)) -> None:
            self.count += 1
            self.inner.wait(keys, timeout)

        def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
            self.count += 1
            return self.inner.compare_set(key, expected_value, desired_value)

    def operations(self, topology: ParallelTopology) -> float:
        """Store operations a rank, on average."""
        counters: list[TestScale.Counting] = []

        def body(rank: int, inner: dist.Store) -> None:
            counter = self.Counting(inner)
            counters.append(counter)
            GroupManager(topology, rank=rank, store=counter, timeout=60, verify=False).close()

        run_threads(["rank"] * topology.world_size, body, dist.HashStore(), timeout=90)
        return sum(counter.count for counter in counters) / topology.world_size

    def test_agreement_costs_a_rank_the_same_in_any_world(self):
        """gloo's own cost is linear in the members of the groups a rank is in; what is beside it does not grow."""
        found = {ranks: self.operations(ParallelTopology(tp=2, dp=ranks // 2)) for ranks in (4, 8, 16)}
        members = {ranks: (ranks - 1) + (2 - 1) + (ranks // 2 - 1) for ranks in found}
        slope = (found[16] - found[4]) / (members[16] - members[4])
        rest = {ranks: round(found[ranks] - slope * members[ranks]) for ranks in found}
        assert max(rest.values()) - min(rest.values()) <= 2
        assert slope < 6
