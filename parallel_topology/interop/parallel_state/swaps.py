"""Functions whose code is another one for as long as somebody needs it.

A module's function has been imported by name all over a program, so replacing the module's attribute would reach few of
its callers. What all of them hold is one function object, whose code can be exchanged and given back: every alias is
served, and afterwards nothing is left of it, no wrapper and no name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

from parallel_topology import torch_private

Answer = Callable[..., Any]
Answering = Callable[[FunctionType], Answer]


class Swap:
    """One function, and what answers in its place: `answering(own)` of what it was."""

    def __init__(self, function: FunctionType, answering: Answering) -> None:
        self._function = function
        self._code = function.__code__
        self._served = _calling(answering(_copy(function)), self._code)

    @property
    def fits(self) -> bool:
        """Whether the function still is what it was."""
        return self._function.__code__ is self._code

    def put(self) -> None:
        self._function.__code__ = self._served

    def take_back(self) -> None:
        self._function.__code__ = self._code


class Swaps:
    """Functions that are answered for while at least one user is in; users may be in several threads.

    Args:
        functions: each one, and what answers in its place; asked when the first user comes.
    """

    def __init__(self, functions: Callable[[], Mapping[FunctionType, Answering]]) -> None:
        self._functions = functions
        self._swaps: dict[FunctionType, Swap] = {}  # kept: to make them takes milliseconds
        self._users = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """One user more; the first one puts them in place."""
        with self._lock:
            if not self._users:
                swaps = self._swaps
                self._swaps = {
                    function: swap if (swap := swaps.get(function)) and swap.fits else Swap(function, answering)
                    for function, answering in self._functions().items()
                }
                for swap in self._swaps.values():
                    swap.put()
            self._users += 1

    def leave(self) -> None:
        """One user fewer; the last one takes them back."""
        with self._lock:
            self._users -= 1
            if not self._users:
                for swap in self._swaps.values():
                    swap.take_back()


def _copy(function: FunctionType) -> FunctionType:
    """What it was: the code stays when the function gets another one."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    return copy


def _calling(answer: Answer, code: CodeType) -> CodeType:
    """Code that calls `answer` with whatever it is given, and fits in the place of `code`.

    It needs as many free variables, and must not look names up, since its globals are the module's: what it calls is
    one of its constants.
    """
    free = ", ".join(f"free{number}" for number in range(len(code.co_freevars)))
    source = f"""def outer({free}):
    def served(*args, **kwargs): {free or "pass"}; answer = "answer"; return answer(*args, **kwargs)
"""
    served = _code_in(_code_in(compile(source, torch_private.UNTRACED, "exec")))
    constants = tuple(answer if constant == "answer" else constant for constant in served.co_consts)
    return served.replace(  # in a traceback it is the line of the function's own `def`
        co_consts=constants, co_name=code.co_name, co_qualname=code.co_qualname, co_firstlineno=code.co_firstlineno
    )


def _code_in(code: CodeType) -> CodeType:
    return next(constant for constant in code.co_consts if isinstance(constant, CodeType))
