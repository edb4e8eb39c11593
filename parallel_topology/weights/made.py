"""Node: a tensor that rules have made of weights; what all are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from parallel_topology.errors import TopologyError
from parallel_topology.topology.wording import listed
from parallel_topology.weights.forms import Form
from parallel_topology.weights.place import Arranged
from parallel_topology.weights.rules import INDEX, Kept, Rule
from parallel_topology.weights.weight import numbered


@dataclass(frozen=True)
class Node:
    """A form, and what made it of what; no rule makes a weight's own."""

    form: Form
    rule: Rule | None = None
    parts: tuple[Node, ...] = ()

    def kept(self, own: Mapping[str, Arranged]) -> Kept:
        """What one rank has of it, by what it has of each weight."""
        if self.rule is None:
            return {None: own[self.form.name]}
        return self.rule.kept([part.form for part in self.parts], [part.kept(own) for part in self.parts])


def applied(rule: Rule, made: Mapping[str, Node]) -> dict[str, Node]:
    """With what the rule makes, in the place of the first part that it takes."""
    parts: list[Node] = []
    for name in rule.takes:
        if name not in made:
            raise unknown(rule, name, made)
        parts.append(made[name])
    node = Node(rule.form([part.form for part in parts]), rule, tuple(parts))
    if rule.name in made and rule.name not in rule.takes:
        raise TopologyError(f"{rule}: there is a tensor {rule.name!r} already; expected another name")
    first, *others = rule.takes
    return {
        rule.name if name == first else name: node if name == first else one
        for name, one in made.items()
        if name not in others
    }


def all_names(made: Iterable[Node]) -> dict[str, tuple[Node, int | None]]:
    """The names of the tensors that are not split; all names differ."""
    found: dict[str, tuple[Node, int | None]] = {}
    split: list[Form] = []
    for node in made:
        if node.form.split:
            split.append(node.form)
            continue
        for layer in (None,) if node.form.layers is None else node.form.layers:
            name = numbered(node.form.name, layer)
            if name in found:
                raise same_name(name)
            found[name] = node, layer
    for name in found:
        if any(True for form in split for _ in read(form, name)):
            raise same_name(name)
    return found


def same_name(name: str) -> TopologyError:
    return TopologyError(f"two tensors have the name {name!r}; expected each to have one of its own")


def full_name(name: str, layer: int | None, index: int | None) -> str:
    return numbered(name if index is None else name.replace(INDEX, str(index)), layer)


def read(form: Form, name: str) -> Iterator[tuple[int | None, int]]:
    """The layer and index of which this is the name; none or one."""
    pattern = re.escape(form.name if form.layers is None or "{}" in form.name else form.name + ".{}")
    number = "(0|[1-9][0-9]{0,17})"
    pattern = pattern.replace(re.escape(INDEX), f"(?P<index>{number})")
    pattern = pattern.replace(re.escape("{}"), f"(?P<layer>{number})", 1).replace(re.escape("{}"), "(?P=layer)")
    if found := re.fullmatch(pattern, name):
        layer = int(found["layer"]) if form.layers is not None else None
        if form.layers is None or layer in form.layers:
            yield layer, int(found["index"])


def shown(form: Form) -> str:
    return form.name if form.layers is None or "{}" in form.name else form.name + ".{}"


def unknown(rule: object, name: str, known: Iterable[str]) -> TopologyError:
    return TopologyError(f"{rule}: there is no {name!r} here; expected one of {listed(known)}")
