"""How a world of ranks reports its failures: one ExceptionGroup, the first failure first, each saying which rank.

ParallelTopologyError
├── StuckRankError, DeadRankError     of the package's `errors`
├── MismatchError                     of the package's `errors`
│   └── DeadlockError                 ranks that wait for each other, and would for ever
├── AgreementError (AssertionError)   a value or condition on which the ranks differ
└── RanksUsageError (ValueError)      a test that asks for a world of ranks which cannot be
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parallel_topology.errors import DeadRankError as DeadRankError
from parallel_topology.errors import MismatchError as MismatchError
from parallel_topology.errors import ParallelTopologyError
from parallel_topology.errors import StuckRankError as StuckRankError

OUTPUT = "captured output of "
"""How the note begins that holds what a failed rank's process printed."""


class DeadlockError(MismatchError):
    """Ranks wait for each other, and would for ever.

    Attributes:
        at: the line in which the first of them waits, `file:line`.
    """

    at = ""


class AgreementError(ParallelTopologyError, AssertionError):
    """The ranks do not hold the same value, or a condition does not hold on all of them."""


class RanksUsageError(ParallelTopologyError, ValueError):
    """A test asks for a world of ranks which cannot be."""


def raise_failures(
    labels: Sequence[str], failures: Mapping[int, BaseException], cause: ParallelTopologyError | None = None
) -> None:
    """Raise the failures, by position in the order in which they happened, as one group; nothing if there are none.

    Args:
        cause: what is known to be behind them; it comes before them.

    Raises:
        ExceptionGroup: the failures. Each has notes: first what else is known of it, last `on rank ...`.
    """
    if not failures and cause is None:
        return
    for position, failure in failures.items():
        failure.add_note(f"on {labels[position]}")
    found: list[BaseException] = list(failures.values())
    message = f"the {len(labels)} ranks' collectives do not match"
    if failures:
        first, error = next(iter(failures.items()))
        message = (
            f"{len(failures)} of {len(labels)} ranks failed, first {labels[first]} with "
            f"{type(error).__name__}: {first_line(error)}"
        )
    if cause is not None:
        message += f"; the cause is {type(cause).__name__}: {first_line(cause)}"
        found.insert(0, cause)
    raise BaseExceptionGroup(message, found)


def has_left(error: BaseException) -> bool:
    """Whether a rank left by pytest's skip: for those that wait for it, it has returned."""
    return type(error).__name__ == "Skipped"  # of pytest, which need not be there


def first_line(error: BaseException) -> str:
    """The first line of what it says."""
    return next(iter(str(error).splitlines()), "")
