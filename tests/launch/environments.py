"""Environments of launchers, and what is to be read from them.

Seen: set by torch 2.13's torchrun, Open MPI 4.1.4, MPICH 4.0.2 and SLURM 22.05.8, cut to what could matter. The others
are those of their sources, which `parallel_topology.launch.table` names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


class Case(NamedTuple):
    name: str
    env: dict[str, str]
    facts: dict[str, Any]


def facts(**facts: Any) -> dict[str, Any]:
    return facts


TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_NAME": "default",
    "ROLE_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "40815",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}
TWO = MEETING | {"RANK": "1", "WORLD_SIZE": "2"}
BARE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
# Rank 2 of `srun -N2 --ntasks=3`; the job's and the step's variables are equal here, and differ in SUBSTEP.
SLURM = {
    "SLURMD_NODENAME": "n2",
    "SLURM_CPUS_ON_NODE": "1",
    "SLURM_GTIDS": "2",
    "SLURM_JOBID": "1",
    "SLURM_JOB_CPUS_PER_NODE": "2,1",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "sh",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_NPROCS": "3",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_SRUN_COMM_PORT": "35877",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_LAUNCHER_PORT": "35877",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_TASK_PID": "9300",
    "SLURM_TOPOLOGY_ADDR": "n2",
}
# Rank 1 of `srun -N1 -n2` in a job of 2 nodes and 3 tasks: SLURM_NODELIST stays the job's.
SUBSTEP = SLURM | {
    "SLURM_JOB_ID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
# Rank 2 of `salloc -N1 -n1 : -N1 -n2 srun --het-group=0,1`: the step's variables are those of the whole of it.
HETEROGENEOUS = SLURM | {
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_ID_HET_GROUP_1": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1,2",
}
# The script of sbatch itself: not a task, though it has SLURM_PROCID.
BATCH = {
    "SLURM_GTIDS": "0",
    "SLURM_JOB_ID": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2,1",
}
# The task of `srun --pty sh`.
SLURM_ONE = SLURM | {
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
OPENMPI = {
    "OMPI_APP_CTX_NUM_PROCS": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_FIRST_RANKS": "0",
    "OMPI_MCA_orte_hnp_uri": "1901658112.0;tcp://192.0.2.2:49109",
    "OMPI_MCA_orte_num_nodes": "1",
    "OMPI_UNIVERSE_SIZE": "2",
    "PMIX_NAMESPACE": "1901658113",
    "PMIX_RANK": "1",
}
MPICH = {"PMI_FD": "8", "PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
# Rank 1 of `salloc -N2 -n3 mpirun -np 3`: the daemon that srun started on this host is task 0 of 2.
OPENMPI_IN_SLURM = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "3",
    "PMIX_RANK": "1",
    "SLURM_JOB_ID": "5",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
}
MPICH_IN_SLURM = MPICH | {"PMI_SIZE": "3", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
PMI2 = {"PMI_FD": "10", "PMI_JOBID": "3.0", "PMI_RANK": "2", "PMI_SIZE": "3", "SLURM_MPI_TYPE": "pmi2"}
# Rank 3 of `flux run -N2 -n4`: its shell speaks PMI-1 to MPI libraries.
FLUX = {
    "FLUX_JOB_ID": "42",
    "FLUX_JOB_NNODES": "2",
    "FLUX_JOB_SIZE": "4",
    "FLUX_TASK_LOCAL_ID": "1",
    "FLUX_TASK_RANK": "3",
    "PMI_FD": "8",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
}
HOROVOD = {
    "HOROVOD_CROSS_RANK": "1",
    "HOROVOD_CROSS_SIZE": "2",
    "HOROVOD_HOSTNAME": "n2",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_RANK": "3",
    "HOROVOD_SIZE": "4",
}
SKYPILOT = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NUM_NODES": "2",
}
SAGEMAKER = {"SM_CURRENT_HOST": "algo-2", "SM_HOSTS": '["algo-1","algo-2"]', "SM_NUM_GPUS": "8"}
PALS = {
    "PALS_APID": "a1",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "2",
    "PALS_NODEID": "1",
    "PALS_RANKID": "3",
    "PALS_SPOOL_DIR": "/var/run/palsd/a1",
    "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "2",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
}
MVAPICH = {
    "MV2_COMM_WORLD_LOCAL_RANK": "0",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
    "MV2_COMM_WORLD_RANK": "2",
    "MV2_COMM_WORLD_SIZE": "4",
    "PMI_ID": "2",
}
JSRUN = {
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_RANK": "1",
    "JSM_NAMESPACE_SIZE": "2",
    "LSB_DJOB_RANKFILE": "/home/me/.lsbatch/1.rankfile",
    "LSB_JOBID": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_RANK": "1",
}
DEEPSPEED = MEETING | {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}
RAY = MEETING | {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "NODE_RANK": "1",
    "ACCELERATE_TORCH_DEVICE": "cuda:0",
}
LIGHTNING = MEETING | {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "NODE_RANK": "0"}
KUBEFLOW = {
    "PET_NNODES": "4",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "3",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "3",
}
PYTORCHJOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
LWS = {"LWS_LEADER_ADDRESS": "lws-0.lws.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
LWS_COMPLETE = LWS | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}

CASES = [
    Case(
        "torchrun",
        TORCHRUN,
        facts(
            rank=3, world_size=4, local_rank=1, local_size=2, host_index=1, host_count=2,
            address="127.0.0.1", port=40815, store_is_hosted=True, restart=1,
        ),
    ),
    Case("torchrun", TORCHRUN | {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, facts(rank=3, port=40815)),
    Case("torchrun", TORCHRUN | OPENMPI, facts(rank=3)),
    Case("env", BARE, facts(rank=0, world_size=1, address="::1", port=1, restart=0, store_is_hosted=False)),
    Case("env", TWO | SLURM_ONE, facts(rank=1, world_size=2, local_rank=None, host_index=None)),
    Case(
        "env",
        MEETING | {"RANK": "02", "WORLD_SIZE": "3"} | SLURM,
        facts(rank=2, world_size=3, local_rank=0, local_size=1, host_index=1, host_count=2, port=29400),
    ),
    Case(
        "env",
        MEETING | {"RANK": "17", "WORLD_SIZE": "24", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"} | SLURM,
        facts(rank=17, world_size=24, local_rank=1, local_size=8, host_index=None),
    ),
    Case("env", TWO | OPENMPI, facts(rank=1, world_size=2, local_rank=1, local_size=2, port=29400)),
    Case("openmpi", OPENMPI | LIGHTNING | {"WORLD_SIZE": "2", "NODE_RANK": "1"}, facts(local_rank=1, host_index=None)),
    Case("env", TWO | {"LOCAL_RANK": "1"} | OPENMPI, facts(local_rank=1, local_size=2)),
    Case("env", TWO | JSRUN, facts(rank=1, local_rank=0, local_size=None)),
    Case("env", TWO | {"LOCAL_RANK": "0", "PET_NPROC_PER_NODE": "8", "PET_NODE_RANK": "7"}, facts(local_rank=0)),
    Case("env", PYTORCHJOB | {"PET_NPROC_PER_NODE": "1"}, facts(rank=1, world_size=2)),
    Case("env", TWO | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, facts(store_is_hosted=False)),
    Case("env", TWO | PALS | {"PALS_RANKID": "1", "PMI_SIZE": "2"}, facts(local_rank=1, local_size=2, host_index=1)),
    Case(
        "env",  # one process on each host: the two agree, and are not one inside the other
        TWO | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PALS_RANKID": "1", "PMI_SIZE": "2", "PALS_NODEID": "1"},
        facts(local_rank=0, local_size=1, host_index=1),
    ),
    Case("env", TWO | {"PMIX_RANK": "1", "JOB_COMPLETION_INDEX": "0"} | LWS, facts(rank=1, host_index=None)),
    Case("ray", RAY | SLURM | PALS | {"PALS_RANKID": "2", "PMI_SIZE": "3"}, facts(rank=3, host_index=1)),
    Case("ray", RAY | OPENMPI, facts(rank=3, world_size=4, host_count=None)),
    Case("deepspeed", DEEPSPEED | SLURM, facts(rank=3, world_size=4, host_count=2)),
    Case("lightning", LIGHTNING | {"LOCAL_WORLD_SIZE": "2"}, facts(rank=1, local_size=2, host_index=0)),
    Case("lightning", LIGHTNING | SLURM_ONE, facts(rank=1, world_size=4, host_count=None)),
    Case("lightning", LIGHTNING | SLURM_ONE | KUBEFLOW, facts(rank=1, world_size=4, host_count=None)),
    Case("lightning", LIGHTNING | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, facts(rank=1)),
    Case(
        "torchrun",
        TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCHELASTIC_RESTART_COUNT": "0"},
        facts(store_is_hosted=False, restart=0),
    ),
    Case("torchrun", TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "1"}, facts(store_is_hosted=False)),
    Case("torchrun", TORCHRUN | SLURM, facts(rank=3, host_count=2)),
    Case("torchrun", TORCHRUN | PALS | KUBEFLOW | LWS, facts(rank=3)),
    Case("slurm", SLURM_ONE | {"PMIX_RANK": "0"}, facts(rank=0, world_size=1, port=20001)),
    Case("slurm", SLURM | KUBEFLOW, facts(rank=2, host_index=1)),
    Case("openmpi", OPENMPI_IN_SLURM | PALS | {"PMIX_RANK": "0"}, facts(rank=1, world_size=3, host_index=None)),
    Case("openmpi", OPENMPI | {"OMPI_COMM_WORLD_SIZE": "9" * 18}, facts(world_size=10**18 - 1)),
    Case("env", PYTORCHJOB, facts(rank=1, world_size=2, address="job-master-0", port=23456)),
    Case(
        "slurm",
        SLURM,
        facts(
            rank=2, world_size=3, local_rank=0, local_size=1, host_index=1, host_count=2, address="n1", port=20001
        ),
    ),
    Case(
        "slurm",
        SUBSTEP,
        facts(
            rank=1, world_size=2, local_rank=1, local_size=2, host_index=0, host_count=1, address="n1", port=21011
        ),
    ),
    Case(
        "slurm",
        HETEROGENEOUS,
        facts(rank=2, world_size=3, local_rank=1, local_size=2, host_index=1, host_count=2, address="n1", port=20007),
    ),
    Case("slurm", SLURM | {"MASTER_PORT": "65535"}, facts(address="n1", port=65535)),
    Case("slurm", SLURM | {"MASTER_PORT": "5"}, facts(address="n1", port=5)),
    Case("slurm", SLURM | {"MASTER_ADDR": "10.0.0.1"}, facts(address="10.0.0.1", port=20001)),
    Case("slurm", SLURM | PMI2, facts(rank=2, address="n1")),
    Case("slurm", SLURM | PALS | {"PALS_RANKID": "2", "PMI_SIZE": "3"}, facts(rank=2, address="n1")),
    Case(
        "slurm",
        SUBSTEP | {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "4294967290"},
        facts(address="localhost", port=26299),
    ),
    Case("openmpi", OPENMPI, facts(rank=1, world_size=2, local_rank=1, local_size=2)),
    Case("openmpi", OPENMPI | MEETING, facts(rank=1, address="127.0.0.1", port=29400)),
    Case("openmpi", OPENMPI_IN_SLURM, facts(rank=1, world_size=3, local_rank=1, local_size=2)),
    Case("hydra", MPICH, facts(rank=1, world_size=2, local_rank=1, local_size=2)),
    Case("hydra", MPICH_IN_SLURM | MEETING, facts(rank=1, world_size=3, port=29400, address="127.0.0.1")),
    Case("env", MPICH | PYTORCHJOB, facts(rank=1, world_size=2, port=23456)),
    Case("flux", FLUX, facts(rank=3, world_size=4, local_rank=1, local_size=None, host_index=None, host_count=2)),
    Case("flux", FLUX | SLURM | {"SLURM_PROCID": "0"}, facts(rank=3, world_size=4)),  # srun started the brokers
    Case("flux", FLUX | MEETING, facts(rank=3, address="127.0.0.1", port=29400)),
    Case("flux", FLUX | PALS, facts(rank=3, local_rank=1, local_size=2, host_index=1)),
    Case("horovod", HOROVOD, facts(rank=3, world_size=4, local_rank=1, local_size=2, host_index=None)),
    Case("horovod", HOROVOD | MEETING | SKYPILOT, facts(rank=3, port=29400)),
    Case("torchrun", TORCHRUN | SKYPILOT | SAGEMAKER, facts(rank=3, world_size=4)),
    Case("env", TWO | SAGEMAKER, facts(rank=1, world_size=2)),
    Case("mvapich", MVAPICH, facts(rank=2, world_size=4, local_rank=0, local_size=2)),
    Case("jsrun", JSRUN, facts(rank=1, world_size=2, local_rank=0)),
    Case("pals", PALS, facts(rank=3, world_size=4, local_rank=1, local_size=2, host_index=1)),
    Case(
        "deepspeed",
        DEEPSPEED,
        facts(rank=3, world_size=4, local_rank=1, local_size=2, host_index=1, host_count=2, port=29400),
    ),
    Case("ray", RAY, facts(rank=3, world_size=4, local_rank=1, local_size=2, host_index=1, port=29400)),
    Case("lightning", LIGHTNING, facts(rank=1, world_size=4, local_rank=1, local_size=None, host_index=0, port=29400)),
    Case(
        "lightning",
        LIGHTNING | {"NODE_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        facts(rank=3, world_size=4, local_rank=1, local_size=2, host_index=1),
    ),
    Case(
        "kubeflow",
        KUBEFLOW,
        facts(
            rank=3, world_size=4, local_rank=0, local_size=1, host_index=3, host_count=4,
            address="job-node-0-0.job", port=29500,
        ),
    ),
    Case(
        "leaderworkerset",
        LWS_COMPLETE,
        facts(
            rank=3, world_size=4, local_rank=1, local_size=2, host_index=1, host_count=2,
            address="lws-0.lws.default", port=29500,
        ),
    ),
]  # fmt: skip
