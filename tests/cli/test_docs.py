"""The console blocks of all pages: what they show is what the commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARYING = ("env", "selftest")
"""Commands whose numbers are other ones elsewhere: versions, times. Their numbers and spaces are not compared."""
BLOCKS = [
    (command, shown)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    for command, shown in re.findall(r"^\$ (.*\bparallel-topology .*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.mark.parametrize(("line", "shown"), BLOCKS, ids=[line[:60] for line, _ in BLOCKS])
def test_what_is_shown_is_what_is_printed(run, monkeypatch, line, shown):
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words.pop(0) == "parallel-topology"
    done = run(*words)
    printed = "".join(f"{text.rstrip()}\n" for text in (done.out + done.err).splitlines())
    if words[0] in VARYING:
        printed, shown = _comparable(printed), _comparable(shown)
    assert printed == shown


def test_there_are_blocks():
    """The pattern could find nothing."""
    commands = {line.split("parallel-topology ")[1].split()[0] for line, _ in BLOCKS}
    assert commands >= {"check", "orders", "diff", "env", "selftest"}


def _comparable(text: str) -> str:
    """Without what the machine adds: a busy one has slow ranks, one with CUDA has NCCL."""
    kept = [line for line in text.splitlines() if not re.search("^slow:|nvidia-nccl", line)]
    return re.sub(r"[\d.]+(\+\w+)?", "0", " ".join(" ".join(kept).split()))
