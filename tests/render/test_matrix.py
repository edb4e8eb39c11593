"""Who sends how much to whom: a cell for each pair, the darker the more."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from parallel_topology import ParallelTopology
from parallel_topology.refit import RefitPlan
from parallel_topology.refit.facts import matrix as pairs_of
from parallel_topology.render import matrix
from parallel_topology.weights import Weight, Weights
from tests.render.test_svg_html import Page

SVG = "{http://www.w3.org/2000/svg}"
MODEL = Weights([Weight("w", "48/tp 8", layer=True), Weight("norm", "8", layer=True)], layers=5)
PLANS = [
    RefitPlan(MODEL, ParallelTopology.parse(source), ParallelTopology.parse(target))
    for source, target in (("tp2-pp2", "tp4"), ("tp2", "tp4@8,9,10,11"), ("tp2-pp2", "tp2-pp2"))
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_each_pair_has_a_cell_and_more_is_darker(plan: RefitPlan):
    pairs = pairs_of(plan)
    root = ElementTree.fromstring(matrix.svg(pairs, "a <title> & more"))
    cells = [one for one in root.iter(f"{SVG}rect") if one.get("class") != "paper"]
    assert len(cells) == len(pairs)
    said = {title.text: float(cell.get("opacity", 0)) for cell in cells for title in cell.iter(f"{SVG}title")}
    assert said.keys() == {matrix.said(*pair, nbytes) for pair, nbytes in pairs.items()}
    sent = sorted((nbytes, said[matrix.said(*pair, nbytes)]) for pair, nbytes in pairs.items() if pair[0] != pair[1])
    for (fewer, lighter), (more, darker) in pairwise(sent):
        assert (fewer < more) == (lighter < darker)
    assert not sent or sent[-1][1] == 1
    assert all(opacity == 0 for text, opacity in said.items() if "keeps" in (text or ""))
    places = {(cell.get("x"), cell.get("y")) for cell in cells}
    assert len(places) == len(cells)
    width, height = (float(root.get(name, 0)) for name in ("width", "height"))
    assert all(float(cell.get("x", 0)) < width and float(cell.get("y", 0)) < height for cell in cells)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_page_says_the_same_in_a_table(plan: RefitPlan):
    pairs = pairs_of(plan)
    text = matrix.html(pairs, "a <title> & more")
    Page(text)
    assert text.count("<tr>") == 1 + len(pairs)
    assert text.count("<td>kept</td>") == sum(source == target for source, target in pairs)
    assert "<title>a &lt;title&gt; &amp; more</title>" in text
    assert "src=" not in text
    assert text.count("http") == 2  # http-equiv, and the name space of the image
