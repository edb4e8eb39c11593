"""Hosts as a launcher has placed the ranks, read from the environment of any process that it started."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_topology.errors import LaunchError, NoLauncherError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.launch.hostlist import expand_tasks
from parallel_topology.launch.info import LaunchInfo


def hosts_from(env: Mapping[str, str]) -> Hosts:
    """Which ranks are on which host, by `env`, usually `os.environ`; also in a batch script of SLURM, before srun.

    >>> str(hosts_from({"SLURM_TASKS_PER_NODE": "4(x2),2"}))
    '4,4,2'

    Raises:
        LaunchError: there is no launcher, or it does not say, or the ranks do not stand host by host.
    """
    try:
        info = LaunchInfo.from_env(env)
    except NoLauncherError:
        if "SLURM_TASKS_PER_NODE" not in env:
            said = "no launcher was found, so nothing says how many ranks are on a host: give the hosts, as in 2x4"
            raise LaunchError(said) from None
        return Hosts.uneven(expand_tasks(env["SLURM_TASKS_PER_NODE"]))
    counts = _counts(info, env)
    host, local = info.host_index, info.local_rank
    if host is not None and local is not None and sum(counts[:host]) + local != info.rank:
        raise LaunchError(
            f"{info.because}: rank {info.rank} is number {local} on host {host}, so ranks do not stand host by host; "
            "give the ranks of each host, as in 0,2/1,3"
        )
    return Hosts.uneven(counts)


def _counts(info: LaunchInfo, env: Mapping[str, str]) -> list[int]:
    """Ranks on each host."""
    if info.launcher == "slurm":
        return expand_tasks(env["SLURM_STEP_TASKS_PER_NODE"])
    if info.local_size is None:
        raise LaunchError(f"{info.because} does not say how many ranks are on a host: give the hosts, as in 2x4")
    if info.world_size % info.local_size:
        raise LaunchError(
            f"{info.because}: {info.world_size} ranks, {info.local_size} on this host, so not all hosts have as many; "
            "give what each has, as in 4,4,2"
        )
    return [info.local_size] * (info.world_size // info.local_size)
