"""Joining: what the ranks of one manager compare before they create anything, and the groups they then create."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import torch
import torch.distributed as dist

from parallel_topology.communicators.links import Links
from parallel_topology.errors import RendezvousError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.meeting.agreement import Agreed, Card, Meeting
from parallel_topology.meeting.creation import Creator
from parallel_topology.meeting.options import Options, host_identity
from parallel_topology.topology.plan import Family, Plan

_VERSION = version("parallel-topology")  # searched for on the whole import path: once, not for each manager


def agree(plan: Plan, rank: int, store: dist.Store | None, options: Options, backend: str) -> Agreed:
    """Meet the other ranks and compare with them what is to be created.

    Raises:
        RendezvousError: there is no store, or it failed.
        DisagreementError: the ranks' arguments differ; raised on every rank.
        GroupTimeoutError: ranks did not come in time.
    """
    topology = plan.topology
    if store is None:
        raise RendezvousError(
            f"{topology} has {topology.world_size} ranks, which need a place to meet: give store=, or "
            "use GroupManager.from_env or GroupManager.connect"
        )
    card = Card(
        topology=str(topology),
        groups=tuple(f"{family.name}({'-'.join(family.axes)})" for family in plan.families.values()),
        backend=backend,
        library=_VERSION,
        torch=torch.__version__,
        options=tuple(f"{axis}={given.model_dump_json()}" for axis, given in sorted(options.per_group.items())),
        checks=options.check_calls,
    )
    meeting = Meeting(store, options.name, topology.world, rank, host_identity(), options.timeout, options.token)
    return meeting.agree(card)


def bind(
    family: Family, plan: Plan, rank: int, made: Mapping[str, ParallelGroup], device: torch.device, prefix: str,
    creator: Creator | None,
) -> ParallelGroup:  # fmt: skip
    """This rank's group of a family: with process groups of its own, or with those of the family it shares with.

    Args:
        made: this manager's groups so far.
        prefix: of the labels, for all managers of this process and store to differ.
    """
    ranks = plan.topology.group(*family.axes, rank=rank)
    number = plan.topology.groups(*family.axes).index(ranks)
    label = f"{prefix}/{family.name}" if family.name == "world" else f"{prefix}/{family.name}[{number}]"
    position = ranks.index(rank)
    if family.shares is not None:
        links = made[family.shares].links
    elif family.creates and creator is not None:
        links = creator.make(family.name, ranks, position, label=label)
    else:
        links = Links()
    return ParallelGroup(family.name, ranks, position, label=label, device=device, links=links)
