"""Two engines on Ray actors, as in reinforcement learning: one samples, the other trains, a third group moves weights.

`python docs/examples/ray_engines.py` starts a small Ray on this machine, runs a few rounds, and compares the weights
with those of one process that did the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel_topology import GroupManager, ParallelTopology
from parallel_topology.ray import RayActors, RayEngine, Ticket
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Weight, Weights

FEATURES, ACTIONS, SAMPLES = 8, 6, 64
ROUNDS = 5
TRAINER = ParallelTopology(tp=2, dp=2)
ROLLOUT = ParallelTopology(tp=2)
EVERYBODY = ParallelTopology(dp=TRAINER.world_size + ROLLOUT.world_size)
"""Of the group over which weights move: rank 0 is the trainer's first, the last ones are those that sample."""
PLAN = RefitPlan(
    Weights([Weight("policy", f"{FEATURES} {ACTIONS}/tp")], dtype="float64"),
    TRAINER,
    ParallelTopology(tp=ROLLOUT.tp, first_rank=TRAINER.world_size),
)


class Worker:
    """What runs in each actor. It may be a rank of several engines, each with a manager of its own."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the actors share this machine's cores
        self.groups: dict[str, GroupManager] = {}
        self.policy: Policy | None = None

    def join(self, ticket: Ticket) -> None:
        self.groups[ticket.name] = ticket.join()

    def build(self, engine: str) -> None:
        self.policy = Policy(self.groups[engine])

    def sample(self, states: Tensor, seed: int) -> Tensor:
        return _sample(self._policy.logits(states), seed)

    def train(self, states: Tensor, actions: Tensor) -> None:
        self._policy.step(states, actions)

    def share_weights(self, engine: str, version: int) -> Tensor:
        """From those that train to those that sample, each part to whom it is for; collective. The whole, then."""
        everybody, mine = self.groups[engine], {"policy": self._policy.shard}
        have, into = (mine, {}) if everybody.rank in TRAINER.world else ({}, mine)
        refit(PLAN, everybody.world, have, into, version=version)
        return self._policy.weight()

    def leave(self) -> None:
        for groups in self.groups.values():
            groups.close()

    @property
    def _policy(self) -> Policy:
        if self.policy is None:
            raise RuntimeError("build() comes first")
        return self.policy


class Policy:
    """A linear policy: its columns are divided over `tp`, its samples over `dp` where there is one."""

    def __init__(self, groups: GroupManager) -> None:
        self.groups = groups
        self.columns = groups.tp.shard(ACTIONS)
        self.shard = torch.zeros(FEATURES, len(self.columns), dtype=torch.float64)

    def weight(self) -> Tensor:
        return self.groups.tp.all_gather(self.shard, dim=1)

    def logits(self, states: Tensor) -> Tensor:
        return self.groups.tp.all_gather(states @ self.shard, dim=1)

    def step(self, states: Tensor, actions: Tensor) -> None:
        mine = self.groups.dp.batch_share(len(states))
        part = slice(mine.start, mine.stop)
        slope = _slope(states[part], actions[part], self.logits(states[part]))
        self.shard += self.groups.dp.all_reduce(slope[:, self.columns.start : self.columns.stop].clone())


def _sample(logits: Tensor, seed: int) -> Tensor:
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def _slope(states: Tensor, actions: Tensor, logits: Tensor) -> Tensor:
    """Of the expected reward, as policy gradients estimate it: 1 for the action that a rule names, else 0."""
    reward = (actions == states[:, :ACTIONS].argmax(1)).to(states.dtype)
    chosen = torch.nn.functional.one_hot(actions, ACTIONS).to(states.dtype)
    return states.T @ ((chosen - logits.softmax(1)) * reward[:, None]) / SAMPLES


def _states(round_: int) -> Tensor:
    return torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(round_))


def reference() -> Tensor:
    """The weights after all rounds in one process."""
    weight = torch.zeros(FEATURES, ACTIONS, dtype=torch.float64)
    for round_ in range(ROUNDS):
        states = _states(round_)
        actions = _sample(states @ weight, round_)
        weight += _slope(states, actions, states @ weight)
    return weight


def run() -> list[Tensor]:
    """On the Ray that this process is connected to: the weights that each of the actors ends with."""
    import ray  # pyright: ignore[reportMissingImports] (an extra)

    start: Any = ray.remote(num_cpus=1)(Worker)
    actors = RayActors.find([start.remote() for _ in EVERYBODY.world])  # from here on node by node
    with (
        RayEngine(actors[:4], TRAINER, name="trainer", timeout=60) as trainer,
        RayEngine(actors[4:], ROLLOUT, name="rollout", timeout=60) as rollout,
        RayEngine(actors, EVERYBODY, name="weights", timeout=60) as weights,
    ):
        for engine in (trainer, rollout, weights):
            engine.admit("join")
        for engine in (trainer, rollout):
            engine.call("build", engine.name)
        for round_ in range(ROUNDS):
            weights.call("share_weights", weights.name, round_)
            states = _states(round_)
            actions = rollout.call("sample", states, round_)[0]
            trainer.call("train", states, actions)
        shared = weights.call("share_weights", weights.name, ROUNDS)
        weights.call("leave")
    return shared


def main() -> None:
    import ray  # pyright: ignore[reportMissingImports] (an extra)

    ray.init(num_cpus=EVERYBODY.world_size, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        expected = reference()
        worst = max((weight - expected).abs().max().item() for weight in run())
        print(f"{ROUNDS} rounds of {ROLLOUT} and {TRAINER}: at most {worst:.1e} from the weights of one process")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
