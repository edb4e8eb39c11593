"""Refusal: what a communicator finds wrong, for the group that called it to say under its own name."""

from __future__ import annotations

import traceback

from parallel_topology.errors import ParallelTopologyError


class Refusal(RuntimeError):  # noqa: N818 (nobody gets to see it)
    """An error of ours before it is known which of the groups that share a communicator was called."""

    def __init__(self, kind: type[ParallelTopologyError], before: str, after: str) -> None:
        """`before` and `after` say what is wrong with a group's label between them."""
        super().__init__(kind, before, after)
        self.kind = kind
        self.before = before
        self.after = after

    def to(self, label: str) -> ParallelTopologyError:
        """The error, told to the caller of the group `label`."""
        traceback.clear_frames(self.__traceback__)  # they hold work, and by that the group's sockets
        return self.kind(f"{self.before} {label}{self.after}")

    def __str__(self) -> str:
        return f"{self.before} a group{self.after}"
