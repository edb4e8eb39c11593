"""The outside engine's own tests. `tests/outside/test_outside.py` runs them where only the installed plugin helps."""

import pytest
import torch
from outside_engine import RowParallelLinear, pipeline

from parallel_topology.testing import assert_agree, simulate


@pytest.mark.ranks(["tp2", "tp4-pp2"])
def test_row_parallel(groups, layer, weight):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    y = layer(x)
    torch.testing.assert_close(y, x @ weight.T)
    assert_agree(groups.world, y)


@pytest.mark.ranks("tp2-pp2", world=["threads", "processes"])
def test_pipeline(groups):
    y = pipeline(torch.ones(2), lambda x: x * 3, groups.pp)
    assert y.tolist() == [9, 9]


def test_the_cost_of_a_layer():
    with torch.device("meta"):
        simulation = simulate(
            "tp8", lambda groups: RowParallelLinear(torch.empty(8, 16), groups.tp)(torch.empty(2, 16))
        )
    assert simulation.count(7) == {("all_reduce", "tp"): 1}
