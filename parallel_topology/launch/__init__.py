"""LaunchInfo: which rank this process is and where the ranks meet, read from a launcher's environment variables.

A row for each launcher: those that set plain variables in `table`, SLURM in `slurm`, those that start pods in `pods`.
Which of them counts where several left variables, `choice` decides; `placement` reads all ranks' hosts off.
"""

from parallel_topology.launch.info import LaunchInfo

__all__ = ["LaunchInfo"]
