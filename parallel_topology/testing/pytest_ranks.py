"""Running one marked test on its ranks, from pytest's process, and the one report that comes of it."""

from __future__ import annotations

import builtins
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from parallel_topology.testing import pytest_seat
from parallel_topology.testing.failures import OUTPUT, StuckRankError, first_line, has_left
from parallel_topology.testing.per_rank import call_on_rank
from parallel_topology.testing.pool import WorkerPool
from parallel_topology.testing.pytest_seat import ReportedError, Told, Warned
from parallel_topology.testing.ranks import MARGIN, labels_of, run_ranks, run_world
from parallel_topology.testing.verdict import Ended, decisive, follows
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import shown_ranks

PRELOAD = ("pytest", pytest_seat.__name__, "torch.testing", "torch.fx.experimental.symbolic_shapes")
"""What is imported once for all forks: the last one, half a second of sympy, comes with torch's first gradient."""
PATIENCE = 3600.0
"""Seconds that ranks may take when a debugger may stop them."""


@dataclass
class Outcome:
    """What became of one test on its ranks.

    Attributes:
        world: what the ranks were.
        ended: what did not end well, in the order in which it happened, except in teardown.
        teardown: that.
        done: whether all is known.
        sections: what ranks that are processes printed.
    """

    world: str
    ended: list[Ended] = field(default_factory=list[Ended])
    teardown: list[Ended] = field(default_factory=list[Ended])
    done: bool = False
    sections: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


class RanksError(Exception):
    """Stands for what failed in other processes."""


def run_threads(
    item: pytest.Function,
    topology: ParallelTopology,
    asked: dict[str, Any],
    arguments: dict[str, Any],
    outcome: Outcome,
) -> None:
    """Raises: BaseException: of the ranks' failures the one that decides."""
    __tracebackhide__ = True
    phases: dict[int, str] = {}
    ranks = dict(zip(labels_of(topology), topology.world, strict=True))
    errors: dict[int, BaseException] = {}
    for error in _failures(run_ranks, topology, call_on_rank, item.obj, arguments, phases, **asked):
        if isinstance(error, pytest.exit.Exception):
            raise error
        one = _judged(item, error, phases.get(ranks.get(_label(error), -1), "call"))
        errors[id(one)] = error
        (outcome.teardown if one.report.when == "teardown" else outcome.ended).append(one)
    if outcome.ended:
        raise errors[id(decisive(outcome.ended))]


def run_processes(
    item: pytest.Function, topology: ParallelTopology, asked: dict[str, Any], pool: WorkerPool, outcome: Outcome
) -> None:
    """Raises: RanksError: where any failed."""
    __tracebackhide__ = True
    labels = labels_of(topology)
    told: dict[int, list[Told]] = {position: [] for position in range(len(labels))}

    warned: set[tuple[str, str, str, int]] = set()

    def on_message(position: int, message: Told | Warned | tuple[str, int | None]) -> None:
        if isinstance(message, tuple):
            pytest.exit(*message)
        if isinstance(message, Told):
            told[position].append(message)
        elif message.words not in warned:  # each rank says it
            warned.add(message.words)
            _warn(item, message)

    timeout: float = asked.pop("timeout")
    check: bool = asked.get("check", True)
    asked = {"timeout": timeout + MARGIN, "backend": "gloo", **asked}
    place = (str(item.path), item.nodeid)
    failures = _failures(
        run_world, topology, labels, pytest_seat.run_item, labels, place, asked, item.funcargs.get("tmp_path"),
        _coverage_options(), check=check, timeout=timeout, pool=pool, needs=place[0], on_message=on_message,
    )  # fmt: skip
    seen = [error for error in failures if not isinstance(error, ReportedError)]
    outcome.ended += [_judged(item, error, "call") for error in seen if not follows(error)]
    raised = [(one, position) for position, phases in told.items() for one in phases if one.raised]
    for one, position in sorted(raised, key=lambda one: one[0].when):
        report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=one.data)
        ended = Ended(labels[position], report, one.follows)
        (outcome.teardown if report.when == "teardown" else outcome.ended).append(ended)
    outcome.ended += [_judged(item, error, "call") for error in seen if follows(error)]
    for position, phases in told.items():
        sections: list[tuple[str, str]] = phases[-1].data["sections"] if phases else []
        outcome.sections += [(f"{title} of {labels[position].partition(' of ')[0]}", text) for title, text in sections]
    if outcome.ended:
        raise RanksError


def put_into(item: pytest.Item, outcome: Outcome, report: pytest.TestReport) -> None:
    """Make the report of one of the test's phases that of its ranks."""
    ended = outcome.teardown if report.when == "teardown" else outcome.ended
    if report.when == "teardown" and report.failed:  # what is shared by all failed, too
        return
    if report.when == "call":
        report.sections += outcome.sections
    if not ended:
        return
    chosen = decisive(ended)
    report.outcome, report.longrepr, report.when = chosen.report.outcome, chosen.report.longrepr, chosen.report.when
    report.__dict__.pop("wasxfail", None)
    if hasattr(chosen.report, "wasxfail"):
        report.wasxfail = chosen.report.wasxfail
    if report.failed:
        _decorate(item, outcome, ended, chosen, report.longrepr)


def _decorate(item: pytest.Item, outcome: Outcome, ended: Sequence[Ended], chosen: Ended, shown: Any) -> None:
    """The rank into the failure's headline, and what became of the others below it."""
    if getattr(shown, "reprcrash", None) is not None and chosen.label:
        shown.reprcrash.message = f"{chosen.label}: {shown.reprcrash.message}"
    if not hasattr(shown, "addsection"):  # --tb=line and the like
        return
    if others := [one for one in ended if one is not chosen]:
        shown.addsection(f"{len(others)} more", "\n".join(_stories(others)))
    if item.config.getoption("usepdb", False):
        shown.addsection("--pdb", _advice(outcome.world, chosen.label))


def _stories(ended: Sequence[Ended]) -> list[str]:
    """What became of ranks, equal stories told once."""
    stories: dict[str, list[Ended]] = {}
    for one in ended:
        stories.setdefault(re.sub(r"\d+", "#", _said(one)), []).append(one)
    lines: list[str] = []
    for alike in stories.values():
        lines.append(f"{alike[0].label}: {_said(alike[0])}")
        if len(alike) > 1:
            ranks = [int(one.label.split()[1]) for one in alike[1:]]
            lines.append(f"{shown_ranks(sorted(ranks))}: the same")
    return lines


def _said(one: Ended) -> str:
    if one.told:
        return one.told
    shown: Any = one.report.longrepr
    crash = getattr(shown, "reprcrash", None)
    text: str = crash.message if crash is not None else str(shown[-1] if isinstance(shown, list | tuple) else shown)  # pyright: ignore[reportUnknownArgumentType]
    line = text.splitlines()[0].removeprefix("parallel_topology.errors.")
    return line.partition(" failed at rank ")[0] if one.follows else line


def _advice(world: str, label: str) -> str:
    if not label:
        return "no rank's frame is left to enter: the failure was seen from outside"
    if world == "threads":
        return (
            f"this is {label}; the other ranks have ended. To stop one as it runs, put into the test: "
            "if groups.rank == 0: breakpoint()"
        )
    return "the rank's process has ended and cannot be entered: run again with --ranks-world=threads --pdb"


def _judged(item: pytest.Item, error: BaseException, when: Any) -> Ended:
    """How pytest judges a failure, the test's marks included."""

    def fail() -> None:
        raise error

    label, seen_from_outside = _label(error), error.__traceback__ is None
    if has_left(error):
        error.__notes__.remove(f"on {label}")  # the reason is shown as one line
    call = pytest.CallInfo[None].from_call(fail, when=when)
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    told = ""
    if seen_from_outside and report.failed and call.excinfo is not None:
        shown: Any = call.excinfo.getrepr(style="value")
        if shown.reprcrash is not None:
            shown.reprcrash.message = f"{type(error).__name__}: {first_line(error)}"
            path, _, line = getattr(error, "at", "").rpartition(":")
            here = item.location[0], (item.location[1] or 0) + 1
            shown.reprcrash.path, shown.reprcrash.lineno = (path, int(line)) if path else here
        told = f"{type(error).__name__}: {str(error) if isinstance(error, StuckRankError) else first_line(error)}"
        for note in getattr(error, "__notes__", []):
            if note.startswith(OUTPUT):
                title, _, text = note.partition(":\n")
                shown.addsection(title, text)
        report.longrepr = shown
    return Ended(label, report, follows(error), told)


def _label(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return next((note.removeprefix("on ") for note in reversed(notes) if note.startswith("on rank ")), "")


def _warn(item: pytest.Item, warned: Warned) -> None:
    text, name, path, line = warned.words
    category: Any = getattr(builtins, name, UserWarning)
    one = warnings.WarningMessage(category(text), category, path, line)
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": one, "when": warned.when, "nodeid": warned.nodeid, "location": warned.location}
    )


def _failures(run: Any, *args: Any, **how: Any) -> Sequence[BaseException]:
    """What a call on ranks raises, one by one, outside of any handler: so they do not become each other's context."""
    try:
        run(*args, **how)
    except BaseExceptionGroup as failures:
        return failures.exceptions
    return ()


def _coverage_options() -> dict[str, Any] | None:
    """Those of the coverage that measures this process, if one does."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is None:
        return None
    of_run = {name: current.get_option(f"run:{name}") for name in ("branch", "source", "include", "omit", "data_file")}
    return {"config_file": current.config.config_file or False, **of_run}


def new_pool(config: pytest.Config) -> WorkerPool:
    """Workers that have a pytest session each, with this one's options, except those on which tests are run and how
    they are reported."""
    options: dict[str, Any] = {}
    for name, value in vars(config.option).items():
        try:
            pickle.dumps(value)
        except Exception:
            continue
        options[name] = value
    options |= {
        "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False, "newfirst": False,
        "stepwise": False, "stepwise_skip": False, "stepwise_reset": False, "maxfail": 0, "usepdb": False,
        "trace": False, "collectonly": False, "numprocesses": None, "dist": "no", "tx": [], "looponfail": False,
        "xmlpath": None, "log_file": None, "no_cov": True, "cov_source": [], "cacheclear": False, "reportchars": "",
        "rootdir": str(config.rootpath), "inifilename": None if config.inipath is None else str(config.inipath),
        "plugins": [*(options.get("plugins") or []), "no:terminal", "no:pytest_cov", "no:xdist"],
    }  # fmt: skip
    return WorkerPool(pytest_seat.start, options, str(config.rootpath), preload=PRELOAD)
