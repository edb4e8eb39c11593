"""torch may be missing, since the value and most commands do without it; whoever needs it says so in one line."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from parallel_topology.errors import MissingExtraError


def imported(module: str, what: str) -> ModuleType:
    """Import a module that needs torch, for `what`.

    Raises:
        MissingExtraError: torch is not installed; the message says that `what` needs it.
    """
    try:
        return import_module(module)
    except ImportError:
        if find_spec("torch") is not None:
            raise
    raise MissingExtraError(f"{what} needs torch, which is not installed: pip install 'torch>=2.8'")
