"""How managers begin and end: over torch's default group, on parts of a job, in cycles, rebound, forked, forgotten."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import (
    ClosedError,
    DisagreementError,
    GroupArgumentError,
    GroupManager,
    LaunchError,
    ParallelTopology,
    ParallelTopologyError,
    RendezvousError,
    TopologyError,
)
from parallel_topology.testing import run_ranks
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from tests.ports import free_port


def _default_group(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)


def _from_world(rank: int, folder: str) -> Any:
    import torch.distributed._functional_collectives as functional

    _default_group(rank, 4, folder)
    topology = ParallelTopology(tp=2, pp=2)
    with GroupManager.from_world(topology, timeout=20, name="actor") as groups:
        tp, pp = groups.tp.device_group, groups.pp.device_group
        assert tp is not None
        assert pp is not None
        sums = [groups.tp.all_reduce(torch.tensor([rank])).item(), groups.pp.all_reduce(torch.tensor([rank])).item()]
        found = dist.get_process_group_ranks(tp)
        by_name = functional.all_reduce(torch.tensor([rank]), "sum", pp)
        sums.append(by_name.item())
        compiled = torch.compile(lambda x: functional.all_reduce(x, "sum", tp) * 2, fullgraph=True, backend="eager")
        sums.append(compiled(torch.tensor([rank])).item())
        description = tp.group_desc
        before = dist.get_world_size()
    after = torch.ones(1)
    dist.all_reduce(after)
    left = len(dist.distributed_c10d._world.pg_names)
    dist.destroy_process_group()
    return sums, found, description, before, after.item(), left


def test_from_world_is_known_to_torch_and_leaves_the_default_group(tmp_path: Path):
    results = run_processes(["rank"] * 4, _from_world, str(tmp_path), timeout=60)
    topology = ParallelTopology(tp=2, pp=2)
    for rank, (sums, found, description, before, after, left) in enumerate(results):
        tp, pp = topology.group("tp", rank=rank), topology.group("pp", rank=rank)
        assert sums == [sum(tp), sum(pp), sum(pp), 2 * sum(tp)]
        assert found == tp
        assert description == f"actor/tp[{rank // 2}]"
        assert (before, after, left) == (4, 4, 1)


def _from_world_again(rank: int, folder: str) -> list[float]:
    _default_group(rank, 4, folder)
    sums: list[float] = []
    for name in ("actor", "actor", "critic", "actor"):
        with GroupManager.from_world(ParallelTopology(tp=2, pp=2), timeout=10, name=name) as groups:
            sums.append(groups.world.all_reduce(torch.tensor([rank])).item())
    dist.destroy_process_group()
    return sums


def test_from_world_again_and_again(tmp_path: Path):
    """torch would give each group its predecessor's name, under which the store still has that one's addresses."""
    assert run_processes(["rank"] * 4, _from_world_again, str(tmp_path), timeout=60) == [[6] * 4] * 4


def _two_parts_at_once(rank: int, folder: str) -> Any:
    _default_group(rank, 6, folder)
    topology = ParallelTopology(tp=2) if rank < 2 else ParallelTopology(tp=2, pp=2, first_rank=2)
    with GroupManager.from_world(topology, timeout=20) as groups:
        total = groups.world.all_reduce(torch.tensor([rank])).item()
    dist.destroy_process_group()
    return total


def test_managers_on_parts_of_a_job_are_built_at_the_same_time(tmp_path: Path):
    assert run_processes(["rank"] * 6, _two_parts_at_once, str(tmp_path), timeout=60) == [1, 1, 14, 14, 14, 14]


def test_managers_on_parts_of_a_job_over_one_store_of_its_own():
    store = dist.HashStore()

    def body(rank: int) -> float:
        topology = ParallelTopology(tp=2) if rank < 2 else ParallelTopology(tp=2, pp=2, ranks=(5, 2, 3, 4))
        with GroupManager(topology, rank=rank, store=store, timeout=20) as groups:
            return groups.world.all_reduce(torch.tensor([rank])).item()

    assert run_threads(["rank"] * 6, body, timeout=40) == [1, 1, 14, 14, 14, 14]


def _unordered(rank: int, folder: str) -> list[int]:
    _default_group(rank, 4, folder)
    topology = ParallelTopology(tp=2, cp=2, views={"decode": "dcp4~cp-tp"})
    with GroupManager.from_world(topology, timeout=20) as groups:
        return [int(r) for r in groups.dcp.all_gather(torch.tensor([rank]))]


def test_members_out_of_order_over_the_world(tmp_path: Path):
    assert run_processes(["rank"] * 4, _unordered, str(tmp_path), timeout=60) == [[0, 2, 1, 3]] * 4


def _beside_uneven_registries(rank: int, folder: str) -> float:
    _default_group(rank, 2, folder)
    if rank == 0:
        dist.new_group([0], use_local_synchronization=True)
    with GroupManager.from_world(ParallelTopology(tp=2), timeout=10) as groups:
        total = groups.tp.all_reduce(torch.tensor([rank])).item()
    dist.destroy_process_group()
    return total


def test_registries_may_hold_different_numbers_of_groups(tmp_path: Path):
    """From that number torch would derive different names on different ranks, which would wait for each other."""
    assert run_processes(["rank"] * 2, _beside_uneven_registries, str(tmp_path), timeout=60) == [1, 1]


def test_from_world_without_a_default_group():
    with pytest.raises(RendezvousError, match=r"from_world needs torch\.distributed\.init_process_group"):
        GroupManager.from_world(ParallelTopology(tp=2))


def _beside_a_default_group(rank: int, folder: str) -> Any:
    _default_group(rank, 2, folder)
    with GroupManager.connect(f"file://{folder}/own", ParallelTopology(tp=2), rank=1 - rank, timeout=20) as groups:
        mine = [int(r) for r in groups.tp.all_gather(torch.tensor([rank]))]
    total = torch.tensor([rank])
    dist.all_reduce(total)
    dist.destroy_process_group()
    return mine, total.item()


def test_beside_somebody_elses_default_group_with_other_ranks(tmp_path: Path):
    assert run_processes(["rank"] * 2, _beside_a_default_group, str(tmp_path), timeout=60) == [([1, 0], 1)] * 2


def _cycles(rank: int, folder: str, cycles: int) -> Any:
    def state() -> tuple[int, int, int]:
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident

    store = dist.FileStore(f"{folder}/store", -1)
    seen: list[tuple[int, int, int]] = []
    for _ in range(cycles):
        with GroupManager(ParallelTopology(tp=2, pp=1), rank=rank, store=store, timeout=20) as groups:
            groups.tp.all_reduce(torch.ones(1000))
            groups.world.barrier()
        seen.append(state())
    return seen[4], seen[-1]


def test_fifty_cycles_leave_nothing_behind(tmp_path: Path):
    for early, late in run_processes(["rank"] * 2, _cycles, str(tmp_path), 50, timeout=100):
        assert late[:2] == early[:2], "descriptors, threads"
        assert late[2] - early[2] < 4_000_000, "bytes of memory"


def _forked(rank: int, folder: str) -> str:
    store = dist.FileStore(f"{folder}/store", 2)
    with GroupManager(ParallelTopology(tp=2), rank=rank, store=store, timeout=20) as groups:
        told = Path(folder, f"child of {rank}")
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
    return told.read_text()


class TestRebind:
    def test_to_another_topology_of_the_same_ranks(self):
        def body(groups: GroupManager) -> Any:
            before = groups.tp.all_reduce(torch.tensor([groups.rank])).item()
            successor = groups.rebind(ParallelTopology(tp=4))
            assert groups.closed
            with successor:
                return before, successor.tp.all_reduce(torch.tensor([groups.rank])).item(), successor.name

        assert run_ranks("tp2-pp2", body) == [(1, 6, "engine"), (1, 6, "engine"), (5, 6, "engine"), (5, 6, "engine")]

    def test_that_fails_leaves_the_old_one_serving(self):
        def body(groups: GroupManager) -> float:
            target = ParallelTopology(tp=4) if groups.rank else ParallelTopology(pp=4)
            with pytest.raises(DisagreementError):
                groups.rebind(target)
            return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_ranks("tp2-pp2", body) == [2] * 4

    def test_refused(self):
        groups = GroupManager(ParallelTopology(tp=1), rank=0)
        with pytest.raises(TopologyError, match="rebind from tp1 to tp2: expected the same ranks"):
            groups.rebind(ParallelTopology(tp=2))
        assert groups.rebind(ParallelTopology(pp=1)).pp.size == 1
        with pytest.raises(ClosedError, match="rebind: engine was closed"):
            groups.rebind(ParallelTopology(pp=1))


class TestTheEnd:
    def test_the_report_names_what_was_released(self):
        def body(groups: GroupManager) -> Any:
            first = groups.close()
            return first, groups.close(), groups.abort()

        results = run_ranks("tp2-pp2", body)
        assert results[3] == (["engine/pp[1]", "engine/tp[1]", "engine/world"], [], [])

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

    def test_use_in_a_forked_child(self, tmp_path: Path):
        messages = run_processes(["rank"] * 2, _forked, str(tmp_path), timeout=60)
        for message in messages:
            assert re.match(
                r"all_reduce on engine/tp\[0\]: its manager belongs to process \d+, of which this one", message
            )

    def test_at_interpreter_exit_nothing_hangs(self):
        program = (
            "import torch.distributed as dist, threading\n"
            "from parallel_topology import GroupManager, ParallelTopology\n"
            "store, managers = dist.HashStore(), []\n"
            "def rank(r): managers.append(GroupManager(ParallelTopology(tp=2), rank=r, store=store))\n"
            "threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]\n"
            "[t.start() for t in threads]; [t.join() for t in threads]\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_errors_while_closing_do_not_hide_the_bodys(self):
        def body(groups: GroupManager) -> None:
            groups.close()
            raise KeyError("the body's")

        with pytest.raises(ExceptionGroup) as caught:
            run_ranks("tp2", body)
        assert caught.group_contains(KeyError, match="the body's")


class TestTime:
    def test_changed_at_run_time_for_all_groups_and_for_one(self):
        over = threading.Event()

        def body(groups: GroupManager) -> None:
            begun = time.monotonic()
            groups.set_timeout(20)
            groups.pp.set_timeout(1)
            if groups.rank == 0:
                with pytest.raises(ParallelTopologyError, match=r"failed at rank 0: .*[Tt]imed? ?out"):
                    groups.pp.recv(torch.ones(1))
                assert time.monotonic() - begun < 10
                over.set()
            assert over.wait(20)

        run_ranks("tp2-pp2", body)

    def test_one_for_creation_and_one_for_operations(self):
        over = threading.Event()

        def body(groups: GroupManager) -> None:
            if groups.rank == 0:
                with pytest.raises(ParallelTopologyError, match=r"failed at rank 0: .*[Tt]imed? ?out"):
                    groups.tp.recv(torch.ones(1))
                over.set()
            assert over.wait(20)

        run_ranks("tp2", body, operation_timeout=0.7)

    @pytest.mark.parametrize("seconds", [0, -1, True, "5", float("nan"), float("inf")])
    def test_refused(self, seconds: Any):
        for name in ("timeout", "operation_timeout"):
            with pytest.raises(
                GroupArgumentError, match=f"{name}={re.escape(repr(seconds))}: expected a number of sec"
            ):
                GroupManager(ParallelTopology(tp=1), rank=0, **{name: seconds})
        with GroupManager(ParallelTopology(tp=1), rank=0) as groups, pytest.raises(GroupArgumentError):
            groups.set_timeout(seconds)

    def test_diagnose_names_who_does_not_answer(self):
        over = threading.Event()

        def body(groups: GroupManager) -> Any:
            assert groups.diagnose(10) == []
            if groups.rank == 2:
                assert over.wait(20)
                return None
            missing = groups.diagnose(0.5)
            over.set()
            return missing

        assert run_ranks("tp3", body) == [[2], [2], None]


class TestTokens:
    def test_with_the_same_token(self):
        assert run_ranks("tp2", lambda groups: groups.tp.all_reduce(torch.ones(1)).item(), token="secret") == [2, 2]

    def test_a_token_is_never_shown(self, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.DEBUG)

        def body(groups: GroupManager) -> str:
            return groups.describe() + repr(groups) + repr(groups._options)

        assert "hush" not in "".join(run_ranks("tp2", body, token="hush")) + caplog.text

    def test_from_the_environment(self, tmp_path: Path):
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        (tmp_path / "token").write_text("secret\n")

        def body(position: int) -> float:
            secret = {"PARALLEL_TOPOLOGY_TOKEN": "secret"}
            if position:
                secret = {"PARALLEL_TOPOLOGY_TOKEN_FILE": str(tmp_path / "token")}
            env_of = {**env, "RANK": str(position), **secret}
            with GroupManager.from_env(ParallelTopology(tp=2), env=env_of, timeout=10) as groups:
                assert groups._options.token == "secret"
                return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_threads(["rank"] * 2, body, timeout=30) == [2, 2]

    def test_a_token_file_that_cannot_be_read(self):
        env = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(LaunchError, match="PARALLEL_TOPOLOGY_TOKEN_FILE=/nowhere: No such file"):
            GroupManager.from_env(ParallelTopology(tp=1), env={**env, "PARALLEL_TOPOLOGY_TOKEN_FILE": "/nowhere"})

    def test_an_old_verdict_played_again_is_refused(self):
        store = dist.HashStore()
        topology = ParallelTopology(tp=2)

        def body(position: int) -> str:
            with GroupManager(topology, rank=position, store=store, token="t", timeout=10):
                pass
            return ""

        run_threads(["rank"] * 2, body, timeout=20)
        store.set("engine@0/2/verdict", store.get("engine@0/1/verdict").decode())

        def again(position: int) -> str:
            with pytest.raises(RendezvousError) as caught:
                GroupManager(topology, rank=position, store=store, token="t", timeout=2)
            return str(caught.value)

        for message in run_threads(["rank"] * 2, again, timeout=20):
            assert "the verdict does not hold the same token" in message


class TestWhatCanBeSeen:
    def test_one_line_in_the_log(self, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.INFO, "parallel_topology")
        run_ranks("tp2-pp2", lambda groups: None, name="actor")
        lines = [record.getMessage() for record in caplog.records if record.name == "parallel_topology"]
        assert len(lines) == 4
        expected = r"actor: rank \d of tp2-pp2, gloo on cpu: 3 groups; agreed in \d\.\d+ s, created in \d\.\d+ s"
        assert all(re.fullmatch(expected, line) for line in lines)

    def test_describe(self):
        text = run_ranks("tp2-cp1-pp2", lambda groups: groups.describe())[3]
        lines = text.splitlines()
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
