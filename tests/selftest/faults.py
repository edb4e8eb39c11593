"""Managers with a planted fault: rank 2 is slow, adds wrongly, sends what it should not, ends or waits for ever."""

from __future__ import annotations

import os
import threading
import time

import torch
from torch import Tensor

from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager

FAULTY = 2
DELAY = 0.03
"""Seconds, far more than a small message takes even on a busy machine."""


class _Group(ParallelGroup):
    """A group that `_Manager` has made faulty where the faulty rank is concerned."""


class _Manager(GroupManager):
    group = _Group

    def _bind(self, family, prefix):
        bound = super()._bind(family, prefix)
        if self.rank == FAULTY:
            bound.__class__ = self.group
        return bound


class _SlowGroup(_Group):
    def send(self, *args, **kwargs) -> None:
        time.sleep(DELAY)
        super().send(*args, **kwargs)


class _BadSumGroup(_Group):
    def all_reduce(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        return super().all_reduce(tensor, *args, **kwargs).add_(1)


class _BadSourceGroup(_Group):
    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        return super().all_gather(tensor + 1, dim)

    def all_reduce(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        return super().all_reduce(tensor.add_(torch.ones(())), *args, **kwargs)


class _EndingGroup(_Group):
    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        os._exit(7)


class _StuckGroup(_Group):
    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        threading.Event().wait()
        return tensor


class Slow(_Manager):
    group = _SlowGroup


class BadSum(_Manager):
    group = _BadSumGroup


class BadSource(_Manager):
    group = _BadSourceGroup


class Ending(_Manager):
    group = _EndingGroup


class Stuck(_Manager):
    group = _StuckGroup
