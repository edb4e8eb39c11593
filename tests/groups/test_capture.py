"""Which CUDA graphs groups remember; that they are captured at all is `tests/gpu`."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parallel_topology.groups import capture
from tests.groups.graphs import Graph


def _group(links: Any, size: int = 2, device: str = "cuda") -> Any:
    return SimpleNamespace(links=links, size=size, device=SimpleNamespace(type=device))


def test_graphs_are_looked_for_once_for_all_groups(monkeypatch: pytest.MonkeyPatch):
    """A walk over all objects for each group would take minutes where an engine has many objects; groups of equal ranks
    share what remembers, and must not count a graph twice."""
    walks: list[int] = []
    everything = gc.get_objects
    monkeypatch.setattr(capture, "_CUDAGraph", Graph)
    monkeypatch.setattr(gc, "get_objects", lambda: (walks.append(1), everything())[1])
    shared, own, alone = (SimpleNamespace(graphs=[]) for _ in range(3))
    earlier, reset = Graph(), Graph()
    reset.live = False
    with capture.remembered(cast("Any", [_group(shared), _group(shared), _group(own), _group(alone, size=1)])):
        during = Graph()
        reset_inside = Graph()
        reset_inside.live = False
    assert len(walks) == 2
    assert [graph() for graph in shared.graphs] == [graph() for graph in own.graphs] == [during]
    assert alone.graphs == []
    assert earlier not in [graph() for graph in own.graphs]


def test_without_a_device_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("looked for graphs"))
    with capture.remembered(cast("Any", [_group(SimpleNamespace(graphs=[]), device="cpu")])):
        pass
