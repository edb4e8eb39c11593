"""Which layouts fit, and in which order: against every layout and every order of small worlds."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from time import process_time
from typing import Any

import pytest

from parallel_topology import Hosts, ParallelTopology, TopologyError
from parallel_topology.weights import Model, Serving, Training, loads, traffic_on
from parallel_topology.weights.search import search
from tests.weights import configurations as published
from tests.weights.test_traffic import DENSE, SPARSE

HOSTS = Hosts.parse("2x4")
SIZES = (1, 2, 4, 8)


def every(model: Model, use: Any) -> dict[tuple[int, ...], list[ParallelTopology]]:
    """(tp, cp, dp, pp, ep) -> the layout in each order, of all that divide."""
    found: dict[tuple[int, ...], list[ParallelTopology]] = {}
    for tp in SIZES:
        for cp in SIZES if isinstance(use, Training) else (1,):
            for pp in SIZES:
                for ep in (1, 2, 4, 8) if model.experts else (1,):
                    dp, rest = divmod(8, tp * cp * pp)
                    if rest or (tp * cp * dp) % ep or tp > 4 or pp > 4:  # four heads, four layers
                        continue
                    sizes: dict[str, Any] = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
                    found[tp, cp, dp, pp, ep] = []
                    for order in permutations(sizes):
                        inner = "-".join([*(axis for axis in order if axis != "pp"), "pp"])
                        views = {"expert": f"etp1-ep{ep}-edp-pp{pp}~{inner}"} if ep > 1 else {}
                        try:
                            one = ParallelTopology(order="-".join(order), views=views, **sizes)
                        except TopologyError:
                            continue
                        found[tp, cp, dp, pp, ep].append(one)
    return found


@pytest.mark.parametrize(
    ("model", "use"),
    [
        (DENSE, Training(zero=1, context=12)),
        (DENSE, Training(zero=3, context=12, batch=2)),
        (DENSE, Serving(batch=3)),
        (SPARSE, Serving(batch=3)),
        pytest.param(SPARSE, Training(zero=1, context=12), marks=pytest.mark.slow),
        pytest.param(SPARSE, Training(zero=3, context=12, batch=2), marks=pytest.mark.slow),
    ],
)
def test_all_that_fit_are_found_in_their_best_order(model: Model, use: Any):
    some = replace(use, communicator_bytes=100)
    needs = sorted(loads(model, orders[0], some)[0].memory.total for orders in every(model, use).values())
    memory = needs[len(needs) // 2]
    expected: dict[tuple[int, ...], Any] = {}
    for sizes, orders in every(model, use).items():
        whole = 8 * use.batch  # sequences of a step
        here, tokens = some, sizes[2] * use.batch
        if isinstance(some, Training):
            if use.context % sizes[1]:
                continue
            here, tokens = replace(some, micro_batches=whole // (sizes[2] * use.batch)), whole * use.context
        best: Any = None
        for one in orders:
            sent = traffic_on(model, one, HOSTS, here)
            if loads(model, one, here)[0].memory.total <= memory and (best is None or sent.across < best[0]):
                best = sent.across, sent.inside
        if best is not None:
            expected[sizes] = best[0] / tokens, best[1] / tokens
    found = search(model, 8, some, memory=memory, hosts=HOSTS)
    by_sizes = {}
    for one in found.fitting:
        known = one.topology.all_axes
        sizes = [one.topology.size(axis) if axis in known else 1 for axis in ("tp", "cp", "dp", "pp", "ep")]
        by_sizes[tuple(sizes)] = one.across, one.inside
        ranks = [loads(model, one.topology, replace(some, micro_batches=8 // sizes[2])
                       if isinstance(some, Training) else some)]  # fmt: skip
        assert ranks[0][0].memory.total == one.memory <= memory
    assert by_sizes == expected
    across = [one.across for one in found.fitting]
    assert across == sorted(across)
    assert 0 < len(across) < len(every(model, use)) + sum(found.out.values())


def test_why_layouts_fall_out():
    found = search(DENSE, 8, Training(context=12, communicator_bytes=0), memory=10**9, hosts=HOSTS, sequences=4)
    assert found.out == {
        "the context does not divide over cp": 1,
        "heads do not divide over tp": 1,
        "more stages than layers": 1,
        "the sequences of a step do not divide over dp": 1,
    }
    assert len(found.fitting) == 20 - 4
    none = search(DENSE, 8, Serving(), memory=1, hosts=HOSTS)
    assert (none.fitting, none.out["needs more memory"]) == ([], 8)
    experts = search(SPARSE, 16, Serving(communicator_bytes=0), memory=10**9, hosts=Hosts.parse("2x8"))
    assert experts.out["experts do not divide over ep"] == 3


def test_one_rank_needs_no_groups():
    found = search(DENSE, 1, Serving(), memory=10**9, hosts=Hosts.parse("1x1"))
    assert [(str(one.topology), one.across, one.inside) for one in found.fitting] == [("tp1", 0, 0)]


def test_64_ranks_take_a_moment():
    """In time of the processor, as the machine may be busy: a second, of a mixture of experts in training."""
    model, start = Model.from_config(published.MIXTRAL_8X7B), process_time()
    found = search(model, 64, Training(zero=1), memory=80 * 2**30, hosts=Hosts.parse("8x8"))
    assert len(found.fitting) > 100
    assert process_time() - start < 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ranks": 0}, "ranks=0"),
        ({"sequences": 0}, "sequences=0"),
        ({"ranks": 16}, "the hosts 2x4 hold 8 ranks"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], said: str):
    arguments: dict[str, Any] = {"ranks": 8, "use": Serving(), "memory": 1, "hosts": HOSTS, **given}
    with pytest.raises(TopologyError, match=said):
        search(DENSE, **arguments)
