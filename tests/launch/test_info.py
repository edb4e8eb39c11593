"""What is read from every launcher's variables, and what is refused."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import LaunchError, LaunchInfo
from tests.launch.environments import (
    BARE,
    BATCH,
    CASES,
    DEEPSPEED,
    JSRUN,
    KUBEFLOW,
    LIGHTNING,
    LWS,
    LWS_COMPLETE,
    MEETING,
    MPICH,
    MVAPICH,
    OPENMPI,
    PALS,
    PYTORCHJOB,
    SLURM,
    SUBSTEP,
    TORCHRUN,
    Case,
)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
class TestEveryLauncher:
    def test_what_is_read(self, case: Case):
        info = LaunchInfo.from_env(case.env)
        assert info.launcher == case.name
        assert {fact: getattr(info, fact) for fact in case.facts} == case.facts

    def test_the_environment_stays_as_it_is(self, case: Case):
        env = dict(case.env)
        LaunchInfo.from_env(env)
        assert env == case.env

    def test_the_variables_that_decided_say_all(self, case: Case):
        info = LaunchInfo.from_env(case.env)
        assert info.variables.items() <= case.env.items()
        assert LaunchInfo.from_env(info.variables) == info

    def test_each_variable_that_decided_is_needed(self, case: Case):
        """Without it the answer is another one, or none."""
        info = LaunchInfo.from_env(case.env)
        for name in info.variables:
            rest = {other: value for other, value in info.variables.items() if other != name}
            try:
                without = LaunchInfo.from_env(rest)
            except LaunchError:
                continue
            assert without != info, name

    def test_it_is_a_value(self, case: Case):
        info = LaunchInfo.from_env(case.env)
        assert pickle.loads(pickle.dumps(info)) == info
        assert hash(info) == hash(LaunchInfo.from_env(case.env))
        with pytest.raises(AttributeError):
            info.rank = 0  # pyright: ignore[reportAttributeAccessIssue]


@given(case=st.sampled_from(CASES), others=st.dictionaries(st.from_regex(r"X_[A-Z]{1,8}", fullmatch=True), st.text()))
def test_variables_that_are_not_read_do_not_matter(case: Case, others: dict[str, str]):
    assert LaunchInfo.from_env(others | case.env) == LaunchInfo.from_env(case.env)


@given(job=st.integers(0, 2**40), step=st.integers(0, 2**30))
def test_slurms_port_is_equal_on_all_ranks_and_differs_for_the_next_job_and_step(job: int, step: int):
    def port(job: int, step: int, **others: str) -> int | None:
        return LaunchInfo.from_env(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} | others).port

    here = port(job, step)
    assert here is not None
    assert 20_000 <= here < 29_000
    assert here == port(job, step, SLURM_PROCID="0", SLURM_NODEID="0", SLURM_LOCALID="0")
    assert len({here, port(job + 1, step), port(job, step + 1), port(job + 1, step + 1)}) == 4


ELSEWHERE = "GroupManager.connect('tcp://host:port', topology, rank=...)"
REFUSED: list[tuple[dict[str, str], dict[str, str | None], str]] = [
    # incomplete
    (TORCHRUN, {"RANK": None}, "torchrun started this process (TORCHELASTIC_RUN_ID='job'), but RANK is not set: "),
    (BARE, {"WORLD_SIZE": None, "MASTER_PORT": None}, "env started this process (RANK='0'), but WORLD_SIZE, MASTER_P"),
    (OPENMPI, {"OMPI_COMM_WORLD_SIZE": None}, "openmpi started this process (OMPI_COMM_WORLD_RANK='1'), but OMPI_CO"),
    (MPICH, {"PMI_SIZE": None}, "hydra started this process (PMI_RANK='1', MPI_LOCALRANKID='1'), but PMI_SIZE is "),
    (PALS, {"PMI_SIZE": None}, "pals started this process (PALS_RANKID='3'), but PMI_SIZE is not set"),
    (SLURM, {"SLURM_STEP_NODELIST": None}, "slurm started this process (SLURM_PROCID='2', SLURM_STEP_ID='0'), but SL"),
    (SLURM, {"SLURM_JOB_ID": None}, "slurm started this process (SLURM_PROCID='2', SLURM_STEP_ID='0'), but SLURM_JOB"),
    (MPICH, {"MASTER_ADDR": "h"}, "MASTER_ADDR='h' is set, but not MASTER_PORT: set both, or use GroupManager.connec"),
    (MPICH, {"MASTER_PORT": "1"}, "MASTER_PORT='1' is set, but not MASTER_ADDR: set both"),
    (LIGHTNING, {"NODE_RANK": "1"}, "lightning started a process on host 1 (NODE_RANK='1', LOCAL_RANK='1'), but does"),
    (LWS, {}, "a LeaderWorkerSet started this pod (LWS_WORKER_INDEX='1', LWS_GROUP_SIZE='2'), which says nothing of "),
    (LWS_COMPLETE, {"MASTER_PORT": None}, "a LeaderWorkerSet started this pod"),
    ({"JOB_COMPLETION_INDEX": "2"}, {}, "an Indexed Job or JobSet tells which pod this is, but neither how many"),
    ({"PMIX_RANK": "2"}, {}, "a PMIx launcher tells the rank, but not how many there are (PMIX_RANK='2'): set RANK, W"),
    (KUBEFLOW, {"PET_NPROC_PER_NODE": "8"}, "PET_NNODES='4', PET_NPROC_PER_NODE='8' are options for torchrun, but "),
    (KUBEFLOW, {"PET_NPROC_PER_NODE": "auto"}, "PET_NNODES='4', PET_NPROC_PER_NODE='auto' are options for torchrun"),
    (KUBEFLOW, {"PET_NNODES": "1:4"}, "PET_NNODES='1:4', PET_NPROC_PER_NODE='1' are options for torchrun"),
    (PYTORCHJOB, {"PET_NPROC_PER_NODE": "8"}, "PET_NPROC_PER_NODE='8' asks for several processes in this pod"),
    # malformed
    (TORCHRUN, {"RANK": "x"}, "RANK='x': expected a whole number"),
    (TORCHRUN, {"RANK": "-1"}, "RANK='-1': expected a whole number"),
    (TORCHRUN, {"RANK": ""}, "RANK='': expected a whole number"),
    (TORCHRUN, {"RANK": "٣"}, "RANK='٣': expected a whole number"),
    (TORCHRUN, {"MASTER_PORT": "0"}, "MASTER_PORT=0: expected a port, 1..65535"),
    (TORCHRUN, {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: expected a port, 1..65535"),
    (TORCHRUN, {"MASTER_ADDR": " "}, "MASTER_ADDR=' ': expected a text, not nothing"),
    (SLURM, {"SLURM_STEP_NODELIST": "n[2-1]"}, "the list of hosts 'n[2-1]': cannot read '2-1'"),
    (SLURM, {"SLURM_STEP_TASKS_PER_NODE": "2(3)"}, "the tasks per node '2(3)': cannot read '2(3)'; expected counts"),
    # contradictions within one launcher
    (TORCHRUN, {"RANK": "4"}, "RANK=4 is outside WORLD_SIZE=4: expected 0..3"),
    (TORCHRUN, {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is outside LOCAL_WORLD_SIZE=2: expected 0..1"),
    (TORCHRUN, {"GROUP_RANK": "2"}, "GROUP_RANK=2 is outside GROUP_WORLD_SIZE=2: expected 0..1"),
    (TORCHRUN, {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5 is more than WORLD_SIZE=4: "),
    (TORCHRUN, {"RANK": "0"}, "LOCAL_RANK=1 is more than RANK=0: "),
    (DEEPSPEED, {"CROSS_SIZE": "5"}, "CROSS_SIZE=5 is more than WORLD_SIZE=4: "),
    (LWS_COMPLETE, {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is outside LOCAL_WORLD_SIZE=2: expected 0..1"),
    (LWS_COMPLETE, {"LWS_WORKER_INDEX": "2"}, "LWS_WORKER_INDEX=2 is outside LWS_GROUP_SIZE=2: expected 0..1"),
    (SLURM, {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS='4' contradicts SLURM_STEP_TASKS_PER_NODE='2,1': 3"),
    (SLURM, {"SLURM_STEP_NUM_NODES": "3"}, "SLURM_STEP_NUM_NODES='3' contradicts SLURM_STEP_TASKS_PER_NODE='2,1': 2"),
    (SLURM, {"SLURM_STEP_NODELIST": "n[1-3]"}, "SLURM_STEP_NUM_NODES='2' contradicts SLURM_STEP_NODELIST='n[1-3]'"),
    (SLURM, {"SLURM_LOCALID": "1"}, "SLURM_LOCALID=1 is outside SLURM_STEP_TASKS_PER_NODE=2,1: expected 0..0"),
    (SLURM, {"SLURM_NODEID": "2"}, "SLURM_NODEID=2 is outside SLURM_STEP_NUM_NODES=2: expected 0..1"),
    # contradictions between launchers
    (OPENMPI | MPICH, {"PMI_RANK": "0"}, "openmpi and hydra contradict each other: OMPI_COMM_WORLD_RANK='1', PMI_RANK"),
    (MVAPICH | OPENMPI, {}, "mvapich and openmpi contradict each other: MV2_COMM_WORLD_RANK='2', OMPI_COMM_WORLD_RAN"),
    (JSRUN, {"OMPI_COMM_WORLD_SIZE": "4"}, "jsrun and openmpi contradict each other: JSM_NAMESPACE_SIZE='2', OMPI_CO"),
    (PYTORCHJOB | MPICH, {"RANK": "0"}, "env and hydra contradict each other: RANK='0', PMI_RANK='1'; unset the var"),
]


@pytest.mark.parametrize(("env", "changes", "message"), REFUSED)
def test_refused(env: dict[str, str], changes: dict[str, str | None], message: str):
    changed = {name: value for name, value in {**env, **changes}.items() if value is not None}
    with pytest.raises(LaunchError) as caught:
        LaunchInfo.from_env(changed)
    assert str(caught.value).startswith(message)


class TestNoLauncher:
    def message(self, env: dict[str, Any]) -> str:
        with pytest.raises(LaunchError, match=r"^no launcher was found\. ") as caught:
            LaunchInfo.from_env(env)
        return str(caught.value)

    def test_it_names_what_was_looked_for_and_three_ways_on(self):
        message = self.message({"PATH": "/bin"})
        for name in {case.name for case in CASES}:
            assert f" {name} (" in message
        assert re.search(
            r"torchrun, or .*GroupManager\.connect\(.* or .*GroupManager\(topology, rank=\.\.\., sto", message
        )

    def test_half_of_a_launchers_variables(self):
        assert "Of env there is WORLD_SIZE='2', but not RANK. " in self.message({"WORLD_SIZE": "2", **MEETING})
        half = {"OMPI_COMM_WORLD_SIZE": "2"}
        assert "Of openmpi there is OMPI_COMM_WORLD_SIZE='2', but not OMPI_COMM_WORLD_RANK. " in self.message(half)

    def test_the_script_of_sbatch_is_not_a_task(self):
        assert "This is inside SLURM's job 2, but not a task of srun: use srun. " in self.message(BATCH)

    def test_a_shell_of_salloc_is_not_a_task(self):
        interactive = SUBSTEP | {"SLURM_STEP_ID": "4294967290"}
        assert "This is inside SLURM's job 2, but not a task of srun: use srun. " in self.message(interactive)


class TestMeetingPlace:
    def test_what_the_user_sets(self):
        assert LaunchInfo.from_env(OPENMPI | MEETING).meeting_place() == ("127.0.0.1", 29400)

    def test_without_it(self):
        message = "openmpi started rank 1 of 2, but does not say where the ranks meet: set MASTER_ADDR (rank 0's host)"
        with pytest.raises(LaunchError, match=re.escape(message)):
            LaunchInfo.from_env(OPENMPI).meeting_place()
