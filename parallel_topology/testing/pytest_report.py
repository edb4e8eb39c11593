"""One report for a test that failed on its ranks: the first failure in pytest's own manner, a line for each other."""

from __future__ import annotations

from typing import Any

import pytest

from parallel_topology.testing.failures import OUTPUT, StuckRankError, first_line
from parallel_topology.testing.pytest_private import text_report

_Info: Any = pytest.ExceptionInfo  # pyright finds its type partially unknown


class Shown:
    """What is shown of the failures of one test."""

    def __init__(self, item: pytest.Item, failures: BaseExceptionGroup[BaseException]) -> None:
        self._item = item
        self._failures = failures.exceptions
        self._world: str = getattr(failures, "of_ranks", "")
        error = self._failures[0]
        self._has_stack = error.__traceback__ is not None and self._world == "threads" and bool(_label(error))
        self.first: Any = _Info.from_exception(_with_traceback(error))

    def put_into(self, report: pytest.TestReport) -> None:
        """Rewrite the report, unless the failure was expected."""
        if not report.failed:
            return
        error = self._failures[0]
        label = _label(error) or "the ranks"
        headline = f"{label}: {type(error).__name__}: {first_line(error)}"
        shown: Any = report.longrepr
        if self._has_stack and hasattr(shown, "reprcrash") and shown.reprcrash is not None:
            shown.reprcrash.message = f"{label}: {shown.reprcrash.message}"
        else:
            path, line, _ = self._item.location
            text = "\n".join([headline, *str(error).splitlines()[1:], "", *_told(error), ""])
            report.longrepr = shown = text_report(path, (line or 0) + 1, headline, text)
        if not hasattr(shown, "addsection"):  # --tb=line and the like
            return
        if others := self._others():
            shown.addsection(f"{len(self._failures) - 1} more", "\n".join(others))
        for failure in self._failures:
            for note in getattr(failure, "__notes__", []):
                if note.startswith(OUTPUT):
                    title, _, text = note.partition(":\n")
                    shown.addsection(title, text)
        if self._item.config.getoption("usepdb", False):
            shown.addsection("--pdb", self._advice(label))

    def _others(self) -> list[str]:
        lines: list[str] = []
        for error in self._failures[1:]:
            whole = isinstance(error, StuckRankError)
            lines.append(f"{_label(error)}: {type(error).__name__}: {str(error) if whole else first_line(error)}")
        return lines

    def _advice(self, label: str) -> str:
        if self._has_stack:
            return (
                f"this is {label}; the other ranks have ended. To stop one as it runs, put into the test: "
                "if groups.rank == 0: breakpoint()"
            )
        if self._world == "processes":
            return "the rank's process has ended and cannot be entered: run again with --ranks-world=threads --pdb"
        return "no rank's frame is left to enter: the failure was seen from outside"


def _label(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return next((note.removeprefix("on ") for note in reversed(notes) if note.startswith("on rank ")), "")


def _told(error: BaseException) -> list[str]:
    """The traceback that a process sent along."""
    return [note for note in getattr(error, "__notes__", []) if not note.startswith(("on rank ", OUTPUT))]


def _with_traceback(error: BaseException) -> BaseException:
    if error.__traceback__ is None:
        try:
            raise error
        except BaseException as raised:
            return raised
    return error
