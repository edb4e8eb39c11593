"""The inside of a worker process: it takes one job after the other, and is as new before each.

A job runs in the worker itself, whose settings are put back before the next one; or, where it may be anybody's test, in
a fork of the worker, so that whatever it changes, from a setting to a patched module, ends with it. A fork costs some
10 ms, and does again what torch does when it is first used.
"""

from __future__ import annotations

import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from parallel_topology.testing.failures import DeadRankError, has_left
from parallel_topology.testing.where import others_alive, where

STACK = "-stack"
"""What is added to the name of the file that a job's output goes to, for where it stood when it crashed."""
Work = Callable[[Callable[[str], Any]], None]


@dataclass(frozen=True)
class Job:
    """One call, and the surroundings it expects.

    Attributes:
        body: a pickled (function, arguments).
        talks: whether the function takes its `Seat` between the position and its other arguments.
        output: the file that standard output and error go to.
        needs: what is prepared before a fork of the worker does the job; None where the worker does it itself.
    """

    position: int
    body: bytes
    output: str
    talks: bool
    needs: str | None
    directory: str
    environment: dict[str, str]
    import_path: list[str]


def serve(pipe: Connection, setup: bytes) -> None:
    """Work until the parent is gone. Runs in the worker's main thread.

    Args:
        setup: a pickled (function, arguments) or None. The function is called with what does the work, and then the
            arguments; it passes on a function that prepares what jobs need.
    """
    os.setpgid(0, 0)  # whoever ends the worker ends what it has started
    multiprocessing.current_process().daemon = False  # ranks may have children
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _redirect(os.devnull)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] (it is what Python made: what ranks print is relayed)
    function, arguments = pickle.loads(setup) or (_plainly, ())
    function(partial(_work, pipe), *arguments)


def _plainly(work: Work) -> None:
    work(lambda needs: None)


def _work(pipe: Connection, prepare: Callable[[str], Any]) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the ranks share this machine's cores; and what has no threads can fork
    gc.collect()
    gc.freeze()  # what is there now is not looked at again, which would copy it into every fork
    surroundings = _Surroundings()
    pipe.send_bytes(pickle.dumps(("ready", None)))
    while True:
        try:
            job: Job | str = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(job, str):  # it came late: the job it is about has ended
            continue
        _enter(job)
        if job.needs is None:
            surroundings.restore()
            _do(job, pipe, None)
            _redirect(os.devnull)
            pipe.send_bytes(pickle.dumps(("idle", surroundings.stain())))
            continue
        prepared = prepare(job.needs)
        if not (child := os.fork()):
            _do(job, pipe, prepared)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:  # what it had printed nobody else has
            with open(job.output, "a") as file:
                file.write(prepared.printed())
        pipe.send_bytes(pickle.dumps(("idle", "") if code == 0 else ("died", code)))


class Seat:
    """One rank's place in a world of processes: what it tells the parent, and what it hears from it."""

    def __init__(self, pipe: Connection, prepared: Any) -> None:
        self.prepared = prepared
        self._pipe = pipe
        self._released = threading.Event()
        self._stays = True
        self._lock = threading.Lock()
        self._has_ended = False
        self._main = threading.get_ident()
        self._listener = threading.Thread(target=self._listen, name="parallel_topology seat", daemon=True)
        self._listener.start()
        self._tell("begun", None)

    def __call__(self, value: Any) -> None:
        """To the parent's `on_message`."""
        self._tell("message", value)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Tell how it ended; the first time counts."""
        if not self._has_ended:
            self._stays = error is None or has_left(error)
            told = None if error is None else _travelling(error)
            self._tell("ended", (time.monotonic(), result, told, error is not None and self._stays))
            self._has_ended = True

    def stay(self) -> None:
        """Who returned, or left by a skip, keeps its connections until all ranks have ended, or are to end."""
        if self._stays:
            self._released.wait()

    def leave(self) -> None:
        """Wait until all may go."""
        self._listener.join()

    def _tell(self, kind: str, value: Any) -> None:
        # Not `pipe.send`, with which torch passes tensors as descriptors: those do not outlive this process.
        message = pickle.dumps((kind, value))
        with self._lock:
            self._pipe.send_bytes(message)

    def _listen(self) -> None:
        try:
            while pickle.loads(self._pipe.recv_bytes()) == "where":
                self._tell("where", (others_alive([self._main]), where(self._main)))
        except (EOFError, OSError):  # the parent is gone, and nobody else wants this process
            os._exit(1)
        self._released.set()


def _enter(job: Job) -> None:
    """The surroundings that a job expects."""
    os.chdir(job.directory)
    for name in os.environ.keys() - job.environment.keys():
        del os.environ[name]
    os.environ.update(job.environment)
    sys.path[:] = job.import_path


def _do(job: Job, pipe: Connection, prepared: Any) -> None:
    _redirect(job.output)
    with open(job.output + STACK, "wb", buffering=0) as file:
        faulthandler.enable(file)
        seat = Seat(pipe, prepared)
        try:
            function, arguments = pickle.loads(job.body)
            seat.end(function(job.position, *([seat] if job.talks else []), *arguments))
        except BaseException as error:  # it is raised again, in the parent
            seat.end(None, error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            seat.leave()
            faulthandler.disable()


def _travelling(error: BaseException) -> BaseException:
    """The error as it can be pickled and made again, with its traceback as a note."""
    told = "".join(traceback.format_exception(error))
    try:
        error.add_note(told)
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = DeadRankError(f"{type(error).__name__}: {error}")
        error.add_note(told)
    return error


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
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        context, levels, filters = decimal.getcontext().copy(), _levels(), list(warnings.filters)
        self._settings: list[Callable[[], object]] = [
            partial(os.umask, self._umask),
            partial(sys.setrecursionlimit, sys.getrecursionlimit()),
            partial(sys.setswitchinterval, sys.getswitchinterval()),
            partial(socket.setdefaulttimeout, socket.getdefaulttimeout()),
            partial(locale.setlocale, locale.LC_ALL, locale.setlocale(locale.LC_ALL)),
            partial(gc.set_threshold, *gc.get_threshold()),
            partial(logging.disable, logging.root.manager.disable),
            partial(warnings.filters.__setitem__, slice(None), filters),  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
            lambda: decimal.setcontext(context.copy()),
            lambda: [logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET)) for name in _levels()],
        ]

    def restore(self) -> None:
        """Put back what can be."""
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for put_back in self._settings:
            put_back()
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float32)
            if torch.get_float32_matmul_precision() != "highest":
                torch.set_float32_matmul_precision("highest")
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
        if multiprocessing.active_children():
            return "left processes"
        if _open_files() > self._files:
            gc.collect()
            if (now := _open_files()) > self._files:
                return f"left {now - self._files} open files"
        return ""


def _levels() -> dict[str, int]:
    """Of the root, named by nothing, and of all other loggers."""
    found = logging.root.manager.loggerDict.items()
    return {"": logging.root.level} | {name: one.level for name, one in found if isinstance(one, logging.Logger)}


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
