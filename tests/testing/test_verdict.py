"""A test's verdict: the table of the page, run in both worlds, and the same test without ranks beside it."""

from __future__ import annotations

import re
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

import_module("parallel_topology.testing.pytest_ranks")  # pytester forgets what an inner run is the first to import

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
ACTS = {
    "passes": "pass",
    "skips": "pytest.skip('not here')",
    "raises what is expected": "raise KeyError('expected')",
    "raises something else": "assert 1 == 2",
}
VERDICTS = {"passed": "passed", "skipped": "skipped", "xfailed": "xfailed", "failed": "failed", "xpassed": "xpassed"}


def table() -> dict[tuple[str, str], str]:
    """(what rank 0 does, what rank 1 does) -> the verdict, as the page has it."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if "|" in line
    ]
    start = next(place for place, row in enumerate(rows) if row[0].startswith("rank 0"))
    heads = [re.sub("^rank 1 ", "", head) for head in rows[start][1:]]
    return {
        (row[0], head): verdict
        for row in rows[start + 2 : start + 2 + len(heads)]
        for head, verdict in zip(heads, row[1:], strict=True)
    }


def test_the_table_has_all_pairs():
    assert set(table()) == set(product(ACTS, ACTS))


def test_the_table_is_what_happens(pytester: pytest.Pytester, world: str):
    code = "import pytest\n"
    expected: dict[str, int] = {}
    for number, ((one, other), verdict) in enumerate(table().items()):
        code += f"""
@pytest.mark.ranks(2, world={world!r})
@pytest.mark.xfail(raises=KeyError)
def test_{number}(groups):
    if groups.rank == 0:
        {ACTS[one]}
    else:
        {ACTS[other]}
"""
        expected[verdict] = expected.get(verdict, 0) + 1
    pytester.makepyfile(code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA")
    said = dict(
        re.findall(r"^(PASSED|SKIPPED|XFAIL|FAILED|XPASS).*?(?:::test_|test_\S+\.py:)(\d+)", result.stdout.str(), re.M)
    )
    assert said
    result.assert_outcomes(**{VERDICTS[verdict]: count for verdict, count in expected.items()})


# Every way to end, against the same test without ranks

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
MARKS = {
    "": "",
    "xfail": "@pytest.mark.xfail(raises=KeyError)",
    "strict": "@pytest.mark.xfail(strict=True)",
    "skipif": "@pytest.mark.skipif(True, reason='no')",
}
FIXTURES = """
import warnings
import pytest

@pytest.fixture
def broken():
    raise ValueError("no")

@pytest.fixture
def ends_badly():
    yield
    raise ValueError("no")

@pytest.fixture
def begins_badly():
    raise ValueError("no")  # here
"""


def written(decorate: str, argument: str) -> str:
    code = FIXTURES
    for (mark, marked), (end, body) in product(MARKS.items(), ENDS.items()):
        name = re.sub(r"\W", "_", f"{mark}_{end}")
        code += f"\n{decorate}\n{marked}\ndef test_{name}(request{argument}):\n    {body}\n"
    code += f"\n{decorate}\ndef test_teardown(ends_badly{argument}):\n    pass\n"
    code += f"\n{decorate}\ndef test_both(ends_badly{argument}):\n    assert False  # here\n"
    return code + f"\n{decorate}\ndef test_setup(begins_badly{argument}):\n    pass\n"


def outcomes(pytester: pytest.Pytester, code: str, *options: str) -> tuple[dict[str, str], pytest.RunResult]:
    """Each test's words in the summary, by name."""
    pytester.makepyfile(test_it=code)
    result = pytester.runpytest_inprocess("-rA", "-W", "default", *options)  # not the filters of the run outside
    found: dict[str, str] = {}
    for word, name in re.findall(r"^(PASSED|XFAIL|FAILED|XPASS|ERROR) test_it\.py::(\w+)", result.stdout.str(), re.M):
        found[name] = " ".join(sorted({*found.get(name, "").split(), word}))
    return found, result


def require_lines(report: str, options: tuple[str, ...]) -> None:
    """The user's line is in the first lines of each report of a failure."""
    for section in re.split(
        r"^_{5,} (?:ERROR at \w+ of )?test_\w+ _{5,}$", report.partition(" short test ")[0], flags=re.M
    )[1:]:
        if "XPASS" not in section and "ends_badly" not in section:
            assert "# here" in "\n".join(section.splitlines()[:16]), section


def check(pytester: pytest.Pytester, world: str, ranks: int, *options: str) -> None:
    plain, alone = outcomes(pytester, written("", ""), *options)
    ranked, result = outcomes(pytester, written(f"@pytest.mark.ranks({ranks}, world={world!r})", ", groups"), *options)
    assert ranked == plain
    assert result.parseoutcomes() == alone.parseoutcomes()
    if "--tb=short" not in options:
        require_lines(result.stdout.str(), options)


@pytest.mark.parametrize("ranks", [2])
def test_every_way_to_end(pytester: pytest.Pytester, world: str, ranks: int):
    check(pytester, world, ranks)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "options", ["-x", "--lf", "-n2", "-p no:randomly", "--tb=short", "-W error", "-s", "-p no:logging"]
)
def test_every_way_to_end_with_every_option(pytester: pytest.Pytester, world: str, ranks: int, options: str):
    check(pytester, world, ranks, *options.split())
