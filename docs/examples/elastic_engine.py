"""An engine under load that loses a rank, goes on with those that are left, and grows again when another comes.

Each request is answered by all ranks: a layer is cut over tp, and there are two copies of it over dp. A rank is killed;
the others name the request that failed, go on as tp3, with the weights that they refit from the copies that are left,
and ask for the whole topology again in the background. Who comes in takes the dead one's place and gets its weights.

    python -m parallel_topology.examples.elastic_engine

starts a store, four ranks and, when one has died, a fifth process. By hand, or under a launcher that starts dead ranks
again (`torchrun --nproc-per-node 1 --max-restarts 3` for each), each is `elastic_engine URL RANK`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from parallel_topology import CollectiveError, GroupManager, GroupTimeoutError, ParallelTopology
from parallel_topology.refit import RefitPlan, refit
from parallel_topology.weights import Weight, Weights

WHOLE = ParallelTopology(tp=2, dp=2)
ROWS, COLUMNS = 12, 8
WEIGHTS = Weights([Weight("w", f"{ROWS}/tp {COLUMNS}")], dtype="float32")
DIES = (3, 50)
"""Which rank is killed, and in which request."""
AFTER = 50
"""Requests that are answered after the engine is whole again."""
ALL_OF_IT = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)


def request(number: int) -> torch.Tensor:
    """`[columns]`."""
    return torch.full((COLUMNS,), float(number))


class Engine:
    """One rank's.

    Attributes:
        answers: request -> its answer, `[rows]`.
        named: request -> why it was not answered at once.
        sizes: the topologies it has had.
    """

    def __init__(self, groups: GroupManager) -> None:
        self.groups = groups
        self.answers: dict[int, torch.Tensor] = {}
        self.named: dict[int, str] = {}
        self.sizes = [str(groups.topology)]
        self._number = 0
        self._whole_since: int | None = None
        self._standby = None
        self._shards = self._empty()
        if groups.newcomers:  # this rank came in: the others tell it where they are
            self._refit(None)
        else:
            rows, _ = WEIGHTS.on(groups.topology, groups.rank)["w"].ranges
            self._shards["w"].copy_(ALL_OF_IT[rows.start : rows.stop])

    def run(self, dies_at: int = -1) -> None:
        """Answer requests until some were answered after the loss was made good."""
        while self._whole_since is None or self._number < self._whole_since + AFTER:
            try:
                if self._number == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._answer()
                self._grow()
            except (CollectiveError, GroupTimeoutError) as error:
                self.named[self._number] = str(error)
                self._shrink()

    def _answer(self) -> None:
        time.sleep(0.002)  # a model works longer
        answer = self.groups.tp.all_gather(self._shards["w"] @ request(self._number))
        self.groups.world.barrier()  # so that all of them notice when one is lost, not only those in its groups
        self.answers[self._number] = answer
        self._number += 1

    def _shrink(self) -> None:
        """Go on with those that are there."""
        alive = self.groups.survivors(timeout=5)
        before = self.groups.topology
        self.groups = self.groups.rebind(ParallelTopology(tp=len(alive), ranks=alive))
        self._refit(before, without=[rank for rank in before.world if rank not in alive])

    def _grow(self) -> None:
        """Ask for the whole in the background, and go over when all of it is there."""
        if self.groups.topology == WHOLE:
            return
        if self._standby is None or self._standby.status.state == "failed":
            self._standby = self.groups.prepare(WHOLE)
        ready = torch.tensor([self._standby.status.state == "ready"])
        if self.groups.world.all_reduce(ready, op="min"):
            before, standby, self._standby = self.groups.topology, self._standby, None
            self.groups = standby.commit()
            self._refit(before)

    def _refit(self, before: ParallelTopology | None, without: list[int] | None = None) -> None:
        """Bring the weights from the layout that the others had, and agree with them on the next request."""
        world = self.groups.world
        first = next(rank for rank in self.groups.topology.world if rank not in self.groups.newcomers)
        source, number = world.broadcast_object([str(before), self._number], src_rank=first)
        plan = RefitPlan(WEIGHTS, ParallelTopology.parse(source), self.groups.topology, without=without or ())
        into = self._empty()
        refit(plan, world, {} if before is None else self._shards, into)
        self._shards = into
        self._number = int(world.all_reduce(torch.tensor([number if before is None else self._number]), op="min"))
        self.sizes.append(str(self.groups.topology))
        self._whole_since = self._number if self.groups.topology == WHOLE else None

    def _empty(self) -> dict[str, torch.Tensor]:
        held = WEIGHTS.on(self.groups.topology, self.groups.rank)
        return {name: torch.zeros(one.shape) for name, one in held.items()}


def run(url: str, rank: int) -> None:
    """One rank; one that is started again joins."""
    host, port = url.removeprefix("tcp://").split(":")
    store = dist.TCPStore(host, int(port), is_master=False)
    if rank < 0 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        groups = GroupManager(store=store, joining=True, timeout=60)
    else:
        groups = GroupManager(WHOLE, rank=rank, store=store, timeout=60, operation_timeout=10)
    engine = Engine(groups)
    engine.run(DIES[1] if rank == DIES[0] and not groups.newcomers else -1)
    for number, answer in engine.answers.items():
        assert torch.equal(answer, ALL_OF_IT @ request(number)), number
    engine.groups.world.barrier()
    engine.groups.close()
    told = f"{' -> '.join(engine.sizes)}: requests {min(engine.answers)} to {max(engine.answers)}, all answered right"
    assert len(engine.answers) == max(engine.answers) - min(engine.answers) + 1
    print(f"rank {groups.rank}: {told}; {len(engine.named)} named")


def main() -> None:
    """Start it all, and another process for the one that dies."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    this = [sys.executable, "-m", "parallel_topology.examples.elastic_engine", f"tcp://127.0.0.1:{store.port}"]
    ranks = [subprocess.Popen([*this, str(rank)]) for rank in WHOLE.world]
    ranks[DIES[0]].wait()
    ranks[DIES[0]] = subprocess.Popen([*this, "-1"])
    sys.exit(max(abs(rank.wait()) for rank in ranks))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        main()
