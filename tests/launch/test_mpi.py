"""Under the MPI launchers that are installed."""

from __future__ import annotations

import pytest

from tests.launch.launching import REPORT, launch, needs, reports
from tests.ports import free_port

pytestmark = pytest.mark.slow
each_launcher = pytest.mark.parametrize(
    ("name", "command"),
    [
        ("openmpi", ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", "3"]),
        ("hydra", ["mpiexec.hydra", "-np", "3"]),
        ("hydra", ["mpirun.mpich", "-np", "3"]),
    ],
    ids=["openmpi", "hydra", "mpich"],
)


@each_launcher
def test_the_ranks_meet_where_the_user_says(name: str, command: list[str]):
    needs(command[0])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank, seen in enumerate(reports(launch(*command, *REPORT, "meet", **meeting))):
        assert (seen["launcher"], seen["rank"], seen["world_size"]) == (name, rank, 3)
        assert (seen["local_rank"], seen["local_size"], seen["device_index"]) == (rank, 3, rank)
        assert (seen["host_index"], seen["host_count"]) == (None, None)
        assert seen["total"] == 3


@each_launcher
def test_without_a_meeting_place_the_error_says_what_to_set(name: str, command: list[str]):
    needs(command[0])
    seen = reports(launch(*command, *REPORT, "meet"))
    assert sorted(report["error"] for report in seen) == [
        f"{name} started rank {rank} of 3, but does not say where the ranks meet: set MASTER_ADDR (rank 0's host) "
        "and MASTER_PORT (free there) for all of them, or use GroupManager.connect('tcp://host:port', topology, "
        f"rank={rank})"
        for rank in range(3)
    ]
