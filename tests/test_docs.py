"""The README and the pages in docs: their Python runs, their links lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology.examples import transformer  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.testing.threads import run_threads

for module in ("pytest_report", "pytest_run"):  # pytester forgets what an inner run was the first to import
    import_module(f"parallel_topology.testing.{module}")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
PYTEST_SNIPPETS = [
    pytest.param(block, id=f"{page.name}-pytest-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```pytest\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("snippet", PYTEST_SNIPPETS)
def test_test_files_pass(snippet: str, pytester: pytest.Pytester):
    """A block marked `pytest` is a test file."""
    pytester.makepyfile(snippet)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}, outcomes


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch):
    """On four ranks; what a snippet takes from its reader's program (a layer, weights, a store) is given to it."""
    from parallel_topology import GroupManager

    store = dist.HashStore()

    def on_rank(rank: int) -> None:
        class Started(GroupManager):
            """As if a launcher had started this thread as a rank: a process has one environment, threads share it."""

            @classmethod
            def from_env(cls, topology: Any, **options: Any) -> Any:
                return GroupManager(topology, rank=rank, store=store, timeout=30, **options)

        code = snippet.replace("import GroupManager, ", "import ")
        scope = {
            "GroupManager": Started,
            "ColumnParallelLinear": transformer.ColumnParallelLinear,
            "weight": torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
            "x": torch.ones(3, 4),
            "torch": torch,
            "rank": rank,
            "store": store,
        }
        exec(compile(code, "<snippet>", "exec"), scope)
        for line in code.splitlines():  # a comment beside an expression is what it gives
            expression, _, comment = line.partition("#")
            if re.fullmatch(r"topology\.\S.*", expression.strip()):
                assert repr(eval(expression, scope)) == comment.strip()

    if "GroupManager" in snippet:
        run_threads(["rank"] * 4, on_rank, timeout=60)
    else:  # it makes its ranks itself, if it has any
        on_rank(0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
