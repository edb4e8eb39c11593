"""The pytest plugin: `@pytest.mark.ranks("tp2-pp2")` runs a test on every rank of a world. It imports torch only then.

A marked test's function runs once per rank, between one setup and one teardown, and gives one report. Its fixtures
are made once, in pytest's process, except those of a rank's own: `groups`, `generator`, `rng` and what
`rank_fixture` makes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from parallel_topology.testing.failures import RanksUsageError

if TYPE_CHECKING:
    from parallel_topology.testing.pool import WorkerPool
    from parallel_topology.topology.topology import ParallelTopology

WORLDS = ("threads", "processes")


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
def rank_workers(pytestconfig: pytest.Config) -> Generator[WorkerPool]:
    """The run's worker processes, for `run_ranks(..., world="processes", pool=rank_workers)`."""
    from parallel_topology.testing.pool import WorkerPool
    from parallel_topology.testing.pytest_private import own_modules, rewritten_modules
    from parallel_topology.testing.pytest_worker import set_up

    patterns = " ".join(pytestconfig.getini("python_files"))
    style = str(pytestconfig.getoption("assertmode"))
    modules, verbosity = rewritten_modules(pytestconfig), pytestconfig.get_verbosity()
    arguments = (str(pytestconfig.rootpath), patterns, modules, verbosity, style)
    with WorkerPool(set_up, *arguments, preload=own_modules()) as pool:
        yield pool


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> ParallelTopology:
    """The topology of the ranks that this test runs on."""
    marker = _marker(request.node)
    if len(marker.args) != 1:
        raise RanksUsageError(
            f"@pytest.mark.ranks has {len(marker.args)} arguments: expected one (a number, a topology or its text, "
            "or a list of these), or a fixture or parameter `topology` of the test's own"
        )
    return _parse(marker.args[0])


@pytest.fixture
def world(request: pytest.FixtureRequest) -> str:
    """What the ranks are: "threads" or "processes", by the marker, else by --ranks-world."""
    marker = request.node.get_closest_marker("ranks")
    chosen = marker.kwargs.get("world") if marker is not None else None
    return chosen if isinstance(chosen, str) else str(request.config.getoption("--ranks-world"))


@pytest.fixture
def groups(request: pytest.FixtureRequest) -> Any:
    """The rank's own `GroupManager`."""
    return _of_rank(request, "own_groups")


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> Any:
    """A `torch.Generator` of the rank's own, the same in every run and world."""
    return _of_rank(request, "own_generator")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Any:
    """A `random.Random` of the rank's own, the same in every run and world."""
    return _of_rank(request, "own_random")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: Any) -> None:
    if not collector.istestfunction(obj, name):
        return
    own: Sequence[pytest.Mark] = getattr(obj, "pytestmark", ())
    if collector.get_closest_marker("ranks") or any(mark.name == "ranks" for mark in own):
        pytest.mark.usefixtures("topology", "world", "rank_workers")(obj)


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
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    __tracebackhide__ = True
    if pyfuncitem.get_closest_marker("ranks") is None:
        return None
    from parallel_topology.testing.pytest_run import run_item

    values: dict[str, Any] = pyfuncitem.funcargs
    topology = _parse(values["topology"])
    run_item(pyfuncitem, _marker(pyfuncitem), topology, values["world"], values["rank_workers"])
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    error: Any = call.excinfo.value if call.excinfo is not None else None
    if call.when != "call" or getattr(error, "of_ranks", None) is None:
        return (yield)
    from parallel_topology.testing.pytest_report import Shown

    shown = Shown(item, error)
    call.excinfo = shown.first
    report = yield
    shown.put_into(report)
    return report


def _parse(topology: Any) -> ParallelTopology:
    from parallel_topology.topology.topology import ParallelTopology

    if isinstance(topology, ParallelTopology):
        return topology
    if isinstance(topology, str):
        return ParallelTopology.parse(topology)
    if type(topology) is int:
        return ParallelTopology(tp=topology)
    raise RanksUsageError(f"{topology!r} is no topology: expected a number of ranks, a text such as 'tp2-pp2', or one")


def _marker(node: Any) -> pytest.Mark:
    marker: pytest.Mark | None = node.get_closest_marker("ranks")
    if marker is None:
        raise RanksUsageError(f"{node.nodeid} runs on no ranks: mark it with @pytest.mark.ranks(4)")
    return marker


def _of_rank(request: pytest.FixtureRequest, function: str) -> Any:
    from parallel_topology.testing import per_rank

    _marker(request.node)
    return per_rank.PerRank(request.fixturename or function, getattr(per_rank, function), {})
