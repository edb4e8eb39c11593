"""SLURM's lists: every list that SLURM could have written is read back."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import LaunchError
from parallel_topology.launch.hostlist import MAX_HOSTS, expand_hosts, expand_tasks

names = st.from_regex(r"[a-z][a-z.-]{0,4}", fullmatch=True)
suffixes = st.sampled_from(["", "", "-ib", ".cluster", "x"])


def compress(prefix: str, suffix: str, numbers: list[int], width: int, random: random.Random) -> str:
    """As SLURM writes one name's hosts: runs as ranges, or not, in one pair of brackets, or without any if alone."""
    spans: list[str] = []
    for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        while members:
            length = random.randint(1, len(members))
            first, last = members[0], members[length - 1]
            spans.append(f"{first:0{width}}" if first == last else f"{first:0{width}}-{last:0{width}}")
            members = members[length:]
    alone = len(spans) == 1 and "-" not in spans[0] and random.random() < 0.5
    return f"{prefix}{spans[0] if alone else '[' + ','.join(spans) + ']'}{suffix}"


@given(
    parts=st.lists(
        st.tuples(names, suffixes, st.lists(st.integers(0, 1200), min_size=1, max_size=12), st.integers(0, 5)),
        min_size=1,
        max_size=4,
    ),
    random=st.randoms(use_true_random=False),
)
def test_what_slurm_writes_is_read_back(parts: list[tuple[str, str, list[int], int]], random: random.Random):
    hosts: list[str] = []
    written: list[str] = []
    for prefix, suffix, numbers, width in parts:
        hosts += [f"{prefix}{number:0{width}}{suffix}" for number in numbers]
        written.append(compress(prefix, suffix, numbers, width, random))
    assert expand_hosts(",".join(written)) == hosts


@given(rows=st.integers(1, 9), columns=st.integers(1, 30), prefix=names, middle=names, suffix=suffixes)
def test_several_brackets(rows: int, columns: int, prefix: str, middle: str, suffix: str):
    text = f"{prefix}[1-{rows}]{middle}[01-{columns:02}]{suffix}"
    assert expand_hosts(text) == [
        f"{prefix}{row}{middle}{column:02}{suffix}" for row in range(1, rows + 1) for column in range(1, columns + 1)
    ]


@given(st.lists(names | st.builds("{}{}".format, names, st.integers(0, 99)), min_size=1, max_size=9))
def test_a_plain_list_is_itself(hosts: list[str]):
    assert expand_hosts(",".join(hosts)) == hosts


@pytest.mark.parametrize(  # each as `scontrol show hostnames` of SLURM 22.05.8 gives it
    ("text", "hosts"),
    [
        ("localhost", "localhost"),
        ("n[1-3,7]", "n1 n2 n3 n7"),
        ("n[001-003]", "n001 n002 n003"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[09-010]", "n09 n10"),
        ("n[9-010]", "n9 n10"),
        ("n[3,1-2]", "n3 n1 n2"),
        ("n[1,1]", "n1 n1"),
        ("[1-3]", "1 2 3"),
        ("r[1-2]n[01-03,7]", "r1n01 r1n02 r1n03 r1n7 r2n01 r2n02 r2n03 r2n7"),
        ("r1n[1-2],r2n[1-2],login-1.site", "r1n1 r1n2 r2n1 r2n2 login-1.site"),
    ],
)
def test_hosts(text: str, hosts: str):
    assert expand_hosts(text) == hosts.split()


@pytest.mark.parametrize(
    "text",
    ["", ",", "n1,", "n1,,n2", "n1 n2", "n[1-2", "n1-2]", "n[]", "n[a]", "n[1-]", "n[2-1]", "n[1-2]]", "n[[1]]",
     "n[1_2]", "n[1-9999999999999999999]", f"n[0-{MAX_HOSTS}]", "n[1-999]m[1-999]", f"a,n[1-{MAX_HOSTS}]"],
)  # fmt: skip
def test_refused_hosts(text: str):
    with pytest.raises(LaunchError, match=r"^the list of hosts "):
        expand_hosts(text)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_tasks_are_read_back(tasks: list[int]):
    runs = [(count, len(list(run))) for count, run in groupby(tasks)]
    written = ",".join(str(count) if times == 1 else f"{count}(x{times})" for count, times in runs)
    assert expand_tasks(written) == tasks


@pytest.mark.parametrize("text", ["", "2(x3", "2x3", "x3", "2,,1", "-1", "2(x)", f"1(x{MAX_HOSTS}),1"])
def test_refused_tasks(text: str):
    with pytest.raises(LaunchError, match=r"^the tasks per node "):
        expand_tasks(text)


@pytest.mark.timeout(20)
def test_a_long_list_of_plain_names_is_read_at_once():
    names = [f"node{number}" for number in range(16_000)]
    assert expand_hosts(",".join(names)) == names
    assert expand_hosts(",".join([*names, "n[1,2-3]", "end"])) == [*names, "n1", "n2", "n3", "end"]
