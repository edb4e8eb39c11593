"""A rank that is a process: pytest's own session runs the item there, collected by its path, and its reports travel."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from parallel_topology.groups.manager import GroupManager
from parallel_topology.testing import per_rank
from parallel_topology.testing.failures import RanksUsageError, has_left
from parallel_topology.testing.plugin import Fixtures
from parallel_topology.testing.ranks import seated
from parallel_topology.testing.seeding import rank_seed, seed_process
from parallel_topology.testing.verdict import follows
from parallel_topology.testing.workers import Seat, Work
from parallel_topology.topology.topology import ParallelTopology

_MANAGER = "parallel_topology_manager"
"""The fixture that is made first, and taken down last."""


def start(work: Work, options: Mapping[str, Any], path: str) -> None:
    """Runs in a new worker: pytest's session, in whose run loop the worker works."""
    config = pytest.Config.fromdictargs(options, [path])
    config.pluginmanager.register(Session(work))
    config.hook.pytest_cmdline_main(config=config)


class Session:
    """The plugin of a worker: it collects what a job needs, before forks of the worker run items."""

    def __init__(self, work: Work) -> None:
        self.folder: Any = None
        self._work = work
        self._session: pytest.Session | None = None
        self._items: dict[str, dict[str, pytest.Item]] = {}  # path -> node id -> item
        self._failed: list[str] = []

    @pytest.fixture
    def tmp_path(self) -> Any:
        """One for all ranks. It is here before items are collected, which look their fixtures up then."""
        return self.folder

    def pytest_collection(self, session: pytest.Session) -> bool:
        self._session = session
        return True

    def pytest_runtestloop(self) -> bool:
        self._work(self._collect)
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failed.append(str(report.longrepr))

    def item(self, path: str, nodeid: str) -> pytest.Item:
        """Raises: RanksUsageError: it is not there."""
        if (item := self._items[path].get(nodeid)) is None:
            raise RanksUsageError(
                f"{nodeid} is not among the tests when {path} is collected once more, in a rank's process: expected "
                "that each collection gives the same tests\n" + "\n".join(self._failed)
            )
        return item

    def printed(self) -> str:
        """What a rank printed that died, from the file that pytest captures in, which a fork shares."""
        capturing: Any = self._session and self._session.config.pluginmanager.getplugin("capturemanager")
        return "".join(capturing.read_global_capture()) if capturing else ""

    def _collect(self, path: str) -> Session:
        if path not in self._items and self._session is not None:
            self._items[path] = {item.nodeid: item for item in self._session.perform_collect([path])}
        return self


@dataclass(frozen=True)
class Told:
    """What a rank's session reported of one phase of the test.

    Attributes:
        when: of `time.monotonic()`.
        raised: whether something was raised in it: a test that was expected to fail, and did not, raises nothing.
        follows: whether it is what a rank meets when another one has failed.
    """

    when: float
    data: dict[str, Any]
    raised: bool
    follows: bool


@dataclass(frozen=True)
class Warned:
    """A warning that a rank's session recorded: its text, category, file and line, and what pytest says with it."""

    words: tuple[str, str, str, int]
    when: str
    nodeid: str
    location: Any


class ReportedError(Exception):
    """Stands for a failure of which a report was told."""


class Skipped(ReportedError):  # noqa: N818
    """Stands for a skip: it goes by the name of pytest's own."""


def run_item(
    position: int,
    seat: Seat,
    topology: ParallelTopology,
    folder: str,
    labels: Sequence[str],
    place: tuple[str, str],
    asked: Mapping[str, Any],
    tmp_path: Any,
    measured: Mapping[str, Any] | None,
) -> None:
    """The test on one rank, in a fork of a worker.

    Args:
        labels: what errors call the ranks.
        place: the item's path and node id.
        asked: `seed`, `check` and the manager's options.
        tmp_path: the ranks' common one.
        measured: coverage's options, where the run is measured.
    """
    item = seat.prepared.item(*place)
    seat.prepared.folder = tmp_path
    rank = Rank(position, labels[position], seat, topology, folder, dict(asked))
    item.config.pluginmanager.register(rank, per_rank.SEAT)
    seed_process(rank_seed(topology.world[position], rank.seed))
    with _coverage(measured):
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        except pytest.exit.Exception as error:
            seat((str(error.msg), error.returncode))


class Rank(Fixtures):
    """The plugin of a rank: what its fixtures are, and where its reports go."""

    def __init__(
        self,
        position: int,
        label: str,
        seat: Seat,
        topology: ParallelTopology,
        folder: str,
        asked: dict[str, Any],
    ) -> None:
        self.seed: int = asked.pop("seed", 0)
        self._check: bool = asked.pop("check", True)
        self._manager = seated(position, seat, topology, folder, self._check, asked)
        self._label = label
        self._seat = seat

    @pytest.fixture(name=_MANAGER)
    def manager(self) -> Generator[GroupManager]:
        with self._manager as groups:
            yield groups
            self._seat.end()
            if self._check:
                self._seat.stay()

    @pytest.fixture
    def groups(self, parallel_topology_manager: GroupManager) -> GroupManager:
        return parallel_topology_manager

    @pytest.fixture
    def generator(self, parallel_topology_manager: GroupManager) -> Any:
        return per_rank.own_generator(parallel_topology_manager, self.seed)

    @pytest.fixture
    def rng(self, parallel_topology_manager: GroupManager) -> Any:
        return per_rank.own_random(parallel_topology_manager, self.seed)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        one = warning_message
        words = (str(one.message), one.category.__name__, one.filename, one.lineno)
        self._seat(Warned(words, when, nodeid, location))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        item.fixturenames.insert(0, _MANAGER)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        error = call.excinfo.value if call.excinfo is not None else None
        if error is not None and not has_left(error):
            error.add_note(f"on {self._label}")
        report = yield
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        self._seat(Told(time.monotonic(), data, error is not None, error is not None and follows(error)))
        if error is not None and call.when != "teardown":
            self._seat.end(None, Skipped() if has_left(error) else ReportedError())
        return report


@contextmanager
def _coverage(options: Mapping[str, Any] | None) -> Generator[None]:
    if options is None:
        yield
        return
    import coverage

    measuring = coverage.Coverage(data_suffix=True, **options)
    measuring.start()
    try:
        yield
    finally:
        measuring.stop()
        measuring.save()
