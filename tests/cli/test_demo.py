"""`demo`: what it prints; its engines are tested in test_examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_demo_prints_what_the_readme_shows(run, tmp_path: Path):
    """On less text; what is measured is not compared."""
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(256)))
    done = run("demo", "--text", str(text))
    assert done.status == 0, done.err
    assert "4 processes, 256 bytes of text" in done.out
    [shown] = re.findall(r"^```text\n(engine 0: .*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    assert _comparable(done.out) == _comparable(shown)
    own = len((ROOT / "parallel_topology" / "cli" / "demo.py").read_bytes())  # the text, where none is given
    assert f"4 processes, {own:,} bytes of text" in shown


def _comparable(text: str) -> str:
    text = re.sub(r"\d\.\de-\d\d", "1.0e-06", text)
    text = re.sub(r"^ *\d+\.\d\d s", "  0.00 s", text, flags=re.M)
    return re.sub(r"[\d,]+ (bytes|tokens)", r"0 \1", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "tp3,tp4"], "expected two or more of the same number of ranks; tp3-pp1 has 3, tp4-pp1 has 4"),
        (["--engines", "tp4"], "expected two or more of the same number of ranks; tp4-pp1 has 4"),
        (["--engines", "tp4,dp4"], "the demo's model uses tp and pp only, not dp"),
        (["--engines", "tp5,pp5"], "tp5-pp1 does not fit the demo's model: heads 24 is not divisible by tp 5"),
        (["--engines", "tp4,x"], "cannot read 'x' in 'x'"),
        (["--text", "/nowhere"], "cannot read /nowhere: No such file or directory"),
        (["--text", "/dev/null"], "/dev/null is empty: expected some text"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, message):
    done = run("demo", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err
