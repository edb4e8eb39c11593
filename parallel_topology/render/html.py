"""A layout as one HTML page: self-contained, with a pointer, a keyboard or a screen reader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from parallel_topology.render.palette import ink, stage_colors
from parallel_topology.render.scene import LABELLED, OVERVIEW, Scene
from parallel_topology.render.text import axis_facts
from parallel_topology.topology.layout import Modes

if TYPE_CHECKING:
    from parallel_topology.hosts.device_links import DeviceLinks
    from parallel_topology.hosts.hosts import Hosts
    from parallel_topology.topology.topology import ParallelTopology
    from parallel_topology.weights.weight import Weight


def html(
    topology: ParallelTopology,
    *,
    hosts: Hosts | None = None,
    rank: int | None = None,
    axis: str | None = None,
    marked: Mapping[int, str] | None = None,
    tensor: Weight | None = None,
    links: DeviceLinks | None = None,
) -> str:
    """A page that shows a layout, and the groups and neighbours of the rank one points at or moves to.

    It loads nothing from anywhere. Groups are computed in the page, so its size hardly grows with the world.

    Args:
        topology: the layout.
        hosts: where its ranks are, if that is known.
        rank: a rank that is picked out when the page opens.
        axis: the only axis (`"tp"`) or axes together (`"tp-pp"`) to look at; otherwise every one.
        marked: rank -> a short note, for ranks to draw attention to, such as those that move.
        tensor: a tensor and its cut, as `Weight("tensor", "4096/tp 1024")`: colours stand for its parts.
        links: how the devices of each host are joined, as `DeviceLinks.parse` reads it.

    Raises:
        TopologyError: the tensor cannot be cut so, `hosts` do not hold all ranks, or there are more ranks than a page
            can show.
        RankError: `rank`, or one that is marked, is not in the topology.
        UnknownAxisError: `axis` is not there.
    """
    scene = Scene(topology, hosts=hosts, rank=rank, axis=axis, marked=marked, tensor=tensor, links=links)
    scene.require_drawable()
    title = escape(f"{scene.title}: {scene.summary}")
    data = json.dumps(_data(scene), separators=(",", ":")).replace("<", "\\u003c")  # nothing may end the script
    find = '<label>Hosts <input type="search" id="filter" placeholder="0-3,8" autocomplete="off"></label>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{_asset("page.css")}{_stage_rules(scene)}</style>
</head>
<body>
<h1>{escape(scene.title)}</h1>
<p>{escape("; ".join(filter(None, [scene.summary, scene.idle])))}; colour: {escape(scene.colored_by)}</p>
<main>
<aside>
<div class="controls" role="search">
<label>Rank <input type="search" id="search" inputmode="numeric" autocomplete="off"></label>
{find if hosts is not None else ""}
<button id="zoom" type="button" hidden></button>
</div>
<table>
<caption class="spoken">axes</caption>
{"".join(_axis_rows(scene))}</table>
<div id="panel"></div>
<div id="spoken" class="spoken" role="status" aria-live="polite"></div>
</aside>
<section class="picture" aria-label="ranks">
<ol class="legend"{_across(scene)}>{"".join(_legend(scene))}</ol>
<div id="grid" role="grid" aria-label="ranks on hosts"{' class="lean"' * (topology.world_size > LABELLED)}></div>
<noscript><p>Scripts are off: there is only the table of axes.</p></noscript>
</section>
</main>
<script type="application/json" id="layout">{data}</script>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def frame(topology: ParallelTopology) -> str:
    """The page as a part of another one, such as a notebook, that it cannot disturb and that cannot disturb it."""
    page = escape(html(topology), quote=True)
    return (
        f'<iframe title="{escape(str(topology))}" sandbox="allow-scripts" srcdoc="{page}" '
        'style="width: 100%; height: 32rem; border: 0"></iframe>'
    )


def _data(scene: Scene) -> dict[str, Any]:
    """What the page computes from."""
    topology = scene.topology
    base: dict[str, Modes] = {axis: topology.groups(axis).modes for axis in scene.shown_axes}
    return {
        "size": topology.world_size,
        "first": topology.first_rank,
        "ranks": None if topology.ranks is None else list(topology.ranks),
        "base": [[axis, modes[0]] for axis, modes in base.items()],
        "colors": scene.color_digits,
        "axes": [{"name": axis.name, "modes": axis.groups.modes} for axis in scene.axes],
        "hosts": None if scene.hosts is None else [[b.host, b.others, *_members(b.ranks)] for b in scene.boxes],
        "columns": scene.columns(max(len(box.ranks) for box in scene.boxes)),
        "lean": topology.world_size > LABELLED,
        "afar": OVERVIEW,
        "marked": scene.marked,
        "chosen": scene.rank,
    }


def _members(ranks: Sequence[int]) -> list[Any]:
    """The first and how many, where they count up."""
    counted = list(ranks) == list(range(ranks[0], ranks[0] + len(ranks)))
    return [ranks[0], len(ranks)] if counted else [list(ranks)]


def _stage_rules(scene: Scene) -> str:
    columns = scene.columns(max(len(box.ranks) for box in scene.boxes))
    digits = len(str(max(scene.topology.world)))
    lean = f"--cell: {digits * 0.45 + 1.15:.2f}rem; --height: 2rem;"
    rules = [f".row {{ --columns: {columns}; {lean} }}"]
    if scene.topology.world_size <= LABELLED:
        cell = max(len(scene.label(scene.topology.world[-1])) * 0.43, digits * 0.62) + 0.75
        wide = columns * (cell + 0.25) + 1.75  # with what is between and around them
        rules.append(f".row {{ --cell: {cell:.2f}rem; --height: 3.4rem; }}")
        rules.append(
            f"@container picture (max-width: {wide:.2f}rem) {{ .row {{ {lean} }} .cell span {{ display: none; }} }}"
        )
    for stage, color in enumerate(stage_colors(len(scene.legend))):
        rules.append(f".s{stage} {{ background: {color}; color: {ink(color)}; }}")
    return "\n".join(rules) + "\n"


def _across(scene: Scene) -> str:
    """The legend in the shape of the tensor, where that has two cut dims."""
    columns = scene.legend_columns
    return f' style="display: inline-grid; grid-template-columns: repeat({columns}, auto)"' if columns > 1 else ""


def _legend(scene: Scene) -> Iterator[str]:
    for color, name in enumerate(scene.legend if len(scene.legend) > 1 else []):
        yield f'<li class="s{color}">{escape(name)}</li>'
    if key := scene.key:
        yield f'<li class="key">{escape(key)}</li>'


def _axis_rows(scene: Scene) -> Iterator[str]:
    """The table of axes, of which one can be chosen."""
    heads = ["axis", "groups", "size", "stride"] + ["hosts each", ""] * (scene.hosts is not None)
    every = '<label><input type="radio" name="axis" value="" checked> all</label>'
    yield "<thead><tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead>\n<tbody>\n"
    yield f'<tr><th scope="row">{every}</th></tr>\n'
    views = dict(scene.topology.views)
    shown = ""
    for number, axis in enumerate(scene.axes):
        if axis.view != shown:
            shown = axis.view
            name = escape(f"view {shown}: {views[shown]}")
            yield f'<tr><th colspan="{len(heads)}" scope="colgroup">{name}</th></tr>\n'
        cells = "".join(f"<td>{escape(text)}</td>" for text in axis_facts(axis))
        choice = f'<label><input type="radio" name="axis" value="{number}"> {escape(axis.name)}</label>'
        yield f'<tr><th scope="row">{choice}</th>{cells}</tr>\n'
    yield "</tbody>\n"


def _asset(name: str) -> str:
    return files("parallel_topology.render").joinpath(name).read_text(encoding="utf-8")
