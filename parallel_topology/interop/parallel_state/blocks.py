"""Which block is open here: the innermost one around the code that asks.

A block belongs to the context it was opened in, and to what copies that context (asyncio's tasks, `to_thread`). Two
kinds of code run elsewhere than they stand:

- a generator runs in the context of whoever resumes it, so a block that it opened is its own: it is found on the stack,
  wherever the generator runs, and nobody else sees it;
- autograd runs a graph's nodes in threads of its own, which see the block around the call of `backward`.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import FrameType, FunctionType
from typing import Any, Generic, TypeVar

from parallel_topology import torch_private
from parallel_topology.errors import BackendError
from parallel_topology.interop.parallel_state.swaps import Answer, Swaps

T = TypeVar("T")

_DRIVERS = ("contextlib", "_pytest.fixtures")
"""Modules that run the halves of a generator around somebody else's code: its blocks are for that code."""


class Block(Generic[T]):
    """One `with`.

    Attributes:
        place: whose functions it is about.
        value: what is open; None once it has ended, for a copied context may outlive it.
        outer: the block that was open around it in this context.
        owner: the frame of the `with`.
    """

    __slots__ = ("outer", "owner", "place", "value")

    def __init__(self, place: Place[T], value: T, outer: Block[Any] | None, owner: FrameType | None) -> None:
        self.place = place
        self.value: T | None = value
        self.outer = outer
        self.owner = owner


_opened: ContextVar[Block[Any] | None] = ContextVar("parallel_topology.serving", default=None)
"""The innermost block that was opened in this context."""
_in_generators: dict[FrameType, list[Block[Any]]] = {}
"""A generator's frame -> its blocks, the innermost last. It is empty unless generators hold blocks open."""
_running: dict[int, Block[Any] | None] = {}
"""A thread in `backward` -> what is open there, where torch does not carry contexts to its threads."""


class Place(Generic[T]):
    """What blocks can be opened about: one for each system."""

    @contextmanager
    def open(self, value: T) -> Generator[None]:
        """Within this, `current()` is `value`, for the code it is around."""
        owner = _owner(sys._getframe())  # pyright: ignore[reportPrivateUsage]
        own = _in_generators.setdefault(owner, []) if _is_generator(owner) else None
        block: Block[T] = Block(self, value, None if own is not None else _opened.get(), owner)
        if own is not None:
            own.append(block)
        else:
            _opened.set(block)
        _backward.enter()
        try:
            yield
        finally:
            _backward.leave()
            block.value = block.owner = None
            if own is None:
                _opened.set(_still_open(_opened.get()))
            else:
                own.remove(block)
                if not own:
                    del _in_generators[owner]

    def current(self) -> T | None:
        """What is open around the code that asks; None outside."""
        block = _opened.get()
        if _in_generators:
            block = self._nearest(block)
        if block is None and (block := _carried()) is None:
            return None
        while block is not None:
            if block.place is self and (value := block.value) is not None:
                return value
            block = block.outer
        return None

    def _nearest(self, block: Block[Any] | None) -> Block[Any] | None:
        """The first one up the stack, whether a generator or this context opened it."""
        frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            for own in reversed(_in_generators.get(frame, ())):
                if own.place is self and own.value is not None:
                    return own
            while block is not None and block.owner is frame:
                if block.place is self:
                    return block
                block = block.outer
            frame = frame.f_back
        return block


def _owner(frame: FrameType) -> FrameType:
    """The frame that a block stands in: that of the `with`, below those that only help it to be one."""
    while (below := frame.f_back) is not None:
        driven = _is_generator(frame) and below.f_globals.get("__name__") in _DRIVERS
        if not driven and frame.f_globals.get("__name__") != "contextlib":
            return frame
        frame = below
    return frame


def _is_generator(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def _still_open(block: Block[Any] | None) -> Block[Any] | None:
    while block is not None and block.value is None:
        block = block.outer
    return block


# Autograd


def _carried() -> Block[Any] | None:
    """What is open around the call of `backward` that this thread works for, if it is one of autograd's."""
    if torch_private.BACKWARD_CARRIES_CONTEXT:
        context = torch_private.context_of_backward()
        return None if context is None else context.get(_opened)
    if (thread := threading.get_ident()) in _running:
        return _running[thread]
    if not _running or not torch_private.in_backward():
        return None
    found = {id(block): block for block in list(_running.values())}
    if len(found) == 1:
        return next(iter(found.values()))
    raise BackendError(
        "in torch before 2.9 a thread of autograd's cannot tell whose backward it runs, and several are under way, in "
        "different blocks of serving(): run one at a time, or update torch"
    )


def _carry(own: FunctionType) -> Answer:
    """In the place of torch's way into the engine: what a generator or autograd's thread sees goes on into threads."""

    def run(*args: Any, **kwargs: Any) -> Any:
        seen = _seen()
        if torch_private.BACKWARD_CARRIES_CONTEXT:
            with torch_private.context_of_backward_kept():
                if seen is _opened.get():
                    return own(*args, **kwargs)
                return copy_context().run(_within, seen, own, args, kwargs)
        thread = threading.get_ident()
        outermost, outer = thread not in _running, _running.get(thread)
        _running[thread] = seen
        try:
            return own(*args, **kwargs)
        finally:
            _running[thread] = outer
            if outermost:
                del _running[thread]

    return run


def _seen() -> Block[Any] | None:
    """All that is open around this code, as blocks of a context."""
    block = _opened.get()
    if block is None:
        block = _carried()
    if not _in_generators:
        return block
    places = {own.place for blocks in list(_in_generators.values()) for own in blocks}
    for place in places:
        if (value := place.current()) is not None:
            block = Block(place, value, block, None)
    return block


def _within(block: Block[Any] | None, own: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _opened.set(block)
    return own(*args, **kwargs)


_backward = Swaps(lambda: {torch_private.ENGINE: _carry})
