"""One layout is one value, however it was written, and by whichever way it came in."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from parallel_topology import ImmutableError, ParallelTopology, RankError, TopologyError
from parallel_topology.testing.strategies import topologies, topologies_of


class Config(BaseModel):
    topology: ParallelTopology


def ways_in(topology: ParallelTopology) -> list[ParallelTopology]:
    text = topology.model_dump_json()
    return [
        ParallelTopology.parse(str(topology)),
        ParallelTopology.model_validate_json(text),
        ParallelTopology.model_validate(str(topology)),
        ParallelTopology.model_validate(topology.model_dump()),
        ParallelTopology(**topology.model_dump()),
        ParallelTopology(**json.loads(text)),
        ParallelTopology(world_size=topology.world_size, **topology.model_dump()),
        Config.model_validate_json(Config(topology=topology).model_dump_json()).topology,
        topology.model_copy(update={"order": topology.order}),
        topology.model_copy(update={"views": topology.views}),
        pickle.loads(pickle.dumps(topology)),
        copy.deepcopy(topology),
        copy.copy(topology),
    ]


@given(topologies())
def test_every_way_in_gives_the_same_value(topology: ParallelTopology):
    for twin in ways_in(topology):
        assert twin == topology
        assert hash(twin) == hash(topology)
        assert (str(twin), twin.fingerprint) == (str(topology), topology.fingerprint)
        assert twin.all_axes == topology.all_axes
        assert twin.views == topology.views
        assert [twin.groups(axis) for axis in twin.all_axes] == [topology.groups(axis) for axis in topology.all_axes]


@given(topologies())
def test_the_text_is_in_canonical_form(topology: ParallelTopology):
    assert str(ParallelTopology.parse(str(topology))) == str(topology)


@given(topologies_of(24), st.data())
def test_views_that_are_the_same_modes_are_equal_however_they_were_written(topology, data):
    """Written out or left out, walking as the base does or saying so, axes of size 1 anywhere in the walk."""
    for name, text in topology.views.items():
        axes, over, walk = text.partition("~")
        moving = [axis for axis in (walk.split("-") if over else topology.axes) if topology.sizes[axis] > 1]
        still = [axis for axis in topology.axes if topology.sizes[axis] == 1]
        for axis in still:
            moving.insert(data.draw(st.integers(0, len(moving))), axis)
        written = f"{axes}~{'-'.join(moving)}"
        assert topology.model_copy(update={"views": {**topology.views, name: written}}) == topology


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tp": 2, "pp": 2, "views": {"expert": "ep-pp2"}}, "tp2-pp2/expert:ep2-edp1-pp2"),
        ({"tp": 2, "pp": 2, "views": {"expert": "ep2"}}, "tp2-pp2/expert:ep2-edp2"),
        ({"tp": 2, "pp": 2, "views": {"expert": "ep2-edp-pp2"}}, "tp2-pp2/expert:ep2-edp1-pp2"),
        ({"tp": 2, "pp": 2, "views": {"other": "ep-pp2"}}, "tp2-pp2/other:ep2-pp2"),
        ({"tp": 2, "pp": 2, "views": {"v": "x2-y2~tp-pp"}}, "tp2-pp2/v:x2-y2"),
        ({"tp": 2, "cp": 1, "pp": 2, "views": {"v": "x2-y2~cp-pp-tp"}}, "tp2-cp1-pp2/v:x2-y2~pp-tp-cp"),
        (
            {"tp": 2, "edp": 2, "pp": 2, "order": "tp-edp-pp", "views": {"expert": "ep4-pp2"}},
            "tp2-edp2-pp2/expert:ep4-pp2",
        ),
        ({"tp": 4, "views": {"expert": "ep4", "other": "edp2-x2"}}, "tp4/expert:ep4/other:edp2-x2"),
    ],
)
def test_what_is_left_out_is_written_in_one_way(arguments: dict[str, Any], text: str):
    topology = ParallelTopology(**arguments)
    assert str(topology) == text
    assert {str(twin) for twin in ways_in(topology)} == {text}


def test_the_recipe_of_vllm_is_one_value_in_every_form():
    vllm = ParallelTopology(
        order="vllm",
        tp=2,
        pcp=2,
        pp=2,
        dp=2,
        views={
            "expert": "ep8-pp-external_dp1~tp-pcp-dp-pp-external_dp",
            "decode": "dcp4-replicas~pcp-tp-pp-dp-external_dp",
        },
    )
    assert all(twin == vllm for twin in ways_in(vllm))


class TestFilling:
    @given(topologies(max_views=0), st.integers(1, 4), st.data())
    def test_the_order_is_kept_and_everything_else(self, topology, factor, data):
        if topology.ranks is not None:
            topology = topology.model_copy(update={"ranks": None})
        axis = data.draw(st.sampled_from(topology.axes))
        filled = topology.filling(topology.world_size * factor, axis=axis)
        assert filled.axes == topology.axes
        assert filled.sizes == {**topology.sizes, axis: topology.sizes[axis] * factor}
        assert filled.first_rank == topology.first_rank

    @pytest.mark.parametrize(
        ("text", "axis", "filled"),
        [
            ("pp2-tp4", "dp", "pp2-tp4-dp2"),
            ("tp4-pp2", "dp", "tp4-dp2-pp2"),
            ("pp8", "dp", "dp2-pp8"),
            ("pp8", "tp", "tp2-pp8"),
            ("model8", "dp", "model8-dp2"),
            ("dp4-tp4@8", "dp", "dp4-tp4@8"),
            ("dp2-tp2/expert:ep2-edp2", "dp", "dp8-tp2/expert:ep2-edp8"),
            ("tp4-pp2/expert:ep4-edp2~pp-tp", "dp", "tp4-dp2-pp2/expert:ep4-edp4~pp-tp-dp"),
        ],
    )
    def test_cases(self, text: str, axis: str, filled: str):
        assert str(ParallelTopology.parse(text).filling(16, axis=axis)) == filled

    def test_sizes_of_views_that_were_inferred_are_inferred_again(self):
        topology = ParallelTopology(tp=2, dp=2, views={"v": "x-y2", "expert": "ep-pp1"})
        for twin in (topology, copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
            assert str(twin.filling(16, axis="dp")) == "tp2-dp8/expert:ep16-edp1-pp1/v:x8-y2"

    def test_a_view_of_which_nothing_can_grow(self):
        with pytest.raises(TopologyError, match="view 'v', 'x2-y2', has 4 positions, which is not the world_size 8"):
            ParallelTopology.parse("tp2-dp2/v:x2-y2").filling(8, axis="dp")
        assert str(ParallelTopology.parse("tp2-dp2/v:x2-y2").filling(4, axis="dp")) == "tp2-dp2/v:x2-y2"

    def test_a_name_that_is_no_axis(self):
        with pytest.raises(TopologyError, match="'order' cannot name an axis"):
            ParallelTopology(tp=2).filling(4, axis="order")


class TestNothingChangesIt:
    topology = ParallelTopology(tp=2, dp=4, views={"expert": "etp1-ep8"})

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: setattr(t, "tp", 4),
            lambda t: setattr(t, "_text", "a"),
            lambda t: setattr(t, "first_rank", 4),
            lambda t: setattr(t, "new", 4),
            lambda t: delattr(t, "order"),
            lambda t: t.model_extra.update(tp=4),
            lambda t: t.model_extra.__setitem__("tp", 4),
            lambda t: t.views.__setitem__("expert", "ep4"),
            lambda t: t.views.pop("expert"),
            lambda t: t._sizes.__setitem__("tp", 4),
            lambda t: t._layouts.clear(),
            lambda t: t.__init__(tp=4),
            lambda t: t.__setstate__({}),
            lambda t: setattr(t.world, "start", 3),
            lambda t: setattr(t.groups("tp"), "modes", ()),
            lambda t: delattr(t.world, "start"),
            lambda t: setattr(t.at(0), "rank", 3),
            lambda t: setattr(t.at(0).tp, "rank", 3),
            lambda t: delattr(t.at(0).tp, "rank"),
        ],
    )
    def test_by_any_name(self, change):
        before = (str(self.topology), self.topology.model_dump(), repr(self.topology.at(0)), repr(self.topology.world))
        with pytest.raises((ValidationError, ImmutableError)):
            change(self.topology)
        after = (str(self.topology), self.topology.model_dump(), repr(self.topology.at(0)), repr(self.topology.world))
        assert after == before

    def test_what_is_handed_out_is_a_copy(self):
        self.topology.sizes["tp"] = 9
        self.topology.model_dump()["views"]["expert"] = "x"
        self.topology.model_fields_set.clear()
        assert self.topology.sizes["tp"] == 2
        assert self.topology.model_dump(exclude_unset=True)["views"] == {"expert": "etp1-ep8-edp1"}

    def test_nobody_makes_one_that_was_not_checked(self):
        with pytest.raises(TopologyError, match="model_construct would skip every check"):
            ParallelTopology.model_construct(tp=0)
        with pytest.raises(TopologyError, match="tp=0"):
            self.topology.copy(update={"tp": 0})


def test_what_is_not_among_the_ranks_or_groups_is_our_error():
    topology = ParallelTopology(tp=2, pp=2)
    for ask in (
        lambda: topology.world.index(4),
        lambda: topology.world.index("a"),  # pyright: ignore[reportArgumentType]
        lambda: topology.groups("tp").index([0, 2]),
        lambda: topology.groups("tp").index([]),
        lambda: topology.groups("tp").index(3),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(RankError, match="is not "):
            ask()
