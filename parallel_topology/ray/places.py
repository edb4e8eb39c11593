"""Where actors run, and the order in which they get ranks: pure functions of values, which ask no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import groupby

from parallel_topology.errors import TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.whole import quoted


@dataclass(frozen=True)
class Place:
    """Where an actor runs.

    Attributes:
        node: Ray's id of the node.
        address: the node's IP address.
        devices: the ids of the accelerators that Ray gave the actor.
        worker: Ray's id of the process, another one after a restart.

    Raises:
        TopologyError: one of them is no text.
    """

    node: str
    address: str
    devices: tuple[str, ...] = ()
    worker: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("node", "address", "worker"):
            if not isinstance(getattr(self, name), str):
                raise TopologyError(f"{name}={quoted(getattr(self, name))}: expected a text, as Ray writes it")
        if type(self.devices) is not tuple or not all(isinstance(device, str) for device in self.devices):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"devices={quoted(self.devices)}: expected a tuple of texts, as in ('0', '1')")


def rank_order(places: Sequence[Place], *, first_node: str | None = None) -> list[int]:
    """The indices of `places` in the order in which they get ranks: node by node, on a node by device.

    Nodes stand in the order of their addresses (by number, so 10.0.0.9 comes before 10.0.0.10), those of one address
    in that of their ids. Actors that share their devices, or have none, keep the order in which they were given.
    Which node gets which ranks thus depends neither on the order of the actors, which Ray leaves open in a placement
    group (https://github.com/ray-project/ray/issues/59547), nor on where the driver runs.

    >>> rank_order([Place("b", "10.0.0.10"), Place("a", "10.0.0.9", ("1",)), Place("a", "10.0.0.9", ("0",))])
    [2, 1, 0]

    Args:
        first_node: the id of the node that gets the first ranks, whatever its address.

    Raises:
        TopologyError: none of the actors is on `first_node`, or something is no place.
    """
    if not isinstance(places, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TopologyError(f"places={quoted(places)}: expected a list of Place")
    for place in places:
        require_kind(place, Place, "one of places")
    if first_node is not None and all(place.node != first_node for place in places):
        on = ", ".join(dict.fromkeys(f"{place.node} ({place.address})" for place in places))
        raise TopologyError(f"first_node={first_node!r} holds none of the actors; they are on {on}")

    def key(index: int) -> tuple[object, ...]:
        place = places[index]
        devices = tuple(map(_number_first, place.devices))
        return place.node != first_node, _by_number(place.address), place.node, devices

    return sorted(range(len(places)), key=key)


def hosts_of(places: Sequence[Place], ranks: Sequence[int]) -> Hosts:
    """The placement of `ranks`, of which `places[i]` holds `ranks[i]`; in rank order, so that nodes are together."""
    nodes = groupby(zip(places, ranks, strict=True), key=lambda placed: placed[0].node)
    return Hosts.listed([rank for _, rank in placed] for _, placed in nodes)


def _by_number(address: str) -> tuple[int, int, str]:
    try:
        ip = ip_address(address)
    except ValueError:  # a host name
        return 99, 0, address
    return ip.version, int(ip), ""


def _number_first(device: str) -> tuple[bool, int, str]:
    """Ray's ids are numbers, or names such as `GPU-5d3e...` and `MIG-...`."""
    is_number = device.isascii() and device.isdigit()
    return not is_number, int(device) if is_number else 0, device
