"""Where ranks meet: addresses that mean something else on each rank, threads, and a default group at the same port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import BackendError, GroupManager, ParallelTopology, RendezvousError
from parallel_topology.meeting.addresses import gloo_devices, listener
from parallel_topology.testing.threads import run_threads
from tests.ports import free_port

TP2 = ParallelTopology(tp=2)


def env(rank: int, address: str, port: int, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(port), **more}


@pytest.mark.parametrize(
    "addresses", [("localhost", "127.0.0.2"), ("127.0.0.1", "127.0.0.2"), ("[::1]", "::1"), ("localhost", "127.0.0.1")]
)
def test_an_address_that_means_another_interface_on_each_rank(addresses: tuple[str, str]):
    port = free_port()

    def body(rank: int) -> float:
        with GroupManager.from_env(TP2, env=env(rank, addresses[rank], port), timeout=20) as groups:
            return groups.tp.all_reduce(torch.ones(1)).item()

    assert run_threads(["rank"] * 2, body, timeout=60) == [2.0, 2.0]


def outside() -> str | None:
    """An address of this host that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))
        except OSError:
            return None
        return probe.getsockname()[0]


class TestListening:
    """docs/reliability.md says what listens where."""

    def where(self, host: str, **how: bool) -> tuple[str, bool]:
        """The address that is bound, and whether only this host reaches it."""
        with listener(host, 0, named=how.pop("named", False), **how) as found:
            device = found.getsockopt(socket.SOL_SOCKET, 25, 16).rstrip(b"\0")
            return found.getsockname()[0], device == b"lo"

    @pytest.mark.parametrize(
        ("host", "how", "bound"),
        [
            ("127.0.0.1", {"named": True}, ("127.0.0.1", False)),
            ("::1", {"named": True}, ("::1", False)),
            ("127.0.0.1", {}, ("::", True)),
            ("localhost", {}, ("::", True)),
            ("localhost", {"named": True}, ("::", True)),
            ("203.0.113.5", {}, ("::", False)),  # a service's address
        ],
    )
    def test_no_wider_than_what_others_may_mean(self, host: str, how: dict[str, bool], bound: tuple[str, bool]):
        assert self.where(host, **how) == bound

    def test_an_address_of_this_host_is_bound_alone(self):
        address = outside()
        if address is None:
            pytest.skip("this host has no address but loopback")
        assert self.where(address) == (address, False)


@pytest.mark.parametrize(
    ("url", "said"),
    [("tcp://::1:29500", "an IPv6 address stands in brackets"), ("tcp://[::1", "cannot read the address")],
)
def test_addresses_of_ip_version_6(url: str, said: str):
    with pytest.raises(RendezvousError, match=said):
        GroupManager.connect(url, TP2, rank=0, timeout=2)


def test_two_threads_of_a_rank_make_the_first_managers():
    port = free_port()

    def body(position: int) -> float:
        rank, name = position % 2, f"manager{position // 2}"
        with GroupManager.from_env(TP2, env=env(rank, "127.0.0.1", port), name=name, timeout=20) as groups:
            return groups.tp.all_reduce(torch.ones(1)).item()

    assert run_threads(["rank"] * 8, body, timeout=60) == [2.0] * 8


def test_parts_of_a_job_over_the_store_of_torchruns_agent():
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    hosted = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "job", "GROUP_RANK": "0",
              "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True",
              "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip

    def body(rank: int) -> float:
        mine = env(rank, "127.0.0.1", agent.port) | hosted | {"LOCAL_RANK": str(rank)}
        if rank < 2:
            with GroupManager.from_env(TP2, env=mine, name="actor", timeout=20) as actor:
                assert actor.tp.all_reduce(torch.ones(1)).item() == 2
        with GroupManager.from_env(ParallelTopology(tp=4), env=mine, name="all", timeout=20) as groups:
            return groups.tp.all_reduce(torch.ones(1)).item()

    assert run_threads(["rank"] * 4, body, timeout=60) == [4.0] * 4


BESIDE = """
import sys, torch, torch.distributed as dist
from parallel_topology import GroupManager, ParallelTopology
def ours():
    with GroupManager.from_env(ParallelTopology(tp=2), timeout=30) as groups:
        print(int(groups.tp.all_reduce(torch.ones(1)).item()), flush=True)
        groups.world.barrier()
if sys.argv[1] == "after":
    ours()
dist.init_process_group("gloo")
ours()
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_default_group_at_the_same_port(when: str):
    port = free_port()
    command = [sys.executable, "-c", BESIDE, when]
    ranks = [
        subprocess.Popen(command, env=os.environ | env(rank, "127.0.0.1", port), stdout=-1, stderr=-1, text=True)
        for rank in range(2)
    ]
    try:
        for done, (out, err) in [(rank, rank.communicate(timeout=90)) for rank in ranks]:
            assert done.returncode == 0, err
            assert out.split() == (["2"] if when == "before" else ["2", "2"])
    finally:
        for rank in ranks:
            rank.kill()


class TestInterfaces:
    def devices(self, monkeypatch: pytest.MonkeyPatch, given: str) -> list[Any]:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        return gloo_devices(dist.HashStore(), [])()

    def test_a_list_is_taken(self, monkeypatch: pytest.MonkeyPatch):
        assert len(self.devices(monkeypatch, "lo,lo")) == 1

        def body(rank: int, store: dist.Store) -> float:
            with GroupManager(TP2, rank=rank, store=store, timeout=20) as groups:
                return groups.tp.all_reduce(torch.ones(1)).item()

        assert run_threads(["rank"] * 2, body, dist.HashStore(), timeout=60) == [2.0, 2.0]

    @pytest.mark.parametrize("given", ["nosuch0", "lo,nosuch0", "lo,", ","])
    def test_one_that_is_not_there_is_an_error_that_names_those_that_are(
        self, monkeypatch: pytest.MonkeyPatch, given: str
    ):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        store = dist.HashStore()

        def body(rank: int) -> str:
            with pytest.raises(BackendError) as caught:
                GroupManager(TP2, rank=rank, store=store, timeout=20)
            return str(caught.value)

        for said in run_threads(["rank"] * 2, body, timeout=60):
            assert f"GLOO_SOCKET_IFNAME={given!r}: there is no interface" in said
            assert "this host has lo" in said
