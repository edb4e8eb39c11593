"""Where a rank stands: the stack of its thread, and the group and operation it waits in, read from its frames."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Container
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parents[1])
_HARNESS = str(Path(__file__).parent)
_RUNNERS = (_HARNESS, "/_pytest/", "/pluggy/")
"""What calls the code under test: a stack is shown from there on, up to where it calls this package."""
_OWN = "parallel_topology."
_INSIDE = {"parallel_topology", "torch", *sys.stdlib_module_names}
"""What is below the code under test, where a call of the package waits."""
_BYSTANDERS = ("parallel_topology.", "torch.", "pytest_timeout", "execnet", "xdist")
WAITING = "waiting "
"""How it begins where a rank waits for others: of ranks that are stuck these are not the first to be named."""


def where(thread_id: int | None) -> str:
    """One line on what the thread waits in, if that can be seen, and its stack."""
    frame = sys._current_frames().get(thread_id or -1)  # pyright: ignore[reportPrivateUsage] (there is no other way)
    if frame is None:
        return "(no Python frame)"
    entries = traceback.extract_stack(frame)
    start = next((place for place, entry in enumerate(entries) if entry.filename.startswith(_HARNESS)), 0)
    tested = (
        place
        for place, entry in enumerate(entries[start:], start)
        if not any(part in entry.filename for part in _RUNNERS)
    )
    theirs = entries[next(tested, 0) :]
    ours = (place for place, entry in enumerate(theirs) if entry.filename.startswith(_PACKAGE))
    return f"{_waiting(frame)}in\n{''.join(traceback.format_list(theirs[: next(ours, None) or None]))}"


def others_alive(ranks: Container[int | None]) -> bool:
    """Whether threads live that are neither ranks nor the package's or torch's own: they may still call for a rank."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    return any(
        thread.is_alive() and thread.ident not in ranks and not _is_bystander(thread, frames.get(thread.ident or -1))
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    )


def _is_bystander(thread: threading.Thread, frame: FrameType | None) -> bool:
    """By the function that the thread was started with, above `threading`'s own; a timer's is not to be seen yet."""
    outermost = "" if frame else "torch."  # what has no frame is none of Python's threads
    while frame is not None:
        if frame.f_globals.get("__name__") != "threading":
            outermost = frame.f_globals.get("__name__", "")
        frame = frame.f_back
    return outermost.startswith(_BYSTANDERS) or thread.name.startswith(_BYSTANDERS)


def _waiting(innermost: FrameType) -> str:
    """Reads the locals of the package's own frames, so that nothing has to be noted down while all goes well."""
    frame: FrameType | None = innermost
    inside, said = True, ""
    while frame is not None:
        module, local = frame.f_globals.get("__name__", ""), frame.f_locals
        if module == "parallel_topology.groups.bound" and frame.f_code.co_name == "_carry_out":
            return f"{WAITING}in {local['call'].operation} on {local['self'].label} = {local['self'].ranks}, "
        if module == "parallel_topology.communicators.handle" and frame.f_code.co_name == "wait":
            return f"{WAITING}for {local['self']}, "
        if module == "parallel_topology.groups.manager" and frame.f_code.co_name == "__init__":
            return f"{WAITING}in the creation of manager {local.get('name')!r} of {local.get('topology')}, "
        inside = inside and module.partition(".")[0] in _INSIDE and not module.startswith(f"{_OWN}testing")
        if inside and module.startswith(_OWN):
            said = f"{WAITING}in {frame.f_code.co_qualname}, "
        frame = frame.f_back
    return said
