"""What a model is used for, and the memory there is: options of the commands that weigh it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from parallel_topology.cli.options import reader
from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted
from parallel_topology.weights.memory import COMMUNICATOR_BYTES, Serving, Training

UNITS = {
    "": 1,
    **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 10 ** (3 * power) for power, letter in enumerate("KMGT", 1)},
}


@dataclass(frozen=True)
class Size:
    """A number of bytes, as an option says it."""

    bytes: int


def _size(text: str) -> Size:
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([KMGT]i?B)?", text, re.ASCII)
    if not found:
        raise TopologyError(f"{quoted(text)} is no size; expected one such as 80GiB or 80GB")
    return Size(int(float(found[1]) * UNITS[found[2] or ""]))


def _more_than_nothing(text: str) -> Size:
    size = _size(text)
    if not size.bytes:
        raise TopologyError(f"{quoted(text)} is no size; expected one such as 80GiB or 80GB")
    return size


_MEMORY = typer.Option(
    "--memory",
    metavar="SIZE",
    help="What each rank has, as 80GiB.",
    parser=reader(_more_than_nothing),
    show_default=False,
)
MemoryOption = Annotated[Size, _MEMORY]
OptimizerOption = Annotated[str, typer.Option("--optimizer", help="Train with adam; else the model is served.")]
ZeroOption = Annotated[int, typer.Option("--zero", help="ZeRO 0 to 3; FSDP is 3.", metavar="N")]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch",
        help="Sequences at a time on each data-parallel rank: a micro-batch, or what is served (not as in check, where "
        "it is those of all ranks).",
        metavar="N",
    ),
]
ContextOption = Annotated[int, typer.Option("--context", help="Tokens in each of them.", metavar="N")]
_COMMUNICATORS = typer.Option(
    "--communicator",
    metavar="SIZE",
    help="Buffers of each communicator of more than one rank: an assumption, 512MiB if it is left out.",
    parser=reader(_size),
    show_default=False,
)
CommunicatorOption = Annotated[Size | None, _COMMUNICATORS]


def use_of(optimizer: str, zero: int, batch: int, context: int, communicator: Size | None = None) -> Training | Serving:
    """What the options say together.

    Raises:
        TopologyError: one of them cannot be, or not with the others.
    """
    buffers = COMMUNICATOR_BYTES if communicator is None else communicator.bytes
    if optimizer:
        return Training(optimizer=optimizer, zero=zero, batch=batch, context=context, communicator_bytes=buffers)
    if zero:
        raise TopologyError(f"--zero {zero} divides what training keeps; expected --optimizer adam with it")
    return Serving(batch=batch, context=context, communicator_bytes=buffers)
