"""ParallelGroup: one of a manager's groups as this rank sees it, with all that it can do."""

from __future__ import annotations

from parallel_topology.groups.capture import Capturing
from parallel_topology.groups.transfer import Transfer


class ParallelGroup(Transfer, Capturing):
    """A `RankGroup` that can communicate. All members must call the same collectives in the same order.

    A tensor on the CPU goes over the CPU group (gloo), one on the manager's device over the device group. With
    `async_op=True` a collective returns a `Handle` at once, whose `wait()` gives the result. In a group of one rank
    every collective returns at once, with the tensor it was given. Sources and destinations are positions in the group
    (`src=`, `dst=`) or global ranks (`src_rank=`, `dst_rank=`).

    Attributes:
        label: the group's name among all managers, such as `engine/tp[1]`; torch's profiler shows it.
        device: where the device group's tensors are.
        links: the process groups themselves, shared with this manager's other groups of the same ranks.
        communicators: asked in this order who carries out a call; the last one is torch's.

    Every collective raises:
        ClosedError: the manager was closed.
        GroupArgumentError: a peer outside the group, shapes that do not divide, or a tensor on a device or of a dtype
            that this group does not serve.
        GroupTimeoutError: the others did not take part within the manager's timeout.
        CollectiveError: the operation failed, most often because a peer is gone.
    """
