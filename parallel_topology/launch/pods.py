"""Launchers that start hosts or pods, or tell a process a part: complete with what the user adds, or an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from parallel_topology.errors import LaunchError
from parallel_topology.launch.launcher import Facts, Launcher
from parallel_topology.launch.variables import Variables


@dataclass(frozen=True, kw_only=True)
class Lightning(Launcher):
    """Lightning's own subprocesses: the rank follows from NODE_RANK and LOCAL_RANK, if hosts are equally full.

    https://github.com/Lightning-AI/pytorch-lightning, 03f57f9:
    src/lightning/fabric/strategies/launchers/subprocess_script.py sets these four and MASTER_PORT; never RANK.
    """

    name: str = "lightning"
    marks: tuple[str, ...] = ("NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    rank: str = "LOCAL_RANK"
    world_size: str = "WORLD_SIZE"
    local_rank: str | None = "LOCAL_RANK"
    local_size: str | None = "LOCAL_WORLD_SIZE"
    host_index: str | None = "NODE_RANK"
    gives_address: bool = True

    def started(self, env: Variables) -> bool:
        """Whoever sets RANK as well (torchrun, Ray Train) is another launcher."""
        return super().started(env) and "RANK" not in env

    def claim(self, env: Variables, fact: str) -> int | None:
        return None if fact == "rank" else super().claim(env, fact)

    def said(self, env: Variables, fact: str) -> str:
        """Its rank is a sum: where it is wrong, all that was added has to be seen."""
        if fact != "rank" or "LOCAL_WORLD_SIZE" not in env:
            return super().said(env, fact)
        return f"NODE_RANK={env.text('NODE_RANK')} x {super().said(env, 'local_size')} + {super().said(env, 'rank')}"

    def numbers(self, env: Variables) -> Facts:
        facts = super().numbers(env)
        host, size = facts.get("host_index"), facts.get("local_size")
        if host and size is None:
            raise LaunchError(
                f"lightning started a process on host {host} ({env.shown('NODE_RANK', 'LOCAL_RANK')}), but does not "
                "say how many there are on each: set LOCAL_WORLD_SIZE, or RANK"
            )
        facts["rank"] = (host or 0) * (size or 0) + facts["rank"]
        return facts


@dataclass(frozen=True, kw_only=True)
class KubeflowTrainer(Launcher):
    """Kubeflow Trainer v2 tells each pod torchrun's options; without torchrun, one process a pod is all there can be.

    https://github.com/kubeflow/trainer, 06b555d: pkg/runtime/framework/plugins/torch/torch.go.
    """

    name: str = "kubeflow"
    marks: tuple[str, ...] = ("PET_NODE_RANK", "PET_NNODES")
    rank: str = "PET_NODE_RANK"
    world_size: str = "PET_NNODES"
    host_index: str | None = "PET_NODE_RANK"
    host_count: str | None = "PET_NNODES"
    counts: str = "pods"

    def numbers(self, env: Variables) -> Facts:
        self.require(env, "PET_NPROC_PER_NODE")
        if env.text("PET_NPROC_PER_NODE") != "1" or not env.text("PET_NNODES").isdecimal():
            raise LaunchError(
                f"{env.shown('PET_NNODES', 'PET_NPROC_PER_NODE')} are options for torchrun, but torchrun did not start "
                "this process: start the program with torchrun, which reads them"
            )
        facts = super().numbers(env)
        facts["local_rank"], facts["local_size"] = 0, 1
        return facts

    def meeting_place(self, env: Variables) -> tuple[str | None, int | None]:
        self.require(env, "PET_MASTER_ADDR", "PET_MASTER_PORT")
        return env.address("PET_MASTER_ADDR"), env.port("PET_MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class LeaderWorkerSet(Launcher):
    """A LeaderWorkerSet tells each pod its index; what runs in the pods, and on which port they meet, the user says.

    https://github.com/kubernetes-sigs/lws, 1b17603: pkg/utils/pod/pod_utils.go (AddLWSVariables).
    """

    name: str = "leaderworkerset"
    marks: tuple[str, ...] = ("LWS_WORKER_INDEX", "LWS_GROUP_SIZE")
    rank: str = "LWS_WORKER_INDEX"
    world_size: str = "LWS_GROUP_SIZE"
    local_rank: str | None = "LOCAL_RANK"
    local_size: str | None = "LOCAL_WORLD_SIZE"
    host_index: str | None = "LWS_WORKER_INDEX"
    host_count: str | None = "LWS_GROUP_SIZE"
    counts: str = "pods"

    def numbers(self, env: Variables) -> Facts:
        missing = env.missing(("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LWS_LEADER_ADDRESS", "MASTER_PORT"))
        if missing:
            raise LaunchError(
                f"a LeaderWorkerSet started this pod ({env.shown(*self.marks)}), which says nothing of the processes "
                f"in it: {', '.join(missing)} not set. Start them with torchrun --nnodes=$LWS_GROUP_SIZE "
                "--node-rank=$LWS_WORKER_INDEX --master-addr=$LWS_LEADER_ADDRESS --master-port=... "
                "--nproc-per-node=...; or set LOCAL_RANK, LOCAL_WORLD_SIZE (0 and 1 for one process a pod) and "
                "MASTER_PORT"
            )
        facts = super().numbers(env)
        local_rank, local_size = env.number("LOCAL_RANK"), env.number("LOCAL_WORLD_SIZE")
        facts["rank"] = facts["rank"] * local_size + local_rank
        facts["world_size"] *= local_size
        return facts

    def meeting_place(self, env: Variables) -> tuple[str | None, int | None]:
        return env.address("LWS_LEADER_ADDRESS"), env.port("MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Incomplete(Launcher):
    """A launcher that tells too little to go on with; the error says what to add.

    PMIx: https://docs.openpmix.org (PMIX_RANK, no size). Indexed Job, JobSet:
    https://kubernetes.io/docs/tasks/job/indexed-parallel-processing-static (JOB_COMPLETION_INDEX, no count).
    """

    rank: str = ""
    world_size: str = ""
    says: str
    advice: str = ""

    def facts(self, env: Variables) -> NoReturn:
        raise LaunchError(
            f"{self.says} ({env.shown(*self.marks)}): {self.advice}set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, "
            "or use GroupManager.connect('tcp://host:port', topology, rank=...)"
        )
