"""How a command ends when its input is wrong: one line, exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

from parallel_topology.errors import ParallelTopologyError


@contextmanager
def one_line_errors() -> Generator[None]:
    """Within this, an error of ours is one line on stderr and exit status 2."""
    try:
        yield
    except ParallelTopologyError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command: one line on stderr, exit status 2."""
    print(f"parallel-topology: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
