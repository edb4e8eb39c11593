"""A configuration out of environment variables: topology and hosts as fields of a model of pydantic-settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.testing.strategies import hosts_for, topologies

pydantic_settings = pytest.importorskip("pydantic_settings")
Text = Annotated[ParallelTopology, pydantic_settings.NoDecode]
PAGE = Path(__file__).parents[2] / "docs" / "getting-started.md"


class Run(BaseModel):
    topology: Text


class Job(pydantic_settings.BaseSettings):
    model_config = pydantic_settings.SettingsConfigDict(env_nested_delimiter="__")

    topology: Text | None = None
    hosts: Hosts | None = None
    run: Run | None = None


class Undecoded(pydantic_settings.BaseSettings):
    model_config = pydantic_settings.SettingsConfigDict(env_nested_delimiter="__", enable_decoding=False)

    topology: ParallelTopology


@pytest.fixture
def read(monkeypatch):
    """The settings that variables give."""

    def read(kind: Any = Job, **env: str) -> Any:
        with monkeypatch.context() as patched:
            for name, value in env.items():
                patched.setenv(name, value)
            return kind()

    return read


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), topology=topologies())
def test_texts(read, data, topology):
    hosts = data.draw(hosts_for(topology))
    job = read(TOPOLOGY=str(topology), HOSTS=str(hosts), RUN__TOPOLOGY=str(topology))
    assert (job.topology, job.hosts, job.run.topology) == (topology, hosts, topology)
    assert read(Undecoded, TOPOLOGY=str(topology)).topology == topology


NUMBERS = [
    ({"TP": "2", "PP": "4"}, "tp2-pp4"),
    ({"TP": "2", "PP": "4", "FIRST_RANK": "8"}, "tp2-pp4@8"),
    ({"TP": "2", "DP": "-1", "WORLD_SIZE": "8"}, "tp2-dp4"),
    ({"TP": "2", "PP": "4", "ORDER": "pp-tp"}, "pp4-tp2"),
    ({"TP": "2", "PP": "2", "VIEWS__EXPERT": "ep2-pp2"}, "tp2-pp2/expert:ep2-edp1-pp2"),
]
JSON = [({"TP": "2", "PP": "2", "VIEWS": '{"other": "x4"}'}, "tp2-pp2/other:x4")]


@pytest.mark.parametrize(
    ("kind", "variables", "text"),
    [(Job, *case) for case in NUMBERS + JSON] + [(Undecoded, *case) for case in NUMBERS],
)
def test_a_variable_for_each_number(read, kind, variables, text):
    given = {f"TOPOLOGY__{name}": value for name, value in variables.items()}
    assert read(kind, **given).topology == ParallelTopology.parse(text)


@pytest.mark.parametrize(
    "variables",
    [
        {"TOPOLOGY": "tp2pp4"},
        {"TOPOLOGY": ""},
        {"TOPOLOGY__TP": "two"},
        {"TOPOLOGY__TP": "2.0"},
        {"TOPOLOGY__TP": "0"},
        {"TOPOLOGY__TP": "9" * 5000},
        {"TOPOLOGY__TP": "2", "TOPOLOGY__DP": "-1"},
        {"TOPOLOGY__TP": "2", "TOPOLOGY__WORLD_SIZE": "3"},
        {"HOSTS": "2x"},
        {"HOSTS": "0,0/1"},
    ],
)
def test_what_cannot_be_read_is_a_validation_error(read, variables):
    with pytest.raises(ValidationError, match=next(iter(variables)).partition("__")[0].lower()):
        read(**variables)


def test_what_the_page_shows(monkeypatch):
    (block,) = re.findall(r"^```py\n(from typing .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for name, value in (("TOPOLOGY", "tp2-pp4"), ("HOSTS", "2x4")):
        monkeypatch.setenv(name, value)
    shown: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), shown)
    assert shown["job"].topology == ParallelTopology(tp=2, pp=4)
    monkeypatch.delenv("TOPOLOGY")
    for name, value in re.findall(r"TOPOLOGY__(\w+)=(\w+)", PAGE.read_text()):
        monkeypatch.setenv(f"TOPOLOGY__{name}", value)
    assert shown["Job"]().topology == ParallelTopology(tp=2, pp=4)
