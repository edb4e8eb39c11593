"""Joining: what the ranks of one manager compare before they create anything, and the groups they then create."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from parallel_topology.communicators.links import Links
from parallel_topology.errors import RendezvousError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.installed import own_version
from parallel_topology.meeting.addresses import address_towards
from parallel_topology.meeting.agreement import Meeting
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.creation import Creator
from parallel_topology.meeting.deadline import Deadline, Overtaken
from parallel_topology.meeting.opening import Opening
from parallel_topology.meeting.options import Options, host_identity, process_identity
from parallel_topology.meeting.verdict import Agreed
from parallel_topology.topology.plan import Family, Plan
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.torch_errors import STORE_ERRORS

_VERSION = own_version()  # searched for on the whole import path: once, not for each manager
LAST_WORDS = 0.5
"""Seconds after the deadline in which a rank that finds the store answering may say who did not come, and withdraw."""


@contextmanager
def plain_torch() -> Generator[None]:
    """Neither inference mode nor a default device of the caller's: what is made inside is used outside, too."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@dataclass(frozen=True)
class Joined:
    """What came of meeting the others.

    Attributes:
        control: this manager's way to the store.
        agreed: what the ranks found out about each other.
        meeting: at which they did; it knows under which keys.
        opening: what this rank has built meanwhile.
    """

    control: Control
    agreed: Agreed
    meeting: Meeting
    opening: Opening


def join(
    plan: Plan,
    rank: int,
    control: Control,
    options: Options,
    backend: str,
    device: str,
    made: type[Creator],
    deadline: Deadline,
    at: str = "",
) -> Joined:
    """Meet the other ranks and compare with them what is to be created.

    Args:
        device: the kind of the manager's device.
        made: how the groups are made.
        at: where they meet, if they follow on a manager.

    Raises:
        RendezvousError: the store failed or is silent, or a rank is not trusted.
        DisagreementError: the ranks' arguments differ; raised on every rank.
        GroupTimeoutError: ranks did not come in time.
    """
    topology = plan.topology
    card = json.dumps(_facts(plan, options, backend, device, made.__name__))
    meeting = new_meeting(options.name, topology, rank, card, options.token, deadline, at)
    opening = Opening(plan, rank, control.given, options, gloo=made.opens)
    meeting.memory = opening.offer.text
    meeting.build = lambda called: opening.build(called, meeting.address)
    try:
        agreed = meet(control, meeting)
        opening.conclude(dict(zip(topology.world, agreed.built, strict=True)))
    except BaseException:
        opening.end()
        raise
    return Joined(control, agreed, meeting, opening)


def new_meeting(
    name: str, topology: ParallelTopology, rank: int, card: str, token: str | None, deadline: Deadline, at: str = ""
) -> Meeting:
    """This rank's part in an agreement; nothing happens before `meet`."""
    return Meeting(name, topology.world, rank, host_identity(), process_identity(), "", card, token, deadline, at=at)


def meet(control: Control, meeting: Meeting) -> Agreed:
    """Go through an agreement, at the store, until its deadline; `Meeting.agree` says what is raised besides.

    Raises:
        RendezvousError: the store does not answer.
    """

    def agree(store: dist.Store) -> Agreed:
        meeting.address = address_towards(store)
        return meeting.agree(store)

    try:
        return control.ask(agree, meeting.deadline, grace=LAST_WORDS, bounded=True)
    except Overtaken:
        raise RendezvousError(
            f"{meeting.name}: the store does not answer: rank {meeting.rank} could not meet the others of "
            f"{meeting.world} within {meeting.deadline.seconds:g} s"
        ) from None
    except Exception:
        raise
    except BaseException:  # Ctrl-C: the thread that was left behind still waits in the store
        with suppress(Overtaken, *STORE_ERRORS):
            control.ask(meeting.withdraw, Deadline(LAST_WORDS))
        raise


def _facts(plan: Plan, options: Options, backend: str, device: str, made: str) -> dict[str, Any]:
    """What must be equal on all ranks: whatever changes which collectives creation runs, or what the groups then do."""
    shown = options.shown()
    return {
        "topology": str(plan.topology),
        "groups": [f"{family.name}({'-'.join(family.axes)})" for family in plan.families.values()],
        "isolated": sorted(options.isolated),
        "backend": backend,
        "library": _VERSION,
        "torch": torch.__version__,
        "made": made,
        "device": device,
        "options": shown.pop("per_group"),
        **shown,
    }


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
