"""The image and the page, as a parser reads them; tests/render/test_browser.py looks at the page in a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.errors import RankError, TopologyError
from parallel_topology.render.html import html
from parallel_topology.render.svg import svg
from tests.render.pictures import pictures

Picture = tuple[ParallelTopology, dict[str, Any]]
SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script></title></style>]]><b x='1' y=\"2\">&amp;\x00\x1b[1m\ud800"


class Page(HTMLParser):
    """The elements of a page, checked to be closed in order."""

    EMPTY = ("meta", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def data_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="layout">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


# SVG


@settings(deadline=None)
@given(pictures())
def test_an_image_is_xml_with_a_cell_for_each_rank(picture: Picture):
    topology, seen = picture
    root = ElementTree.fromstring(svg(topology, **seen))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert set((root.get("aria-labelledby") or "").split()) <= set(ids)
    colored = [element for element in root.iter(f"{SVG}g") if re.match(r"s\d", element.get("class") or "")]
    cells = [element for element in colored if "swatch" not in (element.get("class") or "")]
    shown = {int(re.sub("[^0-9]", "", (cell.find(f"{SVG}text").text or ""))): cell for cell in cells}  # pyright: ignore
    assert sorted(shown) == sorted(topology.world)
    assert len(cells) == len(topology.world)
    for rank, cell in shown.items():
        assert f"rank {rank}" in (cell[0].text or "")
        names = (cell.get("class") or "").split()
        assert ("marked" in names) == (rank in seen["marked"])
        assert ("at" in names) == (rank == seen["rank"])
        if seen["rank"] is not None:
            axes = [(axis,) for axis in topology.all_axes] if seen["axis"] is None else [seen["axis"].split("-")]
            groups = [topology.group(*names, rank=seen["rank"]) for names in axes]
            assert ("far" in names) == (not any(rank in group for group in groups) and rank != seen["rank"])


@settings(deadline=None)
@given(pictures())
def test_cells_are_inside_their_hosts_and_do_not_overlap(picture: Picture):
    topology, seen = picture
    root = ElementTree.fromstring(svg(topology, **seen))
    width, height = (float(root.get(name) or 0) for name in ("width", "height"))
    places: Counter[tuple[float, float]] = Counter()
    for host in root.findall(f"{SVG}g"):
        if "swatch" in (host.get("class") or ""):
            continue
        left, top = map(float, re.findall(r"[\d.]+", host.get("transform") or ""))
        frame = host[0]
        right, bottom = left + float(frame.get("width") or 0), top + float(frame.get("height") or 0)
        assert right <= width
        for name in host.findall(f"{SVG}text"):
            assert 6 * len(name.text or "") <= right - left  # letters of 12 pixels are half as wide
        assert bottom <= height
        for cell in host.findall(f"{SVG}g"):
            x, y = map(float, re.findall(r"[\d.]+", cell.get("transform") or ""))
            places[left + x, top + y] += 1
            assert left + x + float(cell[1].get("width") or 0) <= right
            assert top + y + float(cell[1].get("height") or 0) <= bottom
    assert set(places.values()) == {1}
    assert len(places) == topology.world_size


def test_a_nasty_note_is_only_text():
    root = ElementTree.fromstring(svg(ParallelTopology(tp=2), marked={1: NASTY}))
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert "rank 1, tp1, </script></title></style>]]><b x='1' y=\"2\">&amp;  [1m" in titles


def test_two_images_on_one_page_do_not_meddle():
    one, other = (svg(ParallelTopology(tp=2), hosts=Hosts.parse(text)) for text in ("1x2", "2x1"))
    ids = [set(re.findall(r'id="([^"]+)"', image)) for image in (one, other)]
    assert not ids[0] & ids[1]
    for image in (one, other):
        name = re.findall(r'<svg [^>]*id="([^"]+)"', image)[0]
        rules = re.findall(r"<style>(.*?)</style>", image, re.DOTALL)[0].replace(
            "@media (prefers-color-scheme: dark) {", ""
        )
        assert all(
            selector.strip(" }\n").startswith(f"#{name}")
            for selector in re.findall(r"([^{},]+)[{,]", re.sub(r"\{[^{}]*\}", "{", rules))
        )


# HTML


@settings(deadline=None)
@given(pictures())
def test_a_page_is_well_formed_and_loads_nothing(picture: Picture):
    topology, seen = picture
    text = html(topology, **seen)
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not [attributes for _, attributes in page.elements if {"src", "href", "action"} & attributes.keys()]
    assert not re.search(r"https?:|url\(|@import|\bfetch\b|XMLHttpRequest|\bimport\b", text)
    choices = [attributes["value"] for _, attributes in page.elements if attributes.get("type") == "radio"]
    axes = topology.all_axes if seen["axis"] is None else [topology.group_name(*seen["axis"].split("-"))]
    assert choices == ["", *map(str, range(len(axes)))]
    data = data_of(text)
    assert [axis["name"] for axis in data["axes"]] == list(axes)
    assert data["size"] == topology.world_size
    assert data["chosen"] == seen["rank"]
    assert ("filter" in ids) == (seen["hosts"] is not None)


def test_a_nasty_note_does_not_leave_the_data():
    text = html(ParallelTopology(tp=2), marked={1: NASTY})
    Page(text)
    assert data_of(text)["marked"] == {"1": "</script></title></style>]]><b x='1' y=\"2\">&amp;  [1m"}
    assert "<b x" not in text


def test_pages_are_small():
    sizes = [
        len(html(ParallelTopology(tp=8, dp=dp, pp=4), hosts=Hosts.uniform(count=4 * dp, ranks_per_host=8)))
        for dp in (1, 32, 512)
    ]
    assert sizes[0] < 23_000
    assert sizes[1] < 25_000  # 1,024 ranks
    assert sizes[2] < 80_000  # 16,384 ranks


# Both


@pytest.mark.parametrize("draw", [svg, html])
def test_what_cannot_be_drawn(draw: Any):
    with pytest.raises(TopologyError, match="a picture shows at most 32,768"):
        draw(ParallelTopology(tp=8, dp=8192))
    with pytest.raises(RankError):
        draw(ParallelTopology(tp=2), rank=2)


def test_notebooks_show_a_topology():
    topology = ParallelTopology(tp=2, pp=2)
    assert ElementTree.fromstring(topology._repr_svg_() or "").tag == f"{SVG}svg"
    framed = Page(topology._repr_html_() or "")
    ((tag, attributes),) = framed.elements
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    assert attributes["srcdoc"] == html(topology)


def test_notebooks_show_the_text_of_what_is_too_large():
    large = ParallelTopology(tp=8, dp=8192)
    assert large._repr_svg_() is None
    assert large._repr_html_() is None
    assert ParallelTopology(tp=8, dp=256)._repr_svg_() is None  # notebooks would keep it in their file


def test_what_a_star_means_is_said():
    for draw in (svg, html):
        assert "* 2 ranks, as 1: was tp0" in draw(ParallelTopology(tp=4), marked={1: "was tp0", 2: "was tp1"})
