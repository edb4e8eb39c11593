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
from parallel_topology.meeting.creation import Creator
from parallel_topology.testing import assert_agree, run_ranks
from parallel_topology.testing.threads import run_threads
from parallel_topology.topology.validation import RESERVED
from tests.ports import free_port
from tests.waiting import FAR, eventually

TOPOLOGIES = ["tp2-pp2", "tp1-pp3", "tp2-cp2-dp2@8", "tp2-pp2@0,4,1,5", "tp2-dp2-pp2/expert:etp1-ep4-edp1-pp2"]
BOTH = ["threads", "processes"]


@pytest.fixture
def store() -> dist.Store:
    """For ranks that are threads and make managers of their own."""
    return dist.HashStore()


@pytest.fixture
def port() -> int:
    return free_port()


def alone(**options: Any) -> GroupManager:
    return GroupManager(ParallelTopology(tp=1, pp=1), rank=0, **options)


@pytest.mark.ranks(TOPOLOGIES, world=BOTH)
def test_every_group_sums_and_gathers_what_the_pure_view_says(groups: GroupManager, topology: ParallelTopology):
    view = topology.at(groups.rank)
    for axis in ("world", *topology.all_axes):
        group, pure = groups[axis], getattr(view, axis)
        assert isinstance(pure, RankGroup)
        assert (group.rank, group.size) == (pure.rank, pure.size)
        assert (group.next_rank, group.prev_rank) == (pure.next_rank, pure.prev_rank)
        assert group.all_reduce(torch.tensor([groups.rank])).item() == sum(pure.ranks)
        assert group.all_gather(torch.tensor([groups.rank])).tolist() == list(pure.ranks)


@pytest.mark.ranks("tp2-pp2", world=BOTH)
def test_two_engines_of_different_topologies_in_one_process(groups: GroupManager, tmp_path: Path):
    store = dist.FileStore(f"{tmp_path}/store", -1)
    first = GroupManager(ParallelTopology(tp=2, pp=2), rank=groups.rank, store=store, timeout=20)
    second = GroupManager(ParallelTopology(tp=4), rank=groups.rank, store=store, timeout=20)
    x = torch.tensor([float(groups.rank)])
    assert first.tp.all_reduce(x.clone()).item() == sum(groups.tp.ranks)
    assert second.tp.all_reduce(x.clone()).item() == 6
    first.close()
    assert second.tp.all_reduce(x.clone()).item() == 6
    second.close()
    assert not dist.is_initialized()


@pytest.mark.ranks(2)
def test_managers_of_the_same_topology_have_groups_of_their_own(groups: GroupManager, store: dist.Store):
    how: dict[str, Any] = {"topology": ParallelTopology(tp=2), "rank": groups.rank, "store": store}
    with GroupManager(**how) as one, GroupManager(**how) as two, GroupManager(**how, name="actor") as three:
        assert one.tp.device_group is not two.tp.device_group
        labels = [manager.tp.label for manager in (one, two, three)]
    assert labels == ["engine/tp[0]", "engine#2/tp[0]", "actor/tp[0]"]


@pytest.mark.ranks("tp2-pp1")
def test_a_group_is_shared_by_all_axes_with_its_ranks(groups: GroupManager):
    assert groups.world.device_group is groups.tp.device_group
    assert groups.pp.device_group is None


@pytest.mark.ranks("tp2-pp2", name="actor")
def test_torch_shows_the_label(groups: GroupManager):
    group = groups.tp.device_group
    assert group is groups.tp.cpu_group
    assert group is not None
    assert group.group_desc == f"actor/tp[{groups.pp.rank}]"


@pytest.mark.ranks(ParallelTopology(tp=2, dp=2, pp=2), groups=[("pp", "tp")])
def test_declared_combinations(groups: GroupManager, topology: ParallelTopology):
    with pytest.raises(UnknownAxisError, match=re.escape("engine has no group 'tp-dp'; it has world, tp, dp, pp")):
        groups["dp", "tp"]
    group = groups["pp", "tp"]
    assert group.all_gather(torch.tensor([groups.rank])).tolist() == topology.group("tp", "pp", rank=groups.rank)
    assert group.label == f"engine/tp-pp[{groups.dp.rank}]"


@pytest.mark.ranks("tp2-dp2/expert:ep4", isolated={"eplb": ("ep",)})
def test_isolated_groups_have_process_groups_of_their_own(groups: GroupManager):
    assert groups.eplb.device_group is not groups.ep.device_group
    assert groups.ep.device_group is groups.world.device_group
    assert groups["eplb"] is groups.eplb
    assert groups.eplb.label == "engine/eplb[0]"
    assert groups.eplb.all_gather(torch.tensor([groups.rank])).tolist() == [0, 1, 2, 3]


@pytest.mark.ranks(3, world=BOTH)
def test_local_ranks_are_found_out(groups: GroupManager):
    assert groups.local_rank == groups.rank


@pytest.mark.ranks(2, local_rank=7)
def test_a_local_rank_that_was_given(groups: GroupManager):
    assert groups.local_rank == 7


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
    @pytest.mark.ranks(2)
    def test_use_after_close(self, groups: GroupManager):
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
            with pytest.raises(ClosedError, match=rf"^{operation} on engine/(tp\[0\]|world): its manager was closed"):
                use()

    def test_use_after_close_in_a_world_of_one(self):
        with alone() as groups:
            pass
        with pytest.raises(ClosedError):
            groups.tp.all_reduce(torch.ones(1))

    def test_nothing_is_left_behind(self):
        def state() -> tuple[int, int]:
            gc.collect()
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        def use(groups: GroupManager) -> None:
            for group in (groups.world, groups.tp, groups.pp):
                group.all_reduce(torch.ones(1))

        run_ranks("tp2-pp2", use)
        descriptors, tasks = state()
        for _ in range(5):
            run_ranks("tp2-pp2", use)
        assert eventually(lambda: state()[0] <= descriptors and state()[1] <= tasks)

    @pytest.mark.ranks(2)
    def test_a_store_that_was_given_stays_open(self, groups: GroupManager, store: dist.Store):
        for _ in range(3):
            GroupManager(ParallelTopology(tp=2), rank=groups.rank, store=store).close()
        store.set(f"mine/{groups.rank}", "1")
        assert store.check([f"mine/{groups.rank}"])


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
            ({"rank": 0, "groups": [("tp", "tp")]}, UnknownAxisError, "axis 'tp' of tp2-pp2 was named 2 times"),
            ({"rank": 0, "groups": 3}, GroupArgumentError, "groups=3: expected tuples of axes"),
            ({"rank": 0, "groups": "tp"}, GroupArgumentError, "groups='tp': expected tuples of axes"),
            ({"rank": 0, "isolated": 3}, GroupArgumentError, "isolated=3: expected name -> ('ep',)"),
            ({"rank": 0, "isolated": {"a": 3}}, UnknownAxisError, "isolated={'a': 3}: expected a tuple of axes"),
            (
                {"rank": 0, "communicators": ["x"]},
                GroupArgumentError,
                "communicators=['x']: expected name -> ",
            ),
            (
                {"rank": 0, "communicators": {"x": 3}},
                GroupArgumentError,
                "communicators={'x': ...}: expected",
            ),
            ({"rank": 0, "options": 3}, GroupArgumentError, "options: expected axis -> options"),
            ({"rank": 0, "local_rank": "0"}, GroupArgumentError, "local_rank='0': expected a whole number"),
            ({"rank": 0, "name": 3}, GroupArgumentError, "name=3: expected a name without '/'"),
            ({"rank": 0, "timeout": "3"}, GroupArgumentError, "timeout='3': expected a number of seconds"),
            ({"rank": 0, "device": "nonsense"}, BackendError, "device 'nonsense': "),
            (
                {"rank": 0, "device": "cuda:0", "backend": "gloo"},
                BackendError,
                "device 'cuda:0' does not fit backend 'gloo'",
            ),
            ({"rank": 0, "backend": 3}, BackendError, "backend 3 is not known"),
            ({"rank": 0, "store": 3}, RendezvousError, "store=3: expected a torch.distributed.Store"),
            ({"rank": "0"}, RankError, "rank '0' is not in the world"),
        ],
    )
    def test_before_anybody_is_waited_for(self, options: dict[str, Any], error: type[Exception], message: str):
        with pytest.raises(error) as caught:
            GroupManager(self.topology, **options)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("topology", ["tp2", None, 4, {"tp": 2}])
    def test_what_is_no_topology(self, topology: Any):
        with alone() as groups:
            asked = [
                lambda: GroupManager(topology, rank=0),
                lambda: GroupManager.connect("tcp://127.0.0.1:1", topology, rank=0),
                lambda: GroupManager.from_env(topology, env={}),
                lambda: groups.require(topology),
                lambda: groups.rebind(topology),
            ]
            for ask in asked:
                with pytest.raises(TopologyError, match=r"^topology=.*: expected a ParallelTopology"):
                    ask()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="NCCL can be used here")
    def test_nccl_where_there_is_none_is_not_replaced_by_gloo(self):
        with pytest.raises(BackendError, match="backend 'nccl' cannot be used here: torch"):
            alone(backend="nccl")
        assert alone().backend == "gloo"

    def test_an_undeclared_axis(self):
        with alone() as groups:
            with pytest.raises(UnknownAxisError, match="tp1-pp1 has no axis 'ep'; it has 'tp', 'pp'"):
                groups.ep  # noqa: B018
            assert not hasattr(groups, "ep")

    def test_a_conventional_axis_that_is_absent_is_a_group_of_one(self):
        with alone() as groups:
            assert groups.dp is groups.dp is groups["dp"] is groups["dp",]
            assert groups["tp", "dp"] is groups["dp", "tp"] is groups.tp
            assert (groups.dp.size, groups.dp.is_first, groups.dp.is_last, groups["cp-dp"].ranks) == (
                1,
                True,
                True,
                [0],
            )
            assert torch.equal(groups.dp.all_reduce(torch.ones(2)), torch.ones(2))
            assert list(groups.plan.families) == ["world", "tp", "pp"]
            assert "dp" not in groups.describe()
            dp = groups.dp
        for ask in (lambda: dp.all_reduce(torch.ones(2)), lambda: groups.cp.barrier()):
            with pytest.raises(ClosedError):
                ask()

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
    @pytest.mark.ranks(4)
    def test_every_rank_raises_the_same_error(
        self, groups: GroupManager, store: dist.Store, theirs: dict[str, Any], difference: str
    ):
        options: dict[str, Any] = {"topology": ParallelTopology(tp=2, pp=2), **(theirs if groups.rank == 2 else {})}
        with pytest.raises(DisagreementError) as caught:
            GroupManager(rank=groups.rank, store=store, timeout=20, **options)
        message = str(caught.value)
        assert "ranks 0, 1, 3: " in message
        assert f"rank 2: {difference}" in message
        assert_agree(groups.world, message)

    @pytest.mark.ranks("tp4-pp2")
    def test_worlds_of_different_sizes(self, groups: GroupManager, store: dist.Store):
        """The four that agree may all come before the others, and are enough; a larger world never is."""
        topology = ParallelTopology(tp=2, pp=2) if groups.pp.is_first else ParallelTopology(tp=8)
        message = ""
        try:
            GroupManager(topology, rank=groups.rank, store=store, timeout=3).close()
        except (DisagreementError, GroupTimeoutError) as error:
            message = str(error)
        assert "tp8" in message or (groups.pp.is_first and not message)
        assert_agree(groups.tp, bool(message))

    @pytest.mark.ranks(3)
    def test_a_missing_rank_is_named(self, groups: GroupManager, store: dist.Store):
        with pytest.raises(
            GroupTimeoutError, match=r"engine: rank 3 did not come within 2 s; rank \d waited with 3 of 4"
        ):
            GroupManager(ParallelTopology(tp=4), rank=groups.rank, store=store, timeout=2)

    @pytest.mark.parametrize("step", ["__init__", "make"])
    def test_time_may_be_up_before_a_rank_begins_to_build(self, step: str, monkeypatch: pytest.MonkeyPatch):
        """As on a machine that stands still once all have agreed."""
        over = threading.Event()
        monkeypatch.setattr(Creator, step, lambda *given, **told: over.wait(FAR))
        store = dist.HashStore()

        def body(rank: int) -> None:
            with pytest.raises(GroupTimeoutError, match=r"rank \d: timed out after 2 s"):
                GroupManager(ParallelTopology(tp=2), rank=rank, store=store, timeout=2)

        try:
            run_threads(["rank"] * 2, body, timeout=FAR)
        finally:
            over.set()


class TestWaysIn:
    @pytest.mark.ranks(3, world=BOTH)
    @pytest.mark.parametrize("scheme", ["tcp", "file"])
    def test_connect(self, groups: GroupManager, port: int, tmp_path: Path, scheme: str):
        port = groups.world.broadcast_object(port)  # a rank that is a process drew its own
        url = f"tcp://127.0.0.1:{port}" if scheme == "tcp" else f"file://{tmp_path}/store"
        with GroupManager.connect(url, ParallelTopology(tp=3), rank=groups.rank, timeout=20) as connected:
            assert connected.tp.all_reduce(torch.ones(1)).item() == 3

    @pytest.mark.ranks(2)
    def test_a_store_hosted_here_listens_on_its_address_alone(self, groups: GroupManager, port: int):
        with GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=groups.rank):
            table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
            lines = [line.split()[1] for line in table.splitlines() if f":{port:04X} 0" in line and " 0A " in line]
            assert lines == [f"0100007F:{port:04X}"]
            groups.world.barrier()

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("127.0.0.1:80", "cannot read the address '127.0.0.1:80': expected 'tcp://host:port' or 'file:///path'"),
            ("tcp://127.0.0.1", "cannot read the address"),
            ("tcp://127.0.0.1:99999", "cannot read the address"),
            ("tcp://127.0.0.1:x", "cannot read the address"),
            ("file://relative", "cannot read the address"),
            ("tcp://nowhere.invalid:80", "cannot resolve the host 'nowhere.invalid'"),
            (
                "file:///no/folder/x",
                "cannot open the file '/no/folder/x': No such file or directory; expected one that ",
            ),
            ("file:///proc/self/status/x", "cannot open the file '/proc/self/status/x': Not a directory; expected"),
            ("file:///", "cannot open the file '/': Is a directory; expected one that every rank can read and write"),
            ("file:///a%00\0", "cannot open the file"),
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
                RendezvousError,
                match=f"cannot host the store at 127.0.0.1:{port}: Address already in use; choose another port",
            ):
                GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=0, timeout=2)

    def test_a_host_that_never_comes(self):
        port = free_port()
        with pytest.raises(RendezvousError, match=f"cannot reach the store at 127.0.0.1:{port} within 1 s.*; has the"):
            GroupManager.connect(f"tcp://127.0.0.1:{port}", ParallelTopology(tp=2), rank=1, timeout=1)

    def test_from_env_without_a_launcher(self):
        with pytest.raises(LaunchError, match="no launcher was found"):
            GroupManager.from_env(ParallelTopology(tp=2), env={})

    def test_from_env_without_a_meeting_place(self):
        env = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
        with pytest.raises(LaunchError, match="openmpi started rank 1 of 2, but does not say where the ranks meet"):
            GroupManager.from_env(ParallelTopology(tp=2), env=env)

    @pytest.mark.ranks(2)
    def test_from_env_with_the_bare_variables(self, groups: GroupManager, port: int):
        env = {"RANK": str(groups.rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with GroupManager.from_env(ParallelTopology(tp=2), env=env) as actor:
            assert actor.tp.all_reduce(torch.ones(1)).item() == 2
            with GroupManager.from_env(ParallelTopology(pp=2), env=env, name="critic") as critic:  # the port is taken
                assert critic.pp.all_reduce(torch.ones(1)).item() == 2
        with GroupManager.from_env(ParallelTopology(tp=2), env=env) as actor:
            assert actor.tp.all_reduce(torch.ones(1)).item() == 2

    def test_from_env_outside_the_topology(self):
        env = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(
            RankError, match=re.escape("env started rank 2 of 4, but tp2 has [0, 1]; give the topology as many ranks")
        ):
            GroupManager.from_env(ParallelTopology(tp=2), env=env)

    def test_from_env_with_too_few_ranks(self):
        env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with pytest.raises(
            RankError, match=re.escape("env started rank 0 of 2, but tp4 has [0, 1, 2, 3]; start 4 processes, or")
        ):
            GroupManager.from_env(ParallelTopology(tp=4), env=env)

    @pytest.mark.slow  # the program of docs/getting-started.md, which tests/test_docs.py runs, comes in so too
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


@pytest.mark.ranks(2, timeout=60)
def test_two_threads_use_two_managers_at_once(groups: GroupManager, store: dist.Store):
    managers = [
        GroupManager(ParallelTopology(tp=2), rank=groups.rank, store=store, name=name) for name in ("one", "two")
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
