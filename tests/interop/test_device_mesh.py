"""DeviceMeshes over a manager's groups, and topologies of meshes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel_topology import (
    ClosedError,
    GroupArgumentError,
    GroupManager,
    ParallelTopology,
    TopologyError,
    UnknownAxisError,
)
from parallel_topology.interop.device_mesh import Dim, as_device_mesh, from_device_mesh, require_same
from parallel_topology.testing.strategies import topologies
from tests.interop.world import fake_world, registered, run_in_world


def _meshes(groups: GroupManager, wanted: list[list[Dim] | None]) -> Any:
    """Of each mesh: names, ranks, and whether every dimension's group is the manager's own; and the groups created."""
    before = registered()
    found: list[Any] = []
    for axes in wanted:
        mesh = as_device_mesh(groups, axes)
        dims = axes or list(mesh.mesh_dim_names or ())
        sliced = [mesh[name] if mesh.ndim > 1 else mesh for name in mesh.mesh_dim_names or ()]
        same = [one.get_group() is groups[dim].device_group for one, dim in zip(sliced, dims, strict=True)]
        here = tuple(mesh.get_coordinate() or ())  # a list before torch 2.13
        found.append((mesh.mesh_dim_names, mesh.mesh.tolist(), same, here))
    return found, registered() - before


class TestAsDeviceMesh:
    @pytest.fixture(scope="class")
    @staticmethod
    def found() -> list[Any]:
        wanted = [None, ["cp", "dp"], ["tp", "dp"], [("cp", "dp"), "tp"], ["dp"], ["edp", "etp"]]
        text = "tp2-cp2-dp2-pp1/expert:etp2-ep2-edp2-pp1"
        results = run_in_world(text, _meshes, wanted, groups=[("dp", "cp")])
        assert [created for _, created in results] == [0] * 8, "process groups created"
        return [meshes for meshes, _ in results]

    @pytest.mark.parametrize(
        ("number", "names", "ranks"),
        [
            (0, ("dp", "cp", "tp"), torch.arange(8).reshape(2, 2, 2)),
            (1, ("cp", "dp"), torch.tensor([[1, 5], [3, 7]])),
            (2, ("tp", "dp"), torch.tensor([[2, 6], [3, 7]])),
            (3, ("cp_dp", "tp"), torch.arange(8).reshape(4, 2)),
            (4, ("dp",), torch.tensor([3, 7])),
            (5, ("edp", "etp"), torch.tensor([[2, 3], [6, 7]])),
        ],
    )
    def test_its_dimensions_are_the_managers_groups(
        self, found: list[Any], number: int, names: tuple[str, ...], ranks: torch.Tensor
    ):
        """As rank 3 sees it, except where a mesh has only a part of the ranks."""
        rank = int(ranks.flatten()[min(3, ranks.numel() - 1)])
        expected = ranks.tolist(), [True] * ranks.ndim, tuple((ranks == rank).nonzero()[0].tolist())
        assert found[rank][number] == (names, *expected)


def _refusals(groups: GroupManager) -> list[str]:
    messages: list[str] = []
    for axes, error in (
        (["pp", "tp"], GroupArgumentError),
        (["tp", ("tp", "dp")], GroupArgumentError),
        ([("tp", "dp")], UnknownAxisError),
        (["tp", "ep"], UnknownAxisError),
        (["sp"], UnknownAxisError),
        ([], GroupArgumentError),
    ):
        with pytest.raises(error) as caught:
            as_device_mesh(groups, axes)
        messages.append(str(caught.value))
    groups.close()
    with pytest.raises(ClosedError):
        as_device_mesh(groups)
    with GroupManager(ParallelTopology(tp=1), rank=0) as alone, pytest.raises(GroupArgumentError) as caught:
        as_device_mesh(alone)
    messages.append(str(caught.value))
    return messages


def test_refused():
    messages = run_in_world("tp2-dp2-pp1/expert:etp1-ep4-pp1", _refusals)[0]
    for message, expected in zip(
        messages,
        [
            "axes=[('pp',), ('tp',)]: 'pp' has size 1 in tp2-dp2-pp1/expert:etp1-ep4-edp1-pp1, and a group of one rank "
            "has no process group: leave it out of the mesh",
            "axes=[('tp',), ('tp', 'dp')]: 'tp' stands twice; expected each axis in one dimension",
            "engine has no group 'tp-dp'",
            "'tp' and 'ep' stand in no common factorization of tp2-dp2-pp1",
            "tp2-dp2-pp1/expert:etp1-ep4-edp1-pp1 has no axis 'sp'",
            "no axis is left for a mesh of <GroupManager engine of tp2-dp2-pp1/expert:etp1-ep4-edp1-pp1 at rank 0",
            "no axis is left for a mesh of <GroupManager engine of tp1 at rank 0 (gloo)>; expected at least one",
        ],
        strict=True,
    ):
        assert message.startswith(expected), message


def _own_store(groups: GroupManager, folder: str) -> str:
    with (
        GroupManager.connect(f"file://{folder}/own", groups.topology, rank=groups.rank, timeout=20) as own,
        pytest.raises(GroupArgumentError) as caught,
    ):
        as_device_mesh(own)
    return str(caught.value)


def test_a_manager_over_a_store_of_its_own_is_refused(tmp_path: Any):
    message = run_in_world("tp2", _own_store, str(tmp_path))[0]
    assert "torch does not know by name, as a DeviceMesh must: make the manager by GroupManager.from_world" in message


def _flattened(groups: GroupManager) -> int:
    mesh, before = as_device_mesh(groups), registered()
    mesh["dp", "tp"]._flatten()
    return registered() - before


def test_torchs_own_flatten_creates_a_process_group_which_is_why_combinations_are_dimensions():
    assert run_in_world("tp2-dp2-pp2", _flattened, timeout=100) == [1] * 8


class TestFromDeviceMesh:
    @given(topology=topologies(max_world=32, max_views=0), data=st.data())
    @settings(max_examples=25, deadline=None)
    def test_gives_the_topology_back(self, topology: ParallelTopology, data: st.DataObject):
        """Of a mesh built by hand over the same ranks, whatever they are."""
        ranks = torch.tensor(list(topology.world)).reshape(list(topology.sizes.values())[::-1])
        with fake_world(max(topology.world) + 1):
            mesh = DeviceMesh("cpu", ranks, mesh_dim_names=topology.axes[::-1], _init_backend=False)
            assert from_device_mesh(mesh) == topology
            require_same(mesh, topology)

    def test_of_a_slice(self):
        with fake_world(8, rank=5):
            mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
            assert str(from_device_mesh(mesh)) == "tp2-dp2-pp2"
            assert str(from_device_mesh(mesh["pp", "tp"])) == "tp2-pp2@0,1,4,5"
            assert str(from_device_mesh(mesh["dp"])) == "dp2@5,7"

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (None, "has no names; an axis needs one: give mesh_dim_names="),
            (("dp", "tp2"), "is no topology: 'tp2' cannot name an axis: expected lower-case letters and '_'"),
            (("DP", "tp"), "is no topology: 'DP' cannot name an axis"),
            (("world", "tp"), "is no topology: 'world' cannot name an axis: it is taken by an attribute"),
        ],
    )
    def test_meshes_that_no_topology_describes(self, names: Any, message: str):
        with fake_world(4):
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
            with pytest.raises(TopologyError, match=re.escape(message)) as caught:
                from_device_mesh(mesh)
        assert str(caught.value).startswith("DeviceMesh(")


class TestRequireSame:
    @pytest.mark.parametrize("text", ["tp2-dp4", "tp2-cp1-dp4-pp1"])
    def test_passes(self, text: str):
        with fake_world(8):
            mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "tp"))
            require_same(mesh, ParallelTopology.parse(text))

    def test_the_order_of_the_dimensions_is_not_the_question(self):
        with fake_world(4):
            mesh = DeviceMesh("cpu", [[0, 2], [1, 3]], mesh_dim_names=("tp", "dp"), _init_backend=False)
            require_same(mesh, ParallelTopology(tp=2, dp=2))

    @pytest.mark.parametrize(
        ("text", "differs"),
        [
            ("tp4-dp2", "along 'tp' it has the groups [0, 1] [2, 3] [4, 5] [6, 7], expected [0, 1, 2, 3] [4, 5, 6, 7]"),
            ("dp4-tp2", "along 'dp' it has the groups [0, 2, 4, 6] [1, 3, 5, 7], expected [0, 1, 2, 3] [4, 5, 6, 7]"),
            (
                "tp2-dp2-pp2",
                "along 'dp' it has the groups [0, 2, 4, 6] [1, 3, 5, 7], expected [0, 2] [1, 3] [4, 6] [5, 7]",
            ),
            ("tp2-cp4", "along 'cp' it has the groups [0] [1] [2] [3] ..., expected [0, 2, 4, 6] [1, 3, 5, 7]"),
            (
                "tp2-dp4@8",
                "along 'tp' it has the groups [0, 1] [2, 3] [4, 5] [6, 7], expected [8, 9] [10, 11] [12, 13] [14, 15]",
            ),
        ],
    )
    def test_shows_both(self, text: str, differs: str):
        with fake_world(8):
            mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "tp"))
            with pytest.raises(TopologyError) as caught:
                require_same(mesh, ParallelTopology.parse(text))
        shown = f"is tp2-dp4, but {text} is required: {differs}"
        assert str(caught.value).endswith(shown), caught.value
