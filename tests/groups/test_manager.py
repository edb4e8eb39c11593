"""GroupManager: independent instances, real groups, an orderly end. Each rank's view is held against the pure one."""

from __future__ import annotations

import gc
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
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
    GroupTimeoutError,
    LaunchError,
    ParallelTopology,
    RankError,
    RankGroup,
    RendezvousError,
    TopologyError,
    UnknownAxisError,
)
from parallel_topology.testing import run_ranks
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from parallel_topology.validation import RESERVED
from tests.ports import free_port

TOPOLOGIES = ["tp2-pp2", "tp1-pp3", "tp2-cp2-dp2@8", "tp2-pp2@0,4,1,5", "tp2-dp2-pp2/expert:etp1-ep4-edp1-pp2"]


def alone(**options: Any) -> GroupManager:
    return GroupManager(ParallelTopology(tp=1, pp=1), rank=0, **options)


def _sums(groups: GroupManager) -> dict[str, Any]:
    """For every group: what this rank sees, and the sum of its members' global ranks as the group computes it."""
    found: dict[str, Any] = {}
    for axis in ("world", *groups.topology.all_axes):
        group = groups[axis]
        total = group.all_reduce(torch.tensor([groups.rank])).item()
        gathered = group.all_gather(torch.tensor([groups.rank])).tolist()
        found[axis] = (group.rank, group.size, group.next_rank, group.prev_rank, total, gathered)
    return found


@pytest.mark.parametrize("text", TOPOLOGIES)
def test_every_group_sums_and_gathers_what_the_pure_view_says(text: str, world: Any):
    topology = ParallelTopology.parse(text)
    for rank, found in zip(topology.world, run_ranks(topology, _sums, world=world), strict=True):
        view = topology.at(rank)
        for axis, seen in found.items():
            group: RankGroup = view.world if axis == "world" else view[axis]
            ranks = list(group.ranks)
            assert seen == (group.rank, group.size, group.next_rank, group.prev_rank, sum(ranks), ranks)


def _two_engines(position: int, store: dist.Store | str) -> tuple[float, float, float]:
    if isinstance(store, str):
        store = dist.FileStore(store, -1)
    first = GroupManager(ParallelTopology(tp=2, pp=2), rank=position, store=store, timeout=20)
    second = GroupManager(ParallelTopology(tp=4), rank=position, store=store, timeout=20)
    x = torch.tensor([float(position)])
    interleaved = first.tp.all_reduce(x.clone()), second.tp.all_reduce(x.clone())
    first.close()
    after = second.tp.all_reduce(x.clone())
    second.close()
    return interleaved[0].item(), interleaved[1].item(), after.item()


def test_two_engines_of_different_topologies_in_one_process(world: Any, tmp_path: Path):
    if world == "threads":
        results = run_threads(["rank"] * 4, _two_engines, dist.HashStore(), timeout=30)
    else:
        results = run_processes(["rank"] * 4, _two_engines, str(tmp_path / "store"), timeout=30)
    assert results == [(1, 6, 6), (1, 6, 6), (5, 6, 6), (5, 6, 6)]
    assert not dist.is_initialized()


def test_managers_of_the_same_topology_have_groups_of_their_own():
    def body(position: int, store: dist.Store) -> list[str]:
        topology = ParallelTopology(tp=2)
        with (
            GroupManager(topology, rank=position, store=store) as one,
            GroupManager(topology, rank=position, store=store) as two,
            GroupManager(topology, rank=position, store=store, name="actor") as three,
        ):
            assert one.tp.device_group is not two.tp.device_group
            return [manager.tp.label for manager in (one, two, three)]

    labels = run_threads(["rank"] * 2, body, dist.HashStore(), timeout=30)
    assert labels == [["engine/tp[0]", "engine#2/tp[0]", "actor/tp[0]"]] * 2


def test_a_group_is_shared_by_all_axes_with_its_ranks():
    def body(groups: GroupManager) -> None:
        assert groups.world.device_group is groups.tp.device_group
        assert groups.pp.device_group is None

    run_ranks("tp2-pp1", body)


def test_torch_shows_the_label():
    def body(groups: GroupManager) -> str:
        assert groups.tp.device_group is groups.tp.cpu_group
        return groups.tp.device_group.group_desc  # pyright: ignore[reportOptionalMemberAccess]

    assert run_ranks("tp2-pp2", body, name="actor")[2:] == ["actor/tp[1]"] * 2


def test_declared_combinations():
    def body(groups: GroupManager) -> Any:
        with pytest.raises(UnknownAxisError, match=re.escape("engine has no group 'tp-dp'; it has world, tp, dp, pp")):
            groups["dp", "tp"]
        return groups["pp", "tp"].all_gather(torch.tensor([groups.rank])).tolist(), groups["pp", "tp"].label

    topology = ParallelTopology(tp=2, dp=2, pp=2)
    results = run_ranks(topology, body, groups=[("pp", "tp")])
    for rank, (gathered, label) in enumerate(results):
        assert gathered == topology.group("tp", "pp", rank=rank)
        assert label == f"engine/tp-pp[{topology.coordinate(rank)['dp']}]"


def test_isolated_groups_have_process_groups_of_their_own():
    def body(groups: GroupManager) -> Any:
        assert groups.eplb.device_group is not groups.ep.device_group
        assert groups.ep.device_group is groups.world.device_group
        assert groups["eplb"] is groups.eplb
        return groups.eplb.all_gather(torch.tensor([groups.rank])).tolist(), groups.eplb.label

    results = run_ranks("tp2-dp2/expert:ep4", body, isolated={"eplb": ("ep",)})
    assert results == [([0, 1, 2, 3], "engine/eplb[0]")] * 4


def test_local_ranks_are_found_out():
    assert run_ranks("tp3", lambda groups: groups.local_rank) == [0, 1, 2]
    assert run_ranks("tp2", lambda groups: groups.local_rank, local_rank=7) == [7, 7]


class TestAWorldOfOne:
    def test_needs_no_store_and_costs_nothing(self):
        with alone() as groups:
            x = torch.arange(3.0)
            assert groups.tp.all_reduce(x) is x
            assert groups.tp.all_gather(x) is x
            assert groups.tp.broadcast(x) is x
            groups.world.barrier()
            assert groups.tp.device_group is None
            assert groups.local_rank == 0
            with pytest.raises(
                GroupArgumentError, match=re.escape("send on engine/pp[0]: rank 0 would be its own peer")
            ):
                groups.pp.send(x)


class TestTheEnd:
    def test_use_after_close(self):
        def body(groups: GroupManager) -> None:
            groups.close()
            groups.close()
            assert groups.closed
            assert groups.tp.size == 2
            for operation, use in {
                "all_reduce": lambda: groups.tp.all_reduce(torch.ones(1)),
                "all_gather": lambda: groups.tp.all_gather(torch.ones(1)),
                "broadcast": lambda: groups.tp.broadcast(torch.ones(1)),
                "send": lambda: groups.tp.send(torch.ones(1)),
                "recv": lambda: groups.tp.recv(torch.ones(1)),
                "barrier": lambda: groups.world.barrier(),
                "device_group": lambda: groups.tp.device_group,
                "cpu_group": lambda: groups.tp.cpu_group,
            }.items():
                with pytest.raises(
                    ClosedError, match=rf"^{operation} on engine/(tp\[0\]|world): its manager was closed"
                ):
                    use()

        run_ranks("tp2", body)

    def test_use_after_close_in_a_world_of_one(self):
        with alone() as groups:
            pass
        with pytest.raises(ClosedError):
            groups.tp.all_reduce(torch.ones(1))

    def test_nothing_is_left_behind(self):
        def descriptors() -> tuple[int, int]:
            gc.collect()
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        run_ranks("tp2-pp2", _sums)
        before = descriptors()
        for _ in range(5):
            run_ranks("tp2-pp2", _sums)
        assert descriptors() == before

    def test_a_store_that_was_given_stays_open(self):
        def body(position: int, store: dist.Store) -> None:
            for _ in range(3):
                GroupManager(ParallelTopology(tp=2), rank=position, store=store).close()
            store.set(f"mine/{position}", "1")

        store = dist.HashStore()
        run_threads(["rank"] * 2, body, store, timeout=30)
        assert store.check(["mine/0", "mine/1"])


class TestRefused:
    topology = ParallelTopology(tp=2, pp=2)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"rank": 4}, RankError, "rank 4 is not in the world of tp2-pp2: expected one of [0, 1, 2, 3]"),
            ({"rank": 0}, RendezvousError, "tp2-pp2 has 4 ranks, which need a place to meet: give store="),
            ({"rank": 0, "backend": "mpi"}, BackendError, "backend 'mpi' is not known: expected 'gloo' or 'nccl'"),
            ({"rank": 0, "groups": [("tp", "ep")]}, UnknownAxisError, "tp2-pp2 has no axis 'ep'; it has 'tp', 'pp'"),
            ({"rank": 0, "groups": ["tp"]}, UnknownAxisError, "groups='tp': expected tuples of axes"),
        ],
    )
    def test_before_anybody_is_waited_for(self, options: dict[str, Any], error: type[Exception], message: str):
        with pytest.raises(error) as caught:
            GroupManager(self.topology, **options)
        assert str(caught.value).startswith(message)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="NCCL can be used here")
    def test_nccl_where_there_is_none_is_not_replaced_by_gloo(self):
        with pytest.raises(BackendError, match="backend 'nccl' cannot be used here: torch"):
            alone(backend="nccl")
        assert alone().backend == "gloo"

    def test_an_undeclared_axis(self):
        with alone() as groups:
            with pytest.raises(UnknownAxisError, match="tp1-pp1 has no axis 'dp'; it has 'tp', 'pp'"):
                groups.dp  # noqa: B018
            assert not hasattr(groups, "dp")

    def test_another_topology_than_the_one_required(self):
        with alone() as groups:
            groups.require(ParallelTopology(tp=1, pp=1))
            with pytest.raises(TopologyError, match="engine was built for tp1-pp1, but tp2 is required"):
                groups.require(ParallelTopology(tp=2))

    def test_pickling(self):
        with alone() as groups, pytest.raises(TypeError, match="send its topology instead"):
            pickle.dumps(groups)

    def test_a_body_that_fails_closes_the_manager(self):
        groups = alone()
        with pytest.raises(ZeroDivisionError), groups:
            raise ZeroDivisionError
        assert groups.closed

    def test_no_axis_can_hide_an_attribute_of_the_bound_half(self):
        public = {name for name in dir(alone()) if not name.startswith("_")} - {"tp", "pp"}
        assert public <= RESERVED


class TestDisagreement:
    @pytest.mark.parametrize(
        ("theirs", "difference"),
        [
            ({"topology": ParallelTopology(tp=4)}, "topology tp4, groups world(tp), tp(tp)"),
            (
                {"topology": ParallelTopology(tp=2, pp=2, order="pp-tp")},
                "topology pp2-tp2, groups world(pp-tp), pp(pp), tp(tp)",
            ),
            ({"groups": [("tp", "pp")]}, "groups world(tp-pp), tp(tp), pp(pp), tp-pp(tp-pp)"),
        ],
    )
    def test_every_rank_raises_the_same_error(self, theirs: dict[str, Any], difference: str):
        store = dist.HashStore()

        def body(position: int) -> str:
            options: dict[str, Any] = {"topology": ParallelTopology(tp=2, pp=2), **(theirs if position == 2 else {})}
            with pytest.raises(DisagreementError) as caught:
                GroupManager(rank=position, store=store, timeout=20, **options)
            return str(caught.value)

        messages = set(run_threads(["rank"] * 4, body, timeout=30))
        assert len(messages) == 1
        message = messages.pop()
        assert "ranks 0, 1, 3: " in message
        assert f"rank 2: {difference}" in message

    def test_worlds_of_different_sizes(self):
        """The four that agree may all come before the others, and are enough; a larger world never is."""
        store = dist.HashStore()

        def body(position: int) -> str:
            topology = ParallelTopology(tp=2, pp=2) if position < 4 else ParallelTopology(tp=8)
            try:
                GroupManager(topology, rank=position, store=store, timeout=3).close()
            except (DisagreementError, GroupTimeoutError) as error:
                return str(error)
            return ""

        messages = run_threads(["rank"] * 8, body, timeout=30)
        assert all("tp8" in message for message in messages[4:]), messages
        assert all("tp8" in message for message in messages[:4]) or messages[:4] == [""] * 4, messages

    def test_a_missing_rank_is_named(self):
        def body(position: int, store: dist.Store) -> None:
            with pytest.raises(
                GroupTimeoutError, match=r"engine: rank 3 did not come within 1 s; rank \d waited with 3 of 4"
            ):
                GroupManager(ParallelTopology(tp=4), rank=position, store=store, timeout=1)

        run_threads(["rank"] * 3, body, dist.HashStore(), timeout=30)

    def test_a_rank_that_came_twice_is_named(self):
        store = dist.HashStore()
        store.add("engine@0/joined/1", 1)

        def body(position: int) -> str:
            with pytest.raises(GroupTimeoutError) as caught:
                GroupManager(ParallelTopology(tp=2), rank=position, store=store, timeout=1)
            return str(caught.value)

        assert (
            "this is round 1 of 'engine', but rank 1 has joined 2 times" in run_threads(["a", "b"], body, timeout=30)[0]
        )


def _connected(position: int, url: str) -> float:
    with GroupManager.connect(url, ParallelTopology(tp=3), rank=position, timeout=20) as groups:
        return groups.tp.all_reduce(torch.ones(1)).item()


class TestWaysIn:
    def test_connect_by_tcp(self, world: Any):
        url = f"tcp://127.0.0.1:{free_port()}"
        run = run_threads if world == "threads" else run_processes
        assert run(["rank"] * 3, _connected, url, timeout=40) == [3, 3, 3]

    def test_connect_by_file(self, tmp_path: Path):
        assert run_threads(["rank"] * 3, _connected, f"file://{tmp_path}/store", timeout=40) == [3, 3, 3]

    def test_a_store_hosted_here_listens_on_its_address_alone(self):
        port = free_port()
        seen: list[str] = []

        def body(position: int) -> None:
            with GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=position) as groups:
                if position == 0:
                    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
                    seen.extend(
                        line.split()[1] for line in table.splitlines() if f":{port:04X} 0" in line and " 0A " in line
                    )
                groups.world.barrier()

        run_threads(["rank"] * 2, body, timeout=30)
        assert seen == [f"0100007F:{port:04X}"]

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("127.0.0.1:80", "cannot read the address '127.0.0.1:80': expected 'tcp://host:port' or 'file:///path'"),
            ("tcp://127.0.0.1", "cannot read the address"),
            ("tcp://127.0.0.1:99999", "cannot read the address"),
            ("tcp://127.0.0.1:x", "cannot read the address"),
            ("file://relative", "cannot read the address"),
            ("tcp://nowhere.invalid:80", "cannot resolve the host 'nowhere.invalid'"),
        ],
    )
    def test_addresses_that_cannot_be_used(self, url: str, message: str):
        with pytest.raises(RendezvousError) as caught:
            GroupManager.connect(url, ParallelTopology(tp=2), rank=0, timeout=2)
        assert str(caught.value).startswith(message)

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(
                RendezvousError, match=f"cannot host the store at 127.0.0.1:{port}: Address already in use"
            ):
                GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=0, timeout=2)

    def test_a_host_that_never_comes(self):
        port = free_port()
        with pytest.raises(RendezvousError, match=f"cannot reach the store at 127.0.0.1:{port} within 1 s"):
            GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=1, timeout=1)

    def test_from_env_without_a_launcher(self):
        with pytest.raises(LaunchError, match="no launcher was found"):
            GroupManager.from_env(ParallelTopology(tp=2), env={})

    def test_from_env_without_a_meeting_place(self):
        env = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
        with pytest.raises(LaunchError, match="openmpi started rank 1 of 2, but does not say where the ranks meet"):
            GroupManager.from_env(ParallelTopology(tp=2), env=env)

    def test_from_env_with_the_bare_variables(self):
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

        def body(position: int) -> float:
            with GroupManager.from_env(ParallelTopology(tp=2), env={**env, "RANK": str(position)}) as groups:
                return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_threads(["rank"] * 2, body, timeout=30) == [2, 2]

    def test_from_env_outside_the_topology(self):
        env = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(RankError, match=re.escape("env started rank 2 of 4, but tp2 has [0, 1]")):
            GroupManager.from_env(ParallelTopology(tp=2), env=env)

    def test_from_env_with_too_few_ranks(self):
        env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(RankError, match=re.escape("env started rank 0 of 2, but tp4 has [0, 1, 2, 3]")):
            GroupManager.from_env(ParallelTopology(tp=4), env=env)

    def test_under_torchrun(self, tmp_path: Path):
        script = tmp_path / "job.py"
        script.write_text(
            "import torch\n"
            "from parallel_topology import GroupManager, ParallelTopology\n"
            "with GroupManager.from_env(ParallelTopology(tp=2, pp=2)) as groups:\n"
            "    total = groups.pp.all_reduce(torch.tensor([groups.rank])).item()\n"
            "    print(f'rank {groups.rank} local {groups.local_rank} sum {total}', flush=True)\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert sorted(re.findall(r"rank \d local \d sum \d", done.stdout)) == [
            f"rank {rank} local {rank} sum {total}" for rank, total in enumerate([2, 4, 2, 4])
        ], done.stderr


def test_two_threads_use_two_managers_at_once():
    def body(position: int, store: dist.Store) -> None:
        managers = [
            GroupManager(ParallelTopology(tp=2), rank=position, store=store, name=name) for name in ("one", "two")
        ]
        wrong: list[float] = []

        def work(groups: GroupManager, value: float) -> None:
            for step in range(1000):
                total = groups.tp.all_reduce(torch.tensor([value + step])).item()
                if total != 2 * (value + step):
                    wrong.append(total)

        threads = [threading.Thread(target=work, args=(m, 1000.0 * n)) for n, m in enumerate(managers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for manager in managers:
            manager.close()
        assert wrong == []

    run_threads(["rank"] * 2, body, dist.HashStore(), timeout=60)
