"""A test's verdict: the table of the page, run in both worlds."""

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
