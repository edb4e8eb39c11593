"""`parallel-topology show`: a picture of a layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_topology.cli.errors import one_line_errors
from parallel_topology.cli.options import JsonOption, OptionalHostsOption, SpecArgument, names
from parallel_topology.cli.output import print_json
from parallel_topology.cli.pictures import OutputOption, print_picture, require_one_form, write_picture
from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import from_digits, quoted

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.weights.weight import Weight

TensorOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE", help="Show which part of a tensor each rank holds, as 4096x1024.", show_default=False
    ),
]
CutOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIM:AXIS", help="What cuts it, once for each dim: 0:tp, or 0:tp/cp for both.", show_default=False
    ),
]
LinksOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What nvidia-smi topo -m printed on one of the hosts.", show_default=False),
]


def show(
    topology: SpecArgument,
    hosts: OptionalHostsOption = None,
    rank: Annotated[
        int | None, typer.Option(metavar="RANK", help="Pick out its groups and neighbours.", show_default=False)
    ] = None,
    axis: Annotated[
        str | None,
        typer.Option(metavar="AXIS", help="Only this axis, or axes together, as in tp-pp.", show_default=False),
    ] = None,
    tensor: TensorOption = None,
    cut: CutOption = None,
    links: LinksOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a layout: ranks on hosts, and for each axis how many groups there are and whether they cross hosts.

    With --tensor also which part of a tensor each rank holds, and colours stand for the parts.

    Example: parallel-topology show tp2-pp4 --hosts 2x4 --rank 5
    """
    require_one_form(output, as_json)
    seen: dict[str, Any] = {"hosts": hosts, "rank": rank, "axis": "-".join(names(axis)) if axis is not None else None}
    with one_line_errors():
        seen |= {"tensor": _tensor(tensor, cut or []), "links": None if links is None else _links(links)}
        if as_json:
            from parallel_topology.render.json import as_json as data

            print_json(data(topology, **seen))
        elif output is not None:
            write_picture(output, topology, **seen)
        else:
            print_picture(topology, **seen)


def _tensor(shape: str | None, cuts: list[str]) -> Weight | None:
    if shape is None:
        if cuts:
            raise TopologyError(f"--cut {cuts[0]} cuts a tensor: say of which shape with --tensor, as 4096x1024")
        return None
    if not re.fullmatch("[0-9]+(x[0-9]+)*", shape, re.ASCII):
        raise TopologyError(f"cannot read --tensor {quoted(shape)}: expected its sizes, as in 4096x1024")
    cut: dict[int, str] = {}
    for one in cuts:
        dim, colon, axes = one.partition(":")
        if not colon or not re.fullmatch("[0-9]+", dim, re.ASCII) or from_digits(dim) in cut:
            raise TopologyError(
                f"cannot read --cut {quoted(one)}: expected a dim and an axis, as in 0:tp, each dim once"
            )
        cut[from_digits(dim)] = axes
    from parallel_topology.weights.weight import Weight

    return Weight("tensor", map(from_digits, shape.split("x")), cut=cut)


def _links(path: Path) -> DeviceLinks:
    from parallel_topology.hosts.device_links import DeviceLinks

    try:
        return DeviceLinks.parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise TopologyError(f"--links {path}: {error.strerror}; expected what nvidia-smi topo -m printed") from None
    except TopologyError as error:
        raise TopologyError(f"--links {path}: {error}") from None
