"""What a manager is told besides topology, rank and store, and what it finds out about its process."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.membership import Factory
from parallel_topology.errors import GroupArgumentError
from parallel_topology.meeting.deadline import seconds_of
from parallel_topology.meeting.token import require_token
from parallel_topology.meeting.verdict import Agreed
from parallel_topology.topology.whole import whole

DEFAULT_TIMEOUT = 300.0
"""Seconds a manager waits for its peers, in creation and in every operation, unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """What a manager was told besides topology, rank and store; see `GroupManager`."""

    groups: Iterable[tuple[str, ...]] = ()
    isolated: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    backend: str | None = None
    device: torch.device | str | None = None
    local_rank: int | None = None
    name: str = "engine"
    timeout: float | timedelta = DEFAULT_TIMEOUT
    operation_timeout: float | timedelta | None = None
    token: str | None = field(default=None, repr=False)
    verify: bool = True
    per_group: Mapping[str, GroupOptions] = field(default_factory=dict[str, GroupOptions])
    communicators: Mapping[str, Factory] = field(default_factory=dict[str, Factory])
    check_calls: bool = False

    def __post_init__(self) -> None:
        seconds_of("timeout", self.timeout)
        if self.operation_timeout is not None:
            seconds_of("operation_timeout", self.operation_timeout)
        require_token(self.token)
        for name in ("verify", "check_calls"):
            require_flag(name, getattr(self, name))
        require_name(self.name)
        if self.local_rank is not None and (whole(self.local_rank) is None or self.local_rank < 0):
            raise GroupArgumentError(f"local_rank={self.local_rank!r}: expected a whole number of at least 0")
        if isinstance(self.groups, str) or not isinstance(self.groups, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GroupArgumentError(f"groups={self.groups!r}: expected tuples of axes, as in [('tp', 'pp')]")
        object.__setattr__(self, "groups", tuple(self.groups))
        for name, example in (("isolated", "('ep',)"), ("communicators", "a factory")):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise GroupArgumentError(f"{name}={given!r}: expected name -> {example}")
            object.__setattr__(self, name, dict(cast("Mapping[str, Any]", given)))
        if wrong := [name for name, factory in self.communicators.items() if not callable(factory)]:
            raise GroupArgumentError(f"communicators={{{wrong[0]!r}: ...}}: expected a factory, which can be called")

    @property
    def seconds(self) -> float:
        """How long creation may take, all in all."""
        return seconds_of("timeout", self.timeout)

    def operations_wait(self, family: str) -> float:
        """Seconds that operations of a family's groups wait: its own option first, then the manager's."""
        own = self.of(family).timeout
        return own or seconds_of("timeout", self.timeout if self.operation_timeout is None else self.operation_timeout)

    def of(self, family: str) -> GroupOptions:
        """The options of a family's groups."""
        return self.per_group.get(family, _PLAIN)

    def shown(self) -> dict[str, Any]:
        """What of this must be equal on all ranks: all fields but those that may differ, and those that the card has in
        another form."""
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NOT_COMPARED}
        return shown | {
            "operation_timeout": self.operations_wait(""),
            "communicators": sorted(self.communicators),
            "per_group": [f"{axis}={given.model_dump_json()}" for axis, given in sorted(self.per_group.items())],
        }


_PLAIN = GroupOptions()
_NOT_COMPARED = {"local_rank", "token", "groups", "isolated", "backend", "device", "timeout", "operation_timeout"}
"""Each rank has its own local rank, and each proves the token; how long a rank is ready to wait for the others is its
own affair; groups, backend and kind of device stand on the card as what they come to."""


def require_name(name: object) -> str:
    """`name`, which may be that of a manager.

    Raises:
        GroupArgumentError: it may not.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise GroupArgumentError(f"name={name!r}: expected a name without '/'")
    return name


def require_flag(what: str, given: object) -> bool:
    """`given`, which is True or False, and not what only counts as such: a text would, whatever it says.

    Raises:
        GroupArgumentError: it is neither; the message begins with `what`.
    """
    if not isinstance(given, bool):
        raise GroupArgumentError(f"{what}={given!r}: expected True or False")
    return given


def process_identity() -> str:
    """Where this process is found."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def host_identity() -> str:
    """Equal for processes of one machine and one network: host names can repeat across containers and clones, and what
    has addresses of its own can be cut off."""
    started = network = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
        started = boot.read().strip()
    with contextlib.suppress(OSError):
        network = os.readlink("/proc/self/ns/net")
    return f"{socket.gethostname()}/{started}/{network}"


def find_local_rank(options: Options, agreed: Agreed | None, position: int) -> int:
    """As given, else this rank's place among the topology's ranks on its host."""
    if options.local_rank is not None:
        return options.local_rank
    return agreed.hosts[:position].count(agreed.hosts[position]) if agreed else 0


_OURS = (str(Path(__file__).parents[1]), contextlib.__file__)
"""Where code of this package stands; a context manager of ours stands between, too."""


def caller() -> str:
    """Where outside this package the manager was made."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] (inspect.stack() reads every source file)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Abortable(Protocol):
    """What `end_at_exit` ends."""

    def abort(self) -> object: ...


def end_at_exit(manager: Abortable) -> Callable[[], None]:
    """Abort a manager that is still open when the interpreter exits; returns what to unregister from `atexit`.

    Left to the interpreter's own teardown, gloo's threads may outlive what they use and end the process by SIGABRT.
    """
    alive = weakref.ref(manager)

    def end() -> None:
        still = alive()
        if still is not None:
            still.abort()

    atexit.register(end)
    return end
