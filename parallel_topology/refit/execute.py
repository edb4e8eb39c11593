"""refit: a plan carried out over a group that spans both sides: agreed upon first, and done on all ranks or on none.

What came of it is decided in the store, by the first rank that knows. Where none knows, as a peer was lost, those who
are left ask there, and do it again among themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from parallel_topology.errors import (
    CollectiveError,
    GroupArgumentError,
    GroupTimeoutError,
    ParallelTopologyError,
    RefitError,
    RendezvousError,
)
from parallel_topology.groups.group import ParallelGroup
from parallel_topology.refit.given import Have
from parallel_topology.refit.plan import RefitPlan
from parallel_topology.refit.transfer import Progress, Transfer
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.whole import quoted, whole

LEAST_STAGING = 1024
UNTOUCHED = "nothing was written"
HALF_WRITTEN = "what was to be written is half written, and not to be used"
_DONE = "done"


@dataclass(frozen=True, slots=True)
class Refitted:
    """What a rank did in a refit that was done on every rank.

    Attributes:
        version: of the weights.
        sent, received, kept: bytes, to and from other ranks and in its own memory.
        staged: bytes of buffers.
        seconds: from the agreement on.
        lost: ranks that were lost meanwhile: the others have everything, and can be bound anew.
    """

    version: int
    sent: int
    received: int
    kept: int
    staged: int
    seconds: float
    lost: tuple[int, ...] = ()


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
    else through buffers. When this returns, all ranks that are left have everything. Where it raises, `have` is as it
    was, and the error says whether anything was written: who must keep the old weights while a refit may fail gives
    other tensors to be written, and swaps. Where calls are checked (`check_calls`), a digest of each message is
    compared.

    A rank that is lost meanwhile is left out: the others do it all again over a manager of their own, taking from
    replicas what it had, and `lost` names it. Nothing else works in `group` then, as after any failure of a peer. It
    fails on all of them where it had the only copy, or where tensors come one after the other.

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
    return Attempt(plan, group, have, into, staging_bytes, version, progress).carry_out()


class Attempt:
    """One rank's part in a refit over one group.

    Args:
        before: what may have been written before this.

    Raises:
        GroupArgumentError, TopologyError: as `refit`.
    """

    def __init__(
        self, plan: RefitPlan, group: ParallelGroup, have: Have, into: Mapping[str, Tensor], staging_bytes: int,
        version: int, progress: Progress | None, before: str = UNTOUCHED,
    ) -> None:  # fmt: skip
        require_kind(plan, RefitPlan, "plan")
        require_kind(group, ParallelGroup, "group")
        for name, given, least in (("staging_bytes", staging_bytes, LEAST_STAGING), ("version", version, 0)):
            if (number := whole(given)) is None or number < least:
                raise GroupArgumentError(f"{name}={quoted(given)}: expected a whole number of at least {least:,}")
        self._plan, self._group, self._version = plan, group, version
        self._given = have, into, staging_bytes, version, progress
        self._who = f"refit to version {version}"
        self._state = before
        self._transfer: Transfer | None = None
        self._begun = 0.0
        witness = group.links.witness
        self._number = 0 if witness is None else witness.begin(group.label)

    def carry_out(self) -> Refitted:
        """
        Raises:
            RefitError: as `refit`.
        """
        error: ParallelTopologyError | None = None
        try:
            self._do()
            known = _DONE
        except RefitError as refused:
            error, known = refused, str(refused)
        except (CollectiveError, GroupTimeoutError) as failed:
            error, known = failed, ""
            self._group.links.give_up(f"a refit failed here: {failed}")
        except ParallelTopologyError as failed:
            error, known = failed, f"{self._who}: {failed}; {self._state}"
        finally:
            if self._transfer is not None:
                self._transfer.staging.close()
        known, here = self._concluded(known, error)
        if known == _DONE:
            return self._done()
        if known:
            raise RefitError(known) from error
        return self._without(sorted({*self._group.ranks} - {*here}), error)

    def _do(self) -> None:
        plan, group = self._plan, self._group
        have, into, staging_bytes, version, progress = self._given
        refused = None
        try:
            if self._is_spent:
                raise RefitError("its tensors came one after the other, and do not come again")
            if group.rank == 0:  # plans are equal, so one of them is proven
                plan.verify()
            self._transfer = Transfer(plan, group, have, into, staging_bytes, progress)
        except ParallelTopologyError as error:  # the others are told, instead of waiting for this rank
            refused = str(error)
        offers = self._agree([plan.fingerprint, version, staging_bytes], refused)
        if self._transfer is None:
            raise RefitError(f"{self._who}: {refused}; {self._state}")
        self._begun, self._state = time.monotonic(), HALF_WRITTEN
        self._transfer.run(offers)
        ends: list[str | None] = group.all_gather_object(self._transfer.failed)
        self._require_all(ends)

    @property
    def _is_spent(self) -> bool:
        """Whether this rank's tensors have come already, and are gone."""
        is_source = self._group.ranks[self._group.rank] in self._plan.source.world
        return self._state == HALF_WRITTEN and is_source and not isinstance(self._given[0], Mapping)

    def _agree(self, mine: list[Any], refused: str | None) -> dict[int, str]:
        """All have the same, and nobody refuses; what each rank offers."""
        offer = "" if self._transfer is None else self._transfer.staging.offer
        said: list[list[Any]] = self._group.all_gather_object([*mine, offer, self._number, self._state, refused])
        self._number = max(one[-3] for one in said)
        if any(one[-2] == HALF_WRITTEN for one in said):
            self._state = HALF_WRITTEN
        for place, what in enumerate(("plan", "version", "staging_bytes")):
            ranks_by: dict[Any, list[int]] = {}
            for rank, one in zip(self._group.ranks, said, strict=True):
                ranks_by.setdefault(one[place], []).append(rank)
            if len(ranks_by) > 1:
                shown = "; ".join(f"{value} on ranks {ranks}" for value, ranks in ranks_by.items())
                raise RefitError(f"refit: the ranks do not have the same {what}: {shown}; {self._state}")
        self._require_all([one[-1] for one in said])
        return {rank: one[-4] for rank, one in zip(self._group.ranks, said, strict=True)}

    def _require_all(self, errors: Sequence[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in zip(self._group.ranks, errors, strict=True) if error]
        if failed:
            raise RefitError(f"{self._who}: {'; '.join(failed)}; {self._state}")

    def _concluded(self, known: str, failed: ParallelTopologyError | None) -> tuple[str, list[int]]:
        """What came of it on all ranks; if nobody knows, who is left."""
        group, witness = self._group, self._group.links.witness
        if witness is None:
            return known, [*group.ranks]
        seconds = group.links.timeout.total_seconds()
        try:
            return witness.concluded(group.label, self._number, group.ranks, seconds, known)
        except RendezvousError as error:
            if known:
                return known, []
            raise RefitError(f"{self._who}: {failed}; who is left is not known: {error}; {self._state}") from failed

    def _done(self) -> Refitted:
        transfer = self._transfer
        if transfer is None:
            return Refitted(self._version, 0, 0, 0, 0, 0.0)
        seconds = time.monotonic() - self._begun
        return Refitted(self._version, transfer.sent, transfer.received, transfer.kept, transfer.staging.taken, seconds)

    def _without(self, lost: list[int], error: ParallelTopologyError | None) -> Refitted:
        """Again, by those that are left."""
        group, plan, witness = self._group, self._plan, self._group.links.witness
        rank = group.ranks[group.rank]
        if rank in lost or not lost or witness is None:
            why = f"the others go on without rank {rank}: " if rank in lost else ""
            raise RefitError(f"{self._who}: {why}{error}; {self._state}") from error
        self._transfer = None  # its buffers go before there are others
        try:
            with witness.among([one for one in group.ranks if one not in lost]) as left:
                again = Attempt(plan.left_without(lost), left.world, *self._given, before=self._state).carry_out()
        except RefitError as failed:
            raise RefitError(f"{failed}; before that: {error}") from error
        except ParallelTopologyError as failed:
            raise RefitError(f"{self._who}: {error}; without ranks {lost}: {failed}; {self._state}") from error
        return replace(again, lost=(*lost, *again.lost))
