"""What is installed, and what may be missing: torch, which most commands do without, and optional packages."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from parallel_topology.errors import MissingExtraError


def own_version() -> str:
    """This package's version; `0+tree` where it was put on the import path instead of being installed."""
    try:
        return version("parallel-topology")
    except PackageNotFoundError:
        return "0+tree"


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


def required(module: str, package: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # it is there, and lacks something itself
            raise
        raise MissingExtraError(f"{module} is not installed: pip install {package}") from None
