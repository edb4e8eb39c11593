"""Where the self-test runs: in processes of this machine, or in those that a launcher started."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter

from parallel_topology.errors import CollectiveError, GroupTimeoutError, RendezvousError, TopologyError
from parallel_topology.groups.joining import meet, new_meeting
from parallel_topology.groups.manager import GroupManager
from parallel_topology.launch import LaunchInfo
from parallel_topology.meeting.control import Control
from parallel_topology.meeting.deadline import Deadline
from parallel_topology.meeting.rendezvous import launched_store
from parallel_topology.meeting.token import token_from
from parallel_topology.selftest.measure import run_rank
from parallel_topology.selftest.verdict import RankReport, Verdict, judge
from parallel_topology.testing.processes import run_processes
from parallel_topology.topology.layout import Ranks
from parallel_topology.topology.modes import coalesce
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.torch_errors import STORE_ERRORS

MARGIN = 5.0
"""Seconds for reports to arrive, after those who wait for a peer have given up."""
MOST_PROCESSES = 1024
"""Ranks that are started here: a few more than any machine has devices."""
LOOK = 0.05
"""Seconds between looks at whether a report is there."""

_REPORT = TypeAdapter(RankReport)


def alone(
    topology: ParallelTopology, *, size: int, timeout: float, manager: type[GroupManager] = GroupManager
) -> Verdict:
    """Test `topology` over gloo in processes of this machine, one for each rank.

    Args:
        size: bytes of the large messages.
        timeout: seconds a rank waits for its peers, in creation and in every operation.
        manager: what to test instead of a plain manager.

    Raises:
        TopologyError: there are more ranks than this machine should start processes for.
        DeadRankError: the processes did not start.
    """
    if topology.world_size > MOST_PROCESSES:
        raise TopologyError(
            f"{topology} has {topology.world_size:,} ranks; without a launcher each is a process of this machine, at "
            f"most {MOST_PROCESSES}. Test a part of the layout here, or all of it under a launcher such as torchrun"
        )
    reports: dict[int, RankReport] = {}
    ends: dict[int, str] = {}
    ranks = {f"on rank {rank}": rank for rank in topology.world}

    def on_message(position: int, report: RankReport) -> None:
        reports[topology.world[position]] = report

    with tempfile.TemporaryDirectory(prefix="selftest-") as folder:
        job = (topology, folder, size, timeout, manager)
        try:
            run_processes(
                [label.removeprefix("on ") for label in ranks],
                _in_process,
                *job,
                timeout=20 * timeout,
                on_message=on_message,
                grace=timeout + MARGIN,
            )
        except BaseExceptionGroup as failures:
            ends = {ranks[error.__notes__[-1]]: _first_line(error) for error in failures.exceptions}
    return judge(topology, reports, ends)


def _in_process(
    position: int,
    send: Callable[[RankReport], None],
    topology: ParallelTopology,
    folder: str,
    size: int,
    timeout: float,
    manager: type[GroupManager],
) -> None:
    rank = topology.world[position]
    store = dist.FileStore(str(Path(folder, "store")), topology.world_size)
    report = run_rank(rank, lambda: manager(topology, rank=rank, store=store, backend="gloo", timeout=timeout), size)
    send(report)
    if report.error is not None:  # a failure starts the clock for the others
        raise CollectiveError(report.error)


def default_topology(info: LaunchInfo) -> ParallelTopology:
    """All ranks: with an axis inside hosts and one across them, where the launcher says how many a host has."""
    local = info.local_size or 1
    if local in (1, info.world_size) or info.world_size % local:
        return ParallelTopology(tp=info.world_size)
    return ParallelTopology(order="local-host", local=local, host=info.world_size // local)


@dataclass(frozen=True)
class Outcome:
    """What one process of a launched job knows at the end.

    Attributes:
        ok: whether all was well.
        verdict: on rank 0, which tells it.
        said: what this rank has to say because rank 0 does not, or because the ranks did not even meet.
    """

    ok: bool
    verdict: Verdict | None = None
    said: str = ""


def launched(
    topology: ParallelTopology,
    info: LaunchInfo,
    *,
    size: int,
    timeout: float,
    manager: type[GroupManager] = GroupManager,
) -> Outcome:
    """Test `topology` on the processes that a launcher started, of which this is one; arguments as for `alone`.

    Raises:
        TopologyError: `topology` does not have the ranks that were started.
        LaunchError: the launcher did not say where the ranks meet.
    """
    if topology.world != Ranks(0, coalesce([(info.world_size, 1)])):
        raise TopologyError(
            f"{info.launcher} started ranks 0..{info.world_size - 1}, but {topology} has {topology.world}; "
            "expected a topology of the same ranks"
        )
    try:
        deadline = Deadline(timeout)
        store = launched_store(info, deadline)
        place = "selftest"
        if info.store_is_hosted:  # and kept when the processes are started again: only this start's reports are read
            card = json.dumps({"topology": str(topology)})
            meeting = new_meeting("selftest", topology, info.rank, card, None, deadline)
            meet(Control(store), meeting)
            place = meeting.keys
    except (RendezvousError, GroupTimeoutError) as error:  # there is nothing to report over
        return Outcome(False, said=str(error).removeprefix("selftest: "))
    options: dict[str, Any] = {"local_rank": info.local_rank, "token": token_from(os.environ), "timeout": timeout}
    with _told_to_end() as ending:
        report = run_rank(info.rank, lambda: manager(topology, rank=info.rank, store=store, **options), size)
        mail = dist.PrefixStore(place, store)
        if info.rank == 0:
            return _lead(_Mail(mail, timeout, MARGIN, ending), topology, report)
        return _follow(_Mail(mail, timeout, 2 * MARGIN, ending), report)  # rank 0 waits for others first


def _lead(mail: _Mail, topology: ParallelTopology, report: RankReport) -> Outcome:
    """Rank 0 collects the reports and says what comes of them."""
    reports = {report.rank: report}
    for rank in topology.world:
        if rank != report.rank and (text := mail.wait(f"report/{rank}")) is not None:
            reports[rank] = _REPORT.validate_json(text)
    verdict = judge(topology, reports, {})
    mail.send("ok", str(verdict.ok))
    for rank in reports.keys() - {report.rank}:  # the store may be this process's, so it stays until all have read
        mail.wait(f"read/{rank}")
    return Outcome(verdict.ok, verdict)


def _follow(mail: _Mail, report: RankReport) -> Outcome:
    mail.send(f"report/{report.rank}", _REPORT.dump_json(report).decode())
    said = mail.wait("ok")
    mail.send(f"read/{report.rank}", "")
    if said is not None:
        return Outcome(said == b"True")
    here = report.error or "nothing wrong"
    return Outcome(False, said=f"rank 0 did not report: dead or stuck; rank {report.rank} found: {here}")


class _Mail:
    """The launcher's store, through which the ranks report also when their groups are broken."""

    def __init__(self, store: dist.Store, timeout: float, margin: float, ending: threading.Event) -> None:
        self._store = store
        self._margin = margin
        self._deadline = time.monotonic() + timeout + margin
        self._ending = ending

    def send(self, key: str, text: str) -> None:
        with suppress(*STORE_ERRORS):  # it went with its host: who waits for this will say so
            self._store.set(key, text)

    def wait(self, key: str) -> bytes | None:
        """The value of a key, if it comes in time; soon, if this process was told to end."""
        with suppress(*STORE_ERRORS):
            while not self._store.check([key]):  # not `wait`, whose timeouts torch logs
                if self._ending.wait(LOOK):
                    self._ending.clear()
                    self._deadline = min(self._deadline, time.monotonic() + self._margin)
                if time.monotonic() >= self._deadline:
                    return None
            return self._store.get(key)
        return None


@contextmanager
def _told_to_end() -> Generator[threading.Event]:
    """Set by SIGTERM: a launcher that sees one rank die ends the others, which stay a little to say who it was."""
    told = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        told.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
