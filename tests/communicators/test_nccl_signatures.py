"""Every call of ours against nccl4py's own signatures, without a device. Needs nccl4py, cuda-bindings and cuda-core."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch

from parallel_topology import GroupOptions
from parallel_topology.communicators.nccl import NcclCommunicator

pytestmark = pytest.mark.peers


@pytest.fixture
def nccl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module("nccl.core")
        except ImportError as error:
            pytest.skip(f"needs nccl4py, cuda-bindings, cuda-core and cuda-pathfinder: {error}")


class Bound:
    """Takes calls of a communicator of nccl4py's if its signatures do."""

    def __init__(self, nccl: Any) -> None:
        self.nccl = nccl
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        signature = inspect.signature(getattr(self.nccl.Communicator, name))

        def call(*args: Any, **how: Any) -> None:
            signature.bind(self, *args, **how)
            self.called.append(name)

        return call


class Module:
    """nccl4py, but for what would ask its library."""

    def __init__(self, nccl: Any) -> None:
        self._nccl = nccl

    @contextmanager
    def group(self) -> Generator[None]:
        inspect.signature(self._nccl.group).bind()
        yield

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nccl, name)


class WithoutDevice(NcclCommunicator):
    def __init__(self, nccl: Any) -> None:  # pyright: ignore[reportMissingSuperCall]
        self._nccl, self._comm, self._size = Module(nccl), Bound(nccl), 2

    def _stream(self) -> int:
        return 0


def test_every_call_fits_nccl4pys_signatures(nccl: Any):
    x, out, how = torch.ones(4), torch.ones(4), {"async_op": False}
    communicator = WithoutDevice(nccl)
    for op in ("SUM", "PRODUCT", "MAX", "MIN", "AVG"):
        communicator.all_reduce(x, op=getattr(torch.distributed.ReduceOp, op), **how)
    communicator.reduce(x, op=torch.distributed.ReduceOp.SUM, dst=1, **how)
    communicator.broadcast(x, src=1, **how)
    communicator.all_gather(x, output=out, **how)
    communicator.reduce_scatter(x, output=out, op=torch.distributed.ReduceOp.SUM, **how)
    communicator.all_to_all(x, output=out, output_splits=[1, 3], input_splits=[3, 1], **how)
    communicator.send(x, dst=1, **how)
    communicator.recv(x, src=1, **how)
    communicator.exchange(x, output=out, dst=1, src=1, **how)
    called: Any = communicator._comm.called  # pyright: ignore[reportPrivateUsage]
    assert set(called) == {"allreduce", "reduce", "broadcast", "allgather", "reduce_scatter", "send", "recv"}


def test_shrinking_and_giving_back_memory_fit_too(nccl: Any, monkeypatch: pytest.MonkeyPatch):
    """Not run here: that needs NCCL 2.27 and 2.29.7, and devices. A name that moved fails."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    communicator = WithoutDevice(nccl)
    communicator._device, communicator._rank = torch.device("cpu"), 1  # pyright: ignore[reportPrivateUsage]
    for broken in (False, True):
        made = communicator.follow(0, [1], broken=broken)
        assert isinstance(made, WithoutDevice)
        assert (made._size, made._rank) == (1, 0)  # pyright: ignore[reportPrivateUsage]
    assert communicator.follow(0, [1, 0], broken=False) is None  # NCCL keeps the order
    communicator.suspend()
    communicator.resume()
    called: Any = communicator._comm.called  # pyright: ignore[reportPrivateUsage]
    assert called == ["shrink", "shrink", "suspend", "resume"]


def test_creation_and_end_fit_too(nccl: Any):
    init = inspect.signature(nccl.Communicator.init)
    init.bind(2, 0, object(), None)
    inspect.signature(nccl.get_unique_id).bind()
    options = GroupOptions(min_ctas=1, max_ctas=2, cga_cluster_size=1, net_name="Socket")
    inspect.signature(nccl.NCCLConfig).bind(**options.nccl_config)
    for end in ("abort", "finalize", "destroy"):
        inspect.signature(getattr(nccl.Communicator, end)).bind(object())
    assert callable(nccl.UniqueId.from_bytes)
