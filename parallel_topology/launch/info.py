"""LaunchInfo: what a launcher says of one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel_topology.errors import LaunchError
from parallel_topology.launch.choice import find
from parallel_topology.launch.variables import Variables


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """What a launcher says of one process. A value: nothing is read but the mapping given, nothing is changed.

    >>> LaunchInfo.from_env({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}).rank
    3

    Attributes:
        launcher: who started this process: `"torchrun"`, `"slurm"`, `"openmpi"`, ..., or `"env"` for the bare variables
            of torch's `env://`; docs/launchers.md lists them.
        rank, world_size: of the whole job.
        local_rank, local_size: among the job's processes on this host; None where the launcher does not say.
        host_index, host_count: of this host among the job's; None where the launcher does not say.
        address, port: where the ranks meet; None where neither the launcher nor the user says.
        store_is_hosted: the launcher runs the store there; otherwise rank 0 has to.
        restart: how often this host's processes were restarted; with several hosts these need not be equal.
        variables: name -> value of every variable that decided: these alone say the same.
        inside: other launchers that this one was found inside of, and why its word counts, a sentence for each.

    What was said is compared, not how: `variables` and `inside` do not count.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int | None = None
    local_size: int | None = None
    host_index: int | None = None
    host_count: int | None = None
    address: str | None = None
    port: int | None = None
    store_is_hosted: bool = False
    restart: int = 0
    variables: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    inside: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> LaunchInfo:
        """Read `env`, usually `os.environ`.

        Raises:
            LaunchError: no launcher is found, or its variables are incomplete, malformed or contradict each other.
        """
        variables = Variables(env)
        launcher, facts, inside = find(variables)
        return cls(launcher=launcher, variables=variables.read, inside=inside, **facts)

    @property
    def because(self) -> str:
        """`torchrun (RANK='0', TORCHELASTIC_RUN_ID='job', ...)`: who it was, and what made us believe so."""
        return f"{self.launcher} ({', '.join(f'{name}={value!r}' for name, value in sorted(self.variables.items()))})"

    def meeting_place(self) -> tuple[str, int]:
        """Address and port.

        Raises:
            LaunchError: the launcher did not say.
        """
        if self.address is None or self.port is None:
            raise LaunchError(
                f"{self.launcher} started rank {self.rank} of {self.world_size}, but does not say where the ranks "
                "meet: set MASTER_ADDR (rank 0's host) and MASTER_PORT (free there) for all of them, or use "
                f"GroupManager.connect('tcp://host:port', topology, rank={self.rank})"
            )
        return self.address, self.port
