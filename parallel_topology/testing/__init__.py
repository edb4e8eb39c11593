"""Test parallel code like any other: N ranks as threads of this process, or as processes of this machine.

`strategies` needs hypothesis and no torch, `plugin` pytest and no torch; the names here are imported when they are
first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_topology.installed import imported

if TYPE_CHECKING:
    from parallel_topology.testing.agreement import assert_agree, parallel_assert
    from parallel_topology.testing.calls import Call
    from parallel_topology.testing.failures import (
        AgreementError,
        DeadlockError,
        DeadRankError,
        MismatchError,
        RanksUsageError,
        StuckRankError,
    )
    from parallel_topology.testing.per_rank import rank_fixture
    from parallel_topology.testing.pool import WorkerPool
    from parallel_topology.testing.ranks import run_ranks
    from parallel_topology.testing.seeding import rank_generator, rank_seed
    from parallel_topology.testing.simulation import SimulatedGroup, SimulatedManager, Simulation, simulate

__all__ = [
    "AgreementError",
    "Call",
    "DeadRankError",
    "DeadlockError",
    "MismatchError",
    "RanksUsageError",
    "SimulatedGroup",
    "SimulatedManager",
    "Simulation",
    "StuckRankError",
    "WorkerPool",
    "assert_agree",
    "parallel_assert",
    "rank_fixture",
    "rank_generator",
    "rank_seed",
    "run_ranks",
    "simulate",
]

_HOMES = {
    "Call": "calls",
    "SimulatedGroup": "simulation",
    "SimulatedManager": "simulation",
    "Simulation": "simulation",
    "WorkerPool": "pool",
    "assert_agree": "agreement",
    "parallel_assert": "agreement",
    "rank_fixture": "per_rank",
    "rank_generator": "seeding",
    "rank_seed": "seeding",
    "run_ranks": "ranks",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(imported(f"{__name__}.{_HOMES.get(name, 'failures')}", f"{__name__}.{name}"), name)
    globals()[name] = value
    return value
