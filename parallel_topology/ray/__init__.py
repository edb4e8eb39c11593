"""One `GroupManager` in each Ray actor: ranks by node, a ticket for each actor, calls that name who died.

Needs Ray where it talks to a cluster: `pip install 'parallel-topology[ray]'`. The names here are imported when they are
first asked for; `Place` and `rank_order` need neither Ray nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_topology.installed import imported

if TYPE_CHECKING:
    from parallel_topology.ray.engine import RayActors, RayEngine
    from parallel_topology.ray.places import Place, rank_order
    from parallel_topology.ray.ticket import Ticket

__all__ = ["Place", "RayActors", "RayEngine", "Ticket", "rank_order"]

_HOMES = {"RayActors": "engine", "RayEngine": "engine", "Place": "places", "rank_order": "places", "Ticket": "ticket"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(imported(f"{__name__}.{_HOMES[name]}", f"{__name__}.{name}"), name)
    globals()[name] = value
    return value
