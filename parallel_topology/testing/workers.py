"""The inside of a worker process: it takes one job after the other, and is as new before each.

Between jobs it gets the parent's working directory, environment and import path, and torch's settings are put back.
What cannot be put back (threads, open files, a default process group) it reports, and is then replaced.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from parallel_topology.testing.failures import DeadRankError
from parallel_topology.testing.where import where


@dataclass(frozen=True)
class Job:
    """One call, and the surroundings it expects.

    Attributes:
        setup: a pickled (function, arguments) that is called once in each worker, before anything is unpickled; it
            returns how an error is to be told to the parent.
        body: a pickled (function, arguments).
        output: the file that standard output and error go to.
        talks: whether the function takes, second, a function that sends messages to the parent.
    """

    position: int
    setup: bytes | None
    body: bytes
    output: str
    talks: bool
    directory: str
    environment: dict[str, str]
    import_path: list[str]


def serve(pipe: Connection) -> None:
    """Work until the parent is gone. Runs in the worker's main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    faulthandler.enable()
    _redirect(os.devnull)
    jobs: SimpleQueue[Job] = SimpleQueue()
    sender = _Sender(pipe)
    main = threading.get_ident()
    threading.Thread(target=_listen, args=(pipe, jobs, sender, main), name="listener", daemon=True).start()
    sender.send("ready", None)
    surroundings = _Surroundings()
    tellers: dict[bytes | None, Callable[[BaseException], str]] = {None: _told}
    while True:
        job = jobs.get()
        _arrive(job)
        if job.setup not in tellers:
            function, arguments = pickle.loads(job.setup or b"")
            tellers[job.setup] = function(*arguments)
            surroundings = _Surroundings()
        surroundings.restore()
        _do(job, sender, tellers[job.setup])
        stain = surroundings.stain()
        _redirect(os.devnull)
        sender.send("idle", stain)


class _Sender:
    """The pipe to the parent, for whole messages from either thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        # Not `pipe.send`, with which torch passes tensors as descriptors: those do not outlive this process.
        message = pickle.dumps((kind, value))
        with self._lock:
            self._pipe.send_bytes(message)


def _listen(pipe: Connection, jobs: SimpleQueue[Job], sender: _Sender, main: int) -> None:
    try:
        while True:
            job: Job | None = pickle.loads(pipe.recv_bytes())
            if job is None:  # the parent asks where we are
                sender.send("where", where(main))
            else:
                jobs.put(job)
    except (EOFError, OSError):  # the parent is gone, and nobody else wants this process
        os._exit(0)


def _arrive(job: Job) -> None:
    _redirect(job.output)
    os.chdir(job.directory)
    for name in os.environ.keys() - job.environment.keys():
        del os.environ[name]
    os.environ.update(job.environment)
    sys.path[:] = job.import_path


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _do(job: Job, sender: _Sender, tell: Callable[[BaseException], str]) -> None:
    try:
        function, arguments = pickle.loads(job.body)
        talk = [partial(sender.send, "message")] if job.talks else []
        sender.send("result", function(job.position, *talk, *arguments))
    except BaseException as error:  # it is raised again, in the parent
        told = tell(error)
        try:
            error.add_note(told)
            pickle.loads(pickle.dumps(error))  # some can be pickled and not be made again
            sender.send("error", error)
        except Exception:  # an error that cannot be pickled is told in words
            words = DeadRankError(f"{type(error).__name__}: {error}")
            words.add_note(told)
            sender.send("error", words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _redirect(path: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


class _Surroundings:
    """What a job may change in this process and must not leave to the next."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._files = _open_files()
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._filters = list(warnings.filters)

    def restore(self) -> None:
        """Put back what can be."""
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        warnings.filters[:] = self._filters  # pyright: ignore[reportIndexIssue] (it is a list, typed as a sequence)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # the ranks share this machine's cores
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float32)
            if torch.are_deterministic_algorithms_enabled():  # setting it imports inductor: over a second
                torch.use_deterministic_algorithms(False)
            if torch.get_default_device().type != "cpu":
                torch.set_default_device(None)

    def stain(self) -> str:
        """What cannot be put back, in words; nothing if this process may take another job."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            return "left a default process group"
        if more := set(threading.enumerate()) - self._threads:
            return f"left threads: {', '.join(sorted(thread.name for thread in more))}"
        if _open_files() > self._files:
            gc.collect()
            if (now := _open_files()) > self._files:
                return f"left {now - self._files} open files"
        return ""


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
