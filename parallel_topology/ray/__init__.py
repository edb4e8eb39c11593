"""One `GroupManager` in each Ray actor: ranks by node, a ticket for each actor, calls that name who died.

Needs Ray where it talks to a cluster: `pip install 'parallel-topology[ray]'`.
"""

from parallel_topology.ray.engine import RayActors, RayEngine
from parallel_topology.ray.places import Place, rank_order
from parallel_topology.ray.ticket import Ticket

__all__ = ["Place", "RayActors", "RayEngine", "Ticket", "rank_order"]
