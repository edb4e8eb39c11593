"""The only module that uses names pytest keeps private. Seen in pytest 9.2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest._code.code import ReprExceptionInfo, ReprFileLocation, ReprTracebackNative
from _pytest.assertion import truncate, util
from _pytest.config import default_plugins, get_config
from _pytest.pathlib import import_path


def argument_names(item: pytest.Function) -> tuple[str, ...]:
    """The fixtures that the test function itself takes."""
    return item._fixtureinfo.argnames  # pyright: ignore[reportPrivateUsage]


def rewritten_modules(config: pytest.Config) -> list[str]:
    """Modules whose assertions are rewritten besides test files and conftests; empty where rewriting is off."""
    hook: Any = config.pluginmanager.rewrite_hook
    return sorted(getattr(hook, "_must_rewrite", ()))


def own_modules() -> list[str]:
    """What pytest imports when it starts, and what the plugin imports in a worker."""
    return [*(f"_pytest.{name}" for name in default_plugins), "parallel_topology.testing.pytest_worker"]


def text_report(path: str, line: int, message: str, text: str) -> Any:
    """A failure's representation that is just a text, with the message for the short summary."""
    return ReprExceptionInfo(ReprTracebackNative([text]), ReprFileLocation(path, line, message))


def start_rewriting(root: str, patterns: str, marked: list[str], verbosity: int) -> None:
    """In a process that runs no pytest: rewrite assertions as pytest does, and explain them in its words."""
    arguments = ["-c", "/dev/null", "--rootdir", root, "--noconftest", "-o", f"python_files={patterns}"]
    arguments += ["-v"] * verbosity
    config = get_config(arguments)
    config.pluginmanager.set_blocked("parallel_topology.testing.plugin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        patch.delenv("PYTEST_PLUGINS", raising=False)
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        config.parse(arguments, addopts=False)
    config.pluginmanager.rewrite_hook.mark_rewrite(*marked)

    def explain(operator: str, left: object, right: object) -> str | None:
        for lines in config.hook.pytest_assertrepr_compare(config=config, op=operator, left=left, right=right):
            if lines:
                return "\n~".join(line.replace("\n", "\\n") for line in _truncated(lines, config)).replace("%", "%%")
        return None

    util._reprcompare = explain  # pyright: ignore[reportPrivateUsage]


def load_module(name: str, path: str, root: str) -> ModuleType:
    """A test module in a process that runs no pytest: by its name, else as `--import-mode=importlib` does."""
    if name in sys.modules:
        return sys.modules[name]
    try:
        __import__(name)
        return sys.modules[name]
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
    return import_path(Path(path), mode="importlib", root=Path(root), consider_namespace_packages=False)


def _truncated(lines: Any, config: pytest.Config) -> list[str]:
    shorten: Callable[..., list[str]] | None = getattr(truncate, "materialize_with_truncation", None)
    return shorten(lines, config) if shorten is not None else list(lines)[:40]
