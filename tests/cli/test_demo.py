"""`demo`: what it prints; its engines are tested in test_examples."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_demo_runs_two_engines_and_finds_them_right(run, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(256)))
    done = run("demo", "--text", str(text), "--engines", "tp2-pp2,tp4")
    assert done.status == 0, done.err
    assert "engine 0: tp2-pp2\n       tp0  tp1\npp0      0    1\npp1      2    3\n" in done.out
    assert "4 processes, 256 bytes of text" in done.out
    assert "all engines agree with the reference" in done.out
    for phase in ("groups", "weights", "interleaved", "first engine closed"):
        assert phase in done.out


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
