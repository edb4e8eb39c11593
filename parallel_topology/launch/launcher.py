"""Launcher: one row of the table, and what every launcher's numbers have to fulfil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Required, TypedDict

from parallel_topology.errors import LaunchError
from parallel_topology.launch.variables import Variables


class Facts(TypedDict, total=False):
    """What a launcher said; see `LaunchInfo`."""

    rank: Required[int]
    world_size: Required[int]
    local_rank: int | None
    local_size: int | None
    host_index: int | None
    host_count: int | None
    address: str | None
    port: int | None
    store_is_hosted: bool
    restart: int


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A launcher that sets a variable for each number.

    What it says of one process are its *facts*; its *claims* are the numbers that it says, however incomplete.

    Attributes:
        name: `LaunchInfo.launcher`.
        marks: the variables that, all set, say that this launcher started the process.
        rank, world_size, local_rank, local_size, host_index, host_count: the variables that hold these.
        gives_address: it sets MASTER_ADDR and MASTER_PORT; otherwise the user may.
        counts: what its numbers are of; in pods and on hosts others start processes.
    """

    name: str
    marks: tuple[str, ...]
    rank: str
    world_size: str
    local_rank: str | None = None
    local_size: str | None = None
    host_index: str | None = None
    host_count: str | None = None
    gives_address: bool = False
    counts: str = "processes"

    def started(self, env: Variables) -> bool:
        """Whether this launcher started the process."""
        return not env.missing(self.marks)

    def facts(self, env: Variables) -> Facts:
        """Read everything.

        Raises:
            LaunchError: a variable is missing or malformed, or two contradict each other.
        """
        meeting = ("MASTER_ADDR", "MASTER_PORT") if self.gives_address else ()
        self.require(env, self.rank, self.world_size, *meeting)
        env.note(self.marks)
        facts = self.numbers(env)
        check(facts, {fact: self.said(env, fact) for fact in COUNTED if facts.get(fact) is not None})
        facts["address"], facts["port"] = self.meeting_place(env)
        return facts

    def numbers(self, env: Variables) -> Facts:
        return Facts(
            rank=env.number(self.rank),
            world_size=env.number(self.world_size),
            local_rank=env.number_if_set(self.local_rank),
            local_size=env.number_if_set(self.local_size),
            host_index=env.number_if_set(self.host_index),
            host_count=env.number_if_set(self.host_count),
        )

    def claim(self, env: Variables, fact: str) -> int | None:
        """One number that this launcher says, if it does."""
        return env.number_if_set(getattr(self, fact) or None)

    def said(self, env: Variables, fact: str) -> str:
        """`RANK=3`: what messages call a fact."""
        name = getattr(self, fact)
        return f"{name}={env.text(name)}" if name else fact

    def meeting_place(self, env: Variables) -> tuple[str | None, int | None]:
        """MASTER_ADDR and MASTER_PORT, if set: one without the other is an error."""
        missing = env.missing(("MASTER_ADDR", "MASTER_PORT"))
        if len(missing) == 1:
            given = env.shown("MASTER_ADDR", "MASTER_PORT")
            raise LaunchError(f"{given} is set, but not {missing[0]}: set both, or use GroupManager.connect(...)")
        return (None, None) if missing else (env.address("MASTER_ADDR"), env.port("MASTER_PORT"))

    def require(self, env: Variables, *names: str) -> None:
        missing = env.missing(names)
        if missing:
            raise LaunchError(
                f"{self.name} started this process ({env.shown(*self.marks)}), but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set: set what is missing; or unset "
                f"{', '.join(self.marks)}, if something else started it; or say where the ranks meet with "
                "GroupManager.connect('tcp://host:port', topology, rank=...)"
            )


COUNTED = ("rank", "world_size", "local_rank", "local_size", "host_index", "host_count")
_SIZES = ("local_size", "host_count", "world_size")
# What bounds what: an index and the size it has to be below, a part and the whole it cannot exceed.
_INDICES = (("local_rank", "local_size"), ("host_index", "host_count"), ("rank", "world_size"))
_PARTS = (("local_rank", "rank"), ("local_size", "world_size"), ("host_count", "world_size"))


def check(facts: Facts, said: Mapping[str, str]) -> None:
    """Compare the numbers with each other; `said` has what messages call them, of those that are known.

    Raises:
        LaunchError: a size is 0, an index is not below its size, or a part is more than the whole.
    """
    for size in _SIZES:
        if facts.get(size) == 0:
            raise LaunchError(f"{said[size]}: expected at least 1")
    for index, size in _INDICES:
        number, bound = facts.get(index), facts.get(size)
        if number is not None and bound is not None and number >= bound:
            raise LaunchError(f"{said[index]} is outside {said[size]}: expected 0..{bound - 1}")
    for part, whole in _PARTS:
        number, bound = facts.get(part), facts.get(whole)
        if number is not None and bound is not None and number > bound:
            raise LaunchError(
                f"{said[part]} is more than {said[whole]}: the first counts on one host or hosts, the second in the "
                "whole job (does it count hosts or pods instead of processes?)"
            )
