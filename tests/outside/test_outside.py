"""An outside package, with a configuration of its own, uses the plugin by nothing but having the library installed."""

from __future__ import annotations

from pathlib import Path

import pytest

ENGINE = Path(__file__).parent / "engine"


def test_an_outside_package_uses_the_plugin(pytester: pytest.Pytester):
    for file in ENGINE.glob("*.py"):
        pytester.path.joinpath(file.name.replace("engine_suite", "test_engine")).write_text(file.read_text())
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=100)
    result.assert_outcomes(passed=5)
