"""Parallel groups for engines that spread a model over many devices: a pure layout, and the real groups bound to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_topology.errors import (
        BackendError,
        ClosedError,
        CollectiveError,
        CreationError,
        DeadRankError,
        DisagreementError,
        GroupArgumentError,
        GroupTimeoutError,
        LaunchError,
        LiveGraphError,
        MismatchError,
        MissingExtraError,
        ParallelTopologyError,
        RankError,
        RanksFailedError,
        RendezvousError,
        StuckRankError,
        TopologyError,
        UnknownAxisError,
        WireError,
    )
    from parallel_topology.groups.communicator import Communicator
    from parallel_topology.groups.group import ParallelGroup
    from parallel_topology.groups.group_options import GroupOptions
    from parallel_topology.groups.handle import Handle
    from parallel_topology.groups.manager import GroupManager
    from parallel_topology.hosts import Hosts
    from parallel_topology.launch import LaunchInfo
    from parallel_topology.layout import Groups, Ranks
    from parallel_topology.orders import ORDERS
    from parallel_topology.plan import Plan
    from parallel_topology.rank_view import RankGroup, RankView
    from parallel_topology.topology import ParallelTopology

__all__ = [
    "ORDERS",
    "BackendError",
    "ClosedError",
    "CollectiveError",
    "Communicator",
    "CreationError",
    "DeadRankError",
    "DisagreementError",
    "GroupArgumentError",
    "GroupManager",
    "GroupOptions",
    "GroupTimeoutError",
    "Groups",
    "Handle",
    "Hosts",
    "LaunchError",
    "LaunchInfo",
    "LiveGraphError",
    "MismatchError",
    "MissingExtraError",
    "ParallelGroup",
    "ParallelTopology",
    "ParallelTopologyError",
    "Plan",
    "RankError",
    "RankGroup",
    "RankView",
    "Ranks",
    "RanksFailedError",
    "RendezvousError",
    "StuckRankError",
    "TopologyError",
    "UnknownAxisError",
    "WireError",
]

# Each name is imported when it is first asked for: most programs need few of them, and only two need torch.
_HOMES = {
    "Groups": "layout",
    "Ranks": "layout",
    "Hosts": "hosts",
    "LaunchInfo": "launch",
    "ORDERS": "orders",
    "Plan": "plan",
    "RankGroup": "rank_view",
    "RankView": "rank_view",
    "ParallelTopology": "topology",
    "GroupManager": "groups.manager",
    "ParallelGroup": "groups.group",
    "Communicator": "groups.communicator",
    "GroupOptions": "groups.group_options",
    "Handle": "groups.handle",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
