"""A layout as data for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parallel_topology.render.scene import Axis, Scene

if TYPE_CHECKING:
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.topology.topology import ParallelTopology


def as_json(
    topology: ParallelTopology,
    *,
    hosts: Hosts | None = None,
    rank: int | None = None,
    axis: str | None = None,
    marked: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """What the pictures show, as dicts and lists; `json.dumps` takes it.

    >>> from parallel_topology import ParallelTopology
    >>> as_json(ParallelTopology(tp=2, pp=2), axis="pp")["axes"]
    [{'name': 'pp', 'view': None, 'size': 2, 'strides': [2], 'groups': [[0, 2], [1, 3]]}]

    Returns:
        `topology`, its text; `world_size`; `sizes`; `views`; `stage_axis`, which axis `stage` counts along;
        `hosts`: for each, its number `host`, its `ranks` and how many `others` it holds, or None if not known;
        `axes`: what a picture's line says, and all groups; `ranks`: where each one is; and `rank`, the chosen one's
        place in its groups, or None.

    Raises:
        TopologyError: `hosts` do not hold all ranks.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """
    scene = Scene(topology, hosts=hosts, rank=rank, axis=axis, marked=marked)
    boxes = [{"host": box.host, "ranks": list(box.ranks), "others": box.others} for box in scene.boxes]
    return {
        "topology": str(topology),
        "world_size": topology.world_size,
        "sizes": topology.sizes,
        "views": dict(topology.views),
        "stage_axis": scene.stage_axis,
        "hosts": None if hosts is None else boxes,
        "axes": [_axis(each) for each in scene.axes],
        "ranks": _ranks(scene),
        "rank": None if rank is None else _chosen(scene, rank),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": axis.name,
        "view": axis.view or None,
        "size": axis.size,
        "strides": list(axis.strides),
        "groups": list(map(list, axis.groups)),
    }
    if axis.spans is not None:
        facts["groups_by_hosts"] = {str(hosts): groups for hosts, groups in axis.spans.histogram.items()}
        facts["inside"] = axis.spans.inside
    return facts


def _ranks(scene: Scene) -> list[dict[str, Any]]:
    ranks: list[dict[str, Any]] = []
    for box in scene.boxes:
        for rank in box.ranks:
            coordinate = scene.topology.coordinate(rank)
            facts: dict[str, Any] = {"rank": rank, "coordinate": coordinate}
            facts["stage"] = coordinate.get(scene.stage_axis, 0)
            if box.host is not None:
                facts["host"] = box.host
            if rank in scene.marked:
                facts["marked"] = scene.marked[rank]
            ranks.append(facts)
    return ranks


def _chosen(scene: Scene, rank: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"rank": rank, "groups": {}}
    if scene.hosts is not None:
        facts |= {"host": scene.hosts.host_of(rank), "local_rank": scene.hosts.local_rank_of(rank)}
    for name, group in scene.groups.items():
        facts["groups"][name] = {
            "ranks": list(group.ranks),
            "position": group.rank,
            "prev": group.prev_rank,
            "next": group.next_rank,
        }
        if scene.hosts is not None:
            facts["groups"][name]["hosts"] = list(scene.hosts.hosts_of(group.ranks))
    return facts
