"""What a name stands for where it is used: imports and assignments of its scope, and of those around it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

_WORD = re.compile(r"[^\W\d]\w*")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_RENAMED = re.compile(r"\bas\s+(\w+)|^\s*(\w+)\s*=(?!=)")
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_INSIDE = ("body", "elt", "key", "value", "generators")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, *_COMPREHENSIONS)


@dataclass
class Scope:
    """A module, class, function or comprehension.

    Attributes:
        name: of the function or class, qualified; `<module>` outside of them.
        imported: name -> the dotted name that it was imported as, or is another name for.
        bound: names of other origin.
    """

    name: str
    outer: Scope | None = None
    is_class: bool = False
    imported: dict[str, str] = field(default_factory=dict[str, str])
    bound: set[str] = field(default_factory=set[str])

    def target(self, name: str) -> str | None:
        """The dotted name of what a name stands for; None if it was not imported."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.imported:
                return scope.imported[name]
            if name in scope.bound:
                return None
            scope = scope.outer
            while scope is not None and scope.is_class:  # a function does not see the names of its class
                scope = scope.outer
        return None


@dataclass(frozen=True)
class Use:
    """An expression that stands for a dotted name, such as `ps.get_rank` or `getattr(ps, "get_rank")`.

    Attributes:
        call: the call of it, or that of `partial`, if there is one.
    """

    name: str
    node: ast.expr
    scope: Scope
    call: ast.Call | None

    @property
    def positional(self) -> bool:
        """Whether it is given arguments by their position."""
        return self.call is not None and any(argument is not self.node for argument in self.call.args)


class Lines:
    """The lines of a text that hold some words, or names that such lines give to what they name.

    Most of a file has nothing to do with what is looked for, and to look at every node of it takes long.

    Args:
        words: what is looked for.
        origins: words of imports that may give other names to it.
    """

    def __init__(self, text: str, words: Collection[str], origins: Collection[str]) -> None:
        lines = [(line, set[str](_WORD.findall(line))) for line in _NEWLINE.split(text)]
        wanted, known = set(words), 0
        while len(wanted) > known:  # names of names of names
            known = len(wanted)
            for line, found in lines:
                if not wanted.isdisjoint(found) or not found.isdisjoint(origins):
                    wanted.update(name for pair in _RENAMED.findall(line) for name in pair if name)
        self._before = list(accumulate((not wanted.isdisjoint(found) for _, found in lines), initial=0))

    def matter_in(self, node: ast.AST) -> bool:
        """Whether one of them is among the node's."""
        first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if first is None or last is None:
            return True
        for decorator in getattr(node, "decorator_list", ()):
            first = min(first, decorator.lineno)
        return self._before[int(last)] > self._before[int(first) - 1]


class Uses:
    """All uses of imported names in a module.

    Args:
        package: of the module, for its relative imports.
        known: the dotted names that `import *` may bring.
        lines: those outside of which nothing is looked for.
    """

    def __init__(self, package: list[str], known: Collection[str], lines: Lines) -> None:
        self._package = package
        self._known = known
        self._lines = lines
        self._found: list[Use] = []

    def of(self, tree: ast.Module) -> list[Use]:
        """In the order of the text."""
        self._look(tree, self._opened(tree, None), None)
        return self._found

    def _look(self, node: ast.AST, scope: Scope, call: ast.Call | None) -> None:
        if isinstance(node, ast.expr) and (name := _dotted(node, scope)) is not None:
            self._found.append(Use(name, node, scope, call))
            return
        inside = self._opened(node, scope) if isinstance(node, _SCOPES) else scope
        for field_name in node._fields:
            # What a definition itself evaluates stands outside of it: decorators, bases, annotations.
            within = inside if field_name in _INSIDE else scope
            for child in _parts(getattr(node, field_name, None)):
                if self._lines.matter_in(child):
                    called = node if isinstance(node, ast.Call) and child is _callee(node) else None
                    self._look(child, within, called)

    def _opened(self, node: ast.AST, outer: Scope | None) -> Scope:
        name = "<module>" if outer is None else outer.name
        own = getattr(node, "name", "<lambda>" if isinstance(node, ast.Lambda) else None)
        if own is not None:
            name = own if name == "<module>" else f"{name}.{own}"
        scope = Scope(name, outer, isinstance(node, ast.ClassDef))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            scope.bound |= {argument.arg for argument in every if argument is not None}
        aliases: list[ast.Assign] = []
        for part in _of_scope(node):
            self._bind(part, scope, aliases)
        for assign in aliases:
            target, value = assign.targets[0], _dotted(assign.value, scope)
            if isinstance(target, ast.Name) and value is not None:
                scope.imported.setdefault(target.id, value)
        return scope

    def _bind(self, part: ast.AST, scope: Scope, aliases: list[ast.Assign]) -> None:
        match part:
            case ast.Import(names=names):
                for name in names:
                    scope.imported[name.asname or name.name.partition(".")[0]] = (
                        name.name if name.asname else name.name.partition(".")[0]
                    )
            case ast.ImportFrom(names=names):
                base = self._base(part)
                for name in names:
                    if name.name == "*":
                        scope.imported |= {
                            known.rpartition(".")[2]: known for known in self._known if known.rpartition(".")[0] == base
                        }
                    else:
                        scope.imported[name.asname or name.name] = f"{base}.{name.name}"
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                scope.bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                scope.bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                scope.bound.add(name)
            case ast.Assign(targets=[ast.Name()]):
                aliases.append(part)
            case _:
                pass

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        around = self._package[: len(self._package) - node.level + 1]
        return ".".join([*around, *([node.module] if node.module else [])])


def _parts(value: Any) -> list[ast.AST]:
    if not isinstance(value, list):
        return [value] if isinstance(value, ast.AST) else []
    return [part for part in cast("list[Any]", value) if isinstance(part, ast.AST)]


def _callee(call: ast.Call) -> ast.expr:
    """What is called in the end: the first argument of `partial`."""
    name = ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""
    return call.args[0] if call.args and name in ("partial", "functools.partial") else call.func


def _of_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a scope, without those of scopes in it."""
    waiting: list[ast.AST] = []
    for name, value in ast.iter_fields(node):
        if name in ("body", "generators"):
            waiting += _parts(value)
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, _SCOPES):
            waiting += ast.iter_child_nodes(part)


def _dotted(node: ast.expr, scope: Scope) -> str | None:
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return scope.target(name)
        case ast.Attribute(value=value, attr=name, ctx=ast.Load()):
            base = _dotted(value, scope)
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
            base = _dotted(value, scope)
        case _:
            return None
    return None if base is None else f"{base}.{name}"
