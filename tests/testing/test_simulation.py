"""Simulated views: what a layer calls, how much, in which order, without communication or memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel_topology import ClosedError, GroupArgumentError, ParallelTopology, TopologyError, UnknownAxisError
from parallel_topology.examples import transformer  # pyright: ignore[reportAttributeAccessIssue]
from parallel_topology.functional import reduce_from
from parallel_topology.testing import run_ranks, simulate
from parallel_topology.testing.calls import Call
from parallel_topology.testing.failures import DeadlockError, MismatchError
from parallel_topology.testing.recording import record
from tests.groups.test_collectives import OPERATIONS, Case, outcome


class Mlp(nn.Module):
    """Column-parallel, then row-parallel: one all-reduce of the output, nothing else."""

    def __init__(self, hidden: int, ffn: int, tp: Any) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, len(tp.shard(ffn)), bias=False)
        self.down = nn.Linear(len(tp.shard(ffn)), hidden, bias=False)
        self.tp = tp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return reduce_from(self.down(self.up(x).relu()), self.tp)


def every_operation(groups: Any) -> list[tuple[int, ...]]:
    tp = groups.tp
    shapes = [tp.all_reduce(torch.ones(2, 3)).shape, tp.all_gather(torch.ones(2, 3), dim=1).shape]
    shapes += [tp.broadcast(torch.ones(4), src=1).shape, groups.world.all_gather(torch.tensor(1.0)).shape]
    if groups.pp.is_first:
        groups.pp.send(torch.ones(5, dtype=torch.float64))
    else:
        shapes.append(groups.pp.recv(torch.zeros(5, dtype=torch.float64)).shape)
    groups.world.barrier()
    return [tuple(shape) for shape in shapes]


def test_a_simulated_rank_calls_and_gets_what_a_real_one_does():
    class Tape:
        def __init__(self) -> None:
            self.calls: list[Call] = []

        def begin(self, call: Call) -> None:
            self.calls.append(call)

        def end(self, *, failed: bool) -> None:
            assert not failed

    def real(groups: Any) -> tuple[list[Call], list[tuple[int, ...]]]:
        tape = Tape()
        record(groups, tape)
        return tape.calls, every_operation(groups)

    simulation = simulate("tp2-pp2", every_operation)
    for rank, (calls, shapes) in enumerate(run_ranks("tp2-pp2", real)):
        assert simulation.calls[rank] == calls
        assert simulation.results[rank] == shapes


def test_one_all_reduce_of_this_size_on_tp_per_forward():
    def forward(groups: Any) -> tuple[int, ...]:
        return tuple(Mlp(64, 256, groups.tp)(torch.ones(3, 64)).shape)

    simulation = simulate("tp4-dp2", forward)
    assert set(simulation.results.values()) == {(3, 64)}
    for rank in simulation.topology.world:
        assert simulation.count(rank) == {("all_reduce", "tp"): 1}
        (call,) = simulation.on(rank, group="tp")
        assert (call.shape, call.dtype, call.bytes) == ((3, 64), "float32", 3 * 64 * 4)
        assert simulation.bytes(rank, operation="all_reduce") == 768


def _seventy_billion(groups: Any) -> int:
    """80 layers of hidden 8192 and ffn 28672: this rank's parameters."""
    layers = [Mlp(8192, 28672, groups.tp) for _ in groups.pp.stage_layers(80)]
    x = torch.empty(1, 4096, 8192)
    if not groups.pp.is_first:
        groups.pp.recv(x)
    for layer in layers:
        x = layer(x)
    if not groups.pp.is_last:
        groups.pp.send(x)
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("without_memory", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_a_70b_model_without_memory(without_memory: Any):
    with without_memory():
        simulation = simulate("tp8-pp4", _seventy_billion)
    assert sum(simulation.results.values()) == 80 * 2 * 8192 * 28672
    assert simulation.count(0) == {("all_reduce", "tp"): 20, ("send", "pp"): 1}
    assert simulation.bytes(0, group="pp") == 4096 * 8192 * 4


def test_the_example_transformer_has_matching_calls():
    config = transformer.TransformerConfig(hidden=48, heads=6, layers=4, ffn=96)

    def forward(groups: Any) -> None:
        model = transformer.Transformer(config, tp=groups.tp, pp=groups.pp)
        model(transformer.encode(b"some text"))

    simulation = simulate("tp2-pp2", forward)
    assert simulation.count(0)["send", "pp"] == simulation.count(2)["recv", "pp"] == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_collective_is_simulated(operation: str):
    splits = ((1, 0, 2), (2, 2, 0), (1, 1, 1))
    case = Case(operation, 3, torch.float32, (2, 3), 0, "SUM", 1, splits, True, True, True)

    def body(groups: Any) -> None:
        result, expected = outcome(case, groups)
        result = result.wait() if hasattr(result, "wait") else result
        assert (result is None) == (expected is None)
        assert result is None or result.shape == expected.shape  # pyright: ignore[reportOptionalMemberAccess]

    simulation = simulate("tp3", body, check=operation != "p2p")  # a root that sends, blocking, to one after the other
    assert simulation.calls[0]


def test_objects_as_if_all_held_the_same_and_nothing_that_only_a_peer_knows():
    def body(groups: Any) -> None:
        assert groups.tp.broadcast_object({"step": 1}, src=1) == {"step": 1}
        assert groups.tp.all_gather_object("a") == ["a", "a"]
        assert groups.tp.scatter_object(["b", "c"], src=1) == ("c" if groups.rank else "b")
        assert groups.tp.gather_object("d", dst=1) == (["d", "d"] if groups.rank else None)
        assert list(groups.tp.broadcast_objects("ef")) == ["e", "f"]
        mine = groups.rank == 0
        if mine:
            groups.tp.broadcast_object("source only")
        else:
            for receive in (
                groups.tp.broadcast_object,
                groups.tp.broadcast_objects,
                groups.tp.scatter_object,
                lambda: groups.tp.recv_any(torch.ones(1)),
            ):
                with pytest.raises(GroupArgumentError, match="a simulated group cannot know what comes"):
                    receive()
            groups.tp.broadcast_object("what the source sends, as the test gives it")
        for receive in (groups.tp.recv_object, groups.tp.recv_tensors):
            with pytest.raises(GroupArgumentError, match="a simulated group cannot know what comes"):
                receive()

    simulate(2, body)


def test_a_planted_deadlock_is_seen_without_running():
    def crossed(groups: Any) -> None:
        order = [groups.tp, groups.world] if groups.rank == 1 else [groups.world, groups.tp]
        for group in order:
            group.all_reduce(torch.ones(1))

    with pytest.raises(DeadlockError, match=r"rank 1, in its call 0, all_reduce of float32\[1\] on engine/tp\[0\]"):
        simulate("tp2-pp2", crossed)
    assert simulate("tp2-pp2", crossed, check=False).count(1) == {("all_reduce", "tp"): 1, ("all_reduce", "world"): 1}


def test_equal_groups_share_one_order():
    """In tp2 the world and tp are the same connections: calls that cross over are mixed up."""

    def crossed(groups: Any) -> None:
        (groups.tp if groups.rank else groups.world).all_gather(torch.ones(1))
        (groups.world if groups.rank else groups.tp).all_reduce(torch.ones(1))

    simulate("tp2", crossed)
    with pytest.raises(MismatchError):
        simulate("tp2", lambda groups: groups.tp.all_reduce(torch.ones(1 + groups.rank)))


def test_a_ring_that_sends_first():
    def ring(groups: Any) -> None:
        groups.tp.send(torch.ones(1))
        groups.tp.recv(torch.ones(1))

    with pytest.raises(DeadlockError):
        simulate("tp4", ring)
    simulate("tp4", ring, check=False).check(buffered_sends=True)


def test_a_simulated_manager_refuses_what_a_real_one_does():
    def body(groups: Any) -> None:
        with pytest.raises(GroupArgumentError, match=r"engine/tp\[0\]: src=7 is outside the group"):
            groups.tp.broadcast(torch.ones(1), src=7)
        with pytest.raises(UnknownAxisError, match=r"no group 'tp-pp'"):
            groups["tp", "pp"]
        with pytest.raises(TopologyError, match="was built for tp2-pp2, but tp4 is required"):
            groups.require(ParallelTopology(tp=4))
        groups.require(groups.topology)
        with groups:
            pass
        with pytest.raises(ClosedError):
            groups.tp.barrier()

    simulate("tp2-pp2", body, ranks=[0])
    simulate("tp2-pp2", lambda groups: groups["tp", "pp"].barrier(), groups=[("tp", "pp")])


def test_some_ranks_alone_cannot_be_checked():
    simulation = simulate("tp64-pp64", lambda groups: groups.tp.barrier(), ranks=[4095])
    assert simulation.count(4095) == {("barrier", "tp"): 1}
    with pytest.raises(TopologyError, match="1 of the 4096 ranks"):
        simulation.check()


def test_an_error_says_on_which_rank():
    def body(groups: Any) -> None:
        if groups.rank == 3:
            raise KeyError("planted")

    with pytest.raises(KeyError) as caught:
        simulate("tp2-pp2", body)
    assert caught.value.__notes__ == ["on simulated rank 3 of tp2-pp2 {'tp': 1, 'pp': 1}"]
