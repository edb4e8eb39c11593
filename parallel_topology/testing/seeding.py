"""Randomness that is the same in every run: seeds by rank, and generators of a rank's own.

torch's default generator and `random` belong to the process. In a world of processes each rank seeds its own. Threads
share them: there they are seeded once for all, the order in which ranks draw is the scheduler's, and what must be the
same in every run is drawn from a rank's own generator.
"""

from __future__ import annotations

import random
import zlib

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
