"""The README and the pages in docs: their Python runs, their programs run, their links lead somewhere.

Console blocks are tested by tests/cli/test_docs.py, the tables of coming-from pages by tests/test_coming_from.py.
"""

from __future__ import annotations

import ast
import dis
import os
import re
import shlex
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, ParallelTopology, torch_private
from parallel_topology.examples import transformer  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.testing.processes import run_processes
from parallel_topology.testing.threads import run_threads
from tests.launch.launching import launch
from tests.ports import free_port

import_module("parallel_topology.testing.pytest_ranks")  # pytester forgets what an inner run is the first to import
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "parallel_topology"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> dict[str, str]:
    """The fenced blocks of all pages, by page and number."""
    return {
        f"{page.name}-{number}": block
        for page in PAGES
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.M))
    }


def each(named: Mapping[str, str]) -> list[Any]:
    return [pytest.param(block, id=name) for name, block in named.items()]


PROGRAMS = {name: block for name, block in blocks("python").items() if re.match(r"# \w+\.py\n", block)}
SNIPPETS = {name: block for name, block in blocks("python").items() if name not in PROGRAMS}
DRAWN = {
    line.split()[-1]: line
    for block in blocks("bash").values()
    for line in block.splitlines()
    if "--output pictures/" in line
}
"""Picture -> the command under it."""
FOUR = ParallelTopology(tp=2, pp=2)
"""What the ranks of a snippet are that takes `groups` from its reader's program."""


@pytest.mark.parametrize("snippet", each(blocks("pytest")))
def test_test_files_pass(snippet: str, pytester: pytest.Pytester):
    """A block marked `pytest` is a test file."""
    pytester.makepyfile(snippet)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}, outcomes


@pytest.mark.parametrize("snippet", each(SNIPPETS))
def test_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch):
    """On four ranks; what a snippet takes from its reader's program (a layer, weights, a store) is given to it."""
    if "from_world" in snippet:  # torch's default group is the process's
        run_processes(["rank"] * 4, _in_process, snippet, free_port(), timeout=60)
        return
    store, this = dist.HashStore(), threading.local()

    def from_env(topology: ParallelTopology, **options: Any) -> GroupManager:
        """As if a launcher had started this thread as a rank: a process has one environment, threads share it."""
        options.setdefault("timeout", 30)
        return GroupManager(topology, rank=this.rank, store=store, **options)

    monkeypatch.setattr(GroupManager, "from_env", from_env)
    takes_groups = _takes(compile(snippet, "<snippet>", "exec"), "groups")

    def on_rank(rank: int) -> None:
        this.rank = rank
        if not takes_groups:
            _run(snippet, rank, store=store)
            return
        with GroupManager(FOUR, rank=rank, store=store, timeout=30, groups=[("tp", "pp")]) as groups:
            _run(snippet, rank, groups=groups)

    if "GroupManager" in snippet or takes_groups:
        run_threads(["rank"] * 4, on_rank, timeout=60)
    else:  # it makes its ranks itself, if it has any
        on_rank(0)


def _run(snippet: str, rank: int, **given: Any) -> None:
    scope = {
        "ColumnParallelLinear": transformer.ColumnParallelLinear,
        "weight": torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        "x": torch.ones(3, 4),
        "torch": torch,
        "rank": rank,
        **given,
    }
    exec(compile(snippet, "<snippet>", "exec"), scope)
    for line in snippet.splitlines():  # a comment beside an expression is what it gives
        expression, _, comment = line.partition("  # ")
        if re.fullmatch(r"topology\.\S.*", expression):
            assert repr(eval(expression, scope)) == comment, expression


def _in_process(rank: int, snippet: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "init_process_group" not in snippet:
        dist.init_process_group("gloo")
    _run(snippet, rank)


def _takes(code: CodeType, name: str) -> bool:
    """Whether code reads a global that it does not set."""
    of_module = list(_globals(code))
    return ("LOAD", name) in of_module and ("STORE", name) not in of_module


def _globals(code: CodeType) -> Iterator[tuple[str, str]]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL", "STORE_NAME", "STORE_GLOBAL"):
            yield instruction.opname.partition("_")[0], instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals(inner)


@pytest.mark.parametrize("program", each(PROGRAMS))
def test_programs_run_as_shown(program: str, tmp_path: Path):
    """A block whose first line names a file: the page shows the command that runs it, and below it what it prints."""
    name = program.split()[1]
    text = next(page.read_text() for page in PAGES if program in page.read_text())
    shown = re.search(rf"```console\n\$ \S+=\S+ (torchrun .*{name}.*)\n((?:.*\n)*?)```", text)
    assert shown is not None
    (tmp_path / name).write_text(program)
    words = [str(tmp_path / name) if word == name else word for word in shlex.split(shown[1])[1:]]
    printed = launch(sys.executable, "-m", "torch.distributed.run", *words, PYTHONPATH=str(ROOT))
    if torch_private.GLOO_TELLS:
        printed = "".join(
            line for line in printed.splitlines(keepends=True) if "Gloo" not in line and "peer" not in line
        )
    assert printed == shown[2]


def test_managers_without_torchrun_meet_at_a_port_each():
    """What docs/launchers.md says about more than one manager."""
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    elsewhere = env | {"MASTER_PORT": str(free_port())}

    def on_rank(rank: int) -> None:
        mine = {"RANK": str(rank)}
        with (
            GroupManager.from_env(ParallelTopology(tp=2), env=env | mine, timeout=30) as first,
            GroupManager.from_env(ParallelTopology(pp=2), env=elsewhere | mine, timeout=30) as second,
        ):
            assert first.tp.all_reduce(torch.ones(1)) == second.pp.all_reduce(torch.ones(1)) == 2

    run_threads(["rank"] * 2, on_rank, timeout=60)


@pytest.mark.parametrize("line", each(DRAWN))
def test_pictures_are_what_the_command_draws(line: str, tmp_path: Path):
    from typer.testing import CliRunner

    from parallel_topology.cli import app

    *words, name = shlex.split(line.removeprefix("parallel-topology "))
    drawn = tmp_path / Path(name).name
    done = CliRunner().invoke(app, [*words, str(drawn)])
    assert done.exit_code == 0, done.output
    assert (ROOT / "docs" / name).read_text() == drawn.read_text(), f"in docs, run: {line}"


def test_every_svg_has_its_command():
    pictures = [f"pictures/{path.name}" for path in sorted((ROOT / "docs/pictures").glob("*.svg"))]
    assert pictures
    assert sorted(DRAWN) == pictures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_name_a_language_and_nothing_else(page: Path):
    """Python-Markdown, which makes the site, takes a fence with more words for a paragraph."""
    opening = re.findall(r"^(```+.*)\n(?:.*\n)*?```+$", page.read_text(), re.M)
    assert [fence for fence in opening if not re.fullmatch(r"```[a-z]+", fence)] == []


# Links


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub("`[^`\n]*`", "", prose(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if page.parent.name == "docs":
            assert there.resolve().is_relative_to(ROOT / "docs"), f"{target} is not part of the site"
        if anchor:
            assert anchor in anchors(there), target


def test_every_page_is_in_the_sites_navigation():
    def listed(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from listed(inner)

    nav = tomllib.loads((ROOT / ".zensical.toml").read_text())["project"]["nav"]
    assert sorted(listed(nav)) == [page.name for page in PAGES if page.parent.name == "docs"]


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    rooms = ("weights", "refit", "testing", "ray")
    for module in ("parallel_topology", *(f"parallel_topology.{room}" for room in rooms)):
        for name in import_module(module).__all__:
            home = getattr(import_module(module), name)
            in_errors = getattr(home, "__module__", "") == "parallel_topology.errors"
            assert f"::: {module}.{name}\n" in page or in_errors, f"{module}.{name}"


def described(docstring: str) -> list[str]:
    """The names under `Args:` of a docstring."""
    section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", docstring + "\n", re.MULTILINE)
    return re.findall(r"^ {4}(\S[^:\n]*):", section[1], re.MULTILINE) if section else []


def arguments(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """What a function takes, or a class when it is made."""
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    takes = made[-1] if made and isinstance(node, ast.ClassDef) else node
    if isinstance(takes, ast.ClassDef):  # a dataclass: its fields
        fields = [one.target for one in takes.body if isinstance(one, ast.AnnAssign)]
        return {one.id for one in fields if isinstance(one, ast.Name)}
    given = takes.args
    starred = [one for one in (given.vararg, given.kwarg) if one]
    return {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *starred)}


def test_docstrings_describe_arguments_that_are_there():
    wrong: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names = described(ast.get_docstring(node) or "")
                wrong += [f"{file}:{node.lineno}: {name}" for name in names if name not in arguments(node)]
    assert not wrong
