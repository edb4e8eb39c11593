"""SLURM's srun: the ranks meet on the first host of the step, on a port that follows from the job's number."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_topology.errors import LaunchError
from parallel_topology.launch.hostlist import expand_hosts, expand_tasks
from parallel_topology.launch.launcher import Facts, Launcher
from parallel_topology.launch.variables import Variables

PORTS = range(20_000, 29_000)
"""Where the port of a step lies: below the ports that Linux hands to clients (from 32768)."""

_FIRST_RESERVED_STEP = 0xFFFFFFF0  # SLURM_MAX_NORMAL_STEP_ID + 1: shells of salloc, batch scripts; not tasks of srun


@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """Reads the variables of the step, not those of the job: a step may have fewer tasks and nodes.

    https://slurm.schedmd.com/srun.html (output environment variables); seen in 22.05.8.
    """

    name: str = "slurm"
    marks: tuple[str, ...] = ("SLURM_PROCID", "SLURM_STEP_ID")
    rank: str = "SLURM_PROCID"
    world_size: str = "SLURM_STEP_NUM_TASKS"
    local_rank: str | None = "SLURM_LOCALID"
    local_size: str | None = "SLURM_STEP_TASKS_PER_NODE"
    host_index: str | None = "SLURM_NODEID"
    host_count: str | None = "SLURM_STEP_NUM_NODES"

    def started(self, env: Variables) -> bool:
        if not super().started(env):
            return False
        try:
            return env.apart().number("SLURM_STEP_ID") < _FIRST_RESERVED_STEP
        except LaunchError:  # told when the numbers are read, if they are to be
            return True

    def claim(self, env: Variables, fact: str) -> int | None:
        if fact != "local_size":
            return super().claim(env, fact)
        if env.missing(("SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")):
            return None
        tasks, node = expand_tasks(env.text("SLURM_STEP_TASKS_PER_NODE")), env.number("SLURM_NODEID")
        return tasks[node] if node < len(tasks) else None

    def numbers(self, env: Variables) -> Facts:
        self.require(env, "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_STEP_NUM_NODES")
        env.number("SLURM_STEP_ID")
        tasks = expand_tasks(env.text("SLURM_STEP_TASKS_PER_NODE"))
        node, nodes = env.number("SLURM_NODEID"), env.number("SLURM_STEP_NUM_NODES")
        for name, expected in (("SLURM_STEP_NUM_TASKS", sum(tasks)), ("SLURM_STEP_NUM_NODES", len(tasks))):
            if env.number(name) != expected:
                raise LaunchError(f"{env.shown(name)} contradicts {env.shown('SLURM_STEP_TASKS_PER_NODE')}: {expected}")
        return Facts(
            rank=env.number("SLURM_PROCID"),
            world_size=env.number("SLURM_STEP_NUM_TASKS"),
            local_rank=env.number("SLURM_LOCALID"),
            local_size=tasks[node] if node < nodes else None,
            host_index=node,
            host_count=nodes,
        )

    def meeting_place(self, env: Variables) -> tuple[str | None, int | None]:
        """What the user set in MASTER_ADDR or MASTER_PORT, and the step's own for the rest.

        The ranks cannot talk yet and have to choose the same port: it follows from the numbers of job and step, as in
        Lightning (15000 + the job's last four digits) and JAX (61440 + job % 4096), but steps of one job differ.
        """
        address = env.address("MASTER_ADDR") if "MASTER_ADDR" in env else self._first_host(env)
        if "MASTER_PORT" in env:
            return address, env.port("MASTER_PORT")
        self.require(env, "SLURM_JOB_ID")
        number = env.number("SLURM_JOB_ID") + 1009 * env.number("SLURM_STEP_ID")  # a prime: job 7 step 1 is not job 8
        return address, PORTS[number % len(PORTS)]

    def _first_host(self, env: Variables) -> str:
        self.require(env, "SLURM_STEP_NODELIST")
        hosts = expand_hosts(env.text("SLURM_STEP_NODELIST"))
        if len(hosts) != env.number("SLURM_STEP_NUM_NODES"):
            raise LaunchError(
                f"{env.shown('SLURM_STEP_NUM_NODES')} contradicts {env.shown('SLURM_STEP_NODELIST')}: "
                f"{len(hosts)} hosts; set MASTER_ADDR to the host of rank 0"
            )
        return hosts[0]
