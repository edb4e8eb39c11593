"""Arguments and options that several commands take, read into values before a command runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from parallel_topology.errors import ParallelTopologyError, TopologyError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.launch.placement import hosts_from
from parallel_topology.topology.topology import ParallelTopology

Value = TypeVar("Value")


def reader(parse: Callable[[str], Value]) -> Callable[[Any], Value]:
    """For typer's `parser=`: an error of ours becomes a usage error that keeps its words and names the argument."""

    def read(text: Any) -> Value:
        try:
            return parse(str(text))
        except ParallelTopologyError as error:
            raise typer.BadParameter(str(error)) from None

    return read


def spec(name: str = "SPEC", help: str = "A topology, fastest axis first, as in tp8-dp2-pp4.") -> Any:
    """An argument that is a topology."""
    return typer.Argument(metavar=name, help=help, parser=reader(ParallelTopology.parse), show_default=False)


SpecArgument = Annotated[ParallelTopology, spec()]


def names(text: str) -> list[str]:
    """The axes of an option: joined by dashes as in a layout's text, or by commas as in most lists."""
    return [name.strip() for name in text.replace("-", ",").split(",")] if text else []


def _hosts(text: str) -> Hosts:
    return hosts_from(os.environ) if text == "env" else Hosts.parse(text)


_HOSTS = typer.Option(
    "--hosts",
    metavar="HOSTS",
    help="Which ranks are on which host: 2x4 is 2 hosts of 4, 4,4,2 lists what each has, 0,4/1,5 every rank; "
    "env: as the launcher says.",
    parser=reader(_hosts),
    show_default=False,
)
HostsOption = Annotated[Hosts, _HOSTS]
OptionalHostsOption = Annotated[Hosts | None, _HOSTS]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ModelOption = Annotated[
    Path, typer.Option("--model", help="A model's config.json, as on Hugging Face.", metavar="FILE", show_default=False)
]


def read_model(path: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        TopologyError: there is none.
    """
    try:
        found: object = json.loads(path.read_bytes())
    except OSError as error:
        raise TopologyError(f"--model {path}: {error.strerror}; expected a model's config.json") from None
    except (ValueError, RecursionError):
        raise TopologyError(f"--model {path} is no JSON; expected a model's config.json") from None
    if not isinstance(found, dict):
        raise TopologyError(f"--model {path} is no configuration; expected a model's config.json")
    return cast("dict[str, Any]", found)
