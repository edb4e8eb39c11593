"""NCCL groups and CUDA graphs: several ranks on one GPU, in processes. `pytest -m gpu tests/gpu`.

NCCL takes ranks that share a GPU only if it believes them on different hosts, or from 2.30 on by
`NCCL_MULTI_RANK_GPU_ENABLE`; both are set before the first communicator.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel_topology import GroupManager, GroupOptions, LiveGraphError, ParallelTopology
from parallel_topology.testing import WorkerPool, run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_nccl4py = pytest.mark.skipif(find_spec("nccl") is None, reason="needs the extra nccl")
CHAINS = [(), pytest.param(("nccl",), marks=needs_nccl4py)]


def on_one_gpu(groups: GroupManager, folder: str, body: Callable[..., None], *args: Any) -> None:
    """Runs `body(connect, ...)`, where `connect(topology, **options)` makes an NCCL manager of this rank."""
    os.environ |= {
        "NCCL_HOSTID": f"rank-{groups.rank}", "NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket", "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1",
        "NCCL_NVLS_ENABLE": "0", "NCCL_MNNVL_ENABLE": "0", "NCCL_RAS_ENABLE": "0", "NCCL_MAX_CTAS": "2",
    }  # fmt: skip
    torch.cuda.set_device(0)
    store = dist.FileStore(str(Path(folder, "nccl")), groups.world.size)

    def connect(topology: str, **options: Any) -> GroupManager:
        return GroupManager(
            ParallelTopology.parse(topology), rank=groups.rank, store=store, backend="nccl", device="cuda:0",
            timeout=60, **options,
        )  # fmt: skip

    body(connect, *args)
    torch.cuda.synchronize()
    groups.world.barrier()


def run(ranks: int, tmp_path: Path, body: Callable[..., None], *args: Any) -> None:
    with WorkerPool() as pool:  # its own: NCCL reads the environment once in a process
        run_ranks(
            f"tp{ranks}", on_one_gpu, str(tmp_path), body, *args, world="processes", pool=pool, timeout=200, check=False
        )


def chain(names: tuple[str, ...]) -> dict[str, Any]:
    return {"options": {"tp": GroupOptions(communicators=names)}} if names else {}


def _collectives(connect: Callable[..., GroupManager], names: tuple[str, ...]) -> None:
    with connect("tp2-pp2", **chain(names)) as groups:
        tp, device = groups.tp, groups.device
        mine = torch.full((4, 2), float(groups.rank + 1), device=device)
        values = [torch.full((4, 2), float(rank + 1)) for rank in tp.ranks]
        expected: list[tuple[torch.Tensor, torch.Tensor]] = [
            (tp.all_reduce(mine.clone()), values[0] + values[1]),
            (tp.all_reduce(mine.clone(), dist.ReduceOp.MAX), torch.maximum(*values)),
            (tp.all_gather(mine, dim=1), torch.cat(values, 1)),
            (tp.all_gather_v(mine[: tp.rank + 1]), torch.cat([values[0][:1], values[1][:2]])),
            (tp.reduce_scatter(mine), (values[0] + values[1])[:2]),
            (tp.broadcast(mine.clone(), src=1), values[1]),
            (tp.all_to_all(mine), torch.cat([value[:2] for value in values])),
            (tp.send_recv(mine), values[tp.rank - 1]),
            (tp.scatter(mine.clone(), torch.arange(16.0, device=device).view(8, 2) if tp.is_first else None),
             torch.arange(16.0).view(8, 2)[4 * tp.rank :][:4]),
            (tp.all_reduce(torch.ones(1)), torch.full((1,), 2.0)),  # on the CPU, over gloo
        ]  # fmt: skip
        for result, value in expected:
            torch.testing.assert_close(result.cpu(), value)
        value = {"hidden": mine, "positions": torch.arange(3), "step": 1}
        if groups.pp.is_first:
            groups.pp.send_tensors(value, split=tp)
        else:
            got = groups.pp.recv_tensors(split=tp)
            assert got["hidden"].device == device
            torch.testing.assert_close(got["hidden"], mine - 2)
            assert got["positions"].device.type == "cpu"
        assert tp.all_gather_object({"rank": groups.rank}) == [{"rank": rank} for rank in tp.ranks]


@pytest.mark.parametrize("names", CHAINS)
def test_collectives(tmp_path: Path, names: tuple[str, ...]):
    run(4, tmp_path, _collectives, names)


def _captured(groups: GroupManager, factor: float, prefer: str | None) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of `tp.all_reduce(factor * rank)` into the tensor."""
    source = torch.full((1024,), factor * (groups.rank + 1), device=groups.device)
    result, graph = torch.zeros_like(source), torch.cuda.CUDAGraph()
    with groups.tp.capture(prefer=prefer) as stream, torch.cuda.graph(graph, stream=stream):
        result.copy_(source)
        groups.tp.all_reduce(result)
    return graph, result


def _replay(connect: Callable[..., GroupManager], names: tuple[str, ...]) -> None:
    first, second = connect("tp2", name="first", **chain(names)), connect("tp2", name="second", **chain(names))
    prefer = names[0] if names else None
    graphs = [_captured(first, 1, prefer), _captured(second, 10, prefer)]  # two managers, in one process
    for _ in range(3):
        for (graph, result), total in zip(graphs, (3.0, 30.0), strict=True):
            result.zero_()
            graph.replay()
            torch.cuda.synchronize()
            assert result.eq(total).all()
    assert first.tp.all_reduce(torch.ones(4, device=first.device)).eq(2).all()  # eager, between replays
    with pytest.raises(LiveGraphError, match=r"1 of first/"):
        first.close()
    assert not first.closed
    graphs[0][0].reset()
    del graphs[0]
    first.close()
    graph, result = graphs[0]
    graph.replay()
    torch.cuda.synchronize()
    assert result.eq(30).all()  # the other engine's goes on
    del graph, result
    graphs.clear()
    second.close()


@pytest.mark.parametrize("names", CHAINS)
def test_capture_and_replay_of_two_managers_and_close_with_a_live_graph(tmp_path: Path, names: tuple[str, ...]):
    run(2, tmp_path, _replay, names)


def _options(connect: Callable[..., GroupManager]) -> None:
    options = {"tp": {"high_priority_stream": True, "max_ctas": 1, "min_ctas": 1, "net_name": "Socket"}}
    with connect("tp2", options=options) as groups:
        assert groups.tp.device_group is not groups.world.device_group
        assert groups.tp.all_reduce(torch.ones(4, device=groups.device)).eq(2).all()


def test_options_of_a_group(tmp_path: Path):
    run(2, tmp_path, _options)
