"""Futex: a word of shared memory that a process sleeps on until another one has changed it, and a fence.

Python has neither. The system call is made through ctypes, which lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221, "s390x": 238}
"""Of the system call, on machines of 64 bits."""
_WAIT, _WAKE, _ALL = 0, 1, 2**31 - 1
_NAP = 0.001
"""Seconds between looks where there is no such system call."""
_LOW = 0 if sys.byteorder == "little" else 4
"""Where the low half of a word of 8 bytes is: a futex has 4."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _system_call(library: type[ctypes.CDLL]) -> tuple[int, ctypes._NamedFuncPointer | None]:  # pyright: ignore[reportPrivateUsage]
    number = _NUMBERS.get(platform.machine(), 0)
    if not number or sys.platform != "linux":
        return 0, None
    call = library(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = [
        ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32
    ]  # fmt: skip
    return number, call


_number, _call = _system_call(ctypes.CDLL)
_, _call_at_once = _system_call(ctypes.PyDLL)
"""Keeps Python's lock, which costs more to get again than the call takes where there are many threads."""
_yield: Callable[[], object] = ctypes.CDLL(None).sched_yield if sys.platform == "linux" else partial(time.sleep, 0)


def sleep(address: int, value: int, seconds: float) -> None:
    """Sleep while the word of 8 bytes at `address` has this value: until `wake`, a signal, or so many seconds later."""
    if _call is None:
        time.sleep(min(seconds, _NAP))
        return
    within = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    _call(_number, address + _LOW, _WAIT, value & 0xFFFFFFFF, ctypes.addressof(within), None, 0)


def wake(address: int) -> None:
    """Wake all that sleep on the word at `address`."""
    if _call_at_once is not None:
        _call_at_once(_number, address + _LOW, _WAKE, _ALL, None, None, 0)


def give_way() -> None:
    """Let others run: other processes on this core, and other threads of this one."""
    _yield()


class Fence:
    """Called, it keeps what one thread read and wrote before apart from what it reads and writes after.

    x86 only lets a read overtake a write, and any locked instruction ends that. ARM, RISC-V and POWER reorder more. A
    lock that is released orders what was before it, one that is taken what comes after it, and a release followed by a
    taking are not exchanged (ARMv8: STLR, LDAR; RISC-V: the RCsc annotations). Where that last step is weaker (POWER),
    a sleeper may be woken late, at the end of its nap, but nothing is read before it is there.

    The lock is its own, and is never waited for: an interrupt between two steps does no harm.
    """

    def __init__(self) -> None:
        lock = threading.Lock()
        self._take, self._release = lock.acquire, lock.release

    def __call__(self) -> None:
        take, release = self._take, self._release
        take(False)
        release()
        take(False)
        release()
