"""The environment as a launcher's row reads it: what was read is remembered, and what cannot be read is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from parallel_topology.errors import LaunchError


class Variables:
    """Reads variables of a mapping and remembers which; the mapping stays as it is."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.read: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._env

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._env]

    def equal(self, one: str, other: str) -> bool:
        return self._env[one] == self._env[other]

    def shown(self, *names: str) -> str:
        """`RANK='1', WORLD_SIZE='2'`, of those that are set."""
        return ", ".join(f"{name}={self._env[name]!r}" for name in names if name in self._env)

    def note(self, names: Iterable[str]) -> None:
        """Remember them, whatever they hold."""
        self.read.update((name, self._env[name]) for name in names)

    def text(self, name: str) -> str:
        value = self.read[name] = self._env[name]
        if not value.strip():
            raise LaunchError(f"{name}={value!r}: expected a text, not nothing")
        return value

    def number(self, name: str) -> int:
        value = self.read[name] = self._env[name]
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise LaunchError(f"{name}={value!r}: expected a whole number")
        return int(value)

    def number_if_set(self, name: str | None) -> int | None:
        return self.number(name) if name is not None and name in self._env else None

    def port(self, name: str) -> int:
        number = self.number(name)
        if not 1 <= number <= 65535:
            raise LaunchError(f"{name}={number}: expected a port, 1..65535")
        return number
