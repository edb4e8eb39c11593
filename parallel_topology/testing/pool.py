"""A pool of warm worker processes, forked from a server that has imported torch: started once, used by many tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Self

from parallel_topology.testing.failures import DeadRankError
from parallel_topology.testing.workers import Job, serve

START = 120.0
"""Seconds that new workers may take to report, the first ones importing torch."""


class Worker:
    """One process and the pipe to it."""

    def __init__(self, setup: bytes, preload: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "parallel_topology.testing.ranks", *preload])
        self.pipe, theirs = context.Pipe()
        # A daemon here, so that an interpreter that ends does not wait for it; it is none to itself, and has children.
        self.process = context.Process(target=serve, args=(theirs, setup), name="rank worker", daemon=True)
        self.process.start()
        theirs.close()

    def await_ready(self, deadline: float) -> None:
        """Raises: DeadRankError: it did not start."""
        if not self.pipe.poll(max(deadline - time.monotonic(), 0)):
            raise DeadRankError(f"a worker process did not start within {START:g} s")
        try:
            self.receive()
        except (EOFError, OSError):
            raise DeadRankError(
                f"a worker process did not start: {self.cause_of_death()}, and printed why. Workers import the script "
                'that starts them: what it is to do itself goes under `if __name__ == "__main__":`'
            ) from None

    def send(self, job: Job | Literal["where", "release"]) -> None:
        """Give it a job, or a word about its job. That it has died is seen when its answer is awaited."""
        with suppress(OSError):
            self.pipe.send_bytes(pickle.dumps(job))

    def receive(self) -> tuple[str, Any]:
        """Its next message. Raises: EOFError: it has died."""
        return pickle.loads(self.pipe.recv_bytes())

    def cause_of_death(self, code: int | None = None) -> str:
        """How the process ended, or a fork of it that had this exit code."""
        if code is None:
            self.process.join(10)
            code = self.process.exitcode or 0
        if code < 0:
            return f"its process died by {signal.Signals(-code).name}"
        return f"its process exited with status {code}"

    def kill(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # those that have ended do not mind
        self.process.join()
        self.process.close()
        self.pipe.close()


class WorkerPool:
    """Workers that are started when they are needed and kept for the next call. Close it, or leave `with`.

    Args:
        setup: called with what does the work, and `arguments`, once in each worker, before anything else is imported.
        preload: modules that the server imports besides torch, so that its workers have them from the start.
        keep: how many idle workers are kept at most.
    """

    def __init__(
        self,
        setup: Callable[..., None] | None = None,
        *arguments: Any,
        preload: Sequence[str] = (),
        keep: int = 16,
    ) -> None:
        self._setup = pickle.dumps(None if setup is None else (setup, arguments))
        self.started = 0
        self._keep = keep
        self._preload = preload
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> list[Worker]:
        """That many workers, kept ones first. They are the caller's until given back or killed.

        Raises:
            DeadRankError: a process did not start.
        """
        with self._lock:
            taken, self._idle = self._idle[-count:], self._idle[:-count]
        workers: list[Worker] = []
        for worker in taken:
            if worker.process.is_alive():
                workers.append(worker)
            else:
                worker.kill()
        new: list[Worker] = []
        try:
            while len(workers) + len(new) < count:
                new.append(Worker(self._setup, self._preload))
                self.started += 1
            deadline = time.monotonic() + START
            for worker in new:
                worker.await_ready(deadline)
        except BaseException:
            for worker in [*workers, *new]:
                worker.kill()
            raise
        return [*workers, *new]

    def give_back(self, worker: Worker) -> None:
        """Keep a worker that is idle and clean for the next call."""
        with self._lock:
            if len(self._idle) < self._keep:
                self._idle.append(worker)
                return
        worker.kill()

    def close(self) -> None:
        """End all idle workers. Idempotent."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
