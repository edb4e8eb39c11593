"""The parts of a tensor in pictures, against what `Weight` says each rank holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_topology import ParallelTopology
from parallel_topology.errors import TopologyError, UnknownAxisError
from parallel_topology.render.html import html
from parallel_topology.render.json import as_json
from parallel_topology.render.scene import Scene
from parallel_topology.render.shards import Shards, table
from parallel_topology.render.svg import svg
from parallel_topology.render.text import show
from parallel_topology.testing.strategies import topologies
from parallel_topology.weights import Weight, Weights


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[ParallelTopology, Weight]:
    """A topology and a tensor cut over some axes of one of its factorizations, on at most two of its dims."""
    topology = draw(topologies(64))
    homes = [topology.axes, *([axis for axis in sizes if axis in topology.all_axes] for sizes in _views(topology))]
    axes = draw(st.permutations(draw(st.sampled_from(homes))))
    first, second = draw(st.integers(0, len(axes))), draw(st.integers(0, len(axes)))
    cut = [axes[:first], axes[first : max(first, second)]]
    dims = draw(st.permutations(range(3)))
    shape = [3, 3, 3]
    for dim, names in zip(dims, cut, strict=False):
        for name in names:
            shape[dim] *= topology.size(name)
    return topology, Weight("w", shape, cut={dim: names for dim, names in zip(dims, cut, strict=False) if names})


def _views(topology: ParallelTopology) -> list[list[str]]:
    return [list(topology.factorization(name).modes) for name in topology.all_axes]


@settings(deadline=None)
@given(cut_tensors())
def test_parts_are_what_the_ranks_hold(drawn: tuple[ParallelTopology, Weight]):
    topology, weight = drawn
    shards = Shards(weight, topology)
    weights = Weights([weight], layers=0)
    scene = Scene(topology, tensor=weight)
    listed = as_json(topology, tensor=weight)["tensor"]["shards"]
    assert sorted(rank for ranks in shards.holders for rank in ranks) == sorted(topology.world)
    for part, ranks in enumerate(shards.holders):
        assert listed[part] == {"ranges": shards.ranges(part), "ranks": list(ranks)}
        for rank in ranks:
            held = weights.on(topology, rank)["w"]
            assert [[one.start, one.stop] for one in held.ranges] == shards.ranges(part)
            assert shards.of(topology.position(rank)) == scene.color(rank) == part
    assert len(scene.legend) == len(set(scene.legend)) == len(shards.holders)
    assert max(1, len(shards.rows)) * max(1, len(shards.columns)) == len(shards.holders)


@settings(deadline=None)
@given(cut_tensors(), st.integers(20, 120), st.booleans())
def test_every_format_shows_it(drawn: tuple[ParallelTopology, Weight], width: int, color: bool):
    topology, weight = drawn
    text = show(topology, tensor=weight, width=width, color=color)
    assert "shard" in text
    assert weight.name in svg(topology, tensor=weight)
    assert str(Shards(weight, topology)).replace("&", "&amp;") in html(topology, tensor=weight)


def test_a_table_has_the_shape_of_the_tensor():
    topology = ParallelTopology(tp=2, cp=2, dp=2)
    shards = Shards(Weight("tensor", "8/tp 6/cp 4"), topology)
    cells = [",".join(map(str, ranks)) for ranks in shards.holders]
    assert "\n".join(table(shards, cells, 80)) == (
        "       0-2   3-5\n"
        "     ╭─────┬─────╮\n"
        "0-3  │ 0,4 │ 2,6 │\n"
        "     ├─────┼─────┤\n"
        "4-7  │ 1,5 │ 3,7 │\n"
        "     ╰─────┴─────╯"
    )
    assert list(table(shards, cells, 17)) == [
        "[0:4, 0:3, :]  0,4", "[0:4, 3:6, :]  2,6", "[4:8, 0:3, :]  1,5", "[4:8, 3:6, :]  3,7"
    ]  # fmt: skip


def test_the_chosen_rank_has_its_part_in_brackets():
    assert "│ [1,3] │" in show(ParallelTopology(tp=2, dp=2), tensor=Weight("w", "4/tp 4"), rank=3)


@pytest.mark.parametrize(
    ("topology", "shape", "error", "words"),
    [
        ("tp4", "6/tp 4", TopologyError, "6 elements over tp 4 leave 2 over"),
        ("tp2-cp2-dp2", "2/tp 2/cp 2/dp", TopologyError, "cut along 3 dims: a picture shows at most 2"),
        ("tp64-dp32", "64/tp 32/dp", TopologyError, "has 2,048 parts: a picture shows at most 1,024"),
        ("tp4", "6/ep 4", UnknownAxisError, "ep"),
    ],
)
def test_what_cannot_be_drawn(topology: str, shape: str, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        show(ParallelTopology.parse(topology), tensor=Weight("tensor", shape))


def test_many_parts_are_listed_to_an_end():
    text: Any = show(ParallelTopology(tp=512), tensor=Weight("w", "512/tp"))
    assert "... and 480 more shards" in text
