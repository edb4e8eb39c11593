"""Managers with a planted fault: rank 2 is slow, adds wrongly, sends what it should not, ends or waits for ever.

The fault sits below the groups, where a broken card or cable would: in what carries a group's calls out.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch
from torch import Tensor

from parallel_topology.communicators.communicator import Around, Communicator, Work
from parallel_topology.groups.manager import GroupManager

FAULTY = 2
DELAY = 0.05
"""Seconds, far more than a small message takes even on a busy machine."""
SLOW_FROM = 512
"""Bytes from which messages are slow: those between neighbours; the many small ones would take long."""


class _SlowLinks(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation == "send" and tensor.nbytes >= SLOW_FROM:
            time.sleep(DELAY)
        return super().issue(operation, tensor, **arguments)


class _BadSums(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        work = super().issue(operation, tensor, **arguments)
        if operation != "all_reduce":
            return work
        if work is not None:
            work.wait()
        tensor.add_(1)
        return None


class _BadSources(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation in ("all_gather", "all_reduce") and tensor.is_floating_point():  # not the lengths of objects
            tensor.add_(1)
        return super().issue(operation, tensor, **arguments)


class _BadLater(Around):
    """Right at first, when somebody might look."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._calls = 0

    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation == "all_reduce" and tensor.dtype == torch.float32:
            self._calls += 1
            if self._calls == 9:
                tensor.add_(1)
        return super().issue(operation, tensor, **arguments)


class _BadHalves(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation == "all_gather" and tensor.dtype == torch.bfloat16:
            tensor.add_(1)
        return super().issue(operation, tensor, **arguments)


class _Ends(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation == "all_gather":
            os._exit(7)
        return super().issue(operation, tensor, **arguments)


class _GetsStuck(Around):
    def issue(self, operation: str, tensor: Tensor, **arguments: Any) -> Work | None:
        if operation == "all_gather":
            threading.Event().wait()
        return super().issue(operation, tensor, **arguments)


class _Manager(GroupManager):
    fault: type[Around]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.rank == FAULTY:
            for name in self.plan.families:
                self[name].communicators = tuple(map(self.fault, self[name].communicators))


class Slow(_Manager):
    fault = _SlowLinks


class BadSum(_Manager):
    fault = _BadSums


class BadSource(_Manager):
    fault = _BadSources


class BadLater(_Manager):
    fault = _BadLater


class BadHalves(_Manager):
    fault = _BadHalves


class Ending(_Manager):
    fault = _Ends


class Stuck(_Manager):
    fault = _GetsStuck
