"""The launchers, in the order in which they are looked for."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_topology.errors import LaunchError
from parallel_topology.launch.launcher import Facts, Launcher
from parallel_topology.launch.pods import Incomplete, KubeflowTrainer, LeaderWorkerSet, Lightning
from parallel_topology.launch.slurm import Slurm
from parallel_topology.launch.variables import Variables


@dataclass(frozen=True, kw_only=True)
class Torchrun(Launcher):
    """Its agents may host the store, and restart the workers.

    https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables; torch 2.13:
    torch/distributed/elastic/agent/server/local_elastic_agent.py (_start_workers).
    """

    def facts(self, env: Variables) -> Facts:
        # All that an agent sets: fewer were left behind by a torchrun that did not start this process.
        agents = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        self.require(env, "RANK", "WORLD_SIZE", *agents)
        facts = super().facts(env)
        facts["store_is_hosted"] = env.says("TORCHELASTIC_USE_AGENT_STORE", "True")
        facts["restart"] = env.apart().number_if_set("TORCHELASTIC_RESTART_COUNT") or 0
        if facts["restart"]:
            env.note(["TORCHELASTIC_RESTART_COUNT"])
        return facts


@dataclass(frozen=True, kw_only=True)
class Bare(Launcher):
    """The variables of torch's `env://`, set by hand, by a PyTorchJob v1, or by any program that knows no other.

    https://docs.pytorch.org/docs/stable/distributed.html#environment-variable-initialization
    """

    def numbers(self, env: Variables) -> Facts:
        # A PyTorchJob v1 counts pods in RANK: https://github.com/kubeflow/training-operator, 1417bbc:
        # pkg/controller.v1/pytorch/envvar.go.
        pods = "PET_NPROC_PER_NODE" in env and "LOCAL_RANK" not in env
        if pods and not env.apart().says("PET_NPROC_PER_NODE", "1"):
            raise LaunchError(
                f"{env.shown('PET_NPROC_PER_NODE')} asks for several processes in this pod, and RANK counts pods: "
                "start the program with torchrun"
            )
        return super().numbers(env)


TORCHRUN = Torchrun(
    name="torchrun",
    marks=("TORCHELASTIC_RUN_ID",),
    rank="RANK",
    world_size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_size="LOCAL_WORLD_SIZE",
    host_index="GROUP_RANK",
    host_count="GROUP_WORLD_SIZE",
    gives_address=True,
)

# RANK and WORLD_SIZE by themselves: the first that fits names itself, all read the same.
TORCH_NAMES: tuple[Launcher, ...] = (
    Launcher(  # https://github.com/deepspeedai/DeepSpeed, 048b0d5: deepspeed/launcher/launch.py
        name="deepspeed",
        marks=("RANK", "CROSS_RANK", "CROSS_SIZE"),
        rank="RANK",
        world_size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_SIZE",
        host_index="CROSS_RANK",
        host_count="CROSS_SIZE",
        gives_address=True,
    ),
    Launcher(  # https://github.com/ray-project/ray, 014c1dc: python/ray/train/torch/config.py
        name="ray",
        marks=("RANK", "NODE_RANK", "ACCELERATE_TORCH_DEVICE"),
        rank="RANK",
        world_size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
        host_index="NODE_RANK",
        gives_address=True,
    ),
    Bare(
        name="env",
        marks=("RANK",),
        rank="RANK",
        world_size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
        gives_address=True,
    ),
)

# Flux and Horovod start processes as an MPI does, from daemons or over ssh.
MPI: tuple[Launcher, ...] = (
    Launcher(  # https://lightning.ai/docs/pytorch/stable/api/pytorch_lightning.plugins.environments.LSFEnvironment.html
        name="jsrun",
        marks=("JSM_NAMESPACE_RANK",),
        rank="JSM_NAMESPACE_RANK",
        world_size="JSM_NAMESPACE_SIZE",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        local_size="JSM_NAMESPACE_LOCAL_SIZE",
    ),
    Launcher(  # https://mvapich.cse.ohio-state.edu/userguide (src/pm/mpirun/mpispawn.c: MV2_COMM_WORLD_*)
        name="mvapich",
        marks=("MV2_COMM_WORLD_RANK",),
        rank="MV2_COMM_WORLD_RANK",
        world_size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher(  # https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html; seen in 4.1.4
        # Its _NODE_RANK is no host's index: it counts processes on the host, over all jobs.
        name="openmpi",
        marks=("OMPI_COMM_WORLD_RANK",),
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher(  # https://github.com/horovod/horovod, 0ad076e: horovod/runner/gloo_run.py (create_slot_env_vars).
        # Over MPI (horovodrun --mpi) it sets none of them: then the MPI's count.
        name="horovod",
        marks=("HOROVOD_RANK", "HOROVOD_SIZE"),
        rank="HOROVOD_RANK",
        world_size="HOROVOD_SIZE",
        local_rank="HOROVOD_LOCAL_RANK",
        local_size="HOROVOD_LOCAL_SIZE",
    ),
    Launcher(  # https://github.com/flux-framework/flux-core, 07f9fbd: src/shell/task.c, and the tests of its shell.
        # It sets PMI_RANK and PMI_SIZE too; how many tasks a host has it does not say, for hosts may differ.
        name="flux",
        marks=("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
        rank="FLUX_TASK_RANK",
        world_size="FLUX_JOB_SIZE",
        local_rank="FLUX_TASK_LOCAL_ID",
        host_count="FLUX_JOB_NNODES",
    ),
    Launcher(  # MPICH, Intel MPI: https://github.com/pmodels/mpich, src/pm/hydra; seen in MPICH 4.0.2.
        # PMI_RANK alone is no mark: srun --mpi=pmi2 sets it too.
        name="hydra",
        marks=("PMI_RANK", "MPI_LOCALRANKID"),
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
    ),
)

SLURM = Slurm()
PALS = Launcher(  # https://github.com/flux-framework/flux-coral2, src/shell/plugins/cray_pals.c, which imitates it
    name="pals",
    marks=("PALS_RANKID",),
    rank="PALS_RANKID",
    world_size="PMI_SIZE",
    local_rank="PALS_LOCAL_RANKID",
    local_size="PALS_LOCAL_SIZE",
    host_index="PALS_NODEID",
)
LIGHTNING = Lightning()
PMIX = Incomplete(
    name="pmix",
    marks=("PMIX_RANK",),
    rank="PMIX_RANK",
    says="a PMIx launcher tells the rank, but not how many there are",
)

# In this order: mpirun within a job of SLURM starts its daemons by srun, whose variables (of the daemon, not of the
# rank) leak into the ranks; SLURM's cray_shasta plugin sets PALS_*; a JobSet's pods have JOB_COMPLETION_INDEX whatever
# else started them.
OTHERS: tuple[Launcher, ...] = (
    SLURM,
    PALS,
    LIGHTNING,
    KubeflowTrainer(),
    LeaderWorkerSet(),
    PMIX,
    Incomplete(  # https://docs.skypilot.co/en/stable/running-jobs/distributed-jobs.html: one command a node
        name="skypilot",
        marks=("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
        counts="hosts",
        says="SkyPilot tells which node this is and starts one command on each, not a process a GPU",
        advice=(
            "start the program with torchrun --nnodes=$SKYPILOT_NUM_NODES --node-rank=$SKYPILOT_NODE_RANK "
            '--master-addr=$(echo "$SKYPILOT_NODE_IPS" | head -n1) --nproc-per-node=$SKYPILOT_NUM_GPUS_PER_NODE; or '
        ),
    ),
    Incomplete(  # https://github.com/aws/sagemaker-training-toolkit, ENVIRONMENT_VARIABLES.md
        name="sagemaker",
        marks=("SM_HOSTS", "SM_CURRENT_HOST"),
        counts="hosts",
        says="SageMaker tells which host this is and starts one command on each, not a process a GPU",
        advice="start the program with torchrun, as the estimator's distribution torch_distributed does; or ",
    ),
    Incomplete(
        name="indexed-job",
        marks=("JOB_COMPLETION_INDEX",),
        counts="pods",
        says="an Indexed Job or JobSet tells which pod this is, but neither how many there are nor where they meet",
        advice="start the program with torchrun --node-rank=$JOB_COMPLETION_INDEX --nnodes=... --master-addr=...; or ",
    ),
)

LAUNCHERS: tuple[Launcher, ...] = (TORCHRUN, *TORCH_NAMES, *MPI, *OTHERS)
