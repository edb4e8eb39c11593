"""Where a tree asks the functions of the tables, by import and name: nothing is imported, only parsed."""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel_topology.reads.rows import Options, Own, Row, Table
from parallel_topology.reads.scopes import Lines, Use, Uses
from parallel_topology.reads.systems import SYSTEMS


@dataclass(frozen=True)
class Read:
    """One place where a global is read.

    Attributes:
        file: its path.
        line: counted from 1.
        function: what it stands in, as in `Attention.forward`; `<module>` outside of functions.
        name: what is read.
        system: whose.
        instead: what to write.
    """

    file: str
    line: int
    function: str
    name: str
    system: str
    instead: str


@dataclass(frozen=True)
class Found:
    """What a tree reads.

    Attributes:
        reads: by file and line.
        files: how many were looked at.
        unreadable: file -> why it could not be.
    """

    reads: tuple[Read, ...]
    files: int
    unreadable: dict[str, str]


def find(path: Path) -> Found:
    """All reads in a file, or in the Python files of a folder and those below: not in hidden ones or environments.

    Raises:
        OSError: there is no such file or folder.
    """
    reads: list[Read] = []
    unreadable: dict[str, str] = {}
    files = _files(path)
    for file in files:
        try:
            reads += _reads(file)
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            unreadable[str(file)] = str(error) or type(error).__name__
    return Found(tuple(reads), len(files), unreadable)


@dataclass(frozen=True)
class _Global:
    module: str
    name: str
    table: Table
    row: Row | Options


def _globals() -> dict[str, _Global]:
    """Dotted name -> what it is, under every name of its module."""
    found: dict[str, _Global] = {}
    for table in SYSTEMS.values():
        for module, rows in table.modules.items():
            names = [module, *(alias for alias, real in table.aliases.items() if real == module)]
            for name, row in rows.items():
                if isinstance(row, Own) and not row.line:  # it reads nothing
                    continue
                found |= {f"{prefix}.{name}": _Global(module, name, table, row) for prefix in names}
    return found


_GLOBALS = _globals()
_MODULES = {known.rpartition(".")[0]: one for known, one in _GLOBALS.items()}
_WORDS = {known.rpartition(".")[2] for known in _GLOBALS} | {module.rpartition(".")[2] for module in _MODULES}
_WORD = re.compile(r"[A-Za-z_]\w*")
_VARIABLE = re.compile(r"_[A-Z][A-Z0-9_]*")
_ROOTS = {module.partition(".")[0] for module in _MODULES}


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        path.stat()
        return [path]
    found: list[Path] = []
    for folder, below, names in os.walk(path):
        if "pyvenv.cfg" in names:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__pycache__")
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return found


def _reads(file: Path) -> Iterator[Read]:
    source = file.read_bytes()
    text = source.decode("utf-8", "replace")
    if _WORDS.isdisjoint(_WORD.findall(text)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        tree = ast.parse(source)
    module = _module_of(file)
    if ".".join(module) in _MODULES:
        return
    package = module if file.name == "__init__.py" else module[:-1]
    for use in Uses(package, _GLOBALS, Lines(text, _WORDS, _ROOTS)).of(tree):
        if (one := _global(use.name)) is not None:
            yield Read(str(file), use.node.lineno, use.scope.name, one.name, one.table.system, _instead(one.row, use))


def _module_of(file: Path) -> list[str]:
    """The dotted name, from the last folder on that is one of the systems'."""
    parts = list(file.absolute().with_suffix("").parts)
    start = max((number for number, part in enumerate(parts[:-1]) if part in _ROOTS), default=None)
    own = parts[-1:] if start is None else parts[start:]
    return own[:-1] if own[-1] == "__init__" else own


def _global(name: str) -> _Global | None:
    """What a dotted name reads; attributes of what it gives stay out of it."""
    if name in _GLOBALS:
        return _GLOBALS[name]
    module, _, last = name.rpartition(".")
    if module in _MODULES and _VARIABLE.fullmatch(last):
        one = _MODULES[module]
        return _Global(one.module, last, one.table, Own("# the variable itself: ask the function that returns it"))
    return _global(module) if module else None


def _instead(row: Row | Options, use: Use) -> str:
    if not isinstance(row, Options) or use.call is None:
        return row.line
    lines = {frozenset(names): option.line for names, option in row.rows.items()}
    known = {name for names in row.rows for name in names}
    given = {keyword.arg: keyword.value for keyword in use.call.keywords if keyword.arg and keyword.arg in known}
    true = {name for name, value in given.items() if isinstance(value, ast.Constant) and value.value}
    undecided = [name for name, value in given.items() if not isinstance(value, ast.Constant)]
    without = lines.get(frozenset(true))
    if without is None or use.positional or len(undecided) > 1:  # which one it is is not to be seen
        return " or ".join(dict.fromkeys(lines.values()))
    if not undecided:
        return without
    (name,) = undecided
    with_it = lines.get(frozenset({*true, name}), without)
    return without if with_it == without else f"{with_it} if {ast.unparse(given[name])} else {without}"
