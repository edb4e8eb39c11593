"""Where a rank stands: the stack of its thread, and the group and operation it waits in, read from its frames."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType

_HARNESS = str(Path(__file__).parent)
"""A stack is shown from where this folder called the code under test."""
_HIDDEN = ("parallel_topology/testing/recording.py", "torch/distributed/c10d_logger.py")


def where(thread_id: int | None) -> str:
    """One line on what the thread waits in, if that can be seen, and its stack."""
    frame = sys._current_frames().get(thread_id or -1)  # pyright: ignore[reportPrivateUsage] (there is no other way)
    if frame is None:
        return "(no Python frame)"
    entries = [entry for entry in traceback.extract_stack(frame) if not entry.filename.endswith(_HIDDEN)]
    below = [place for place, entry in enumerate(entries) if entry.filename.startswith(_HARNESS)]
    return f"{_waiting(frame)}in\n{''.join(traceback.format_list(entries[below[-1] + 1 if below else 0 :]))}"


def _waiting(innermost: FrameType) -> str:
    """Reads the locals of the package's own frames, so that nothing has to be noted down while all goes well."""
    frame: FrameType | None = innermost
    while frame is not None:
        module, local = frame.f_globals.get("__name__", ""), frame.f_locals
        if module == "parallel_topology.groups.bound" and frame.f_code.co_name == "_carry_out":
            return f"waiting in {local['operation']} on {local['self'].label} = {local['self'].ranks}, "
        if module == "parallel_topology.communicators.handle" and frame.f_code.co_name == "wait":
            return f"waiting for {local['self']}, "
        if module == "parallel_topology.groups.manager" and frame.f_code.co_name == "__init__":
            return f"waiting in the creation of manager {local.get('name')!r} of {local.get('topology')}, "
        frame = frame.f_back
    return ""
