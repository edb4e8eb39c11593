"""Parallel groups for engines that spread a model over many devices: a pure layout, and the real groups bound to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_topology.installed import imported, own_version

if TYPE_CHECKING:
    __version__: str
    from parallel_topology.communicators.communicator import Communicator
    from parallel_topology.communicators.group_options import GroupOptions
    from parallel_topology.communicators.handle import Handle
    from parallel_topology.errors import (
        BackendError,
        ClosedError,
        ClosingError,
        CollectiveError,
        CreationError,
        DeadRankError,
        DisagreementError,
        GroupArgumentError,
        GroupTimeoutError,
        ImmutableError,
        LaunchError,
        LiveGraphError,
        MismatchError,
        MissingExtraError,
        NoLauncherError,
        NotPicklableError,
        ParallelTopologyError,
        RankError,
        RanksFailedError,
        RebindError,
        RefitError,
        RendezvousError,
        StuckRankError,
        TopologyError,
        UnknownAxisError,
        WireError,
    )
    from parallel_topology.groups.group import ParallelGroup
    from parallel_topology.groups.manager import GroupManager
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.launch import LaunchInfo
    from parallel_topology.topology.layout import Groups, Ranks
    from parallel_topology.topology.orders import ORDERS
    from parallel_topology.topology.plan import Plan
    from parallel_topology.topology.rank_view import RankGroup, RankView
    from parallel_topology.topology.topology import ParallelTopology

__all__ = [
    "ORDERS",
    "BackendError",
    "ClosedError",
    "ClosingError",
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
    "ImmutableError",
    "LaunchError",
    "LaunchInfo",
    "LiveGraphError",
    "MismatchError",
    "MissingExtraError",
    "NoLauncherError",
    "NotPicklableError",
    "ParallelGroup",
    "ParallelTopology",
    "ParallelTopologyError",
    "Plan",
    "RankError",
    "RankGroup",
    "RankView",
    "Ranks",
    "RanksFailedError",
    "RebindError",
    "RefitError",
    "RendezvousError",
    "StuckRankError",
    "TopologyError",
    "UnknownAxisError",
    "WireError",
]

# Each name is imported when it is first asked for: most programs need few of them, and only two need torch.
_HOMES = {
    "Groups": "topology.layout",
    "Ranks": "topology.layout",
    "Hosts": "hosts.hosts",
    "LaunchInfo": "launch",
    "ORDERS": "topology.orders",
    "Plan": "topology.plan",
    "RankGroup": "topology.rank_view",
    "RankView": "topology.rank_view",
    "ParallelTopology": "topology.topology",
    "GroupManager": "groups.manager",
    "ParallelGroup": "groups.group",
    "Communicator": "communicators.communicator",
    "GroupOptions": "communicators.group_options",
    "Handle": "communicators.handle",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up when asked for: reading metadata takes longer than all the rest
        return own_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(imported(f"{__name__}.{_HOMES.get(name, 'errors')}", name), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """With the names that nobody has asked for yet: completion lists them."""
    return sorted({*globals(), *__all__, "__version__"})
