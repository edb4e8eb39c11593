"""Every way for a test to end, in both worlds, under options of pytest: the verdict is that of the test without ranks,
and the line of the user is on top of the report."""

from __future__ import annotations

import re
from importlib import import_module, util
from itertools import product

import pytest

from parallel_topology import torch_private

import_module("parallel_topology.testing.pytest_ranks")  # pytester forgets what an inner run is the first to import

ENDS = {
    "passes": "pass",
    "fails": "assert [1, 2] == [1, 3]  # here",
    "calls fail": "pytest.fail('no')  # here",
    "raises": "raise KeyError('no')  # here",
    "skips": "pytest.skip('no')  # here",
    "imports or skips": "pytest.importorskip('nothing_of_this_name')  # here",
    "xfails": "pytest.xfail('no')  # here",
    "warns": "warnings.warn('no')  # here",
    "fails in setup": "request.getfixturevalue('broken')  # here",
}
TOGETHER = {  # what only ranks can do; without them it is a failure
    "returns early": "if groups.rank: groups.world.barrier()  # here",
    "meets another": "(groups.world.all_reduce if groups.rank else groups.world.all_gather)(torch.ones(2))  # here",
    "other shape": "groups.world.all_reduce(torch.ones(2 + groups.rank))  # here",
    "is stuck": "threading.Event().wait()  # here",
    "one raises": "assert groups.rank != 0; groups.world.barrier()  # here",
}
DEATHS = {
    "is killed": "groups.world.barrier(); os.kill(os.getpid(), 9)  # here",
    "is killed at once": "os.kill(os.getpid(), 9)  # here",
    "crashes": "os.kill(os.getpid(), 11)  # here",
    "exits": "os._exit(3)  # here",
}
MARKS = {
    "": "",
    "xfail": "@pytest.mark.xfail(raises=KeyError)",
    "strict": "@pytest.mark.xfail(strict=True)",
    "skipif": "@pytest.mark.skipif(True, reason='no')",
}
FIXTURES = """
import os, threading, warnings
import pytest, torch

@pytest.fixture
def broken():
    raise ValueError("no")

@pytest.fixture
def ends_badly():
    yield
    raise ValueError("no")  # here

@pytest.fixture
def begins_badly():
    raise ValueError("no")  # here
"""
OPTIONS = ["-x", "--lf", "-n2", "-p no:randomly", "--tb=short", "-W error", "--cov --cov-report=", "-s"]


def written(decorate: str, argument: str, together: dict[str, str]) -> str:
    code = FIXTURES
    for (mark, marked), (end, body) in product(MARKS.items(), ENDS.items()):
        name = re.sub(r"\W", "_", f"{mark}_{end}")
        code += f"\n{decorate}\n{marked}\ndef test_{name}(request{argument}):\n    {body}\n"
    for end, body in together.items():
        body = body if decorate else "assert False  # here"
        code += f"\n{decorate}\ndef test_{end.replace(' ', '_')}(request{argument}):\n    {body}\n"
    code += f"\n{decorate}\ndef test_teardown(ends_badly{argument}):\n    pass\n"
    code += f"\n{decorate}\ndef test_both(ends_badly{argument}):\n    assert False  # here\n"
    return code + f"\n{decorate}\ndef test_setup(begins_badly{argument}):\n    pass\n"


def outcomes(pytester: pytest.Pytester, code: str, *options: str) -> tuple[dict[str, str], pytest.RunResult]:
    """Each test's words in the summary, by name."""
    pytester.makepyfile(test_it=code)
    arguments = ["-rA", "-W", "default", *options]  # not the filters of the run outside
    if util.find_spec("pytest_randomly") is not None and "no:randomly" not in options:
        arguments.append("--randomly-seed=1")  # one order for both runs, or -x ends them elsewhere
    if "--lf" in options:
        pytester.runpytest_inprocess("--cache-clear", *arguments)
    result = pytester.runpytest_inprocess(*arguments)
    found: dict[str, str] = {}
    for word, name in re.findall(r"^(PASSED|XFAIL|FAILED|XPASS|ERROR) test_it\.py::(\w+)", result.stdout.str(), re.M):
        found[name] = " ".join(sorted({*found.get(name, "").split(), word}))
    return found, result


def require_lines(report: str) -> None:
    """The user's line is in the first lines of each report of a failure."""
    pattern = r"^_{5,} (?:ERROR at \w+ of )?test_\w+ _{5,}$"
    if torch_private.GLOO_TELLS:  # so that tests that pass have something to show, too
        failures = re.split("^=+ PASSES =+$", report, flags=re.M)[0]
        report = re.sub(r"^.*(?:\[Gloo\]|Captured stdout setup).*\n", "", failures, flags=re.M)
    sections = re.split(pattern, report.partition(" short test ")[0], flags=re.M)[1:]
    assert sections
    for section in sections:
        if "XPASS" not in section and "before its first call" not in section:  # where that process died nobody knows
            assert "# here" in "\n".join(section.splitlines()[:16]), section


def check(pytester: pytest.Pytester, world: str, ranks: int, *options: str, together: bool = True) -> None:
    ends = {**(TOGETHER if ranks > 1 else {}), **(DEATHS if world == "processes" else {})} if together else {}
    plain, alone = outcomes(pytester, written("", "", ends), *options)
    decorate = f"@pytest.mark.ranks({ranks}, world={world!r}, timeout=6)"
    ranked, result = outcomes(pytester, written(decorate, ", groups", ends), *options)
    assert ranked == plain, result.stdout.str()
    assert result.parseoutcomes() == alone.parseoutcomes()
    require_lines(result.stdout.str())


def test_every_way_to_end(pytester: pytest.Pytester, world: str):
    """Those that a test without ranks can have; what ranks do to each other waits for deadlines, and is slow."""
    check(pytester, world, 2, {"threads": "-s", "processes": "--tb=short"}[world], together=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_way_to_end_with_every_option(pytester: pytest.Pytester, world: str, ranks: int, options: str):
    if "--cov" in options and util.find_spec("pytest_cov") is None:
        pytest.skip("needs pytest-cov")
    check(pytester, world, ranks, *options.split())
