"""The tensors that a rank gives to a refit: that they are what its side says, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor

from parallel_topology.errors import RefitError
from parallel_topology.refit.sides import Side
from parallel_topology.topology.wording import listed
from parallel_topology.weights.storage import Stored

Have: TypeAlias = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
"""Tensors by name; or one after the other, as they come."""


def checked(side: Side, rank: int, given: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """This rank's tensors, without gradients, of a DTensor the local one; what the side does not have is left out.

    Raises:
        RefitError: one is missing, or of another shape, dtype or device.
    """
    stored = side.tensors_on(rank)
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RefitError(
            f"the {side.called} tensors are a {type(given).__name__}, expected a mapping of name to tensor"
        )
    if missing := [name for name in stored if name not in given]:
        raise RefitError(
            f"the {side.called} tensors lack {listed(missing[:8])} ({len(missing)} of {len(stored)}); given were "
            f"{listed([*given][:8])}"
        )
    return {name: _checked(side.called, name, given[name], what, device) for name, what in stored.items()}


def _checked(called: str, name: str, given: Tensor, stored: Stored, device: torch.device) -> Tensor:
    tensor = cast(Tensor, given.to_local()) if hasattr(given, "to_local") else given  # pyright: ignore
    if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RefitError(f"{called} tensor {name!r} is a {type(tensor).__name__}, expected a tensor")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tuple(tensor.shape) != stored.shape or dtype != stored.dtype:
        raise RefitError(
            f"{called} tensor {name!r} is {list(tensor.shape)} {dtype}, expected {list(stored.shape)} {stored.dtype}"
        )
    if tensor.device.type != device.type:
        raise RefitError(f"{called} tensor {name!r} is on {tensor.device}, and the group is on {device}")
    return tensor.detach()


def require_apart(have: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Raises:
    RefitError: a tensor of one side lies in the memory of one of the other.
    """
    sides = (("source", have), ("target", into))
    places = sorted(
        (*_memory(tensor), side, name) for side, given in sides for name, tensor in given.items() if tensor.numel()
    )
    last: tuple[int, int, str, str] = (0, 0, "", "")
    for place in places:
        if place[0] < last[1] and place[2] != last[2]:
            raise RefitError(
                f"target and source tensors share memory: {last[2]} {last[3]!r} and {place[2]} {place[3]!r}; "
                "expected the target to have its own"
            )
        last = max(last, place, key=lambda one: one[1])


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where it begins and ends."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


class Coming:
    """Tensors of the source that are given one after the other: each is kept until its last stretch is through.

    Args:
        stretch_of: the stretch of each logical tensor that moves.
    """

    def __init__(
        self,
        side: Side,
        rank: int,
        given: Iterable[tuple[str, Tensor]],
        device: torch.device,
        stretch_of: Mapping[str, int],
    ) -> None:
        self._called = side.called
        self._stored = side.tensors_on(rank)
        if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RefitError(f"the {side.called} tensors are a {type(given).__name__}, expected names and tensors")
        self._given = iter(given)
        self._device = device
        self._here: dict[str, Tensor] = {}
        self._last = {
            name: max(
                (
                    stretch_of.get(place.weight, -1)
                    for place in side.storage.contents(side.topology, rank, name)
                ),
                default=-1,
            )
            for name in self._stored
        }  # fmt: skip

    def tensor(self, name: str) -> Tensor:
        """A tensor by name, once it has come.

        Raises:
            RefitError: it does not come, or is not what the side says.
        """
        while name not in self._here:
            try:
                came, tensor = next(self._given)
            except StopIteration:
                raise RefitError(
                    f"the tensors that were given ended without {name!r}, or have it earlier than it was needed"
                ) from None
            if came in self._stored:
                self._here[came] = _checked(self._called, came, tensor, self._stored[came], self._device)
        return self._here[name]

    def begin(self, stretch: int) -> None:
        """Let go of what this stretch and later ones do not need."""
        for name in [name for name in self._here if self._last[name] < stretch]:
            del self._here[name]
