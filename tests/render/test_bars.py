"""Memory as bars: lengths are bytes, whatever is drawn."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from parallel_topology import ParallelTopology
from parallel_topology.render import bars
from parallel_topology.weights import Load, Model, Serving, Training, loads
from tests.render.test_svg_html import Page
from tests.weights import configurations as published

SVG = "{http://www.w3.org/2000/svg}"
MODEL = Model.from_config(published.LLAMA_3_8B)
FOUND: list[Any] = [
    (loads(MODEL, ParallelTopology(tp=2, pp=4), Training()), 40 * 2**30),
    (loads(MODEL, ParallelTopology(tp=2, pp=4), Training(zero=3)), 80 * 2**30),
    (loads(MODEL, ParallelTopology(tp=2), Serving(communicator_bytes=0)), 2**20),
]


@pytest.mark.parametrize(("found", "memory"), FOUND)
def test_lengths_are_bytes(found: list[Load], memory: int):
    root = ElementTree.fromstring(bars.svg(found, memory, "a <title> & more"))
    scale = bars.WIDTH / max(memory, *(load.memory.total for load in found))
    drawn = [group for group in root.iter(f"{SVG}g") if group.get("class") == "bar"]
    ordered = sorted(found, key=lambda load: load.stages)
    assert len(drawn) == len(ordered)
    bottoms: list[float] = []
    for group, load in zip(drawn, ordered, strict=True):
        parts = list(group.iter(f"{SVG}rect"))
        assert [float(part.get("width", 0)) for part in parts] == pytest.approx(
            [nbytes * scale for nbytes in load.memory.parts.values()], abs=0.01
        )
        left = float(bars.LEFT)
        for part in parts:  # one after the other
            assert float(part.get("x", 0)) == pytest.approx(left, abs=0.02)
            left += float(part.get("width", 0))
        bottoms.append(float(parts[0].get("y", 0)))
    assert bottoms == sorted(set(bottoms))
    (limit,) = root.iter(f"{SVG}line")
    assert float(limit.get("x1", 0)) == pytest.approx(bars.LEFT + memory * scale, abs=0.01)

    named = {one.get("class") for one in root.iter(f"{SVG}rect")} - {"paper"}
    assert len(named) == len({name for load in found for name in load.memory.parts})


@pytest.mark.parametrize(("found", "memory"), FOUND)
def test_the_page_says_the_same_in_a_table(found: list[Load], memory: int):
    text = bars.html(found, memory, "a <title> & more")
    Page(text)
    assert text.count("<tr>") == 1 + len(found)
    assert "<title>a &lt;title&gt; &amp; more</title>" in text
    assert "src=" not in text
    assert text.count("http") == 2  # http-equiv, and the name space of the image
    for load in found:
        assert load.why in text
