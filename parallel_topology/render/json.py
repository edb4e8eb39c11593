"""A layout as data for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parallel_topology.errors import TopologyError
from parallel_topology.render.scene import MOST_LISTED, Axis, Scene, count

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.render.shards import Shards
    from parallel_topology.topology.topology import ParallelTopology
    from parallel_topology.weights.weight import Weight


def as_json(
    topology: ParallelTopology,
    *,
    hosts: Hosts | None = None,
    rank: int | None = None,
    axis: str | None = None,
    marked: Mapping[int, str] | None = None,
    tensor: Weight | None = None,
    links: DeviceLinks | None = None,
) -> dict[str, Any]:
    """What the pictures show, as dicts and lists; `json.dumps` takes it.

    >>> from parallel_topology import ParallelTopology
    >>> as_json(ParallelTopology(tp=2, pp=2), axis="pp")["axes"]
    [{'name': 'pp', 'view': None, 'size': 2, 'strides': [2], 'groups': [[0, 2], [1, 3]]}]

    Returns:
        `topology`, its text; `world_size`; `sizes`; `views`; `stage_axis`, which axis `stage` counts along;
        `hosts`: for each, its number `host`, its `ranks` and how many `others` it holds, or None if not known;
        `axes`: what a picture's line says, and all groups; `tensor`: its shape, its cut, and the ranks that hold each
        part, or None; `ranks`: where each one is; and `rank`, the chosen one's place in its groups, or None. Of more
        than 65,536 ranks only what concerns a chosen one is listed: `hosts` and `ranks` are None, as are the `groups`
        of an axis and the `ranks` and `hosts` of a group of so many.

    Raises:
        TopologyError: the tensor cannot be cut so, `hosts` do not hold all ranks, or there are more than can be
            listed, and none is chosen.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """
    scene = Scene(topology, hosts=hosts, rank=rank, axis=axis, marked=marked, tensor=tensor, links=links)
    if not scene.is_listed and rank is None:
        raise TopologyError(
            f"{scene.title} has {topology.world_size:,} ranks; at most {MOST_LISTED:,} are listed. Choose one with "
            "rank= (--rank), or list a part, such as topology.subtopology(pp=0)"
        )
    return {
        "topology": str(topology),
        "world_size": topology.world_size,
        "sizes": topology.sizes,
        "views": dict(topology.views),
        "stage_axis": scene.stage_axis,
        "hosts": _hosts(scene) if scene.is_listed and hosts is not None else None,
        "axes": [_axis(each, listed=scene.is_listed) for each in scene.axes],
        "tensor": None if scene.shards is None else _tensor(scene.shards),
        "ranks": _ranks(scene) if scene.is_listed else None,
        "rank": None if rank is None else _chosen(scene, rank),
    }


def _hosts(scene: Scene) -> list[dict[str, Any]]:
    return [{"host": box.host, "ranks": list(box.ranks), "others": box.others} for box in scene.boxes]


def _axis(axis: Axis, *, listed: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": axis.name,
        "view": axis.view or None,
        "size": axis.size,
        "strides": list(axis.strides),
        "groups": list(map(list, axis.groups)) if listed else None,
    }
    if axis.spans is not None:
        facts["groups_by_hosts"] = {str(hosts): groups for hosts, groups in axis.spans.histogram.items()}
        facts["inside"] = axis.spans.inside
    if axis.links:
        facts["links"] = list(axis.links)
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


def _tensor(shards: Shards) -> dict[str, Any]:
    weight = shards.weight
    cut = {str(dim): list(weight.axes(dim)) for dim in weight.cut}
    parts = [{"ranges": shards.ranges(part), "ranks": _listed(ranks)} for part, ranks in enumerate(shards.holders)]
    return {"shape": list(weight.shape), "cut": cut, "shards": parts}


def _chosen(scene: Scene, rank: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"rank": rank, "groups": {}}
    if scene.hosts is not None:
        facts |= {"host": scene.hosts.host_of(rank), "local_rank": scene.hosts.local_rank_of(rank)}
    for name, group in scene.groups.items():
        facts["groups"][name] = {
            "ranks": _listed(group.ranks),
            "position": group.rank,
            "prev": group.prev_rank,
            "next": group.next_rank,
        }
        if scene.hosts is not None:
            facts["groups"][name]["hosts"] = _listed(scene.hosts.hosts_of(group.ranks))
    return facts


def _listed(numbers: Sequence[int]) -> list[int] | None:
    return list(numbers) if count(numbers) <= MOST_LISTED else None
