"""refit: a plan carried out over a group that spans both sides: agreed upon first, and done on all ranks or on none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parallel_topology.errors import GroupArgumentError, ParallelTopologyError, RefitError
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.given import Have
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.refit.transfer import Progress, Transfer
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.whole import quoted, whole

LEAST_STAGING = 1024
UNTOUCHED = "nothing was written"
HALF_WRITTEN = "what was to be written is half written, and not to be used"


@dataclass(frozen=True, slots=True)
class Refitted:
    """What a rank did in a refit that was done on every rank.

    Attributes:
        version: of the weights.
        sent, received, kept: bytes, to and from other ranks and in its own memory.
        staged: bytes of buffers.
        seconds: from the agreement on.
    """

    version: int
    sent: int
    received: int
    kept: int
    staged: int
    seconds: float


def refit(
    plan: RefitPlan,
    group: ParallelGroup,
    have: Have,
    into: Mapping[str, Tensor],
    staging_bytes: int = 64 * 2**20,
    *,
    version: int = 0,
    progress: Progress | None = None,
) -> Refitted:
    """Carry out a plan: every rank of `group` calls this, with an equal plan, which its first rank proves once.

    Ranks of one host copy into buffers that the others read. Elsewhere tensors go in place where they are contiguous,
    else through buffers. When this returns, it does on all ranks, and all have everything. Where it raises, `have` is
    as it was, and the error says whether anything was written: who must keep the old weights while a refit may fail
    gives other tensors to be written, and swaps. Where calls are checked (`check_calls`), a digest of each message is
    compared.

    Args:
        group: has all ranks of both layouts; others may be in it.
        have: this rank's tensors at the source, by the names under which its `Storage` keeps them; or pairs of name and
            tensor as they come, each of which is held until it was needed for the last time. `plan.order` says in which
            order that is. Empty on ranks that are not at the source.
        into: this rank's tensors at the target.
        staging_bytes: the most memory that buffers take, at least 1,024.
        version: of the weights, the same on all ranks.
        progress: called with the bytes that are through on this rank, and those that will be.

    Raises:
        RefitError: ranks have other plans or versions, tensors are missing or of another shape, or a rank failed.
        GroupArgumentError: `staging_bytes` is too small, or `version` is below 0.
        TopologyError: `plan` or `group` is something else.
    """
    require_kind(plan, RefitPlan, "plan")
    require_kind(group, ParallelGroup, "group")
    for name, given, least in (("staging_bytes", staging_bytes, LEAST_STAGING), ("version", version, 0)):
        if (number := whole(given)) is None or number < least:
            raise GroupArgumentError(f"{name}={quoted(given)}: expected a whole number of at least {least:,}")
    who = f"refit to version {version}"
    transfer, refused = None, None
    try:
        if group.rank == 0:  # plans are equal, so one of them is proven
            plan.verify()
        transfer = Transfer(plan, group, have, into, staging_bytes, progress)
    except ParallelTopologyError as error:  # the others are told, instead of waiting for this rank
        refused = str(error)
    try:
        offer = "" if transfer is None else transfer.staging.offer
        offers = _agree(group, [plan.fingerprint, version, staging_bytes], offer, refused)
        if transfer is None:
            raise RefitError(f"{who}: {refused}; {UNTOUCHED}")
        begun = time.monotonic()
        try:
            transfer.run(offers)
            ends: list[str | None] = group.all_gather_object(transfer.failed)
        except ParallelTopologyError as error:
            raise RefitError(f"{who}: {error}; {HALF_WRITTEN}") from error
        _require_all(who, group, ends, HALF_WRITTEN)
        seconds, staged = time.monotonic() - begun, transfer.staging.taken
        return Refitted(version, transfer.sent, transfer.received, transfer.kept, staged, seconds)
    finally:
        if transfer is not None:
            transfer.staging.close()


def _agree(group: ParallelGroup, mine: list[Any], offer: str, refused: str | None) -> dict[int, str]:
    """All have the same, and nobody refuses; what each rank offers."""
    try:
        said: list[list[Any]] = group.all_gather_object([*mine, offer, refused])
    except ParallelTopologyError as error:
        raise RefitError(f"refit: {error}; {UNTOUCHED}") from error
    for place, what in enumerate(("plan", "version", "staging_bytes")):
        ranks_by: dict[Any, list[int]] = {}
        for rank, one in zip(group.ranks, said, strict=True):
            ranks_by.setdefault(one[place], []).append(rank)
        if len(ranks_by) > 1:
            shown = "; ".join(f"{value} on ranks {ranks}" for value, ranks in ranks_by.items())
            raise RefitError(f"refit: the ranks do not have the same {what}: {shown}; {UNTOUCHED}")
    _require_all("refit", group, [one[-1] for one in said], UNTOUCHED)
    return {rank: one[-2] for rank, one in zip(group.ranks, said, strict=True)}


def _require_all(who: str, group: ParallelGroup, errors: Sequence[str | None], state: str) -> None:
    failed = [f"rank {rank}: {error}" for rank, error in zip(group.ranks, errors, strict=True) if error]
    if failed:
        raise RefitError(f"{who}: {'; '.join(failed)}; {state}")
