"""The worlds that bound tests run in."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings

# torch's stores ask the name service who a new peer is, also on this host: where an answer is lost, that takes 5 s.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

# A shell lets what it runs in the background ignore Ctrl-C, and so do all its children; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A law does not fail because a machine is busy; what must be fast is measured in tests/benchmarks.
settings.register_profile("suite", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))  # .ci/run --all draws more

pytest_plugins = ["pytester"]


def pytest_collection_finish() -> None:
    """What is imported by now stays, so who collects garbage need not look at it, which takes a tenth of a second."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `world` and makes its ranks itself runs on threads and on processes."""
    if "world" in metafunc.fixturenames and metafunc.definition.get_closest_marker("ranks") is None:
        metafunc.parametrize("world", ["threads", "processes"])
