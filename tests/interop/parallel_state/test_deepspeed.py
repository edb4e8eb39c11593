"""deepspeed.utils.groups, served: its answers are those after its own initialisation.

To install it, see tests/peers/test_peers.py.
"""

from __future__ import annotations

import os
from types import FunctionType
from typing import Any

import pytest

from parallel_topology import GroupArgumentError, GroupManager
from parallel_topology.interop.deepspeed import Mpu
from parallel_topology.interop.parallel_state import serving
from parallel_topology.reads.deepspeed import DEEPSPEED
from tests.interop.parallel_state.layouts import answers, comparable, served
from tests.interop.world import run_in_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_BUILD_OPS", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed.utils.groups")


def test_every_function_is_in_the_table_and_no_other():
    """Its private ones, too: the others of its modules ask these."""
    from deepspeed.utils import groups as theirs  # pyright: ignore[reportMissingImports]

    own = {
        name
        for name, value in vars(theirs).items()
        if isinstance(value, FunctionType) and value.__module__ == theirs.__name__
    }
    assert own == DEEPSPEED.modules["deepspeed.utils.groups"].keys()


def _left_out(name: str) -> bool:
    """What needs the name of a group; what stays a copy of the world, or None, whatever is initialized."""
    return "expert" in name or name == "_clone_world_group" or name == "_zero_param_parallel_is_initialized"


EXPERTS = [
    f"_get_expert_{kind}_{what}"
    for kind in ("parallel", "data_parallel")
    for what in ("group", "group_ranks", "world_size", "rank")
]


def _experts(size: int) -> dict[str, Any]:
    from deepspeed.utils import groups as theirs  # pyright: ignore[reportMissingImports]

    found = {name: comparable(getattr(theirs, name)(f"ep_size_{size}")) for name in EXPERTS}
    return {name: list(value) if "ranks" in name else value for name, value in found.items()}


def _both(groups: GroupManager) -> Any:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # pyright: ignore[reportMissingImports]
    from deepspeed.utils import groups as theirs  # pyright: ignore[reportMissingImports]

    ep = groups.ep.size
    before = served(DEEPSPEED, groups, _left_out)
    with serving(groups, "deepspeed"):
        experts = _experts(ep)
        assert theirs._get_max_expert_size_name() == f"ep_size_{ep}"
        with pytest.raises(GroupArgumentError, match="group_name='ep_size_9': the experts of"):
            theirs._get_expert_parallel_group("ep_size_9")
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    theirs._init_tp_groups_with_new_group(groups.tp.size)
    theirs.mpu = Mpu(groups)
    theirs._create_expert_and_data_parallel(ep)
    own = answers(DEEPSPEED, _left_out)
    assert served(DEEPSPEED, groups, _left_out) == before
    return own | _experts(ep), before | experts


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("tp1-pp1-dp4/expert:ep2-edp2", []),
        ("tp2-pp1-dp2/expert:ep1-edp4", [("tp", "dp")]),
    ],
)
def test_every_answer_is_deepspeeds_own(text: str, declared: list[tuple[str, ...]]):
    for own, ours in run_in_world(text, _both, groups=declared, timeout=200):
        assert ours == own
        assert len(own) > 30
