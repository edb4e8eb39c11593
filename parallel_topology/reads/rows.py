"""What a module-level function asks of a manager: the words that the tables are made of. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ask:
    """An attribute of one of the manager's groups.

    Attributes:
        axes: of the group; `("world",)` for all ranks, none for this rank alone.
        what: the attribute; several that are tried in turn are joined by `or`. `coordinator` is the group itself, as an
            object of that system's.
    """

    axes: tuple[str, ...]
    what: str

    @property
    def line(self) -> str:
        """What to write instead of the call."""
        if not self.axes:
            return f"# this rank alone: its {self.what}"
        quoted = ", ".join(f'"{axis}"' for axis in self.axes)
        group = f"groups.{self.axes[0]}" if len(self.axes) == 1 else f"groups[{quoted}]"
        if self.what == "ranks":
            return f"list({group}.ranks)"
        if self.what == "coordinator":
            return group
        return " or ".join(f"{group}.{what}" for what in self.what.split(" or "))


@dataclass(frozen=True)
class Constant:
    """The same for every manager."""

    value: Any
    line: str


@dataclass(frozen=True)
class Kept:
    """A value that one function sets and another one gets: kept for each manager. None until it is set."""

    name: str
    line: str


@dataclass(frozen=True)
class Own:
    """Answered by its own code, which keeps no state, or asks the other functions."""

    line: str = ""


@dataclass(frozen=True)
class Buffer:
    """Memory by names, on the manager's device: one for each manager."""

    line: str


@dataclass(frozen=True)
class Composed:
    """What several answers make together: `compute(module, groups, arguments)` gives a value, or an `Ask`."""

    line: str
    compute: Callable[[Any, Any, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Refused:
    """No meaning here; `instead` is what to do. `absent`: who asks without insisting gets None, as it says itself."""

    why: str
    absent: bool = False

    @property
    def line(self) -> str:
        return f"# {self.why}"


@dataclass(frozen=True)
class Required:
    """`initialize_*`: its sizes are checked against the manager.

    Attributes:
        sizes: argument -> axis; an argument that is None, 1 or left out is size 1.
        expert: argument -> axis of a second factorization, whose other axes are those of the base.
        free: the axis that takes all other ranks; `rest` is one that may be several.
        parts: argument -> axis of which only the size is looked at.
        order: the argument that names the axes, fastest first, or the order itself.
        kept: argument -> the value it sets, if it is given, and the one that is 0 then.
        refused: argument -> (what it may be, why it may not be anything else).
    """

    sizes: Mapping[str, str]
    order: str
    free: str = "dp"
    expert: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    kept: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])
    line: str = "groups.require(topology)"


Row = Ask | Constant | Kept | Own | Buffer | Composed | Refused | Required


@dataclass(frozen=True)
class Options:
    """A function whose arguments choose: the names of those that are true -> what it asks."""

    rows: Mapping[tuple[str, ...], Row]

    @property
    def line(self) -> str:
        return next(iter(self.rows.values())).line


Rows = Mapping[str, Row | Options]


@dataclass(frozen=True)
class Table:
    """What one system's functions ask.

    Attributes:
        system: the word for it in `serving`.
        package: what to install.
        versions: in which it was read.
        modules: module -> name -> what it asks.
        aliases: other name -> module, as the system itself imports it elsewhere.
        without: axis of a view -> the axes that it is where no view was declared.
        optional: the argument that says with False that None is an answer, too.
        moot: arguments that choose between groups which are one and the same here.
        passing: names that not all of the versions have.
    """

    system: str
    package: str
    versions: str
    modules: Mapping[str, Rows]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    optional: str = ""
    moot: frozenset[str] = frozenset()
    passing: frozenset[str] = frozenset()


def ask(text: str) -> Ask:
    """`"tp.size"`, `"cp-dp.device_group"`, `".rank"` of this rank alone."""
    axes, _, what = text.partition(".")
    return Ask(tuple(axes.split("-")) if axes else (), what)
