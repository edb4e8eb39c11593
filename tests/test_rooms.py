"""The house: imports between rooms run downwards only, and each room says which modules it has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "parallel_topology"
FLOORS = [
    *("errors", "installed", "topology", "hosts", "launch", "weights", "render", "reads", "torch_private"),
    *("torch_errors", "wire", "communicators", "meeting", "groups", "functional", "refit", "interop", "ray"),
    *("testing", "selftest", "examples", "cli"),
]
"""From the ground up."""
PURE = ("errors", "installed", "topology", "hosts", "launch", "weights", "render", "reads")


def imported(file: Path) -> set[str]:
    """The modules that a file imports when it is imported itself."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            own = node.module == "parallel_topology"
            found |= {f"{node.module}.{name.name}" for name in node.names} if own else {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).glob("*.py")) or [PACKAGE / f"{room}.py"]


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__main__", "__pycache__", "py"} == set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_imports_run_downwards(room: str):
    for file in files(room):
        for module in imported(file):
            top, _, rest = module.partition(".")
            if top == "parallel_topology" and rest:
                assert FLOORS.index(rest.split(".")[0]) <= FLOORS.index(room), f"{file} imports {module}"
            assert not (room in PURE and top == "torch"), f"{file} imports torch"


@pytest.mark.parametrize(
    "room", ["topology", "hosts", "weights", "render", "reads", "wire", "communicators", "meeting", "groups", "refit"]
)
def test_a_room_says_which_modules_it_has(room: str):
    said = (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "").replace(",", " ").split()
    assert {path.stem for path in files(room)} - {"__init__"} <= set(said)
