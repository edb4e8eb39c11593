"""DeepSpeed over a manager's groups: what an mpu answers, and training steps that are one process's.

To install it, see tests/peers/test_peers.py. On CPUs DeepSpeed compiles an extension when it first communicates.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import gelu, linear, mse_loss

from parallel_topology import GroupArgumentError, GroupManager, UnknownAxisError
from parallel_topology.interop.deepspeed import Mpu
from parallel_topology.testing import run_ranks
from tests.interop.world import registered, run_in_world


class TestMpu:
    def test_every_role(self):
        def body(groups: GroupManager) -> None:
            mpu = Mpu(groups)
            for role, group in {
                "data_parallel": groups.data,
                "tensor_model_parallel": groups.model,
                "pipeline_model_parallel": groups.pipe,
                "model_parallel": groups["model", "pipe"],
                "sequence_data_parallel": groups.data,
            }.items():
                assert getattr(mpu, f"get_{role}_rank")() == group.rank
                assert getattr(mpu, f"get_{role}_world_size")() == group.size
                assert getattr(mpu, f"get_{role}_group")() is group.device_group
            assert mpu.get_data_parallel_group_ranks() == list(groups.data.ranks)
            assert mpu.get_tensor_model_parallel_src_rank() == groups.model.first_rank
            assert (mpu.get_sequence_parallel_rank(), mpu.get_sequence_parallel_world_size()) == (0, 1)
            alone: Any = mpu.get_sequence_parallel_group()
            assert alone.size() == 1, "None would be the whole world"

        run_ranks("model2-data2-pipe2", body, groups=[("model", "pipe")])

    def test_sequence_parallelism(self):
        def body(groups: GroupManager) -> None:
            mpu = Mpu(groups)
            assert mpu.get_sequence_parallel_group() is groups.sp.device_group
            assert mpu.get_sequence_data_parallel_group() is groups.world.device_group
            assert mpu.get_sequence_data_parallel_world_size() == 4
            alone: Any = mpu.get_model_parallel_group()
            assert alone.size() == mpu.get_model_parallel_world_size() == 1

        run_ranks("sp2-dp2-tp1", body)

    def test_refused(self):
        def body(groups: GroupManager) -> str:
            with pytest.raises((GroupArgumentError, UnknownAxisError)) as caught:
                Mpu(groups)
            return str(caught.value)

        for text, message in {
            "tp2-ep2": "axis 'ep' is nothing to DeepSpeed; expected dp, data, tp, model, pp, pipe, sp, cp",
            "sp2-cp2": "the axes 'sp' and 'cp' are both sequence to DeepSpeed; expected one of them",
            "tp2-dp2-pp2": "engine has no group 'tp-pp'",
            "tp2-dp1": "DeepSpeed looks its data-parallel group up in torch's registry, and one rank alone has none",
        }.items():
            assert message in run_ranks(text, body)[0]


def _column_and_row(groups: GroupManager | None) -> torch.nn.Module:
    """`[batch, 8]` -> `[batch, 8]` by two matrices, the first cut into columns and the second into rows along tp."""

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return groups.tp.all_reduce(x.clone()) if groups is not None else x

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            up, down = (torch.randn(8, 8, generator=generator) for _ in range(2))
            part = groups.tp.shard(8) if groups is not None else range(8)
            self.up = torch.nn.Parameter(up[part.start : part.stop].clone())
            self.down = torch.nn.Parameter(down[:, part.start : part.stop].clone())
            self.bias = torch.nn.Parameter(torch.zeros(8))  # whole on every rank
            for parameter in (self.up, self.down):
                parameter.model_parallel = True  # pyright: ignore[reportAttributeAccessIssue] (DeepSpeed's mark)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Summed.apply(linear(gelu(linear(x, self.up)), self.down)) + self.bias

    return Model()


STEPS, CLIP, RATE = 5, 0.5, 0.3
X = torch.arange(64.0).reshape(8, 8).sin()


def _reference() -> tuple[list[float], list[float]]:
    """Losses, and the gradients' norms before they are clipped."""
    model = _column_and_row(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses: list[float] = []
    norms: list[float] = []
    for _ in range(STEPS):
        loss = mse_loss(model(X), X.cos())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def _train(groups: GroupManager, stage: int) -> Any:
    import deepspeed  # pyright: ignore[reportMissingImports]

    os.environ["LOCAL_RANK"] = str(groups.rank)  # it reads no more than this of a launcher's
    model, before = _column_and_row(groups), registered()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        mpu=Mpu(groups),
        config={
            "train_batch_size": 8,
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    share = groups.dp.batch_share(len(X))
    x, target = (tensor[share.start : share.stop] for tensor in (X, X.cos()))
    losses: list[float] = []
    norms: list[float] = []
    for _ in range(STEPS):
        loss = mse_loss(engine(x), target)
        engine.backward(loss)
        engine.step()
        losses.append(groups.dp.all_reduce(loss.detach().clone()).item() / groups.dp.size)
        if stage > 0:  # it tells no norm without ZeRO
            norms.append(float(engine.get_global_grad_norm()))
    return losses, norms, registered() - before


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return pytest.importorskip("deepspeed")


@pytest.mark.peers
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
class TestDeepSpeed:
    @pytest.mark.parametrize("stage", [0, 1, 2])
    @pytest.mark.parametrize("text", ["tp2-dp2", "tp1-dp4-pp1"])
    def test_trains_like_one_process(self, text: str, stage: int, deepspeed: Any):
        losses, norms = _reference()
        assert max(norms) > CLIP, "nothing was clipped"
        for found, found_norms, created in run_in_world(text, _train, stage, timeout=500):
            torch.testing.assert_close(found, losses, rtol=1e-5, atol=0)
            torch.testing.assert_close(found_norms, norms if stage > 0 else [], rtol=1e-5, atol=0)
            assert created == 0

    def test_all_that_it_asks_an_mpu_has_an_answer(self, deepspeed: Any):
        """But for the older names that are asked only where the newer are missing, and Megatron's own parts."""
        folder = Path(inspect.getfile(deepspeed)).parent
        asked = {
            name
            for file in folder.rglob("*.py")
            for name in re.findall(r"\bmpu\.(get_\w+)\(", file.read_text(errors="replace"))
        }
        older = {name for name in asked if re.match(r"get_(slice|pipe)_parallel_", name)}
        assert asked - older <= {name for name in dir(Mpu) if name.startswith("get_")}


def test_the_default_group_is_not_touched():
    assert not dist.is_initialized()
