"""What ranks that are threads get of their caller: they are to compute as it would, and to give nothing back."""

from __future__ import annotations

import contextvars
import random
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from parallel_topology.testing.seeding import seed_process

DEVICES = ("cpu", "cuda")
"""Whose autocast is inherited."""


class Inheritance:
    """The caller's default device, grad and inference mode, autocast and context variables, as they are now."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._device = torch.get_default_device()
        self._autocast = [
            (device, torch.get_autocast_dtype(device)) for device in DEVICES if torch.is_autocast_enabled(device)
        ]
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in this thread as the caller would."""
        return self._context.copy().run(self._call, fn, args)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            for device, dtype in self._autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            if self._device != torch.get_default_device():
                stack.enter_context(self._device)
            return fn(*args)


@contextmanager
def lent(seed: int, labels: dict[str, str]) -> Generator[None]:
    """While ranks run as threads: what they share is seeded, one core for each; afterwards all as it was.

    Args:
        labels: a thread's name -> what its prints begin with.
    """
    torch_state, random_state, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    dtype, out = torch.get_default_dtype(), sys.stdout
    seed_process(seed)
    torch.set_num_threads(1)
    sys.stdout = printing = _Labelled(out, labels)
    try:
        yield
    finally:
        printing.finish()
        if sys.stdout is printing:
            sys.stdout = out
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        random.setstate(random_state)
        torch.set_rng_state(torch_state)


class _Labelled:
    """Standard output in which a rank's lines carry its label, and are whole."""

    def __init__(self, out: Any, labels: dict[str, str]) -> None:
        self._out = out
        self._labels = labels
        self._begun: dict[str, str] = {}

    def write(self, text: str) -> int:
        name = threading.current_thread().name
        if name not in self._labels:
            return self._out.write(text)
        *lines, self._begun[name] = (self._begun.get(name, "") + text).split("\n")
        if lines:
            self._out.write("".join(f"{self._labels[name]}: {line}\n" for line in lines))
        return len(text)

    def finish(self) -> None:
        """Write lines that were not ended."""
        for name, text in self._begun.items():
            if text:
                self._out.write(f"{self._labels[name]}: {text}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)
