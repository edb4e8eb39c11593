"""What is read from a launcher's variables, and what is refused."""

from __future__ import annotations

import pytest

from parallel_topology import LaunchError, LaunchInfo

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29400",
}


def test_torchrun():
    info = LaunchInfo.from_env(TORCHRUN)
    assert (info.launcher, info.rank, info.world_size) == ("torchrun", 5, 8)
    assert (info.local_rank, info.local_size) == (1, 4)
    assert (info.address, info.port, info.store_is_hosted, info.restart) == ("127.0.0.1", 29400, True, 2)
    assert info.variables["RANK"] == "5"


def test_the_bare_variables():
    info = LaunchInfo.from_env({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "::1", "MASTER_PORT": "1"})
    assert (info.launcher, info.local_rank, info.local_size, info.restart) == ("env", None, None, 0)
    assert not info.store_is_hosted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "no launcher was found: RANK not set"),
        ({"RANK": None, "MASTER_PORT": None}, "no launcher was found: RANK, MASTER_PORT not set"),
        ({"RANK": "x"}, "RANK='x': expected a whole number"),
        ({"RANK": "-1"}, "RANK='-1': expected a whole number"),
        ({"RANK": "8"}, "RANK=8 is outside WORLD_SIZE=8: expected 0..7"),
    ],
)
def test_refused(changes: dict[str, str | None], message: str):
    env = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(LaunchError) as caught:
        LaunchInfo.from_env(env)
    assert str(caught.value).startswith(message)
