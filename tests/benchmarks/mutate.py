"""Mutation testing of the pure half: which small faults in a module would its room's tests not see?

`python tests/benchmarks/mutate.py parallel_topology/hosts/bounds.py parallel_topology/launch --limit 200 --seed 1`

Each mutant is one module with one change (a comparison, a number off by one, `and` for `or`, a statement dropped, a
result that is None ...), served by an import hook in a forked process, which runs the fast tests and doctests of the
module's room until one fails. What survives few hypothesis examples is tried again with as many as the tests ask for.
Printed are the survivors; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

FEW = 20
"""Hypothesis examples of the first try."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
RENAMED = {"sorted": "list", "min": "max", "max": "min", "any": "all", "all": "any", "reversed": "list", "set": "list"}


class Mutant(NamedTuple):
    """One change of one module."""

    path: Path
    line: int
    was: str
    now: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.was}  ->  {self.now}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module, in its order."""
    tree = ast.parse(path.read_text())
    for holder, place, node in _slots(tree):
        for changed in _changed(node):
            holder[place] = changed
            yield Mutant(path, node.lineno, _short(node), _short(changed), ast.unparse(tree))
        holder[place] = node


def _slots(node: ast.AST) -> Iterator[tuple[Any, Any, Any]]:
    """Where each statement and expression below `node` hangs: a list and an index, or a node's `vars` and a name."""
    for name, value in ast.iter_fields(node):
        if name in (
            "annotation",
            "returns",
            "decorator_list",
            "bases",
            "keywords" if isinstance(node, ast.ClassDef) else "",
        ):
            continue
        holder: Any
        places: Any
        holder, places = (value, range(len(value))) if isinstance(value, list) else (vars(node), [name])
        for place in places:
            child = holder[place]
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.stmt | ast.expr):
                yield holder, place, child
            if isinstance(child, ast.AST):
                yield from _slots(child)


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`: a few small faults, none that a parser would see."""
    match node:
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                other = SWAPPED[type(op)]()
                yield _with(node, ops=[*ops[:place], other, *ops[place + 1 :]])
                if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and len(ops) == 1:
                    yield ast.UnaryOp(ast.Not(), node)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            yield _with(node, op=SWAPPED[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield _with(node, value=not value)
        case ast.Constant(value=int() as value):
            yield _with(node, value=value + 1)
            yield _with(node, value=value - 1)
        case ast.Call(func=ast.Name(id=name)) if name in RENAMED:
            yield _with(node, func=ast.Name(RENAMED[name], ast.Load()))
        case ast.IfExp(body=body, orelse=orelse):
            yield _with(node, body=orelse, orelse=body)
        case ast.If(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield _with(node, value=ast.Constant(None))
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield ast.Pass()
        case _:
            pass


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-30:]}"


class _Served(SourceFileLoader, MetaPathFinder):
    """Imports one module from the mutant's source, and everything else as ever."""

    def __init__(self, mutant: Mutant) -> None:
        name = ".".join(mutant.path.with_suffix("").parts)
        super().__init__(name, str(mutant.path.resolve()))
        self.source = mutant.source

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec")


def survives(mutant: Mutant, *, examples: int | None, limit: float) -> bool:
    """Whether every fast test of the module's room passes, in a process of its own and within `limit` seconds."""
    child = os.fork()
    if not child:
        os.setsid()
        os._exit(_tried(mutant, examples))
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _tried(mutant: Mutant, examples: int | None) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.meta_path.insert(0, _Served(mutant))
    settings: dict[str, Any] = {"deadline": None, "database": None}
    if examples is not None:  # also where a test asks for more
        settings["max_examples"] = examples
        seen = hypothesis.settings.__init__
        hypothesis.settings.__init__ = lambda self, *args, **given: seen(self, *args, **{**given, **settings})  # type: ignore[method-assign]
    hypothesis.settings.register_profile("mutants", **settings)
    hypothesis.settings.load_profile("mutants")
    room = mutant.path.parent.name
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, f"tests/{room}", str(mutant.path.parent)]))


def main() -> int:
    """Try the mutants of the modules named."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("modules", nargs="+", type=Path, help="modules of the package, or folders of them")
    asked.add_argument("--limit", type=int, default=200, help="at most so many mutants, drawn by the seed")
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    for name in ("numpy", "pydantic"):  # loaded once, before the forks
        import_module(name)
    paths = [path for named in given.modules for path in (sorted(named.glob("*.py")) if named.is_dir() else [named])]
    every = [mutant for path in paths for mutant in mutants_of(path)]
    drawn = random.Random(given.seed).sample(every, min(given.limit, len(every)))
    limits: dict[Path, float] = {}
    survivors: list[Mutant] = []
    for number, mutant in enumerate(sorted(drawn, key=every.index), 1):
        room = mutant.path.parent
        if room not in limits:
            begun = time.monotonic()
            if not survives(mutant._replace(source=mutant.path.read_text()), examples=None, limit=600):
                raise SystemExit(f"the tests of {room} fail without any mutant")
            limits[room] = 10 + 4 * (time.monotonic() - begun)
        if survives(mutant, examples=FEW, limit=limits[room]) and survives(mutant, examples=None, limit=limits[room]):
            survivors.append(mutant)
            print(mutant, flush=True)
        if number % 50 == 0:
            print(f"... {number} of {len(drawn)}, {len(survivors)} survive", flush=True)
    print(f"{len(survivors)} of {len(drawn)} mutants survive ({len(every)} there are)")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
