"""Collectives in two levels: hosts are played by threads that say they are on different ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel_topology import BackendError, CollectiveError, GroupManager, ParallelTopology
from parallel_topology.communicators import host_memory
from parallel_topology.groups import joining
from parallel_topology.testing.threads import run_threads
from tests.groups.test_collectives import Case, cases, check

HOSTS = ["001", "0101", "00112", "0122"]
"""Which host each rank is on."""


def each(hosts: str, body: Callable[[GroupManager], Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    """What each rank's `body` returns, on these hosts."""
    store, here = dist.HashStore(), threading.local()

    def rank(number: int) -> Any:
        here.rank = number
        topology = ParallelTopology(tp=len(hosts))
        with GroupManager(topology, rank=number, store=store, timeout=20, **options) as groups:
            return body(groups)

    monkeypatch.setattr(joining, "host_identity", lambda: f"host {hosts[here.rank]}")
    return run_threads(["rank"] * len(hosts), rank, timeout=60)


def _names(groups: GroupManager) -> list[str]:
    return [one.name for one in groups.tp.communicators]


@pytest.mark.parametrize("hosts", HOSTS)
def test_collectives_across_hosts_are_right(hosts: str, monkeypatch: pytest.MonkeyPatch):
    @given(batch=st.lists(cases(len(hosts)), min_size=1, max_size=20))
    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def law(batch: list[Case]) -> None:
        each(hosts, lambda groups: check(groups, batch), monkeypatch)

    law()


def _small(groups: GroupManager) -> list[str]:
    tp = groups.tp
    size = tp.size
    for number in range(10):
        assert tp.all_reduce(torch.full((3,), float(number))).tolist() == [number * size] * 3
        assert tp.all_reduce(torch.full((3,), float(tp.rank)), "avg").tolist() == [(size - 1) / 2] * 3
        src = number % size
        assert tp.broadcast(torch.tensor([tp.rank]), src=src) == src
        assert tp.broadcast_object(["x" * 100 * number] if tp.rank == src else None, src=src) == ["x" * 100 * number]
        tp.barrier()
    assert tp.all_reduce(torch.ones(100_000)).sum() == size * 100_000
    assert len(tp.broadcast_object("x" * 3_000_000 if tp.is_first else None)) == 3_000_000
    begun = [tp.all_reduce(torch.full((2,), float(number)), async_op=True) for number in range(10)]
    assert [one.wait()[0].item() for one in begun] == [number * size for number in range(10)]
    return _names(groups)


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("hosts", HOSTS)
def test_small_ones_go_in_two_levels(hosts: str, checked: bool, monkeypatch: pytest.MonkeyPatch):
    assert each(hosts, _small, monkeypatch, check_calls=checked) == [["two_levels", "torch"]] * len(hosts)


def test_sums_are_equal_on_all_members(monkeypatch: pytest.MonkeyPatch):
    def body(groups: GroupManager) -> bytes:
        x = torch.rand(1000, generator=torch.Generator().manual_seed(groups.rank)) * 10.0**groups.rank
        return bytes(groups.tp.all_reduce(x).view(torch.uint8).tolist())

    assert len(set(each("01012", body, monkeypatch))) == 1


def test_without_hosts_of_several_members_or_memory_there_are_none(monkeypatch: pytest.MonkeyPatch):
    assert each("012", _names, monkeypatch) == [["torch"]] * 3
    named = {"options": {"tp": {"communicators": ["two_levels"]}}}
    for hosts, why in (("012", "on a host of its own"), ("000", "are on 1 hosts, expected 2 to 16")):
        with pytest.raises(ExceptionGroup) as caught:
            each(hosts, _names, monkeypatch, **named)
        assert caught.group_contains(BackendError, match=why)
    monkeypatch.setattr(host_memory, "_opened", lambda text: (_ for _ in ()).throw(PermissionError("no")))
    assert each("0011", _names, monkeypatch) == [["torch"]] * 4


def _one_ends(groups: GroupManager) -> str:
    tp = groups.tp
    tp.barrier()
    if tp.rank == 3:
        return ""
    try:
        tp.all_reduce(torch.ones(1))
    except CollectiveError as error:
        return str(error)
    return "none"


def test_when_one_is_gone_all_hear_of_it(monkeypatch: pytest.MonkeyPatch):
    found = each("0011", _one_ends, monkeypatch)
    assert found[3] == ""
    assert "rank 3 has closed its manager" in found[2]
    assert all(text and text != "none" for text in found[:2]), found
