"""What a manager is told besides topology, rank and store, and what it finds out about its process."""

from __future__ import annotations

import atexit
import socket
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from parallel_topology.communicators.group_options import GroupOptions
from parallel_topology.communicators.membership import Factory
from parallel_topology.errors import GroupArgumentError, LaunchError
from parallel_topology.meeting.agreement import Agreed

DEFAULT_TIMEOUT = 300.0
"""Seconds a manager waits for its peers, in creation and in every operation, unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """What a manager was told besides topology, rank and store; see `GroupManager`."""

    groups: tuple[tuple[str, ...], ...] = ()
    isolated: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    backend: str | None = None
    device: torch.device | str | None = None
    local_rank: int | None = None
    name: str = "engine"
    timeout: float = DEFAULT_TIMEOUT
    operation_timeout: float | None = None
    token: str | None = field(default=None, repr=False)
    verify: bool = True
    per_group: Mapping[str, GroupOptions] = field(default_factory=dict[str, GroupOptions])
    communicators: Mapping[str, Factory] = field(default_factory=dict[str, Factory])
    check_calls: bool = False

    def __post_init__(self) -> None:
        require_seconds("timeout", self.timeout)
        if self.operation_timeout is not None:
            require_seconds("operation_timeout", self.operation_timeout)
        if not self.name or "/" in self.name:
            raise GroupArgumentError(f"name={self.name!r}: expected a name without '/'")


def host_identity() -> str:
    """Equal for processes that share a machine's devices: host names can repeat across containers and clones."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def find_local_rank(options: Options, agreed: Agreed | None, position: int) -> int:
    """As given, else this rank's place among the topology's ranks on its host."""
    if options.local_rank is not None:
        return options.local_rank
    return agreed.hosts[:position].count(agreed.hosts[position]) if agreed else 0


def caller() -> str:
    """Where outside this package the manager was made."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] (inspect.stack() reads every source file)
    here = str(Path(__file__).parents[1])
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def require_seconds(name: str, seconds: float) -> None:
    """Check a timeout.

    Raises:
        GroupArgumentError: it is not a number above 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupArgumentError(f"{name}={seconds!r}: expected a number of seconds above 0")


def token_from(env: Mapping[str, str]) -> str | None:
    """The token that the environment gives, in a variable or in a file.

    Raises:
        LaunchError: the file cannot be read.
    """
    if "PARALLEL_TOPOLOGY_TOKEN" in env:
        return env["PARALLEL_TOPOLOGY_TOKEN"]
    path = env.get("PARALLEL_TOPOLOGY_TOKEN_FILE")
    if path is None:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise LaunchError(f"PARALLEL_TOPOLOGY_TOKEN_FILE={path}: {error.strerror}") from error


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
