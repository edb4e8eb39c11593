"""Topologies in other people's configuration: models, settings, schemas; and what is no topology there."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from parallel_topology import ParallelTopology, RankError, TopologyError
from parallel_topology.testing.strategies import topologies
from parallel_topology.topology.orders import ORDERS
from parallel_topology.topology.validation import RESERVED
from parallel_topology.topology.whole import quoted


class Config(BaseModel):
    topology: ParallelTopology


WRONG: list[dict[str, Any]] = [
    {"tp": 2, "views": None},
    {"tp": 2, "views": 3},
    {"tp": 2, "views": "expert:ep2"},
    {"tp": 2, "views": {"expert": None}},
    {"tp": 2, "views": {"expert": 5}},
    {"tp": 2, "views": {"expert": ["ep2"]}},
    {"tp": 2, "views": {"expert": ""}},
    {"tp": 2, "views": {"self": "self2"}},
    {"tp": 2, "views": [["expert", "ep2"]]},
    {"tp": 2, "ranks": 3},
    {"tp": 2, "ranks": "01"},
    {"tp": 2, "ranks": {"a": 1}},
    {"tp": 2, "ranks": [0, None]},
    {"tp": 2, "ranks": [0, "1"]},
    {"tp": 2, "ranks": [0, 1.0]},
    {"tp": 2, "ranks": [True, False]},
    {"tp": 2, "ranks": []},
    {"tp": 2, "dp": -1, "world_size": "8"},
    {"tp": 2, "world_size": True},
    {"tp": 1, "world_size": True},
    {"tp": 2, "world_size": 2.0},
    {"tp": 2, "world_size": [2]},
    {"tp": 2, "world_size": 10**5000},
    {"tp": 2, "first_rank": None},
    {"tp": 2, "first_rank": "8"},
    {"tp": 2, "first_rank": 8.0},
    {"tp": 2, "first_rank": 10**5000},
    {"tp": 2, "order": 5},
    {"tp": 2, "order": ["tp"]},
    {"tp": 2, "order": ""},
    {"tp": None},
    {"tp": True},
    {"tp": 4.0},
    {"tp": [2]},
    {"tp": {}},
    {"tp": "two"},
    {"tp": "2.0"},
    {"tp": ""},
    {"tp": 10**5000},
    {"tp": "9" * 5000},
    {"self": 2},
    {"tp": 2, "views": {"v": "self2"}},
    {"order2": 2},
    {"tp": 4, "views": {"v": "sglang4"}},
    {"vllm": 2, "order": "vllm"},
    {"tp": 4, "views": {"v": f"a{'9' * 5000}"}},
]


@pytest.mark.parametrize("given", WRONG, ids=[quoted(given)[:40] for given in WRONG])
def test_a_bad_value_is_a_validation_error_in_a_model_and_a_topology_error_alone(given: dict[str, Any]):
    with pytest.raises(TopologyError):
        ParallelTopology(**given)
    with pytest.raises(ValidationError) as caught:
        Config(topology=given)  # pyright: ignore[reportArgumentType]
    assert caught.value.error_count() == 1
    with pytest.raises(ValidationError):
        ParallelTopology.model_validate(given)


@pytest.mark.parametrize(
    "text",
    [
        *("self2", "order2", "views2", "sglang2", "vllm2", "first_rank2", "world_size2", "copy2", "json2", "model_x2"),
        *(f"tp{'9' * 5000}", f"tp2@{'9' * 5000}", f"tp2@0,{'9' * 5000}", "tp2@0+2x0", "tp2@0+0x2", "tp2@0+3x1"),
    ],
)
def test_text_that_names_what_is_taken_or_has_no_end(text: str):
    with pytest.raises(TopologyError):
        ParallelTopology.parse(text)
    with pytest.raises(ValidationError):
        Config(topology=text)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", [None, 3, 2.5, ["tp2"], ("tp", 2), {1: 2}, b"tp2", object()])
def test_what_is_no_topology_at_all(given: Any):
    with pytest.raises(ValidationError):
        Config(topology=given)
    with pytest.raises(TopologyError):
        ParallelTopology.parse(given)


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.booleans().map(lambda _: 10**5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["order", "first_rank", "ranks", "views", "world_size", "tp", "pp", "ep", "self"])


@given(st.dictionaries(_KEYS | st.text(max_size=5), _ANYTHING, max_size=5))
def test_whatever_is_given_there_is_a_topology_or_an_error_of_ours(given):
    with suppress(TopologyError):
        assert isinstance(ParallelTopology(**given), ParallelTopology)
    with suppress(ValidationError):
        assert isinstance(Config(topology=given).topology, ParallelTopology)  # pyright: ignore[reportArgumentType]


@given(topologies(max_world=8), _ANYTHING)
def test_whatever_rank_is_asked_for_there_is_an_answer_or_an_error_of_ours(topology, given):
    for ask in (topology.at, topology.position, topology.coordinate, lambda rank: topology.group("tp", rank=rank)):
        with suppress(RankError, TopologyError):
            ask(given)


class TestNumbersAsText:
    def test_sizes_may_be_text_in_a_configuration_never_in_a_call(self):
        assert Config(topology={"tp": "2", "pp": 4}).topology == ParallelTopology(tp=2, pp=4)  # pyright: ignore[reportArgumentType]
        given = {"tp": "2", "dp": "-1", "world_size": "8", "first_rank": "8", "views": {"v": "x-y2"}}
        assert str(Config(topology=given).topology) == "tp2-dp4@8/v:x4-y2"  # pyright: ignore[reportArgumentType]
        with pytest.raises(TopologyError, match="tp='2': expected a size"):
            ParallelTopology(tp="2")  # pyright: ignore[reportArgumentType]

    def test_beside_real_numbers_only_sizes_may(self):
        with pytest.raises(ValidationError, match="first_rank='8': expected a rank"):
            Config(topology={"tp": 2, "first_rank": "8"})  # pyright: ignore[reportArgumentType]


class TestSchema:
    schema = ParallelTopology.model_json_schema()

    def test_it_is_one_and_its_defaults_fit_it(self):
        for mode in ("validation", "serialization"):
            schema = ParallelTopology.model_json_schema(mode=mode)
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["description"].endswith(".")
            assert "\n" not in schema["description"]
            for field in schema["properties"].values():
                if "default" in field:
                    jsonschema.validate(field["default"], field)

    @given(topologies())
    def test_it_takes_every_form_of_every_topology(self, topology):
        dumped = json.loads(topology.model_dump_json())
        for form in (str(topology), dumped, {"tp": -1, "world_size": 8}, {**topology.sizes, "order": topology.order}):
            jsonschema.validate(form, self.schema)
        jsonschema.validate(dumped, ParallelTopology.model_json_schema(mode="serialization"))

    @pytest.mark.parametrize("name", list(ORDERS))
    def test_it_takes_the_name_of_an_order(self, name):
        jsonschema.validate({"order": name, "tp": 2}, self.schema)

    @pytest.mark.parametrize("wrong", [3, None, {"tp": 0}, {"tp": "x"}, {"tp": 2.5}, {"tp": 2, "views": {"v": 3}}])
    def test_it_refuses_what_the_constructor_refuses(self, wrong):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, self.schema)

    def test_inside_another_model(self):
        schema = Config.model_json_schema()
        for form in ("tp2-pp4", {"tp": 2}):
            jsonschema.validate({"topology": form}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"topology": 3}, schema)
        assert TypeAdapter(dict[str, ParallelTopology]).validate_python({"a": "tp2"})["a"].tp == 2


def test_the_names_that_are_taken_do_not_follow_what_is_installed():
    """A name that pydantic gains must be added by hand, so that a layout does not stop being one by an upgrade."""
    public = {name for name in dir(BaseModel) if not name.startswith(("_", "model_"))}
    assert public <= RESERVED
    for name in RESERVED:
        with pytest.raises(TopologyError, match=f"'{name}' cannot name an axis: it is taken by an attribute"):
            ParallelTopology(tp=2, views={"v": f"{name}2"})
