"""parallel_assert and assert_agree: all raise or none, and the error names who differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallel_topology.testing import AgreementError, assert_agree, parallel_assert

pytestmark = pytest.mark.ranks("tp2-pp2", world=["threads", "processes"])


def test_what_all_agree_on_passes(groups: Any):
    parallel_assert(groups.world, True)
    assert_agree(groups.world, torch.arange(5))
    assert_agree(groups.tp, {"step": groups.pp.rank})
    assert_agree(groups.world, torch.tensor([1.0 + groups.rank / 1e6]), atol=1e-4)
    assert_agree(groups.world, torch.tensor([float("nan")]))


@pytest.mark.ranks(2, world="threads")
def test_numpy_is_not_needed(groups: Any, no_numpy: None):
    assert_agree(groups.world, torch.arange(5.0))


@pytest.fixture
def no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "numpy", None)


def test_a_condition_that_fails_somewhere_fails_everywhere(groups: Any):
    with pytest.raises(AgreementError) as caught:
        parallel_assert(groups.world, groups.rank not in (1, 2), f"I am {groups.rank}")
    assert str(caught.value) == (
        "the condition does not hold on ranks 1, 2 of engine/world = [0, 1, 2, 3]\n  rank 1: I am 1\n  rank 2: I am 2"
    )


def test_a_tensor_that_differs_names_the_rank_and_how_far(groups: Any):
    value = torch.ones(4)
    if groups.rank == 3:
        value[1] += 2
    with pytest.raises(AgreementError) as caught:
        assert_agree(groups.world, value, what="logits")
    said = str(caught.value)
    assert "logits on rank 3 differs from the others of engine/world = [0, 1, 2, 3]" in said
    assert "rank 3: float32[4], 1 of 4 elements differ, by up to 2" in said


@pytest.mark.parametrize("mine", [torch.ones(3), torch.ones(2, dtype=torch.float64), 1.0, "text", None])
def test_other_shapes_dtypes_and_types_differ(groups: Any, mine: Any):
    with pytest.raises(AgreementError, match="value on rank 2 differs"):
        assert_agree(groups.world, mine if groups.rank == 2 else torch.ones(2))
