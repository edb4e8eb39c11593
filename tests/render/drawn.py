"""What the snapshots hold; `python -m tests.render.drawn` writes them anew, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.render.text import show

SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (60, 80, 200)
CASES: dict[str, dict[str, Any]] = {
    "one-rank": {"topology": "tp2-pp4", "hosts": "2x4", "rank": 5},
    "no-hosts": {"topology": "tp2-pp4"},
    "views": {"topology": "tp2-dp4-pp2/expert:etp1-ep8-pp2", "hosts": "2x8", "rank": 5},
    "folded": {"topology": "tp8-dp16-pp8", "hosts": "128x8", "rank": 77},
    "uneven": {"topology": "tp2-cp2-dp2-pp2", "hosts": "3,5,10", "axis": "tp-dp"},
    "marked": {
        "topology": "tp2-pp2@0,4,1,5",
        "hosts": "0,4/1,5",
        "marked": {4: "was tp1 pp1", 5: "was\ntp0 pp1 of old"},
    },
}


def drawing(case: str) -> str:
    """The picture at every width, without and with colour, escapes made visible."""
    given = dict(CASES[case])
    topology = ParallelTopology.parse(given.pop("topology"))
    hosts = Hosts.parse(given.pop("hosts")) if "hosts" in given else None
    parts: list[str] = []
    for width in WIDTHS:
        for color in (False, True):
            picture = show(topology, hosts=hosts, width=width, color=color, **given)
            parts += [f"{'=' * 8} {width} columns{', in colour' * color}", picture.replace("\x1b", "␛"), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for name in CASES:
        (SNAPSHOTS / f"{name}.txt").write_text(drawing(name), encoding="utf-8")
