"""What `nvidia-smi topo -m` prints, and the links that groups have."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.errors import TopologyError
from parallel_topology.hosts.device_links import DeviceLinks
from parallel_topology.render.json import as_json
from parallel_topology.render.text import show

# In the form of a machine with two GPUs on each of its bridges, as the tool has printed it since driver 520.
PAIRS = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV12\tPHB\tSYS\tPXB\t0-55\t0\t\tN/A
GPU1\tNV12\t X \tPHB\tSYS\tPXB\t0-55\t0\t\tN/A
GPU2\tPHB\tPHB\t X \tNV4\tSYS\t56-111\t1\t\tN/A
GPU3\tSYS\tSYS\tNV4\t X \tSYS\t56-111\t1\t\tN/A
NIC0\tPXB\tPXB\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
"""


def test_the_matrix_is_read():
    links = DeviceLinks.parse(PAIRS)
    assert links.devices == 4
    assert links.kinds == {
        (0, 1): "NV12", (0, 2): "PHB", (0, 3): "SYS", (1, 2): "PHB", (1, 3): "SYS", (2, 3): "NV4"
    }  # fmt: skip
    assert links.among(range(4)) == ("NV12", "NV4", "PHB", "SYS")
    assert DeviceLinks.parse(PAIRS.replace("\x1b", "")) == links


@pytest.mark.parametrize(
    "text", ["", "GPU", "ranks: 4", PAIRS.replace("NV4", "?"), PAIRS.split("\nGPU2")[0], "GPU0 GPU1"]
)
def test_what_cannot_be_read_is_said(text: str):
    with pytest.raises(TopologyError, match="expected the output of `nvidia-smi topo -m`"):
        DeviceLinks.parse(text)


@given(st.text() | st.text("GPU01 X\tNVSY\n\x1b[4m"))
def test_anything_is_read_or_refused(text: str):
    with suppress(TopologyError):
        DeviceLinks.parse(text)


def test_groups_have_the_links_of_their_members_on_a_host():
    topology, hosts, links = ParallelTopology.parse("tp2-dp4"), Hosts.parse("2x4"), DeviceLinks.parse(PAIRS)
    facts = {axis["name"]: axis["links"] for axis in as_json(topology, hosts=hosts, links=links)["axes"]}
    assert facts == {"tp": ["NV12", "NV4"], "dp": ["PHB", "SYS"]}
    text = show(topology, hosts=hosts, links=links)
    assert "inside hosts, over NV12, NV4" in text
    assert "crosses hosts, over PHB, SYS" in text


def test_links_need_hosts_and_devices():
    links = DeviceLinks.parse(PAIRS)
    with pytest.raises(TopologyError, match="say with hosts="):
        show(ParallelTopology(tp=4), links=links)
    with pytest.raises(TopologyError, match="the links are of 4 devices"):
        show(ParallelTopology(tp=8), hosts=Hosts.parse("1x8"), links=links)
