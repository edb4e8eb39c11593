"""`check`: its exit status and what it prints; the decisions are tested in test_checks."""

from __future__ import annotations

import json


def test_what_fits_ends_with_status_0(run):
    done = run("check", "tp8-pp4", "--hosts", "4x8", "--model-heads", "64", "--layers", "80")
    assert done.status == 0
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["fits", "heads"],
        ["fits", "layers"],
        ["fits", "tp"],
        ["note", "pp"],
    ]


def test_what_does_not_ends_with_status_1(run):
    done = run("check", "tp8", "--model-heads", "60")
    assert done.status == 1
    expected = "fails  heads  60 divided by tp 8 leaves 4 over; expected heads 56 or 64, or tp 6 or 10"
    assert done.out.rstrip() == expected


def test_all_sizes_as_json(run):
    sizes = {"model-heads": 64, "kv-heads": 8, "layers": 61, "hidden": 8192, "ffn": 28672}
    sizes |= {"vocab": 128256, "experts": 256, "batch": 510}
    options = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    spec = "tp4-dp4-pp4/expert:etp1-ep16-pp4"
    done = run("check", spec, "--hosts", "8x8", *options, "--json")
    assert done.status == 1
    found = json.loads(done.out)
    assert (found["topology"], found["hosts"], found["fits"]) == ("tp4-dp4-pp4/expert:etp1-ep16-edp1-pp4", "8x8", False)
    levels = {finding["what"]: finding["level"] for finding in found["findings"]}
    assert levels == {
        "heads": "fits",
        "kv_heads": "fits",
        "layers": "note",
        "hidden": "fits",
        "ffn": "fits",
        "vocab": "fits",
        "experts": "fits",
        "batch": "fails",
        "heads per kv_head": "fits",
        "tp groups": "fits",
        "dp groups": "note",
        "pp groups": "note",
        "ep groups": "note",
    }
    batch = next(finding for finding in found["findings"] if finding["what"] == "batch")
    assert batch["nearest"] == [508, 512]
