"""Managers on hosts with addresses of their own: what a partition, a slow link, or a name that differs by host does.

pytest -m hosts tests/real_hosts
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real_hosts.namespaces import Network, Program, why_not

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

PORT = 29500
SLACK = 1.0
"""Seconds after its timeout at which a wait has ended at the latest."""


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if reason := why_not():
        pytest.skip(f"no network namespaces: {reason}")


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with Network(getattr(request, "param", 2)) as made:
        yield made


def ranks_on(network: Network, timeout: float, **options: object) -> list[Program]:
    """A rank on each host, all of them imported, none of them made."""
    count = len(network.addresses)
    ranks = [
        network.start(
            host, topology=f"tp{count}", rank=host, url=f"tcp://{network.addresses[0]}:{PORT}", timeout=timeout,
            options=options,
        )
        for host in range(count)
    ]  # fmt: skip
    for rank in ranks:
        assert rank.said()["result"] == "imported"
    return ranks


def all_do(ranks: list[Program], what: str, within: float = 60.0) -> list[dict[str, object]]:
    for rank in ranks:
        rank.tell(what)
    return [rank.said(within) for rank in ranks]


@pytest.mark.parametrize("network", [2, 3], indirect=True)
def test_hosts_meet_and_compute(network: Network):
    ranks = ranks_on(network, 30)
    assert [said.get("result") for said in all_do(ranks, "make")] == [f"tp{len(ranks)}"] * len(ranks)
    assert [said.get("result") for said in all_do(ranks, "all_reduce")] == [[len(ranks)] * 4] * len(ranks)
    assert all("error" not in said for said in all_do(ranks, "close"))


def test_nothing_listens_beyond_the_address_that_was_named(network: Network):
    ranks = ranks_on(network, 30)
    assert all("error" not in said for said in all_do(ranks, "make"))
    for host, address in enumerate(network.addresses):
        assert network.listening(host) <= {address}
    assert all("error" not in said for said in all_do(ranks, "close"))


def test_a_slow_link_is_no_fault(network: Network):
    network.slow(1, 400)
    ranks = ranks_on(network, 30, check_calls=True)
    assert [said.get("result") for said in all_do(ranks, "make")] == ["tp2", "tp2"]
    for said in all_do(ranks, "large_all_reduce"):
        assert said.get("result") == 2.0, said
        assert float(str(said["seconds"])) > 0.5  # or the link was not slow


@pytest.mark.parametrize("network", [3], indirect=True)
def test_a_partition_during_an_operation_ends_in_time_on_both_sides(network: Network):
    timeout = 3.0
    ranks = ranks_on(network, timeout)
    assert all("error" not in said for said in all_do(ranks, "make"))
    assert all("error" not in said for said in all_do(ranks, "all_reduce"))
    network.cut(2)
    for said in all_do(ranks, "all_reduce"):
        assert said["error"] in ("GroupTimeoutError", "CollectiveError"), said
        assert float(str(said["seconds"])) < timeout + SLACK, said
    assert ranks[0].do("abort")["seconds"] < 1
    assert ranks[2].do("close")["seconds"] < 1


def test_a_partition_before_the_meeting_names_who_did_not_come(network: Network):
    timeout = 3.0
    ranks = ranks_on(network, timeout)
    network.cut(1)
    here, there = all_do(ranks, "make")
    assert here["error"] == "GroupTimeoutError"
    assert "rank 1 did not come" in str(here["text"])
    assert there["error"] in ("RendezvousError", "GroupTimeoutError")
    for said in (here, there):
        assert float(str(said["seconds"])) < timeout + SLACK, said


@pytest.mark.parametrize("network", [3], indirect=True)
def test_after_a_partition_is_mended_the_ranks_meet_again(network: Network):
    ranks = ranks_on(network, 3.0)
    network.cut(2)
    assert all(said["error"] for said in all_do(ranks, "make"))
    network.mend(2)
    for _ in range(4):
        if all("error" not in said for said in all_do(ranks, "make")):
            break
    else:
        pytest.fail("the ranks did not meet in four tries")
    assert [said.get("result") for said in all_do(ranks, "all_reduce")] == [[3.0] * 4] * 3


def test_survivors_are_known_where_the_store_is(network: Network):
    ranks = ranks_on(network, 3.0)
    assert all("error" not in said for said in all_do(ranks, "make"))
    network.cut(1)
    here, there = all_do(ranks, "survivors")
    assert here.get("result") == [0], here
    assert there["error"] == "RendezvousError"
    assert float(str(there["seconds"])) < 2.0 + SLACK


@pytest.mark.parametrize("own", ["127.0.1.1", "10.77.0.1"])
def test_the_master_s_name_may_mean_another_address_on_each_host(network: Network, own: str):
    """As on Debian, where a machine's own name is 127.0.1.1 on itself."""
    network.resolve(0, {"localhost": "127.0.0.1", "node0": own})
    network.resolve(1, {"localhost": "127.0.0.1", "node0": network.addresses[0]})
    ranks = [
        network.start(
            host, topology="tp2", timeout=20,
            env={
                "RANK": str(host), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": "node0", "MASTER_PORT": str(PORT),
            },
        )
        for host in range(2)
    ]  # fmt: skip
    assert [rank.said()["result"] for rank in ranks] == ["imported"] * 2
    assert [said.get("result", said) for said in all_do(ranks, "make")] == ["tp2", "tp2"]
    assert [said.get("result", said) for said in all_do(ranks, "all_reduce")] == [[2.0] * 4] * 2
