"""The choice between launchers that left their variables: the innermost counts, and those that started others agree.

Two launchers mean the same process, and what the first does not say the other may; or one is inside the other in a way
that is known here, and its word counts; or they contradict each other, which is an error: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from parallel_topology.errors import LaunchError, NoLauncherError
from parallel_topology.launch.launcher import COUNTED, Facts, Launcher, check
from parallel_topology.launch.table import LAUNCHERS, LIGHTNING, MPI, OTHERS, PALS, PMIX, SLURM, TORCH_NAMES, TORCHRUN
from parallel_topology.launch.variables import Variables


def find(env: Variables) -> tuple[str, Facts, tuple[str, ...]]:
    """The name of the launcher that started this process, what it said, and inside which others it was found, and why.

    Raises:
        NoLauncherError: there is none.
        LaunchError: what it or they said cannot be.
    """
    inner, others = _innermost(env)
    rules: list[str] = []
    same: list[Launcher] = []
    for other in others:
        if why := _why_inside(env, inner, other):
            rules.append(f"{inner.name} inside {other.name}: {why}")
        else:
            _compare(env, inner, other)
            same += [other] if other is not LIGHTNING else []  # whose names many set: they may contradict, not add
    facts = inner.facts(env)
    said = {fact: inner.said(env, fact) for fact in COUNTED if facts.get(fact) is not None}
    for other in same:
        _complete(env, facts, said, other)
    return inner.name, facts, tuple(rules)


def _innermost(env: Variables) -> tuple[Launcher, list[Launcher]]:
    """The launcher whose word counts, and the others that left variables."""
    started = [launcher for launcher in LAUNCHERS if launcher.started(env)]
    torch_names = [launcher for launcher in started if launcher is TORCHRUN or launcher in TORCH_NAMES]
    found = torch_names[:1] + [launcher for launcher in started if launcher not in torch_names]
    if found and found[0] is not SLURM:  # what its plugins and other MPIs set besides is not of this process
        plugins = [PMIX] * any(launcher in MPI for launcher in found) + [PMIX, PALS] * (SLURM in found)
        found = [launcher for launcher in found if launcher not in plugins]
    if not found:
        raise _nothing_found(env)
    others = [launcher for launcher in found if launcher is not LIGHTNING and launcher.counts == "processes"]
    if LIGHTNING in found and others and all(_claim(env, other, "world_size") == 1 for other in others):
        found.insert(0, found.pop(found.index(LIGHTNING)))
    return found[0], found[1:]


def _why_inside(env: Variables, inner: Launcher, outer: Launcher) -> str | None:
    """Why what `outer` says is not of this process but of one that started it; None if no such way is known."""
    if outer.counts != "processes":
        return f"{outer.name} counts {outer.counts}, not processes"
    if inner is TORCHRUN and outer not in MPI:
        return f"the agents of torchrun may be started by {outer.name}"
    if inner is TORCHRUN and _claim(env, inner, "host_count") == _claim(env, outer, "world_size"):
        return f"{outer.name} started as many processes as torchrun has agents"
    if inner.name == "ray":
        return f"its workers are started by daemons, and those by {outer.name}"
    if outer is SLURM and (inner in MPI or inner.name == "deepspeed"):
        return f"srun starts the daemons of {inner.name}, one on each host"
    if _claim(env, outer, "world_size") == 1 and (outer is SLURM or inner is LIGHTNING):
        return f"{outer.name} started one process only, such as a shell, and that one started others"
    if inner in TORCH_NAMES and _multiplied(env, inner, outer):
        return f"each process of {outer.name} started as many as {inner.name} says there are on a host"
    return None


def _multiplied(env: Variables, inner: Launcher, outer: Launcher) -> bool:
    """Whether the numbers show that each process of `outer` started `local_size` of `inner`'s."""
    size, local = _claim(env, inner, "local_size"), _claim(env, inner, "local_rank")
    host, hosts = _claim(env, outer, "rank"), _claim(env, outer, "world_size")
    if size is None or local is None or host is None or hosts is None:
        return False
    ours = _claim(env, inner, "rank"), _claim(env, inner, "world_size")
    return size > 1 and ours == (host * size + local, hosts * size)


def _compare(env: Variables, one: Launcher, other: Launcher) -> None:
    """Two launchers of processes that both left their variables have to mean the same process."""
    for fact in COUNTED[:2] if one is SLURM else COUNTED:  # plugins of SLURM imitate others as far as that
        ours, theirs = _claim(env, one, fact), _claim(env, other, fact)
        if ours is not None and theirs is not None and ours != theirs:
            names: tuple[str, str] = (getattr(one, fact), getattr(other, fact))
            raise LaunchError(
                f"{one.name} and {other.name} contradict each other: {env.shown(*names)}; unset the variables of the "
                f"one that did not start this process, {', '.join(one.marks)} or {', '.join(other.marks)}"
            )


def _complete(env: Variables, facts: Facts, said: dict[str, str], other: Launcher) -> None:
    """Add what only `other` says of the same process."""
    known = cast("dict[str, Any]", facts)
    for fact in COUNTED:
        reader = env.apart()
        if known.get(fact) is None and (number := other.claim(reader, fact)) is not None:
            known[fact], said[fact] = number, other.said(reader, fact)
            env.note([*other.marks, *reader.read])
    check(facts, said)


def _claim(env: Variables, launcher: Launcher, fact: str) -> int | None:
    return launcher.claim(env.apart(), fact)


def _nothing_found(env: Variables) -> NoLauncherError:
    looked_for = ", ".join(f"{launcher.name} ({', '.join(launcher.marks)})" for launcher in LAUNCHERS)
    hints = [*_halves(env)]
    if "SLURM_JOB_ID" in env:
        job = env.shown("SLURM_JOB_ID").partition("=")[2]
        hints.append(f"This is inside SLURM's job {job}, but not a task of srun: use srun. ")
    said = (
        f"no launcher was found. {''.join(hints)}Start the program with torchrun, or say where the ranks meet with "
        "GroupManager.connect('tcp://host:port', topology, rank=...), or give a store of your own with "
        "GroupManager(topology, rank=..., store=...)"
    )
    return NoLauncherError(said, looked_for)


def _halves(env: Variables) -> Iterable[str]:
    """Of which launchers a part of the variables is there, and what lacks."""
    told: set[str] = set()
    for launcher in (TORCH_NAMES[-1], *MPI, *OTHERS):
        half = [name for name in (launcher.rank, launcher.world_size) if name and name in env and name not in told]
        missing = dict.fromkeys(env.missing((*launcher.marks, launcher.rank, launcher.world_size)))
        if half and missing:
            told.update(half)
            yield f"Of {launcher.name} there is {env.shown(*half)}, but not {', '.join(missing)}. "
