"""The rows of docs/coming-from-*.md: the right column on real groups, against what the old call returns.

What the old calls return stands here as arithmetic on the old system's words. Where that system can be asked it is
asked itself: torch's mesh always, Megatron-core and DeepSpeed with `-m peers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import Communicator, GroupManager, GroupOptions, ParallelTopology
from parallel_topology.testing import run_ranks
from parallel_topology.testing.threads import run_threads
from tests.interop.world import fake_world

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.stem.removeprefix("coming-from-") for path in DOCS.glob("coming-from-*.md"))


def rows(page: str) -> dict[str, str]:
    """Old call -> new one."""
    lines = (DOCS / f"coming-from-{page}.md").read_text().splitlines()
    cells = [re.fullmatch(r"\| `(.*)` \| `(.*)` \|", line) for line in lines if line.startswith("| `")]
    return {cell[1]: cell[2] for cell in cells if cell}


class Grid:
    """The ranks of a job by their coordinates, the fastest axis first: nothing but division, one rank at a time."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.world = 1
        for size in sizes.values():
            self.world *= size

    def coordinate(self, rank: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for axis, size in self.sizes.items():
            rank, found[axis] = divmod(rank, size)
        return found

    def group(self, rank: int, *axes: str) -> list[int]:
        fixed = {axis: index for axis, index in self.coordinate(rank).items() if axis not in axes}
        return [r for r in range(self.world) if fixed.items() <= self.coordinate(r).items()]


# What the old calls give on one rank: numbers, and groups as lists of their members.


def vllm(rank: int) -> dict[str, Any]:
    """vLLM v0.4.3, vllm/distributed/parallel_state.py."""
    tp, pp = 2, 4
    pipeline = list(range(rank % tp, tp * pp, tp))
    at = pipeline.index(rank)
    return {
        "model_parallel_is_initialized()": True,
        "ensure_model_parallel_initialized(tp, pp)": None,
        "get_cpu_world_group()": list(range(tp * pp)),
        "get_local_rank()": rank,
        "get_tensor_model_parallel_group()": [rank // tp * tp, rank // tp * tp + 1],
        "get_tensor_model_parallel_world_size()": tp,
        "get_tensor_model_parallel_rank()": rank % tp,
        "get_tensor_model_parallel_src_rank()": rank // tp * tp,
        "get_pipeline_model_parallel_group()": pipeline,
        "get_pipeline_model_parallel_world_size()": pp,
        "get_pipeline_model_parallel_rank()": at,
        "get_pipeline_model_parallel_first_rank()": pipeline[0],
        "get_pipeline_model_parallel_last_rank()": pipeline[-1],
        "get_pipeline_model_parallel_next_rank()": pipeline[(at + 1) % pp],
        "get_pipeline_model_parallel_prev_rank()": pipeline[(at - 1) % pp],
        "is_pynccl_enabled_for_all_reduce()": False,  # outside of with_pynccl_for_all_reduce
    }


DENSE = Grid(tp=2, cp=2, dp=2, pp=2)
EXPERT = Grid(etp=2, ep=2, edp=2, pp=2)


def megatron(rank: int) -> dict[str, Any]:
    """Megatron-core 0.16.1; which group each call is about."""
    at, of_expert = DENSE.coordinate(rank), EXPERT.coordinate(rank)
    groups = {
        "tensor_model_parallel": (DENSE, "tp"),
        "pipeline_model_parallel": (DENSE, "pp"),
        "context_parallel": (DENSE, "cp"),
        "data_parallel": (DENSE, "dp"),
        "tensor_and_context_parallel": (DENSE, "tp", "cp"),
        "expert_model_parallel": (EXPERT, "ep"),
        "expert_tensor_parallel": (EXPERT, "etp"),
        "expert_tensor_and_model_parallel": (EXPERT, "etp", "ep"),
        "expert_data_parallel": (EXPERT, "edp"),
    }
    found: dict[str, Any] = {"is_initialized()": True, "model_parallel_is_initialized()": True}
    for name, (grid, *axes) in groups.items():
        members = grid.group(rank, *axes)
        found[f"get_{name}_group()"] = members
        found[f"get_{name}_world_size()"] = len(members)
        found[f"get_{name}_rank()"] = members.index(rank)
    for name in ("tensor_model_parallel", "data_parallel", "expert_model_parallel"):
        found[f"get_{name}_src_rank()"] = found[f"get_{name}_group()"][0]
    for name in ("data_parallel", "expert_data_parallel"):
        found[f"get_{name}_group_gloo()"] = found[f"get_{name}_group()"]
    pipeline = DENSE.group(rank, "pp")
    found |= {
        "get_pipeline_model_parallel_first_rank()": pipeline[0],
        "get_pipeline_model_parallel_last_rank()": pipeline[-1],
        "get_pipeline_model_parallel_next_rank()": pipeline[(at["pp"] + 1) % 2],
        "get_pipeline_model_parallel_prev_rank()": pipeline[(at["pp"] - 1) % 2],
        "is_pipeline_first_stage()": at["pp"] == 0,
        "is_pipeline_last_stage()": at["pp"] == 1,
        "is_rank_in_embedding_group()": at["pp"] in (0, 1),
        "is_rank_in_position_embedding_group()": at["pp"] == 0,
        "get_context_parallel_global_ranks()": DENSE.group(rank, "cp"),
        "get_all_ranks()": "_".join(str(at[axis]) for axis in ("tp", "dp", "cp", "pp")) + f"_{of_expert['ep']}",
        "get_expert_tensor_model_pipeline_parallel_group()": EXPERT.group(rank, "etp", "ep", "pp"),
        "get_intra_distributed_optimizer_instance_group()": list(range(16)),
        "get_model_parallel_group()": DENSE.group(rank, "tp", "pp"),
        "get_model_parallel_src_rank()": DENSE.group(rank, "tp", "pp")[0],
        "get_tensor_and_data_parallel_group()": DENSE.group(rank, "tp", "dp"),
        "get_tensor_and_data_parallel_group(with_context_parallel=True)": DENSE.group(rank, "tp", "cp", "dp"),
        "get_amax_reduction_group()": DENSE.group(rank, "tp", "dp"),
        "get_amax_reduction_group(tp_only_amax_red=True)": DENSE.group(rank, "tp"),
        "get_amax_reduction_group(with_context_parallel=True)": DENSE.group(rank, "tp", "cp", "dp"),
        "get_amax_reduction_group(with_context_parallel=True, tp_only_amax_red=True)": DENSE.group(rank, "tp", "cp"),
    }
    with_cp = DENSE.group(rank, "cp", "dp")
    found |= {
        "get_data_parallel_group(with_context_parallel=True)": with_cp,
        "get_data_parallel_group_gloo(with_context_parallel=True)": with_cp,
        "get_data_parallel_world_size(with_context_parallel=True)": len(with_cp),
        "get_data_parallel_rank(with_context_parallel=True)": with_cp.index(rank),
        "get_data_parallel_src_rank(with_context_parallel=True)": with_cp[0],
    }
    return found


PIPE = Grid(model=2, data=2, pipe=2)


def deepspeed_grid(rank: int) -> dict[str, Any]:
    """DeepSpeed 0.19.8, deepspeed/runtime/pipe/topology.py."""
    found: dict[str, Any] = {
        "topology.world_size()": 8,
        "topology.get_axis_names()": ["pipe", "data", "model"],
        'topology.get_dim("model")': 2,
        "topology.get_rank(pipe=1, data=0, model=1)": 5,
        "topology.get_coord(rank)._asdict()": PIPE.coordinate(rank),
        'topology.get_axis_comm_lists("data")': [[0, 2], [1, 3], [4, 6], [5, 7]],
        'topology.get_axis_list("pipe", 1)': [4, 5, 6, 7],
        "topology.filter_match(pipe=0, model=1)": [1, 3],
        "grid.get_global_rank()": rank,
        "grid.get_stage_id()": PIPE.coordinate(rank)["pipe"],
        "grid.get_data_parallel_id()": PIPE.coordinate(rank)["data"],
        "grid.stage_to_global(1)": PIPE.group(rank, "pipe")[1],
        "grid.get_tensor_model_parallel_rank()": PIPE.coordinate(rank)["model"],
        "grid.get_tensor_model_parallel_world_size()": 2,
    }
    kinds = {"pipe": ("pipe",), "data": ("data",), "slice": ("model",), "model": ("model", "pipe")}
    for name, axes in kinds.items():
        members = PIPE.group(rank, *axes)
        found[f"grid.get_{name}_parallel_rank()"] = members.index(rank)
        found[f"grid.get_{name}_parallel_world_size()"] = len(members)
        found[f"grid.get_{name}_parallel_group()"] = members
    return found


def deepspeed_groups(rank: int) -> dict[str, Any]:
    """DeepSpeed 0.19.8, deepspeed/utils/groups.py."""
    dense, expert = Grid(sp=2, data=4, pipe=2), Grid(ep=4, edp=2, pipe=2)
    found: dict[str, Any] = {}
    for name, members, argument in (
        ("data_parallel", dense.group(rank, "data"), ""),
        ("sequence_parallel", dense.group(rank, "sp"), ""),
        ("sequence_data_parallel", dense.group(rank, "sp", "data"), ""),
        ("expert_parallel", expert.group(rank, "ep"), '"ep_size_4"'),
        ("expert_data_parallel", expert.group(rank, "edp"), '"ep_size_4"'),
    ):
        found[f"_get_{name}_group({argument})"] = members
        found[f"_get_{name}_world_size({argument})"] = len(members)
        found[f"_get_{name}_rank({argument})"] = members.index(rank)
        if "sequence" not in name:
            found[f"_get_{name}_group_ranks({argument})"] = members
    segment = list(range(rank // 4 * 4, rank // 4 * 4 + 4))
    return found | {
        "_get_broadcast_src_rank()": dense.group(rank, "sp", "data")[0],
        '_get_expert_parallel_src_rank("ep_size_4")': rank // 4 * 4,
        '_get_expert_broadcast_src_rank("ep_size_4")': expert.group(rank, "edp")[0],
        "_get_zero_param_intra_parallel_group()": segment,
        "_get_zero_param_intra_parallel_group_world_size()": 4,
        "_get_zero_param_intra_parallel_rank_in_mygroup()": rank % 4,
    }


def answers(calls: Iterable[str], scope: Mapping[str, Any]) -> dict[str, Any]:
    """What expressions give, groups as lists of their members as torch lists them."""
    given = {call: eval(call, dict(scope)) for call in calls}
    return {
        call: dist.get_process_group_ranks(value) if isinstance(value, dist.ProcessGroup) else value
        for call, value in given.items()
    }


def device_mesh(rank: int) -> dict[str, Any]:
    """torch's own answers."""
    from torch.distributed.device_mesh import init_device_mesh

    with fake_world(8, rank):
        mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("pp", "tp"))
        return answers([call for call in rows("device-mesh") if call.startswith(("mesh", "list"))], {"mesh": mesh})


# The right column: (a page's rows, what they give on a rank, the topology, the manager's combinations)
WORLDS = [
    ("vllm", vllm, "tp2-pp4", []),
    (
        "megatron",
        megatron,
        "tp2-cp2-dp2-pp2/expert:etp2-ep2-edp2-pp2",
        [
            ("tp", "pp"),
            ("cp", "dp"),
            ("tp", "dp"),
            ("tp", "cp", "dp"),
            ("tp", "cp"),
            ("etp", "ep"),
            ("etp", "ep", "pp"),
        ],
    ),
    ("deepspeed", deepspeed_grid, "model2-data2-pipe2", [("model", "pipe")]),
    ("deepspeed", deepspeed_groups, "sp2-data4-pipe2/expert:ep4-edp2-pipe2/zero:hpz4-copies4", [("sp", "data")]),
    ("device-mesh", device_mesh, "tp2-pp4", [("tp", "pp")]),
]
NAMES = {
    "ParallelTopology": ParallelTopology,
    "GroupManager": GroupManager,
    "tp": 2,
    "pp": 4,
}


@pytest.mark.parametrize(("page", "expected", "text", "combinations"), WORLDS, ids=[w[1].__name__ for w in WORLDS])
def test_the_new_call_gives_what_the_old_one_gave(page: str, expected: Any, text: str, combinations: Any):
    new = rows(page)
    values = [expected(rank) for rank in ParallelTopology.parse(text).world]

    def body(groups: GroupManager) -> None:
        scope = {**NAMES, "groups": groups, "topology": groups.topology, "rank": groups.rank}
        for call, value in values[groups.rank].items():
            found = eval(new[call], scope)
            assert _plain(found, groups.rank) == value, f"{call}: {new[call]}"

    run_ranks(text, body, groups=combinations, timeout=60)


def _plain(found: Any, rank: int) -> Any:
    """A process group as the list of its members, which they tell each other."""
    if not isinstance(found, dist.ProcessGroup):
        return found
    told = [torch.empty(1, dtype=torch.int64) for _ in range(found.size())]
    found.allgather([told], [torch.tensor([rank])]).wait()
    return [int(member) for member in told]


BEGIN = {
    "vllm": [
        "init_distributed_environment(world_size, rank, init_method, local_rank, backend)",
        "initialize_model_parallel(tp, pp)",
    ],
    "megatron": ["initialize_model_parallel(...)"],
    "deepspeed": ["PipelineParallelGrid(topology)", "PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=2)"],
    "device-mesh": ['init_device_mesh("cpu", (4, 2), mesh_dim_names=("pp", "tp"))'],
}
END = {"vllm": "destroy_model_parallel()", "megatron": "destroy_model_parallel()"}


@pytest.mark.parametrize("page", PAGES)
def test_beginning_and_end(page: str, tmp_path: Path):
    new, store = rows(page), dist.HashStore()
    text, together = next((text, together) for name, _, text, together in WORLDS if name == page)
    topology = ParallelTopology.parse(text)

    def body(rank: int) -> None:
        scope = {**NAMES, "rank": rank, "store": store, "local_rank": rank, "backend": "gloo", "topology": topology}
        scope |= {"init_method": f"file://{tmp_path}/store", "combinations": together}
        for call in BEGIN[page]:
            made = eval(new[call], scope)
            if isinstance(made, ParallelTopology):
                assert made == topology
                continue
            assert made.topology == topology
            assert made.world.all_reduce(torch.ones(1)) == topology.world_size
            eval(new[END[page]] if page in END else "groups.close()", {"groups": made})
            assert made.closed

    run_threads([f"rank {rank}" for rank in topology.world], body, timeout=60)


def test_capture_in_place_of_with_pynccl():
    """On the CPU, where only what is preferred changes; tests/gpu has CUDA graphs."""
    new = rows("vllm")
    options = {"tp": GroupOptions(communicators=("torch", "other"))}

    def body(groups: GroupManager) -> None:
        def call(old: str) -> Any:
            return eval(new[old].replace('"nccl"', '"other"'), {"groups": groups})

        assert not call("is_pynccl_enabled_for_all_reduce()")
        with call("with_pynccl_for_all_reduce()"):
            assert call("is_pynccl_enabled_for_all_reduce()")

    run_ranks("tp2", body, options=options, communicators={"other": Other})


class Other(Communicator):
    """Handles nothing."""

    name = "other"

    def __init__(self, membership: Any) -> None: ...

    def handles(self, operation: str, tensor: torch.Tensor) -> bool:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_every_row_is_tested(page: str):
    known = {call for name, expected, *_ in WORLDS if name == page for call in expected(0)}
    known |= {*BEGIN[page], *([END[page]] if page in END else [])}
    if page == "vllm":
        known.add("with_pynccl_for_all_reduce()")
    assert set(rows(page)) == known


# The left column, where the other system is installed


@pytest.fixture
def parallel_state() -> Any:
    return pytest.importorskip("megatron.core.parallel_state")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [0, 1, 6, 11, 15])
def test_megatron_says_so_itself(parallel_state: Any, rank: int):
    with fake_world(16, rank):
        parallel_state.initialize_model_parallel(
            2, 2, context_parallel_size=2, expert_model_parallel_size=2, expert_tensor_parallel_size=2,
            create_gloo_process_groups=False,
        )  # fmt: skip
        try:
            expected = {call: value for call, value in megatron(rank).items() if "gloo" not in call}
            if hasattr(parallel_state, "get_gtp_weight_remat_rank"):  # 0.19.2: its rank stands after that of tp
                tensor, rest = expected["get_all_ranks()"].split("_", 1)
                expected["get_all_ranks()"] = f"{tensor}_0_{rest}"
            assert answers(list(expected), vars(parallel_state)) == expected
        finally:
            parallel_state.destroy_model_parallel()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_page_names_every_getter_of_megatron(parallel_state: Any):
    page = (DOCS / "coming-from-megatron.md").read_text()
    own = [
        name for name, it in vars(parallel_state).items() if getattr(it, "__module__", "") == parallel_state.__name__
    ]
    getters = [name for name in own if re.match("(get|is|has|model)_", name)]
    assert len(getters) > 50
    assert [name for name in getters if name not in page and name != "get_nccl_options"] == []


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", range(8))
def test_deepspeed_says_so_itself(rank: int):
    theirs = pytest.importorskip("deepspeed.runtime.pipe.topology")
    with fake_world(8, rank):
        pytest.importorskip("deepspeed").comm.init_distributed("gloo", dist_init_required=False)
        topology = theirs.PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=2)
        grid = theirs.PipelineParallelGrid(topology)
        expected = deepspeed_grid(rank)
        assert answers(list(expected), {"topology": topology, "grid": grid, "rank": rank}) == expected
