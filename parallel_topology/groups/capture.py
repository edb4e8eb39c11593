"""Capturing CUDA graphs with a group's collectives in them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from parallel_topology.communicators.links import holds_capture
from parallel_topology.errors import GroupArgumentError
from parallel_topology.groups.bound import BoundGroup

_CUDAGraph: Any = getattr(torch.cuda, "CUDAGraph", None)


class Capturing(BoundGroup):
    """What a group does while CUDA graphs are captured."""

    @contextmanager
    def capture(
        self, prefer: str | None = None, stream: torch.cuda.Stream | None = None
    ) -> Generator[torch.cuda.Stream | None]:
        """Around the capture of CUDA graphs: `with group.capture() as stream, torch.cuda.graph(graph, stream=stream)`.

        All members enter it. Every communicator of the group is first used on the stream that is captured, as NCCL must
        connect before and CUDA refuses it during capture. Graphs captured inside are remembered, weakly: `close()`
        names those that are alive, since NCCL would wait for them for ever.

        In a group of one rank nothing happens. On the CPU there are no graphs; only `prefer` has an effect.

        Args:
            prefer: the communicator that is asked first while inside, such as `"nccl"`.
            stream: to capture on; without it a new one. It waits for what the current stream has been given.

        Returns:
            The stream, current inside; None without CUDA.

        Raises:
            GroupArgumentError: the group has no communicator called `prefer`.
        """
        with remembered([self]), self.on_stream(prefer, stream) as current:
            yield current

    @contextmanager
    def on_stream(self, prefer: str | None, stream: torch.cuda.Stream | None) -> Generator[torch.cuda.Stream | None]:
        """As `capture`, but for remembering the graphs."""
        if self._is_alone("capture") or self.device.type != "cuda":
            with self._preferring(prefer):
                yield stream if stream is not None or self.device.type != "cuda" else torch.cuda.current_stream()
            return
        before = torch.cuda.current_stream(self.device)
        stream = torch.cuda.Stream(self.device) if stream is None else stream
        stream.wait_stream(before)
        with ExitStack() as inside:
            inside.enter_context(torch.cuda.stream(stream))
            inside.enter_context(self._preferring(prefer))
            for communicator in self.communicators:
                communicator.warmup()
                inside.enter_context(communicator.capture())
            stream.synchronize()  # nothing of the warm-up is left when the capture begins
            yield stream
        before.wait_stream(stream)

    def is_preferred(self, communicator: str) -> bool:
        """Whether the communicator of this name is the first that is asked now."""
        self._require_open("is_preferred")
        return bool(self.communicators) and self.communicators[0].name == communicator

    @contextmanager
    def _preferring(self, name: str | None) -> Generator[None]:
        if name is None or not self.communicators:
            yield
            return
        chain = self.communicators
        names = [communicator.name for communicator in chain]
        if name not in names:
            raise GroupArgumentError(
                f"capture on {self.label}: prefer={name!r}, but its communicators are {', '.join(names)}; add it with "
                f"options={{{self.name!r}: GroupOptions(communicators=({name!r},))}}"
            )
        first = chain[names.index(name)]
        self.communicators = (first, *(other for other in chain if other is not first))
        try:
            yield
        finally:
            self.communicators = chain


@contextmanager
def remembered(groups: Iterable[BoundGroup]) -> Generator[None]:
    """What is captured inside is remembered by all these groups, as far as they are on CUDA and not of one rank.

    Finding it takes two walks over all objects of the process, which are seconds where these are many: so not for each.
    """
    links = {id(group.links): group.links for group in groups if group.size > 1 and group.device.type == "cuda"}
    if not links:
        yield
        return
    known = _captured()
    try:
        yield
    finally:
        fresh = [graph for key, graph in _captured().items() if key not in known]
        for one in links.values():
            one.graphs += map(weakref.ref, fresh)


def _captured() -> dict[int, Any]:
    """The CUDA graphs in this process whose capture has ended. Torch keeps no list of them, the collector does."""
    found: dict[int, Any] = {}
    for thing in gc.get_objects():
        if type(thing) is _CUDAGraph and holds_capture(thing):
            found[id(thing)] = thing
    return found
