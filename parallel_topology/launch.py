"""LaunchInfo: which rank this process is and where the ranks meet, read from a launcher's environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parallel_topology.errors import LaunchError


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """What a launcher says of one process. A value: nothing is read but the mapping given, nothing is changed.

    Attributes:
        launcher: who started this process: `"torchrun"`, or `"env"` for the bare variables of torch's `env://`.
        rank, world_size: of the whole job.
        local_rank, local_size: among the job's processes on this host; None where the launcher does not say.
        address, port: where the ranks meet.
        store_is_hosted: the launcher runs the store there; otherwise rank 0 has to.
        restart: how often the launcher has restarted the job; each start needs fresh keys in the store.
        variables: name -> value of every variable that decided.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int | None
    local_size: int | None
    address: str
    port: int
    store_is_hosted: bool
    restart: int
    variables: Mapping[str, str]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> LaunchInfo:
        """Read `env`, usually `os.environ`.

        The variables are those of torchrun
        (https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables).

        Raises:
            LaunchError: a variable is missing or malformed, or they contradict each other.
        """
        reader = _Reader(env)
        reader.require("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        rank, world_size = reader.number("RANK"), reader.number("WORLD_SIZE")
        if not 0 <= rank < world_size:
            raise LaunchError(f"RANK={rank} is outside WORLD_SIZE={world_size}: expected 0..{world_size - 1}")
        return cls(
            launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else "env",
            rank=rank,
            world_size=world_size,
            local_rank=reader.number("LOCAL_RANK") if "LOCAL_RANK" in env else None,
            local_size=reader.number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else None,
            address=reader.text("MASTER_ADDR"),
            port=reader.number("MASTER_PORT"),
            store_is_hosted=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            restart=reader.number("TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in env else 0,
            variables=reader.read,
        )


class _Reader:
    """Reads variables and remembers which."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.read: dict[str, str] = {}

    def require(self, *names: str) -> None:
        missing = [name for name in names if name not in self.env]
        if missing:
            raise LaunchError(
                f"no launcher was found: {', '.join(missing)} not set (looked for {', '.join(names)}). "
                "Start the program with torchrun, or say where the ranks meet with "
                "GroupManager.connect('tcp://host:port', topology, rank=...), or give a store of your own with "
                "GroupManager(topology, rank=..., store=...)"
            )

    def text(self, name: str) -> str:
        self.read[name] = self.env[name]
        return self.env[name]

    def number(self, name: str) -> int:
        text = self.text(name)
        if not (text.isascii() and text.isdigit()):
            raise LaunchError(f"{name}={text!r}: expected a whole number")
        return int(text)
