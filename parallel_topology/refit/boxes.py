"""Boxes of logical tensors in the tensors that a side stores: read, written, and in place where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parallel_topology.refit.sides import Side
from parallel_topology.weights.place import Box, Place


class Boxes:
    """One rank's tensors on one side.

    Args:
        tensor: gives a tensor by the name under which the side stores it.
    """

    def __init__(self, side: Side, rank: int, tensor: Callable[[str], Tensor]) -> None:
        self._side = side
        self._rank = rank
        self._tensor = tensor

    def read(self, weight: str, box: Box, into: Tensor) -> None:
        """Copy a box into a tensor of its shape, in that one's dtype."""
        for own, view in self._views(weight, box):
            _part(into, own, box).copy_(view)

    def write(self, weight: str, box: Box, values: Tensor) -> None:
        """Copy a box out of a tensor of its shape."""
        for own, view in self._views(weight, box):
            view.copy_(_part(values, own, box))

    def copy(self, weight: str, box: Box, into: Boxes) -> None:
        """Copy a box into other tensors."""
        for own, view in self._views(weight, box):
            into.write(weight, own, view)

    def bytes_in_place(self, weight: str, box: Box, dtype: torch.dtype) -> Tensor | None:
        """The memory of a box, if it is one piece and of this dtype."""
        views = [view for _, view in self._views(weight, box)]
        if len(views) == 1 and views[0].dtype == dtype and views[0].is_contiguous():
            return views[0].reshape(-1).view(torch.uint8)
        return None

    def _views(self, weight: str, box: Box) -> Iterator[tuple[Box, Tensor]]:
        key = self._rank, weight, box
        known = self._side.views.get(key)
        if known is None:
            places = self._side.storage.places(self._side.topology, self._rank, weight, box)
            known = self._side.views[key] = [View(place) for place in places]
        for view in known:
            yield view.ranges, view.of(self._tensor(view.tensor))


class View:
    """Where a box is in a tensor: found once by indexing, then by the numbers that came of it."""

    __slots__ = ("_found", "_like", "_place", "ranges", "tensor")

    def __init__(self, place: Place) -> None:
        self.ranges = place.ranges
        self.tensor = place.tensor
        self._place = place
        self._like: tuple[int, ...] | None = None  # the strides of the tensor in which it was found
        self._found: tuple[tuple[int, ...], tuple[int, ...], int] = (), (), 0

    def of(self, tensor: Tensor) -> Tensor:
        start = tensor.storage_offset()
        if self._like == tensor.stride():
            size, stride, offset = self._found
            return tensor.as_strided(size, stride, start + offset)
        view = self._place.view(tensor)
        self._found = tuple(view.shape), view.stride(), int(view.storage_offset() - start)
        self._like = tensor.stride()
        return view


def _part(whole: Tensor, part: Box, box: Box) -> Tensor:
    """What of a tensor of a box's shape a part of the box is."""
    if part == box:
        return whole
    return whole[tuple(slice(own.start - of.start, own.stop - of.start) for own, of in zip(part, box, strict=True))]
