"""Randomness that is the same in every run: seeds by rank, and generators of a rank's own.

torch's default generator and `random` belong to the process. In a world of processes each rank seeds its own. Threads
share them: there they are seeded once for all, the order in which ranks draw is the scheduler's, and what must be the
same in every run is drawn from a rank's own generator.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator
from contextlib import contextmanager

import torch


def rank_seed(rank: int, seed: int = 0) -> int:
    """The seed of a rank: equal in every run and world, different for different ranks and seeds."""
    return zlib.crc32(f"{seed}/{rank}".encode())


def rank_generator(rank: int, seed: int = 0) -> torch.Generator:
    """A CPU generator of the rank's own."""
    return torch.Generator("cpu").manual_seed(rank_seed(rank, seed))


def seed_process(seed: int) -> None:
    """Seed what belongs to this process: torch's default generators and `random`."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType] (torch does not say)
    random.seed(seed)


@contextmanager
def seeded_threads(seed: int) -> Generator[None]:
    """While ranks run as threads: the shared generators seeded, one core for each; afterwards all as it was."""
    torch_state, random_state, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    seed_process(seed)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(random_state)
        torch.set_rng_state(torch_state)
