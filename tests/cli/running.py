"""Commands in a process of their own: as a person, a pipe and a terminal run them."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(sys.executable).parent
_MODULE = [sys.executable, "-m", "parallel_topology"]


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a person would."""
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, encoding="utf-8", timeout=100, check=False, cwd=ROOT,
        env=_surroundings(env),
    )  # fmt: skip


def on_terminal(command: str, columns: int, **env: str) -> str:
    """What a terminal of that width is sent by `parallel-topology COMMAND`."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {"TERM": "xterm-256color", **env}
    with subprocess.Popen(
        [*_MODULE, *shlex.split(command)], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT,
        env=_surroundings(env),
    ) as process:  # fmt: skip
        os.close(follower)
        sent = b""
        try:
            while piece := os.read(leader, 65536):
                sent += piece
        except OSError:  # a terminal that nobody writes to any more
            pass
        finally:
            os.close(leader)
        process.wait(60)
    return sent.decode().replace("\r\n", "\n")


def cpu_seconds(command: str) -> float:
    """The processor time of one run: what a clock shows on an idle machine, and does not grow on a busy one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*_MODULE, *shlex.split(command)], stdout=subprocess.DEVNULL, timeout=60, check=True, cwd=ROOT,
        env=_surroundings({}),
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _surroundings(env: dict[str, str]) -> dict[str, str]:
    """This process's environment, but for what it says of its own terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PATH": f"{_SCRIPTS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **env}
