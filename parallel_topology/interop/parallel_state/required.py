"""Whether what `initialize_*` is given is the topology that a manager was built for, and who is in a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel_topology.errors import TopologyError
from parallel_topology.reads.rows import Required
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.rank_view import RankGroup, RankView
from parallel_topology.topology.topology import ParallelTopology

CONVENTIONAL = ("tp", "cp", "dp", "pp")
"""Axes that answer where they were not declared."""
Without = Mapping[str, tuple[str, ...]]


def resolved(topology: ParallelTopology, axes: tuple[str, ...], without: Without) -> tuple[str, ...]:
    """The axes, those that were not declared being what they are without it, if that is there."""
    there = {*topology.all_axes, *without, *CONVENTIONAL}
    found: list[str] = []
    for axis in axes:
        instead = without.get(axis)
        gone = instead is not None and axis not in topology.all_axes and there.issuperset(instead)
        found += resolved(topology, instead, without) if gone and instead is not None else (axis,)
    return tuple(found)


def members(view: RankView, axes: tuple[str, ...]) -> RankGroup:
    """This rank's group along the axes, whether it can communicate or not; without axes, itself."""
    if not axes:
        return RankGroup("alone", Ranks(view.rank, ()), 0)
    if axes == ("world",):
        return view.world
    ranks = view.topology.group(*axes, rank=view.rank)
    return RankGroup(view.topology.group_name(*axes), ranks, ranks.index(view.rank))


def require(view: RankView, name: str, row: Required, arguments: Mapping[str, Any], without: Without) -> None:
    """Check that every group of this rank is the one that these arguments would have made.

    Raises:
        TopologyError: another one was asked for, or one that has no meaning here.
    """
    for argument, (expected, why) in row.refused.items():
        given = arguments.get(argument, expected)
        if given is not None and given != expected:
            raise TopologyError(f"{name}({argument}={given!r}): {why}")
    asked = _topology(view.topology.world_size, name, row, arguments)
    there = asked.at(view.topology.position(view.rank))
    for argument, axis in row.parts.items():
        size = members(view, resolved(view.topology, (axis,), without)).size
        if (arguments.get(argument) or 1) != size:
            raise TopologyError(f"{name}({argument}={arguments[argument]}): {view.topology} has {axis} {size}")
    for axis in asked.all_axes:
        if axis == "rest":
            continue
        ours = members(view, resolved(view.topology, (axis,), without))
        if [view.topology.position(rank) for rank in ours.ranks] != list(there[axis].ranks):
            raise TopologyError(
                f"{name}: the manager was built for {view.topology}, but {asked} is required: the {axis} group of rank "
                f"{view.rank} has {ours.ranks} there"
            )


def _topology(world_size: int, name: str, row: Required, arguments: Mapping[str, Any]) -> ParallelTopology:
    """What the arguments describe, over ranks that count from 0."""
    sizes = {axis: arguments.get(argument) or 1 for argument, axis in row.sizes.items()}
    order = str(arguments.get(row.order, row.order)).split("-")
    base = [axis for axis in order if axis in {*sizes, row.free}]
    views: dict[str, str] = {}
    if row.expert:
        expert = {axis: arguments.get(argument) for argument, axis in row.expert.items()}
        views["expert"] = _expert_view(order, sizes, expert)
    try:
        every: dict[str, Any] = {**sizes, row.free: -1}
        return ParallelTopology(order="-".join(base), world_size=world_size, views=views, **every)
    except TopologyError as error:
        raise TopologyError(f"{name}: {error}") from None


def _expert_view(order: list[str], sizes: Mapping[str, int], given: Mapping[str, int | None]) -> str:
    """As Megatron's second rank generator: its tp is etp and its dp edp, it has no cp, and its pp is the base's."""
    parts = {
        "tp": f"etp{given['etp'] or sizes['tp']}",
        "ep": f"ep{given['ep'] or 1}",
        "dp": "edp",
        "pp": f"pp{sizes['pp']}",
    }
    return "-".join(parts[axis] for axis in order if axis in parts)
