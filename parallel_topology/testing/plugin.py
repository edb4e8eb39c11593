"""The pytest plugin: `@pytest.mark.ranks("tp2-pp2")` runs a test on every rank of a world. It imports torch only then.

A marked test's function runs once per rank, between one setup and one teardown, and gives one report. Its fixtures
are made once, in pytest's process, except those of a rank's own: `groups`, `generator`, `rng` and what
`rank_fixture` makes.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Generator, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeGuard
from unittest import TestCase

import pytest

from parallel_topology.errors import TopologyError
from parallel_topology.testing.failures import RanksUsageError
from parallel_topology.testing.per_rank import SEAT

if TYPE_CHECKING:
    from parallel_topology.testing.pool import WorkerPool
    from parallel_topology.topology.topology import ParallelTopology

WORLDS = ("threads", "processes")
_FIXTURES = "parallel_topology_fixtures"
_OUTCOME, _POOL = pytest.StashKey[Any](), pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ranks", "worlds of ranks (parallel_topology)")
    group.addoption(
        "--ranks-world",
        choices=WORLDS,
        default="threads",
        help="what the ranks of tests marked `ranks` are, where the test does not say",
    )
    group.addoption(
        "--ranks-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long the ranks of one test may take, where the test does not say",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ranks(topology, *, world, timeout, seed, check, **options): run the test on every rank of a topology "
        "(a number of ranks along `tp`, a text such as 'tp2-pp2', or a ParallelTopology; a list runs it on each); "
        "options are those of GroupManager",
    )


@pytest.fixture(scope="session")
def rank_workers(pytestconfig: pytest.Config) -> WorkerPool:
    """The run's worker processes, for `run_ranks(..., world="processes", pool=rank_workers)`."""
    return _pool(pytestconfig)


class Fixtures:
    """What tests on ranks may take; there once a test asks for ranks. In threads, some are placeholders at first."""

    @pytest.fixture
    def topology(self, request: pytest.FixtureRequest) -> ParallelTopology:
        """The topology of the ranks that this test runs on."""
        return _topology(request.node)

    @pytest.fixture
    def world(self, request: pytest.FixtureRequest) -> str:
        """What the ranks are: "threads" or "processes", by the marker, else by --ranks-world."""
        return _world(request.node)

    @pytest.fixture
    def groups(self, request: pytest.FixtureRequest) -> Any:
        """The rank's own `GroupManager`."""
        return _of_rank(request, "own_groups")

    @pytest.fixture
    def generator(self, request: pytest.FixtureRequest) -> Any:
        """A `torch.Generator` of the rank's own, the same in every run and world."""
        return _of_rank(request, "own_generator", seed=_marker(request.node).kwargs.get("seed", 0))

    @pytest.fixture
    def rng(self, request: pytest.FixtureRequest) -> Any:
        """A `random.Random` of the rank's own, the same in every run and world."""
        return _of_rank(request, "own_random", seed=_marker(request.node).kwargs.get("seed", 0))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: Any) -> None:
    if not collector.istestfunction(obj, name):
        return
    own: Sequence[pytest.Mark] = getattr(obj, "pytestmark", ())
    if collector.get_closest_marker("ranks") or any(mark.name == "ranks" for mark in own):
        pytest.mark.usefixtures("topology", "world")(obj)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("ranks")
    if marker is None:
        return
    for name, choices in (("topology", marker.args[0] if marker.args else None), ("world", marker.kwargs.get("world"))):
        if not isinstance(choices, list | tuple):
            continue
        several: list[Any] = list(choices)  # pyright: ignore[reportUnknownArgumentType]
        if name == "topology":
            try:
                several = [_parse(choice) for choice in several]
            except ValueError as error:
                raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
        metafunc.parametrize(name, several, ids=[str(choice) for choice in several])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker, plugins = item.get_closest_marker("ranks"), item.config.pluginmanager
    if plugins.has_plugin(SEAT) or (marker is None and not _takes_groups(item)):
        return
    if not plugins.has_plugin(_FIXTURES):
        plugins.register(Fixtures(), _FIXTURES)
    if marker is not None and _require_plain(item) and _world(item) == "processes":  # which set up their own
        _topology(item)
        item.fixturenames = [name for name in item.fixturenames if name == "tmp_path"]
        item.funcargs = defaultdict(lambda: None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    __tracebackhide__ = True
    marker = pyfuncitem.get_closest_marker("ranks")
    if marker is None or pyfuncitem.config.pluginmanager.has_plugin(SEAT):
        return (yield)
    from parallel_topology.testing import pytest_ranks

    config, function, world, topology = pyfuncitem.config, pyfuncitem.obj, _world(pyfuncitem), _topology(pyfuncitem)
    asked = {name: value for name, value in marker.kwargs.items() if name != "world"}
    asked.setdefault("timeout", config.getoption("--ranks-timeout"))
    if config.getoption("usepdb", False) or config.getoption("trace", False):
        asked["timeout"] = pytest_ranks.PATIENCE
    outcome = pyfuncitem.stash[_OUTCOME] = pytest_ranks.Outcome(world)

    def on_ranks(**arguments: Any) -> None:
        __tracebackhide__ = True
        pyfuncitem.obj = function
        if world == "processes":
            pytest_ranks.run_processes(pyfuncitem, topology, asked, _pool(config), outcome)
        else:
            pytest_ranks.run_threads(pyfuncitem, topology, asked, arguments, outcome)

    pyfuncitem.obj = on_ranks  # pytest calls it with what it would have called the test with
    try:
        return (yield)
    finally:
        pyfuncitem.obj, outcome.done = function, True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(RanksUsageError):
        report.longrepr = call.excinfo.getrepr(style="value")  # our frames say nothing to who is to write it otherwise
    outcome = item.stash.get(_OUTCOME, None)
    if outcome is None or not outcome.done or call.when == "setup":
        return report
    from parallel_topology.testing.pytest_ranks import put_into

    put_into(item, outcome, report)
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    if (pool := config.stash.get(_POOL, None)) is not None:
        pool.close()


def _pool(config: pytest.Config) -> WorkerPool:
    if _POOL not in config.stash:
        from parallel_topology.testing.pytest_ranks import new_pool

        config.stash[_POOL] = new_pool(config)
    return config.stash[_POOL]


def _parse(topology: Any) -> ParallelTopology:
    from parallel_topology.testing.asked import topology_of

    try:
        return topology_of(topology)
    except TopologyError as error:
        raise RanksUsageError(str(error)) from None


def _topology(item: Any) -> ParallelTopology:
    """By the parameter that a list made, else by the marker, else by a parameter or fixture of the test's own."""
    marker, given = _marker(item), getattr(getattr(item, "callspec", None), "params", {})
    if len(marker.args) == 1 and not isinstance(marker.args[0], list | tuple):
        return _parse(marker.args[0])
    if "topology" in given:
        return _parse(given["topology"])
    if not marker.args and "topology" in item.funcargs:
        return _parse(item.funcargs["topology"])
    if marker.args and isinstance(marker.args[0], list | tuple):
        raise RanksUsageError(
            f"{item.nodeid}: a list runs a test once on each, and comes too late here, in a mark that was added to one "
            "test: expected one topology"
        )
    raise RanksUsageError(
        f"@pytest.mark.ranks has {len(marker.args)} arguments: expected one (a number, a topology or its text, "
        "or a list of these), or a fixture or parameter `topology` of the test's own"
    )


def _world(item: Any) -> str:
    """By the parameter that a list made, else by the marker, else by --ranks-world."""
    given, asked = getattr(getattr(item, "callspec", None), "params", {}), _marker(item).kwargs.get("world")
    if isinstance(asked, list | tuple):
        asked = given.get("world")
    world = asked or item.config.getoption("--ranks-world")
    if world not in WORLDS:
        raise RanksUsageError(f"world={world!r}: expected 'threads', 'processes', or a list of both")
    return world


def _marker(node: Any) -> pytest.Mark:
    marker: pytest.Mark | None = node.get_closest_marker("ranks")
    if marker is None:
        raise RanksUsageError(f"{node.nodeid} runs on no ranks: mark it with @pytest.mark.ranks(4)")
    return marker


def _require_plain(item: pytest.Item) -> TypeGuard[pytest.Function]:
    """Raises: RanksUsageError: the test is none that can be called on each rank."""
    if not isinstance(item, pytest.Function) or (item.cls is not None and issubclass(item.cls, TestCase)):
        raise RanksUsageError(
            f"{item.nodeid} is a method of a TestCase, which gets no fixtures: @pytest.mark.ranks runs "
            "plain functions, and methods of plain classes"
        )
    function: Any = inspect.unwrap(item.obj)
    if any(is_one(function) or is_one(item.obj) for is_one in (iscoroutinefunction, isasyncgenfunction)):
        raise RanksUsageError(
            f"{item.nodeid} is a coroutine function: @pytest.mark.ranks runs plain functions; call "
            "asyncio.run inside one"
        )
    if getattr(item.obj, "is_hypothesis_test", False):
        raise RanksUsageError(
            f"{item.nodeid} is made by hypothesis, which would draw other examples on each rank: call "
            "parallel_topology.testing.run_ranks inside it instead of marking it"
        )
    return True


def _takes_groups(item: pytest.Item) -> bool:
    """Whether a test that is not marked takes what only marked ones have, and is to be told so."""
    return isinstance(item, pytest.Function) and "groups" in item.fixturenames


def _of_rank(request: pytest.FixtureRequest, function: str, **arguments: Any) -> Any:
    from parallel_topology.testing import per_rank

    _marker(request.node)
    return per_rank.PerRank(request.fixturename or function, getattr(per_rank, function), arguments)
