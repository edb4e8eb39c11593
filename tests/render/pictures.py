"""What pictures are drawn of, at random."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from parallel_topology import ParallelTopology
from parallel_topology.testing.strategies import hosts_for, topologies


@st.composite
def pictures(draw: st.DrawFn, max_world: int = 64) -> tuple[ParallelTopology, dict[str, Any]]:
    """A topology, perhaps with a view, and the arguments of a picture of it."""
    topology = draw(topologies(max_world))
    if topology.ranks is None and draw(st.booleans()):
        views = {"flat": f"everyone{topology.world_size}"}
        topology = topology.model_copy(update={"views": views})
    ranks = st.sampled_from(list(topology.world))
    return topology, {
        "hosts": draw(st.none() | hosts_for(topology)),
        "rank": draw(st.none() | ranks),
        "axis": draw(st.none() | st.sampled_from([*topology.all_axes, "-".join(topology.axes)])),
        "marked": draw(st.dictionaries(ranks, st.text(max_size=20), max_size=3)),
    }
