"""Commands run in this process: most take milliseconds, where a new process takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from parallel_topology.cli import app


@dataclass
class Done:
    status: object
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run `parallel-topology ARGUMENTS`, as in a pipe and with no launcher around."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(arguments))
        out, err = capsys.readouterr()
        return Done(ended.value.code, out, err)

    return run
