"""What holds for all commands: errors, help and its examples, completion, colours, widths, and what is imported."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parallel_topology
from parallel_topology.cli import app
from tests.cli.running import on_terminal, shell
from tests.examples import examples

COMMANDS = {
    str(command.name or command.callback.__name__): command.callback
    for command in app.registered_commands
    if command.callback
}
EXAMPLES = [
    (name, example)
    for name, callback in COMMANDS.items()
    for example in re.findall(r"Example: (.*)", callback.__doc__ or "")
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "tp8", "--bogus"], "No such option: --bogus"),
        (["check"], "Missing argument 'SPEC'"),
        (["chek"], "No such command 'chek'"),
        (["orders", "tp2"], "Missing option '--hosts'"),
        (["check", "tp8", "pp2"], "unexpected extra argument"),
        (["check", "tp8x", "--layers", "8"], "Invalid value for 'SPEC': cannot read 'tp8x' in 'tp8x': expected axes"),
        (["check", "tp8", "--hosts", "2by4"], "Invalid value for '--hosts': cannot read hosts '2by4': expected hosts"),
        (["check", "tp8", "--layers", "many"], "Invalid value for '--layers'"),
        (["check", "tp8", "--layers", "0"], "Invalid value for '--layers'"),
        (["check", "tp8"], "nothing to check: expected --hosts, or a size such as --layers 80"),
        (["check", "tp8", "--hosts", "1x4"], "the hosts 1x4 hold 4 ranks, 0..3, but tp8 has 8: rank 7 is on no host"),
        (["diff", "tp8", "tp4", "--hosts", "1x4"], "but tp8 has 8: rank 7 is on no host"),
        (["diff", "tp8"], "Missing argument 'AFTER'"),
        (["diff", "tp8", "8"], "Invalid value for 'AFTER': cannot read '8' in '8'"),
        (["diff", "tp4", "pp4", "--output", "moved.png"], "expected a name in .svg or .html"),
        (["show", "tp2pp4"], "Invalid value for 'SPEC': cannot read 'tp2pp4'"),
        (["show", "tp2-pp4", "--hosts", "1x4"], "rank 7 is on no host"),
        (["show", "tp2-pp4", "--rank", "8"], "rank 8 is not in the world"),
        (["show", "tp2-pp4", "--axis", "cp"], "has no axis 'cp'"),
        (["show", "tp2-pp4", "--output", "layout.png"], "expected a name in .svg or .html"),
        (["show", "tp2-pp4", "--output", "/nowhere/layout.svg"], "cannot write /nowhere/layout.svg: No such file"),
        (["show", "tp8-dp8192", "--output", "layout.svg"], "a picture shows at most 32,768"),
        (["show", "tp2", "--output", "x.svg", "--json"], "both --json and --output are given: expected one of them"),
        (["orders", "tp8", "--hosts", "1x8", "--heaviest", "xp"], "tp8 has no axis 'xp'; it has 'tp'"),
        (["selftest", "tp8", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["selftest", "x"], "Invalid value for 'SPEC': cannot read 'x' in 'x'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, said):
    done = run(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("parallel-topology: ")
    assert said in done.err


WORDS = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "1e3",
    "tp2",
    "tp2-pp2",
    "2x2",
    "tp,pp",
    "٣",
    "\\x00",
    "9" * 5000,
    "a" * 300,
]
OPTIONS = ["--hosts", "--rank", "--axis", "--output", "--json", "--heaviest", "--layers", "--heads", "--batch", "-x"]
IN_A_MOMENT = sorted(COMMANDS.keys() - {"demo", "selftest"})  # which would start processes


@settings(max_examples=examples(1.5), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(IN_A_MOMENT),
    words=st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(OPTIONS), st.text(max_size=5)), max_size=6),
)
def test_nonsense_is_an_answer_or_one_line(run, tmp_path, name, words):
    """Whatever is typed: no traceback, and a message where the status says that the input is wrong."""
    with contextlib.chdir(tmp_path):
        done = run(name, *words)
    assert done.status in (0, 1, 2)
    assert (done.err.count("\n") == 1) if done.status == 2 else not done.err


def all_pairs(options: list[str], words: list[str]) -> Iterator[tuple[str, str]]:
    return itertools.product(options, words)


def some_pairs(options: list[str], words: list[str]) -> Iterator[tuple[str, str]]:
    """Each option with three words at least, and each word with an option."""
    each = max(3, -(-len(words) // len(options)))
    turns = itertools.cycle(words)
    return ((option, word) for option in options for word in itertools.islice(turns, each))


@pytest.mark.parametrize("in_turn", [some_pairs, pytest.param(all_pairs, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", IN_A_MOMENT)
def test_nonsense_for_every_option(run, tmp_path, name, in_turn):
    arguments = {"show": ["tp2"], "check": ["tp2"], "diff": ["tp2", "tp2"], "orders": ["tp2"]}.get(name, [])
    options = set(re.findall(r"--[a-z-]+", run(name, "--help").out)) - {"--help"}
    with contextlib.chdir(tmp_path):
        for option, word in in_turn(sorted(options), WORDS):
            done = run(name, *arguments, option, word)
            assert done.status in (0, 1, 2)
            assert (done.err.count("\n") == 1) if done.status == 2 else not done.err


def test_the_version(run):
    assert run("--version").out == f"parallel-topology {parallel_topology.__version__}\n"
    assert parallel_topology.__version__ == metadata.version("parallel-topology")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_word_for_help(run, name):
    assert run(name, "-h").out == run(name, "--help").out


def test_axes_are_joined_by_dashes_or_commas(run):
    assert run("show", "tp2-pp2", "--axis", "tp,pp").out == run("show", "tp2-pp2", "--axis", "tp-pp").out
    line = ["orders", "tp2-pp2", "--hosts", "2x2", "--heaviest"]
    assert run(*line, "pp,tp").out == run(*line, "pp-tp").out


@pytest.mark.parametrize(
    "line",
    ["check tp8 --heads 60 --layers 80", "orders tp2-pp2 --hosts 2x2", "show tp2-pp2 --hosts 2x2", "env",
     "diff tp2-pp2 pp2-tp2 --hosts 2x2"],
)  # fmt: skip
def test_no_line_ends_in_spaces(run, line):
    lines = run(*line.split()).out.splitlines()
    assert lines
    assert [text for text in lines if text != text.rstrip()] == []


@pytest.mark.parametrize("line", ["show tp8-pp8", "check tp8 --heads 60", "diff tp8-pp8 pp8-tp8", "env"])
def test_a_reader_that_leaves_ends_every_command_alike(line):
    """As `| head` may: the reader is gone before the first line. 141 is what a shell says of SIGPIPE."""
    done = shell(f"set -o pipefail; parallel-topology {line} 2>/dev/null | (exec 0<&-; exit 0)")
    assert done.returncode == 141
    assert done.stderr == ""


def test_without_a_command_there_is_help(run):
    done = run()
    assert done.status == 0
    assert all(name in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example(run, name):
    done = run(name, "--help")
    assert done.status == 0
    assert "Example:" in done.out
    assert name in dict(EXAMPLES)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        pytest.param(name, example, marks=[pytest.mark.slow] if name in ("demo", "selftest") else [])
        for name, example in EXAMPLES
    ],
)
def test_examples_run(name, example):
    done = shell(example)
    assert done.returncode == (1 if name == "diff" else 0), done.stderr
    assert done.stdout


def test_completion():
    words = {"COMP_WORDS": "parallel-topology or", "COMP_CWORD": "1"}
    done = shell("parallel-topology", _PARALLEL_TOPOLOGY_COMPLETE="complete_bash", **words)
    assert done.stdout.split() == ["orders"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "env"),
    [("--help", {}), ("show --help", {}), ("", {"_PARALLEL_TOPOLOGY_COMPLETE": "source_bash"}), ("show tp2-pp4", {})],
)
def test_the_module_is_the_script(arguments, env):
    script = shell(f"parallel-topology {arguments}", **env)
    module = shell(f"python -m parallel_topology {arguments}", **env)
    assert (script.returncode, script.stdout, script.stderr) == (0, module.stdout, module.stderr)
    assert script.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "show tp2-pp4 --hosts 2x4",
        "check tp8-pp4 --hosts 4x8 --layers 80",
        "diff tp2-pp2 pp2-tp2 --hosts 2x2",
        "orders tp2-pp2 --hosts 2x2 --json",
        "env",
        "selftest --help",
        "--help",
    ],
)
def test_what_needs_no_torch_does_not_import_it(arguments):
    program = (
        "import sys\n"
        "from parallel_topology.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    launcher = "RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"
    done = shell(f"{launcher} python -c {shlex.quote(program)} {arguments}")
    assert done.stderr == "False\n"


def test_colours_only_on_a_terminal_that_wants_them(run):
    line = "check tp8 --layers 80 --model-heads 60"
    coloured = on_terminal(line, 200)
    assert "\x1b[" in coloured
    plain = on_terminal(line, 200, NO_COLOR="1")
    assert re.sub(r"\x1b\[[0-9;]*m", "", plain) == re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert not re.search(r"\x1b\[(3|4)[0-9]m", plain)
    assert "\x1b" not in run(*line.split()).out


def test_a_narrow_terminal_wraps_and_a_pipe_does_not(run):
    line = "check tp8-pp4 --hosts 8x4 --layers 82 --vocab 50257"
    narrow = on_terminal(line, 40, NO_COLOR="1")
    assert max(map(len, narrow.splitlines())) <= 40
    wide = run(*line.split()).out
    assert len(wide.splitlines()) == 4
    assert sorted(re.findall(r"\d+", narrow)) == sorted(re.findall(r"\d+", wide))  # nothing is cut


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("orders tp2-cp2-dp2-pp2 --hosts 2x8", {"tp-cp-dp-pp", "pp-dp-cp-tp"}),
        (
            "diff tp4-dp2-pp2 dp2-tp4-pp2 --hosts 2x8",
            {"rank 14: tp=2 dp=1 pp=1 -> ", "    group 0 = [0, 8] "},
        ),
    ],
)
def test_a_narrow_terminal_cuts_no_names(line, names):
    shown = on_terminal(line, 60, NO_COLOR="1")
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", text)) for text in shown.splitlines()) <= 60
    assert all(name in shown for name in names)


def test_a_missing_extra_is_one_line(tmp_path: Path):
    """As in an environment without typer: a package of that name that cannot be found hides the real one."""
    program = (
        "import sys; sys.modules['typer'] = None\n"
        "from parallel_topology.__main__ import main\n"
        "main()"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "the command line needs typer: pip install 'parallel-topology[cli]'\n"
