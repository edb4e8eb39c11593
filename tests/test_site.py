"""The site is built out of docs without a warning.

pip install '.[docs]' pytest pytest-timeout && python -m pytest -m peers tests/test_site.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[1]
PARTS = (".zensical.toml", ".ci", "docs", "parallel_topology")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for the tool writes beside its configuration."""
    pytest.importorskip("zensical")
    project = tmp_path_factory.mktemp("site")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, project / part)
    return project


def build(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", ".zensical.toml"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def site(project: Path) -> Path:
    done = build(project)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "No issues found" in said, said
    assert "griffe:" not in said, said  # docstrings whose arguments are not the function's
    return project / "build" / "site"


def test_every_page_is_there(site: Path):
    for page in (ROOT / "docs").glob("*.md"):
        html = site / "index.html" if page.stem == "index" else site / page.stem / "index.html"
        title = page.read_text().split("\n", 1)[0].removeprefix("# ").replace("`", "")
        assert "<h1" in (text := html.read_text())
        assert title in unescape(re.sub("<[^>]+>", "", text))
        assert "```" not in re.sub("<(script|style).*?</\\1>", "", text, flags=re.DOTALL), (
            f"a fence shows on {page.name}"
        )


def test_pictures_and_programs_are_there(site: Path):
    for path in [*(ROOT / "docs/pictures").iterdir(), *(ROOT / "docs/examples").glob("*.py")]:
        assert (site / path.relative_to(ROOT / "docs")).read_bytes() == path.read_bytes()


def test_the_reference_holds_the_docstrings(site: Path):
    text = unescape(re.sub("<[^>]+>", "", (site / "api" / "index.html").read_text()))
    for sentence in (
        "The ranks of one model-parallel job, divided over named axes.",
        "Reduce over all members; returns tensor",  # inherited by ParallelGroup
        "The sum over all members, out of a region where each computed its own part.",
        "Call fn(groups, *args) on every rank, over real gloo groups",
    ):
        assert sentence in text


def test_a_broken_link_breaks_the_build(site: Path, project: Path):
    """Otherwise the tests above say little."""
    (project / "docs" / "broken.md").write_text("# Broken\n\n[nowhere](design.md#nowhere)\n")
    done = build(project)
    assert done.returncode != 0
    assert "anchor does not exist" in done.stdout + done.stderr
