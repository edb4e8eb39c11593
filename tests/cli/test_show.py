"""`parallel-topology show`, as a person, a pipe and a terminal run it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import statistics
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import pytest

COMMAND = [sys.executable, "-m", "parallel_topology", "show"]


def show(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, encoding="utf-8", timeout=60, check=False, env=given | environment
    )


def in_terminal(*arguments: str, columns: int, **environment: str) -> str:
    """What a terminal of that width is sent."""
    given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {"TERM": "xterm-256color", **environment}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, env=given | environment)
    os.close(theirs)
    sent = b""
    try:
        while chunk := os.read(ours, 65536):
            sent += chunk
    except OSError:  # what Linux says when the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return sent.decode().replace("\r\n", "\n")


def cpu_seconds(*arguments: str) -> float:
    """The processor time of one run: what a clock shows on an idle machine, and does not grow on a busy one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, *arguments], stdout=subprocess.DEVNULL, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_pipe_gets_80_columns_without_colour():
    done = show("tp2-pp4", "--hosts", "2x4", "--rank", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "tp2-pp4: 8 ranks on 2 hosts of 4\n"
        "╭ host 0 ─────────────────────────╮ ╭ host 1 ─────────────────────────╮\n"
        "│ 0       1       2       3       │ │ 4       [5]     6       7       │\n"
        "│ tp0 pp0 tp1 pp0 tp0 pp1 tp1 pp1 │ │ tp0 pp2 tp1 pp2 tp0 pp3 tp1 pp3 │\n"
        "│         pp              pp<     │ │ tp<>                    pp>     │\n"
    )
    assert "tp         4     2       1           1  inside hosts\n" in done.stdout
    assert "pp         2     4       2           2  crosses hosts\n" in done.stdout


def test_only_one_axis():
    done = show("tp2-pp4", "--hosts", "2x4", "--axis", "tp")
    assert "tp group 3: [6, 7]; host 1\n" in done.stdout
    assert not re.search(r"^pp ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 200])
def test_a_terminal_gets_colour_and_its_width(columns: int):
    sent = in_terminal("tp2-pp4", "--hosts", "2x4", columns=columns)
    assert "\x1b[48;5;178;38;5;16m" in sent
    lines = re.sub(r"\x1b\[[0-9;]*m", "", sent).splitlines()
    assert max(map(len, lines)) <= columns
    assert ("host 1" in lines[1]) == (columns == 200)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour(environment: dict[str, str]):
    assert "\x1b" not in in_terminal("tp2-pp4", columns=80, **environment)


def test_an_empty_no_color_means_nothing():
    """As https://no-color.org has it."""
    assert "\x1b" in in_terminal("tp2", columns=80, NO_COLOR="")


def test_columns_says_how_wide():
    done = show("tp2-pp4", "--hosts", "2x4", COLUMNS="30")
    assert max(map(len, done.stdout.splitlines())) <= 30


def test_a_reader_without_boxes():
    done = show("tp2-pp4", "--hosts", "2x4", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "+ host 0 ---" in done.stdout


def test_data_of_16384_ranks():
    done = show("tp8-dp64-pp32", "--hosts", "2048x8", "--rank", "77", "--json")
    data = json.loads(done.stdout)
    assert len(data["ranks"]) == data["world_size"] == 16_384
    assert data["rank"]["groups"]["tp"]["ranks"] == list(range(72, 80))


def test_files(tmp_path: Path):
    image, page = tmp_path / "layout.svg", tmp_path / "layout.html"
    for file in (image, page):
        done = show("tp2-pp4", "--output", str(file))
        assert done.stdout == f"wrote {file}: {file.stat().st_size:,} bytes\n"
    assert ElementTree.parse(image).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tp2pp4"], "cannot read 'tp2pp4'"),
        (["tp2-pp4", "--hosts", "two"], "cannot read hosts 'two'"),
        (["tp2-pp4", "--hosts", "1x4"], "rank 7 is on no host"),
        (["tp2-pp4", "--rank", "8"], "rank 8 is not in the world"),
        (["tp2-pp4", "--axis", "cp"], "has no axis 'cp'"),
        (["tp2-pp4", "--output", "layout.png"], "expected a name in .svg or .html"),
        (["tp2-pp4", "--output", "/nowhere/layout.svg"], "cannot write /nowhere/layout.svg: No such file"),
        (["tp8-dp8192", "--output", "layout.svg"], "a picture shows at most 32,768"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str):
    done = show(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_it_does_not_import_torch():
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['parallel-topology', 'show', 'tp2-pp4']\n"
        "from parallel_topology.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_it_starts_quickly():
    assert statistics.median(cpu_seconds("tp2-pp4", "--hosts", "2x4") for _ in range(5)) < 0.5


def test_data_of_16384_ranks_takes_less_than_a_second():
    assert statistics.median(cpu_seconds("tp8-dp64-pp32", "--hosts", "2048x8", "--json") for _ in range(5)) < 1
