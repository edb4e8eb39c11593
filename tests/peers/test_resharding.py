"""A refit against what others plan and do: the same tensors, and never more bytes.

Deselected by default. DCP and DTensor are torch's own; Megatron's planner needs Python 3.12 and megatron-core 0.19.2:

    pip install --no-deps megatron-core==0.19.2
    pytest -m peers tests/peers/test_resharding.py
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod
from pathlib import Path

import pytest

from parallel_topology import ParallelTopology
from parallel_topology.refit import RefitPlan
from parallel_topology.testing import run_ranks
from parallel_topology.weights import Weight, Weights
from tests.peers import resharding

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
MODEL = Weights(
    [
        Weight("embed", "64/tp 8", stage="first"),
        Weight("up", "48/tp 8", layer=True),
        Weight("down", "8 48/tp", layer=True),
        Weight("norm", "8", layer=True),
    ],
    layers=4,
)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("tp2-pp2", "tp4"),
        ("tp4", "tp2-dp2"),
        ("tp2-dp2-pp2", "tp8"),
        ("tp8-dp2", "tp4-pp4"),
        ("tp2-dp2", "tp4@4,5,6,7"),
        ("tp2-pp2-dp2", "tp2-dp4"),
    ],
)
def test_megatrons_planner_brings_the_same_and_no_fewer_bytes(source: str, target: str):
    planner = pytest.importorskip("megatron.core.resharding.planner")
    plan = RefitPlan(MODEL, ParallelTopology.parse(source), ParallelTopology.parse(target))
    rosters = resharding.rosters(plan)
    moved = 0
    for rank in plan.target.world:
        theirs: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for name, box, peer in resharding.megatrons_boxes(plan, planner.build_plan_from_rosters(*rosters, rank), rank):
            theirs.update((name, element) for element in product(*box))
            moved += prod(map(len, box)) * 2 * (peer != rank)
        ours: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for move in plan.moves(rank):
            if move.target == rank:
                ours.update((move.weight, element) for element in product(*move.ranges))
        assert ours == theirs
    assert plan.bytes_moved <= moved


def test_torchs_ways_bring_the_same(tmp_path: Path):
    found = run_ranks(4, resharding.beside, 2, 1, str(tmp_path), world="processes", timeout=300, check=False)
    assert all(len(seconds) == 1 for one in found for seconds in one.values())
