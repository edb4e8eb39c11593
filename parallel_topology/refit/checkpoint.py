"""load: a rank's tensors out of safetensors files, of which no more is read than it needs, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, device

from parallel_topology.errors import RefitError
from parallel_topology.installed import required
from parallel_topology.refit.boxes import Boxes
from parallel_topology.refit.given import checked
from parallel_topology.refit.sides import Side, stored
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.wording import listed
from parallel_topology.weights.place import Place
from parallel_topology.weights.storage import Storage
from parallel_topology.weights.weights import Weights

ALONE = ParallelTopology(tp=1)
"""Files are one rank's, which has everything."""


def load(
    files: Iterable[str | Path] | str | Path,
    weights: Weights | Storage,
    topology: ParallelTopology,
    rank: int,
    into: Mapping[str, Tensor],
    *,
    files_as: Weights | Storage | None = None,
) -> int:
    """Fill this rank's tensors from safetensors files; needs no other rank, and reads the ranges that it holds.

    Args:
        files: of one model, each tensor in one of them; or a folder with them.
        weights: the logical tensors, or the `Storage` of this rank, which then says how `into` keeps them.
        into: this rank's tensors, written in place; on the CPU or a device.
        files_as: how the files keep them, if it is not each logical tensor under its name.

    Returns:
        The bytes that were read.

    Raises:
        RefitError: a file or tensor is missing, or another one than was expected.
        MissingExtraError: safetensors is not installed.
    """
    target = Side("target", stored(weights), topology)
    source = Side("file", stored(files_as or target.weights), ALONE)
    where = next((tensor.device for tensor in into.values()), device("cpu"))
    boxes = Boxes(target, rank, checked(target, rank, into, where).__getitem__)
    read = 0
    with ExitStack() as opened:
        tensors = _opened(_files(files), opened)
        for name, held in target.weights.on(topology, rank).items():
            for place in source.storage.places(ALONE, 0, name, held.ranges):
                values = _read(tensors, place, source)
                read += values.numel() * values.element_size()
                boxes.write(name, place.ranges, values)
    return read


def _files(given: Iterable[str | Path] | str | Path) -> list[Path]:
    if isinstance(given, (str, Path)):
        folder = Path(given)
        found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    else:
        found = [Path(one) for one in given]
    if missing := [str(file) for file in found if not file.is_file()] or ([] if found else [f"{given}/*.safetensors"]):
        raise RefitError(f"there is no {listed(missing)}: expected safetensors files, or a folder with some")
    return found


def _opened(files: Iterable[Path], opened: ExitStack) -> dict[str, Any]:
    """The name of each tensor -> the file that has it, mapped into memory."""
    safetensors: Any = required("safetensors", "'parallel-topology[checkpoint]'")
    found: dict[str, Any] = {}
    for file in files:
        try:
            one = opened.enter_context(safetensors.safe_open(file, framework="pt"))
        except Exception as error:  # its own, one for everything
            raise RefitError(f"{file} cannot be read: {error}") from None
        found |= dict.fromkeys(one.keys(), one)
    return found


def _read(tensors: Mapping[str, Any], place: Place, source: Side) -> Tensor:
    """The elements of a place, as they stand in the logical tensor."""
    file = tensors.get(place.tensor)
    if file is None:
        raise RefitError(f"the files lack {place.tensor!r}; they have {listed([*tensors][:8])}")
    found = file.get_slice(place.tensor)
    expected = source.tensors_on(0)[place.tensor]
    if tuple(found.get_shape()) != expected.shape:
        raise RefitError(f"{place.tensor!r} is {found.get_shape()} in the files, expected {list(expected.shape)}")
    values: Tensor = found[tuple(slice(part.start, part[-1] + 1) for part in place.local)]
    rebased = tuple(range(0, part[-1] + 1 - part.start, part.step) for part in place.local)
    return replace(place, local=rebased).view(values)
