"""What a rank says of where it listens: read as it was said, or refused by an error that names the rank."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import RendezvousError
from parallel_topology.meeting.opening import read_said, said_of

hosts = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda packed: socket.inet_ntop(socket.AF_INET, packed)),
    st.binary(min_size=16, max_size=16).map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed)),
)
addresses = st.lists(st.tuples(hosts, st.integers(1, 2**16 - 1)), min_size=1, max_size=2)


@given(has_memory=st.booleans(), listening=st.lists(addresses, max_size=4))
def test_it_is_read_as_it_was_said(has_memory: bool, listening: list[list[tuple[str, int]]]):
    found = read_said(3, said_of(has_memory, listening), len(listening), {})
    assert found == (has_memory, listening)


@given(said=st.text(st.sampled_from("01|. :a7\0") | st.characters(), max_size=40), groups=st.integers(0, 3))
def test_whatever_else_is_said_is_an_address_or_our_error(said: str, groups: int):
    with suppress(RendezvousError):
        _, listening = read_said(3, said, groups, {})
        assert len(listening) == groups
        assert all(0 < port < 2**16 for at in listening for _, port in at)


@pytest.mark.parametrize(
    "said",
    ["1|127.0.0.1 0", "1|127.0.0.1 65536", "1|127.0.0.1", "1|localhost 80", "1", "", f"1|::1 {'9' * 5000}"],
)
def test_what_is_no_address_is_refused(said: str):
    with pytest.raises(RendezvousError, match="where rank 3 listens cannot be read: ") as caught:
        read_said(3, said, 1, {})
    assert len(str(caught.value)) < 300
