"""The verdict of a test on ranks: one rule, the same for threads and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from parallel_topology.errors import ClosedError, CollectiveError, GroupTimeoutError, StuckRankError
from parallel_topology.testing.threads import RankInterrupt

ORDER = ("passed", "skipped", "xfailed", "failed")
"""The worst outcome of any rank is the test's."""
_CONSEQUENCES = (ClosedError, CollectiveError, GroupTimeoutError, StuckRankError, RankInterrupt)
"""What a rank meets when another one has failed."""


@dataclass(frozen=True)
class Ended:
    """How one rank's part of one phase ended, other than well.

    Attributes:
        label: the rank, as reports name it; empty for what was seen from outside of all ranks.
        report: as pytest judged it, skip and xfail marks included; its `when` is the phase.
        follows: whether it is what a rank meets when another one has failed.
        told: it in short, where the report does not say.
    """

    label: str
    report: pytest.TestReport
    follows: bool = False
    told: str = ""

    @property
    def outcome(self) -> str:
        return outcome(self.report)


def outcome(report: pytest.TestReport) -> str:
    """One of `ORDER`."""
    if report.skipped and hasattr(report, "wasxfail"):
        return "xfailed"
    return report.outcome


def follows(error: BaseException) -> bool:
    """Whether an error is what a rank meets when another one has failed."""
    return isinstance(error, _CONSEQUENCES)


def decisive(ended: Sequence[Ended]) -> Ended:
    """The one that the test's report is about, of those that did not end well, in the order in which they happened.

    A real failure comes before an expected one, and that before a skip. What only follows from another rank's failure,
    expected or not, does not count beside it.
    """
    causes = [one for one in ended if not one.follows and one.outcome in ("failed", "xfailed")]
    return max(causes or ended, key=lambda one: ORDER.index(one.outcome))  # of equals the first
