"""Managers with a planted fault: rank 2 is slow, adds wrongly, sends what it should not, ends or waits for ever."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from parallel_topology.groups.group import ParallelGroup
from parallel_topology.groups.manager import GroupManager

FAULTY = 2
DELAY = 0.2
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
    def send(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:  # only where neighbours are timed: the ring would take long
            time.sleep(DELAY)
        return super().send(*args, **kwargs)


class _BadSumGroup(_Group):
    def all_reduce(self, *args: Any, **kwargs: Any) -> Any:
        return super().all_reduce(*args, **kwargs).add_(1)


class _BadSourceGroup(_Group):
    def all_gather(self, *args: Any, **kwargs: Any) -> Any:
        return super().all_gather(args[0] + 1, *args[1:], **kwargs)

    def all_reduce(self, *args: Any, **kwargs: Any) -> Any:
        return super().all_reduce(args[0].add_(1), *args[1:], **kwargs)


class _EndingGroup(_Group):
    def all_gather(self, *args: Any, **kwargs: Any) -> Any:
        os._exit(7)


class _StuckGroup(_Group):
    def all_gather(self, *args: Any, **kwargs: Any) -> Any:
        threading.Event().wait()


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
