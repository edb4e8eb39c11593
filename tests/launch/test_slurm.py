"""Under SLURM: a cluster of two nodes, both this machine, that lives as long as these tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parallel_topology.launch.hostlist import expand_hosts
from tests.launch.launching import REPORT, launch, needs, reports
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket
CredType=cred/munge
StateSaveLocation={here}/state
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd-%n.pid
SlurmdSpoolDir={here}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
LaunchParameters=use_interactive_step
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PartitionName=all Nodes=ALL Default=YES MaxTime=10 State=UP
"""


@contextmanager
def cluster(here: Path, *nodes: str) -> Generator[dict[str, str], None, None]:
    """The variables with which srun finds a cluster of these nodes, all on this machine."""
    _, munged, slurmctld, slurmd = needs("srun", "munged", "slurmctld", "slurmd")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons have to be started by root")
    (here / "state").mkdir()
    (here / "key").write_bytes(os.urandom(1024))
    (here / "key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=4 RealMemory=1000"
        for node in nodes
    ]
    configuration = here / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, here=here, port=free_port()) + "\n".join(lines) + "\n")
    munge = [f"--{what}={here}/munge.{what.split('-')[0]}" for what in ("socket", "pid-file", "log-file", "seed-file")]
    env = {"SLURM_CONF": str(configuration)}
    daemons = [
        [munged, "--foreground", "--force", f"--key-file={here}/key", "--origin=127.0.0.1", *munge],
        [slurmctld, "-D", "-f", str(configuration)],
        *([slurmd, "-D", "-N", node, "-f", str(configuration)] for node in nodes),
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (here / "log").open("wb") as log:
            for daemon in daemons:
                started.append(subprocess.Popen(daemon, stdout=log, stderr=log, env=os.environ | env))
                if daemon[0] == munged:
                    _until((here / "munge.socket").exists, started, here / "log")
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        _until(lambda: _output(idle, env) == str(len(nodes)), started, here / "log")
        yield env
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait(30)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm"), "n1", "n2") as env:
        yield env


def _output(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | env, check=False
    ).stdout.strip()


def _until(condition: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            pytest.fail(f"a SLURM of our own did not come up: {log.read_text()[-2000:]}")
        time.sleep(0.1)  # a daemon says only when asked whether it is ready


def test_with_nothing_set_by_hand(tmp_path: Path):
    """The ranks meet on the first host, here the only one, and on the job's port."""
    with cluster(tmp_path, "localhost") as env:
        seen = reports(launch("srun", "-n2", *REPORT, "meet", **env))
    assert [(report["rank"], report["total"]) for report in seen] == [(0, 1), (1, 1)]
    job = int(seen[0]["variables"]["SLURM_JOB_ID"])
    assert {(report["address"], report["port"]) for report in seen} == {("localhost", 20_000 + job % 9000)}


def test_two_nodes(slurm: dict[str, str]):
    """One has two of the three tasks."""
    seen = reports(launch("srun", "-N2", "-n3", *REPORT, "meet", MASTER_ADDR="127.0.0.1", **slurm))
    for rank, report in enumerate(seen):
        assert (report["launcher"], report["rank"], report["world_size"]) == ("slurm", rank, 3)
        assert (report["local_rank"], report["local_size"]) == ([0, 1, 0][rank], [2, 2, 1][rank])
        assert (report["host_index"], report["host_count"]) == ([0, 0, 1][rank], 2)
        assert report["total"] == 3
    assert len(seen) == 3
    assert {report["address"] for report in reports(launch("srun", "-N2", "-n3", *REPORT, **slurm))} == {"n1"}


def test_steps_of_one_job_at_the_same_time_meet_apart(slurm: dict[str, str]):
    step = f"srun --exact -N1 -n2 {' '.join(REPORT)} meet"
    command = ["salloc", "-N1", "-n4", "sh", "-c", f"{step} & {step} & wait"]
    seen = reports(launch(*command, MASTER_ADDR="127.0.0.1", **slurm))
    assert [report["rank"] for report in seen] == [0, 0, 1, 1]
    assert {report["total"] for report in seen} == {1}
    assert len({report["port"] for report in seen}) == 2


def test_a_heterogeneous_step(slurm: dict[str, str]):
    command = ["salloc", "-N1", "-n1", ":", "-N1", "-n2", "srun", "--het-group=0,1"]
    seen = reports(launch(*command, *REPORT, **slurm))
    facts = [(report["rank"], report["world_size"], report["local_rank"], report["host_index"]) for report in seen]
    assert facts == [(0, 3, 0, 0), (1, 3, 0, 1), (2, 3, 1, 1)]
    assert len({(report["address"], report["port"]) for report in seen}) == 1


@pytest.mark.parametrize("plugin", ["none", "pmi2"])
def test_ranks_dealt_out_in_turn(slurm: dict[str, str], plugin: str):
    command = ["srun", "-N2", "--ntasks-per-node=2", "--distribution=cyclic", f"--mpi={plugin}"]
    seen = reports(launch(*command, *REPORT, **slurm))
    facts = [(report["launcher"], report["rank"], report["local_rank"], report["host_index"]) for report in seen]
    assert facts == [("slurm", 0, 0, 0), ("slurm", 1, 0, 1), ("slurm", 2, 1, 0), ("slurm", 3, 1, 1)]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("openmpi", ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", "3"]),
        ("hydra", ["mpiexec.hydra", "-np", "3"]),
    ],
    ids=["openmpi", "hydra"],
)
def test_mpi_within_a_job(slurm: dict[str, str], name: str, command: list[str]):
    """Its daemons are tasks of srun, and their variables leak into the ranks."""
    needs(command[0])
    seen = reports(launch("salloc", "-N2", "-n3", *command, *REPORT, **slurm))
    assert [(report["launcher"], report["rank"], report["world_size"]) for report in seen] == [
        (name, rank, 3) for rank in range(3)
    ]


def test_torchrun_within_a_job(slurm: dict[str, str]):
    options = "--nnodes=2 --nproc-per-node=2 --node-rank=$SLURM_NODEID --master-addr=127.0.0.1"
    agent = f"{sys.executable} -m torch.distributed.run {options} --master-port={free_port()} {REPORT[1]} meet"
    seen = reports(launch("srun", "-N2", "-n2", "sh", "-c", agent, **slurm))
    assert [(report["launcher"], report["rank"], report["host_index"]) for report in seen] == [
        ("torchrun", 0, 0), ("torchrun", 1, 0), ("torchrun", 2, 1), ("torchrun", 3, 1)
    ]  # fmt: skip
    assert {report["total"] for report in seen} == {6}


def test_without_srun_the_error_says_so(slurm: dict[str, str], tmp_path: Path):
    launch("sbatch", "--wait", "-N2", "-n3", f"--output={tmp_path}/out", f"--wrap={' '.join(REPORT)}", **slurm)
    (error,) = [json.loads(line)["error"] for line in (tmp_path / "out").read_text().splitlines()]
    assert "but not a task of srun: use srun. " in error
    (seen,) = reports(launch("salloc", "-N2", "-n3", *REPORT, **slurm))
    assert "but not a task of srun: use srun. " in seen["error"]


@pytest.mark.parametrize("text", ["localhost", "n[1-3,7]", "n[08-11]", "n[9-010]", "r[1-2]n[01-03,7]", "a,b[2,1],c1"])
def test_a_list_of_hosts_is_read_as_scontrol_does(slurm: dict[str, str], text: str):
    assert expand_hosts(text) == launch("scontrol", "show", "hostnames", text, **slurm).split()
