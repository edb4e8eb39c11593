"""SLURM's compressed lists: hosts (`n[001-003,7],login`) and tasks for each node (`2(x3),1`)."""

from __future__ import annotations

import re
from itertools import product
from math import prod

from parallel_topology.errors import LaunchError

MAX_HOSTS = 65_536
"""More than any system has; a longer list is a mistake, not to be written out."""

_MARK = re.compile(r"[\[\],]")
_HOST = re.compile(r"(?:[^\s\[\],]|\[[0-9,-]+\])+")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")


def expand_hosts(text: str) -> list[str]:
    """The hosts of a list, in its order; of several brackets in one name the last counts fastest.

    The width of a range's first number is the width of all: `n[08-11]` is n08, n09, n10, n11.
    https://slurm.schedmd.com/scontrol.html (show hostnames)

    >>> expand_hosts("r[1-2]n[08-10,7],login")
    ['r1n08', 'r1n09', 'r1n10', 'r1n7', 'r2n08', 'r2n09', 'r2n10', 'r2n7', 'login']

    Raises:
        LaunchError: it is no such list, or has more than `MAX_HOSTS` hosts.
    """
    hosts: list[str] = []
    for part in _parts(text):
        if not _HOST.fullmatch(part):
            raise LaunchError(f"the list of hosts {text!r}: cannot read {part!r}; expected names like n1 or n[1-3,7]")
        names, brackets = re.split(r"\[.*?\]", part), re.findall(r"\[(.*?)\]", part)
        spans = [[_span(item, text) for item in bracket.split(",")] for bracket in brackets]
        if len(hosts) + prod(sum(len(span) for _, span in bracket) for bracket in spans) > MAX_HOSTS:
            raise LaunchError(f"the list of hosts {text!r} has more than {MAX_HOSTS} hosts")
        written = [[f"{number:0{width}}" for width, span in bracket for number in span] for bracket in spans]
        hosts += ["".join(map("".join, zip(names, (*numbers, ""), strict=True))) for numbers in product(*written)]
    return hosts


def expand_tasks(text: str) -> list[int]:
    """How many tasks each node runs.

    https://slurm.schedmd.com/srun.html (SLURM_STEP_TASKS_PER_NODE)

    >>> expand_tasks("2(x3),1")
    [2, 2, 2, 1]

    Raises:
        LaunchError: it is no such list, or has more than `MAX_HOSTS` nodes.
    """
    tasks: list[int] = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part)
        if match is None:
            raise LaunchError(f"the tasks per node {text!r}: cannot read {part!r}; expected counts like 2 or 2(x3)")
        times = int(match[2] or 1)
        if len(tasks) + times > MAX_HOSTS:
            raise LaunchError(f"the tasks per node {text!r} are for more than {MAX_HOSTS} nodes")
        tasks += [int(match[1])] * times
    return tasks


def _parts(text: str) -> list[str]:
    """What stands between the commas that are not inside brackets: those that no `]` follows before a `[`."""
    parts: list[str] = []
    inside, end = False, len(text)
    for mark in reversed(list(_MARK.finditer(text))):
        if mark[0] == "," and not inside:
            parts.append(text[mark.end() : end])
            end = mark.start()
        elif mark[0] != ",":
            inside = mark[0] == "]"
    return [text[:end], *reversed(parts)]


def _span(item: str, text: str) -> tuple[int, range]:
    """The width and the numbers of `3` or `001-010`."""
    match = _RANGE.fullmatch(item)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise LaunchError(f"the list of hosts {text!r}: cannot read {item!r}; expected 3, 1-3 or 001-010")
    return len(match[1]), range(int(match[1]), int(match[2] or match[1]) + 1)
