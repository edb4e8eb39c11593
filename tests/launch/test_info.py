"""What is read from every launcher's variables, and what is refused."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_topology import LaunchError, LaunchInfo
from tests.examples import examples
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
    OPENMPI_IN_SLURM,
    PALS,
    PMI2,
    PYTORCHJOB,
    RAY,
    SAGEMAKER,
    SKYPILOT,
    SLURM,
    SLURM_ONE,
    SUBSTEP,
    TORCHRUN,
    TWO,
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


LAUNCHERS_VARIABLES = sorted({name for case in CASES for name in case.env} | {"PMIX_RANK", "MPI_LOCALNRANKS"})
ODD_TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "0", "00", "1", "2", "3", "03", "4", "8", "-1", "+1", "1.0", "1_0", "0x1", "True", "False", "auto",
         "1:4", "²", "٣", "\x00", "a\x00b", "h h", "[::1]", "n[1-2]", "2,1", "2(x2)", "0,0", "4294967291", "9" * 18,
         "1" + "0" * 18, "9" * 5000, "n[1-" + "9" * 5000 + "]", "[" * 300]
    ),
    st.text(max_size=6),
)  # fmt: skip


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    """One launcher's variables, or several ones', with some dropped, some added and some changed to odd texts."""
    env: dict[str, str] = {}
    for case in draw(st.lists(st.sampled_from(CASES), max_size=3)):
        env |= case.env
    dropped = draw(st.sets(st.sampled_from(LAUNCHERS_VARIABLES), max_size=3))
    changed = draw(st.dictionaries(st.sampled_from(LAUNCHERS_VARIABLES), ODD_TEXTS, max_size=4))
    return {name: value for name, value in env.items() if name not in dropped} | changed


def said_of(env: dict[str, str]) -> LaunchInfo | str:
    try:
        return LaunchInfo.from_env(env)
    except LaunchError as error:
        return str(error)


ONE_OF_OPENMPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
THIRD_OF_FLUX = {"FLUX_JOB_ID": "42", "FLUX_JOB_NNODES": "2", "FLUX_JOB_SIZE": "4", "FLUX_TASK_RANK": "3"}
FIRST_HOST_OF_LIGHTNING = {
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "NODE_RANK": "0",
}


@settings(max_examples=examples(3))
@example(env=ONE_OF_OPENMPI | THIRD_OF_FLUX | FIRST_HOST_OF_LIGHTNING, others={})  # which contradict each other
@given(env=environments(), others=st.dictionaries(st.from_regex(r"X_[A-Z]{1,8}", fullmatch=True), st.text()))
def test_whatever_the_variables_hold_there_is_an_answer_or_an_error(env: dict[str, str], others: dict[str, str]):
    said = said_of(env)
    assert said_of(others | env) == said
    if isinstance(said, str):
        assert len(said) < 4000  # whatever the variables hold
        return
    assert 0 <= said.rank < said.world_size
    for index, size in ((said.local_rank, said.local_size), (said.host_index, said.host_count)):
        assert index is None or size is None or 0 <= index < size
    assert said.variables.items() <= env.items()
    assert said_of(dict(said.variables)) == said
    same = {"LOCAL_RANK", "FLUX_TASK_LOCAL_ID"} & said.variables.keys()
    if same and "MPI_LOCALRANKID" in said.variables:  # the mark of one says what the other does, too
        return
    for name in said.variables:
        assert said_of({other: value for other, value in said.variables.items() if other != name}) != said, name


@settings(max_examples=examples(2))
@given(
    rank=st.integers(0, 3),
    size=st.integers(1, 4),
    launchers=st.lists(st.sampled_from(["RANK", "JSM", "OMPI", "SLURM", "PALS"]), min_size=2, max_size=4, unique=True),
    differs=st.integers(0, 3),
)
def test_launchers_of_processes_agree_or_one_of_them_is_refused(
    rank: int, size: int, launchers: list[str], differs: int
):
    """Equal numbers are no contradiction; one launcher's that differ are, unless MPI's daemons may be srun's tasks."""

    def variables(name: str, rank: int) -> dict[str, str]:
        names = {
            "RANK": ("RANK", "WORLD_SIZE"),
            "JSM": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
            "OMPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
            "PALS": ("PALS_RANKID", "PMI_SIZE"),
        }[name]
        step = {"SLURM_STEP_ID": "0", "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1",
                "SLURM_STEP_TASKS_PER_NODE": str(size), "SLURM_STEP_NODELIST": "n1", "SLURM_JOB_ID": "1"}  # fmt: skip
        return dict(zip(names, (str(rank), str(size)), strict=True)) | (step if name == "SLURM" else {})

    rank %= size
    env = dict(MEETING)
    for name in launchers:
        env |= variables(name, rank)
    assert LaunchInfo.from_env(env).rank == rank
    odd = launchers[differs % len(launchers)]
    env |= variables(odd, (rank + 1) % size)
    apart = {*launchers}
    if "SLURM" in apart and apart != {"SLURM", "PALS"}:
        apart -= {"PALS"}  # then set by a plugin of SLURM
    if "RANK" not in apart and {"JSM", "OMPI"} & apart:
        apart -= {"SLURM"}  # whose tasks are MPI's daemons
    if size > 1 and odd in apart and len(apart) > 1:
        with pytest.raises(LaunchError, match="contradict each other"):
            LaunchInfo.from_env(env)


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
    (DEEPSPEED, {"MASTER_PORT": None}, "deepspeed started this process (RANK='3', CROSS_RANK='1', CROSS_SIZE='2'), bu"),
    (RAY, {"MASTER_ADDR": None}, "ray started this process (RANK='3', NODE_RANK='1', ACCELERATE_TORCH_DEVICE='cuda:0'"),
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
    (SKYPILOT, {}, "SkyPilot tells which node this is and starts one command on each, not a process a GPU"),
    (SAGEMAKER, {}, "SageMaker tells which host this is and starts one command on each, not a process a GPU"),
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
    (TORCHRUN, {"MASTER_ADDR": "a b"}, "MASTER_ADDR='a b': expected the name or address of a host"),
    (SLURM, {"MASTER_ADDR": "a\x00"}, "MASTER_ADDR='a\\x00': expected the name or address of a host"),
    (TORCHRUN, {"WORLD_SIZE": "1" + "0" * 18}, "WORLD_SIZE='1000000000000000000': expected a whole number of at most "),
    (TORCHRUN, {"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='99999999"),
    (SLURM, {"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID='x': expected a whole number"),
    (SLURM, {"SLURM_STEP_ID": "x", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "SLURM_STEP_ID='x': expected a whole numb"),
    # contradictions within one launcher
    (BARE, {"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected at least 1"),
    (BARE, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: expected at least 1"),
    (BARE, {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: expected at least 1"),
    (TORCHRUN, {"GROUP_WORLD_SIZE": "0"}, "GROUP_WORLD_SIZE=0: expected at least 1"),
    (LIGHTNING, {"NODE_RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"},
     "NODE_RANK=1 x LOCAL_WORLD_SIZE=4 + LOCAL_RANK=0 is outside WORLD_SIZE=4: expected 0..3"),
    (LIGHTNING, {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 is outside WORLD_SIZE=4: expected 0..3"),
    (OPENMPI | TWO, {"LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": None, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
     "LOCAL_RANK=1 is outside OMPI_COMM_WORLD_LOCAL_SIZE=1: expected 0..0"),
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
    (SLURM | BARE, {}, "env and slurm contradict each other: RANK='0', SLURM_PROCID='2'; unset the variables of the o"),
    (SLURM | BARE, {"SLURM_PROCID": "0"}, "env and slurm contradict each other: WORLD_SIZE='1', SLURM_STEP_NUM_TASKS="),
    (SLURM | TWO, {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "env and slurm contradict each other: RANK='1', SLURM"),
    (PALS | TWO, {}, "env and pals contradict each other: RANK='1', PALS_RANKID='3'; unset"),
    (SLURM | PALS, {}, "slurm and pals contradict each other: SLURM_PROCID='2', PALS_RANKID='3'; unset"),
    (SLURM, {"PMIX_RANK": "0"}, "slurm and pmix contradict each other: SLURM_PROCID='2', PMIX_RANK='0'; unset"),
    (TWO, {"PMIX_RANK": "0"}, "env and pmix contradict each other: RANK='1', PMIX_RANK='0'; unset the variables of th"),
    (LIGHTNING | SLURM, {}, "slurm and lightning contradict each other: SLURM_STEP_NUM_TASKS='3', WORLD_SIZE='4'; uns"),
    (OPENMPI | TWO, {"RANK": "03"}, "env and openmpi contradict each other: RANK='03', OMPI_COMM_WORLD_RANK='1'"),
    (OPENMPI | TWO, {"LOCAL_RANK": "0"}, "env and openmpi contradict each other: LOCAL_RANK='0', OMPI_COMM_WORLD_LOCA"),
    (OPENMPI | TWO, {"LOCAL_WORLD_SIZE": "1"}, "env and openmpi contradict each other: LOCAL_WORLD_SIZE='1', OMPI_COM"),
    (OPENMPI | TWO, {"OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK='x': expected a whole number"),
    (JSRUN | TWO, {"OMPI_COMM_WORLD_RANK": "0"}, "env and openmpi contradict each other: RANK='1', OMPI_COMM_WORLD_RA"),
    (DEEPSPEED | OPENMPI, {"RANK": "2"}, "deepspeed and openmpi contradict each other: RANK='2', OMPI_COMM_WORLD_RANK"),
    # left behind by another launcher
    (TORCHRUN | OPENMPI, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "1"}, "torchrun and "),
    (TORCHRUN, {"LOCAL_RANK": None}, "torchrun started this process (TORCHELASTIC_RUN_ID='job'), but LOCAL_RANK is no"),
    (TWO, {"TORCHELASTIC_RUN_ID": "job"}, "torchrun started this process (TORCHELASTIC_RUN_ID='job'), but LOCAL_RANK,"),
    (OPENMPI, {"RANK": "0"}, "env and openmpi contradict each other: RANK='0', OMPI_COMM_WORLD_RANK='1'; unset the va"),
    (OPENMPI, {"RANK": "1"}, "env started this process (RANK='1'), but WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not s"),
    (PYTORCHJOB | MPICH, {"RANK": "0"}, "env and hydra contradict each other: RANK='0', PMI_RANK='1'; unset the var"),
]  # fmt: skip


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
        assert self.message({"WORLD_SIZE": "2"}).count("Of ") == 1
        assert "Of " not in self.message({})
        half = {"OMPI_COMM_WORLD_SIZE": "2"}
        assert "Of openmpi there is OMPI_COMM_WORLD_SIZE='2', but not OMPI_COMM_WORLD_RANK. " in self.message(half)

    def test_nothing_is_called_missing_where_nothing_is(self):
        interactive = self.message(SLURM | {"SLURM_STEP_ID": "4294967291"})
        assert "This is inside SLURM's job '1', but not a task of srun: use srun. " in interactive
        assert "but not ." not in interactive
        assert "Of slurm" not in interactive

    @pytest.mark.parametrize(("step", "is_task"), [(0xFFFFFFEF, True), (0xFFFFFFF0, False), (0xFFFFFFFF, False)])
    def test_reserved_steps_are_no_tasks(self, step: int, is_task: bool):
        env = SLURM | {"SLURM_STEP_ID": str(step)}
        if is_task:
            assert LaunchInfo.from_env(env).launcher == "slurm"
        else:
            self.message(env)

    def test_the_script_of_sbatch_is_not_a_task(self):
        assert "This is inside SLURM's job '2', but not a task of srun: use srun. " in self.message(BATCH)

    def test_a_shell_of_salloc_is_not_a_task(self):
        interactive = SUBSTEP | {"SLURM_STEP_ID": "4294967290"}
        assert "This is inside SLURM's job '2', but not a task of srun: use srun. " in self.message(interactive)


ONE_ONLY = "slurm started one process only, such as a shell, and that one started others"


class TestOneInsideAnother:
    @pytest.mark.parametrize(
        ("env", "rules"),
        [
            (TORCHRUN | SLURM, ["torchrun inside slurm: the agents of torchrun may be started by slurm"]),
            (TORCHRUN | OPENMPI, ["torchrun inside openmpi: openmpi started as many processes as torchrun has agents"]),
            (OPENMPI_IN_SLURM, ["openmpi inside slurm: srun starts the daemons of openmpi, one on each host"]),
            (RAY | SLURM, ["ray inside slurm: its workers are started by daemons, and those by slurm"]),
            (DEEPSPEED | SLURM, ["deepspeed inside slurm: srun starts the daemons of deepspeed, one on each host"]),
            (TWO | SLURM_ONE, [f"env inside slurm: {ONE_ONLY}"]),
            (LIGHTNING | SLURM_ONE, [f"lightning inside slurm: {ONE_ONLY}"]),
            (TWO | {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "PALS_RANKID": "0", "PMI_SIZE": "1"},
             ["env inside pals: each process of pals started as many as env says there are on a host"]),
            (TWO | LWS, ["env inside leaderworkerset: leaderworkerset counts pods, not processes"]),
            (KUBEFLOW, ["kubeflow inside indexed-job: indexed-job counts pods, not processes"]),
            (TWO, []),
            (JSRUN, []),
            (SLURM | PMI2 | {"PMIX_RANK": "2"}, []),
        ],
    )  # fmt: skip
    def test_the_rule_is_said(self, env: dict[str, str], rules: list[str]):
        assert list(LaunchInfo.from_env(env).inside) == rules

    def test_what_made_us_believe_it_is_said(self):
        because = LaunchInfo.from_env(TORCHRUN).because
        assert because.startswith("torchrun (GROUP_RANK='1', ")
        assert "TORCHELASTIC_RUN_ID='job', TORCHELASTIC_USE_AGENT_STORE='True'" in because


class TestEquality:
    def test_what_is_said_is_compared_not_how(self):
        one, other = LaunchInfo.from_env(TWO), LaunchInfo.from_env(TWO | {"RANK": "01", "X": "2"} | LWS)
        assert one == other
        assert hash(one) == hash(other)
        assert (one.variables["RANK"], other.variables["RANK"]) == ("1", "01")
        assert one != LaunchInfo.from_env(TWO | {"RANK": "0"})
        assert one != LaunchInfo.from_env(TWO | {"MASTER_PORT": "2"})


class TestMeetingPlace:
    def test_what_the_user_sets(self):
        assert LaunchInfo.from_env(OPENMPI | MEETING).meeting_place() == ("127.0.0.1", 29400)

    def test_without_it(self):
        message = "openmpi started rank 1 of 2, but does not say where the ranks meet: set MASTER_ADDR (rank 0's host)"
        with pytest.raises(LaunchError, match=re.escape(message)):
            LaunchInfo.from_env(OPENMPI).meeting_place()
