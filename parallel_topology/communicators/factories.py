"""Which factory a communicator's name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from parallel_topology.communicators.membership import Factory
from parallel_topology.communicators.shared_memory import SharedMemoryCommunicator
from parallel_topology.communicators.two_levels import TwoLevelCommunicator
from parallel_topology.errors import BackendError

ENTRY_POINTS = "parallel_topology.communicators"
"""The entry-point group under which installed packages offer communicator factories by name."""


def find_factory(name: str, given: Mapping[str, Factory]) -> Factory:
    """The factory called `name`: one of those given, our own, or an installed package's entry point.

    Raises:
        BackendError: there is none of that name.
    """
    if name in given:
        return given[name]
    if name == "nccl":
        from parallel_topology.communicators.nccl import NcclCommunicator  # needs the extra

        return NcclCommunicator
    if name == "shared_memory":
        return SharedMemoryCommunicator
    if name == "two_levels":
        return TwoLevelCommunicator
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in found:
        return found[name].load()
    known = ", ".join(["torch", "shared_memory", "nccl", "two_levels", *given, *found])
    raise BackendError(
        f"communicator {name!r} is not known: expected one of {known}, or a factory in communicators={{{name!r}: ...}}"
    )
