import pytest
import torch
from outside_engine import RowParallelLinear

from parallel_topology.testing import rank_fixture


@pytest.fixture
def weight():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@rank_fixture
def layer(groups, weight):
    return RowParallelLinear(weight, groups.tp)
