"""The environment as a launcher's row reads it: what was read is remembered, and what cannot be read is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parallel_topology.errors import LaunchError
from parallel_topology.topology.whole import quoted

MOST_DIGITS = 18
"""Of a number; a longer one is a mistake, whatever it is to count."""


class Variables:
    """Reads variables of a mapping and remembers which; the mapping stays as it is."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.read: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._env

    def apart(self) -> Variables:
        """The same environment, for a question whose variables are not to be remembered here."""
        return Variables(self._env)

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._env]

    def shown(self, *names: str) -> str:
        """`RANK='1', WORLD_SIZE='2'`, of those that are set."""
        return ", ".join(f"{name}={quoted(self._env[name])}" for name in names if name in self._env)

    def note(self, names: Iterable[str]) -> None:
        """Remember them, whatever they hold."""
        self.read.update((name, self._env[name]) for name in names)

    def says(self, name: str, value: str) -> bool:
        """Whether it is set to exactly this; remembered only if it is."""
        if self._env.get(name) != value:
            return False
        self.note([name])
        return True

    def text(self, name: str) -> str:
        value = self.read[name] = self._env[name]
        if not isinstance(value, str) or not value.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LaunchError(f"{name}={quoted(value)}: expected a text, not nothing")
        return value

    def address(self, name: str) -> str:
        value = self.text(name)
        if not value.isprintable() or any(map(str.isspace, value)):
            raise LaunchError(f"{name}={quoted(value)}: expected the name or address of a host")
        return value

    def number(self, name: str) -> int:
        value = self.read[name] = self._env[name]
        if not (isinstance(value, str) and value.isascii() and value.isdigit()):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LaunchError(f"{name}={quoted(value)}: expected a whole number")
        if len(value) > MOST_DIGITS:
            raise LaunchError(f"{name}={quoted(value)}: expected a whole number of at most {MOST_DIGITS} digits")
        return int(value)

    def number_if_set(self, name: str | None) -> int | None:
        return self.number(name) if name is not None and name in self._env else None

    def port(self, name: str) -> int:
        number = self.number(name)
        if not 1 <= number <= 65535:
            raise LaunchError(f"{name}={number}: expected a port, 1..65535")
        return number
