"""Placement: what arithmetic says about hosts is what looking at every rank says; then cases, then errors."""

import copy
import json
import pickle
import time
from itertools import accumulate, combinations, permutations
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from parallel_topology import ParallelTopology, RankError, TopologyError, UnknownAxisError
from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.reorder import orders_inside
from parallel_topology.testing.strategies import hosts_for
from parallel_topology.topology.layout import Ranks
from tests.waiting import SOON

ODD: Any = 1.0
numpys: Any = np.int64

first_ranks = st.just(0) | st.integers(0, 20)


@st.composite
def topologies(draw, max_axes=4, explicit=True):
    axes = draw(st.permutations(["tp", "cp", "dp", "pp"][:max_axes]))
    sizes = {axis: draw(st.integers(1, 4)) for axis in axes}
    topology = ParallelTopology(order="-".join(axes), first_rank=draw(first_ranks), **sizes)
    if explicit and draw(st.booleans()):
        placed = draw(st.permutations(range(topology.world_size)))
        topology = ParallelTopology(order="-".join(axes), ranks=placed, **sizes)
    return topology


@st.composite
def placed_topologies(draw, **options):
    topology = draw(topologies(**options))
    return topology, draw(hosts_for(topology))


def looked_up(hosts):
    return {rank: host for host, ranks in enumerate(hosts) for rank in ranks}


# Laws


@given(placed_topologies())
def test_each_rank_is_on_the_host_that_lists_it(placed):
    _, hosts = placed
    home = looked_up(hosts)
    assert len(home) == hosts.rank_count
    assert max(home.values()) == len(hosts) - 1
    for rank in range(max(home) + 3):
        assert (rank in hosts) is (rank in home)
        if rank in home:
            assert hosts.host_of(rank) == home[rank]
            assert hosts.ranks_of(home[rank])[hosts.local_rank_of(rank)] == rank


@given(placed_topologies())
def test_spans_are_those_that_looking_at_every_rank_finds(placed):
    topology, hosts = placed
    home = looked_up(hosts)
    for count in range(1, 5):
        for axes in combinations(topology.axes, count):
            spans = hosts.spans(topology, *axes)
            found = [sorted({home[rank] for rank in group}) for group in topology.groups(*axes)]
            widths = list(map(len, found))
            assert [list(hosts.hosts_of(group)) for group in spans.groups] == found
            assert spans.histogram == {width: widths.count(width) for width in widths}
            assert list(spans.histogram) == sorted(spans.histogram)
            assert spans.widest == max(widths)
            assert spans.inside is (max(widths) == 1)
            assert spans.crossing == sum(width > 1 for width in widths)
            assert list(spans.crossing_numbers()) == [number for number, width in enumerate(widths) if width > 1]


@st.composite
def strided_topologies(draw):
    """Over every so-many-th rank of a larger job, in steps that need not be those of the axes."""
    steps = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    modes, stride = [], draw(st.integers(1, 3))
    for size in draw(st.permutations(steps)):
        modes.append((size, stride))
        stride *= size + draw(st.integers(0, 2))
    sizes = dict(zip(["tp", "dp", "pp"], draw(st.permutations(steps)), strict=False))
    return ParallelTopology(
        order="-".join(sizes), ranks=Ranks(draw(first_ranks), tuple(draw(st.permutations(modes)))), **sizes
    )


@settings(deadline=None)
@given(strided_topologies(), st.data())
def test_spans_of_strided_topologies_are_those_that_looking_at_every_rank_finds(topology, data):
    hosts = data.draw(hosts_for(topology))
    home = looked_up(hosts)
    hosts.require(topology)
    for count in range(1, len(topology.axes) + 1):
        for axes in combinations(topology.axes, count):
            spans = hosts.spans(topology, *axes)
            found = [sorted({home[rank] for rank in group}) for group in topology.groups(*axes)]
            assert [list(hosts.hosts_of(group)) for group in spans.groups] == found
            widths = list(map(len, found))
            assert spans.histogram == {width: widths.count(width) for width in widths}


@given(st.sampled_from(["tp4-dp6-pp2", "tp2-cp2-dp6-pp2", "dp12-pp4"]), st.integers(1, 50), st.data())
def test_spans_of_views_are_those_that_looking_at_every_rank_finds(text, per_host, data):
    sizes = data.draw(st.sampled_from(["etp2-ep2-edp-pp2", "etp1-ep4-edp-pp2"]))
    topology = ParallelTopology.parse(f"{text}/other:{sizes.replace('pp2', 'last2')}~{reversed_order(text)}")
    hosts = Hosts.uniform(count=-(-48 // per_host), ranks_per_host=per_host)
    for axis in topology.all_axes:
        found = [sorted({rank // per_host for rank in group}) for group in topology.groups(axis)]
        assert [list(hosts.hosts_of(group)) for group in topology.groups(axis)] == found
        assert hosts.spans(topology, axis).crossing == sum(len(hosts_of) > 1 for hosts_of in found)


def reversed_order(text):
    return "-".join(reversed(ParallelTopology.parse(text).axes))


@given(placed_topologies())
def test_a_placement_comes_back_from_its_text_and_from_copies(placed):
    _, hosts = placed
    for same in (
        Hosts.parse(str(hosts)),
        Hosts.listed(hosts),
        eval(repr(hosts)),
        pickle.loads(pickle.dumps(hosts)),
        copy.deepcopy(hosts),
    ):
        assert same == hosts
        assert hash(same) == hash(hosts)
        assert str(same) == str(hosts)


def every_spelling(hosts):
    """The same placement in every way in that can say it."""
    lists = [list(members) for members in hosts]
    yield Hosts.listed(lists)
    yield Hosts.listed(iter([map(numpys, members) for members in lists]))
    flat = [rank for members in lists for rank in members]
    yield Hosts(accumulate(map(len, lists), initial=0), flat)
    yield Hosts(hosts.starts, hosts.ranks)
    yield Hosts(np.array(hosts.starts), None if hosts.ranks is None else np.array(hosts.ranks))
    yield Hosts.parse(str(hosts))
    yield Hosts.parse("/".join(",".join(map(str, members)) for members in lists) + "/" * (len(lists) == 1))
    if flat == list(range(flat[0], flat[0] + len(flat))):
        counts = [len(members) for members in lists]
        yield Hosts.uneven(counts, first_rank=flat[0])
        yield Hosts.uneven(iter(counts), first_rank=numpys(flat[0]))
        yield Hosts(list(accumulate(counts, initial=flat[0])))
        yield Hosts.parse(f"{','.join(map(str, counts))}@{flat[0]}")
        if len(set(counts)) == 1:
            yield Hosts.uniform(count=len(counts), ranks_per_host=counts[0], first_rank=flat[0])
            yield Hosts(range(flat[0], flat[-1] + 2, counts[0]))
            yield Hosts.parse(f"{len(counts)}x{counts[0]}@{flat[0]}")


@given(placed_topologies())
def test_equal_placements_are_one_value_however_they_are_written(placed):
    _, hosts = placed
    for same in every_spelling(hosts):
        assert same == hosts
        assert (hash(same), str(same), same.starts, same.ranks) == (
            hash(hosts), str(hosts), hosts.starts, hosts.ranks
        )  # fmt: skip
        assert [list(members) for members in same] == [list(members) for members in hosts]
        assert all(type(number) is int for number in (*same.starts, *(same.ranks or ())))


@given(placed_topologies(), placed_topologies())
def test_placements_that_differ_are_different_values(one, other):
    (_, here), (_, there) = one, other
    same = [list(members) for members in here] == [list(members) for members in there]
    assert (here == there) is same
    assert (str(here) == str(there)) is same


@given(placed_topologies(), placed_topologies())
def test_every_rank_of_the_topology_is_required(one, other):
    (topology, _), (_, hosts) = one, other
    missing = [rank for rank in topology.world if rank not in looked_up(hosts)]
    if not missing:
        hosts.require(topology)
        return
    with pytest.raises(TopologyError, match=r"rank \d+ is on no host$") as caught:
        hosts.require(topology)
    assert int(str(caught.value).split()[-5]) in missing


def inversions(order, present):
    places = [present.index(axis) for axis in order]
    return sum(later < earlier for i, earlier in enumerate(places) for later in places[i + 1 :])


def orders_by_trying_all(topology, hosts, keep):
    """Best first; axes of size 1 stay where they are."""
    moving = [axis for axis in topology.axes if topology.sizes[axis] > 1]
    found = []
    for permuted in permutations(moving):
        places = iter(permuted)
        order = "-".join(axis if topology.sizes[axis] == 1 else next(places) for axis in topology.axes)
        reordered = topology.model_copy(update={"order": order})

        def crossing(axis, reordered=reordered):
            home = looked_up(hosts)
            return sum(len({home[rank] for rank in group}) > 1 for group in reordered.groups(axis))

        if not any(map(crossing, keep)):
            cost = sum(crossing(axis) for axis in topology.axes if axis not in keep)
            found.append((cost, inversions(permuted, moving), tuple(map(moving.index, permuted)), order))
    return [order for *_, order in sorted(found)]


@settings(max_examples=60)
@given(placed_topologies(), st.sets(st.sampled_from(["tp", "cp", "dp", "pp"])))
def test_orders_inside_are_those_that_trying_all_finds_best_first(placed, keep):
    topology, hosts = placed
    assert list(orders_inside(topology, hosts, keep=sorted(keep))) == orders_by_trying_all(topology, hosts, keep)


@settings(max_examples=60, deadline=None)
@given(placed_topologies(), st.data())
def test_orders_that_keep_axes_together_are_those_of_all_that_do(placed, data):
    topology, hosts = placed
    axes = st.lists(st.sampled_from(topology.axes), min_size=2, max_size=3, unique=True).map(tuple)
    keep = data.draw(st.lists(axes, min_size=1, max_size=2))
    home = looked_up(hosts)

    def is_kept(order):
        reordered = topology.model_copy(update={"order": order})
        return all(len({home[rank] for rank in group}) == 1 for axes in keep for group in reordered.groups(*axes))

    assert list(orders_inside(topology, hosts, keep)) == list(filter(is_kept, orders_inside(topology, hosts, ())))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hosts", ["32x8", "11x24", "24," * 10 + "16", "256x1"])
def test_that_no_order_keeps_four_of_eight_axes_together_is_found_at_once(hosts):
    topology = ParallelTopology.parse("a2-b2-c2-d2-e2-f2-g2-h2")
    assert next(orders_inside(topology, Hosts.parse(hosts), [("a", "c", "e", "g")]), None) is None
    assert next(orders_inside(topology, Hosts.parse("8x32"), [("a", "c", "e", "g", "h")])) == "a-c-e-g-h-b-d-f"


# Cases


@pytest.mark.parametrize(
    ("text", "ranks", "canonical"),
    [
        ("2x4", [[0, 1, 2, 3], [4, 5, 6, 7]], "2x4"),
        ("4,4,2", [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], "4,4,2"),
        ("4,4", [[0, 1, 2, 3], [4, 5, 6, 7]], "2x4"),
        ("3", [[0, 1, 2]], "1x3"),
        ("2x2@8", [[8, 9], [10, 11]], "2x2@8"),
        ("1,2@8", [[8], [9, 10]], "1,2@8"),
        ("0,4/1,5", [[0, 4], [1, 5]], "0,4/1,5"),
        ("4,0/", [[4, 0]], "4,0/"),
        ("0,1/2,3", [[0, 1], [2, 3]], "2x2"),
        ("2,3/4", [[2, 3], [4]], "2,1@2"),
    ],
)
def test_text(text, ranks, canonical):
    hosts = Hosts.parse(text)
    assert [list(members) for members in hosts] == ranks
    assert str(hosts) == canonical
    assert repr(hosts) == f"Hosts.parse({canonical!r})"


@pytest.mark.parametrize(
    ("hosts", "topology", "axes", "line"),
    [
        ("2x4", "tp2-pp4", ["tp"], "tp: 4 groups of 2, inside hosts"),
        (
            "2x4",
            "tp2-pp4",
            ["pp"],
            "pp: 2 groups of 4, 2 across hosts (up to 2 hosts); pp group 0 = [0, 2, 4, 6] spans hosts 0 and 1",
        ),
        (
            "7,1",
            "tp2-pp4",
            ["tp"],
            "tp: 4 groups of 2, 1 across hosts (up to 2 hosts); tp group 3 = [6, 7] spans hosts 0 and 1",
        ),
        (
            "4x2",
            "tp2-pp4",
            ["pp", "tp"],
            "tp-pp: 1 group of 8, 1 across hosts (up to 4 hosts); "
            "tp-pp group 0 = [0, 1, 2, 3, 4, 5, 6, 7] spans hosts 0, 1, 2 and 3",
        ),
        (
            "12x1",
            "tp12",
            ["tp"],
            "tp: 1 group of 12, 1 across hosts (up to 12 hosts); tp group 0 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] "
            "spans hosts 0, 1, 2, 3, 4, 5, 6, 7, ... 11",
        ),
        (
            "9x1",
            "tp9",
            ["tp"],
            "tp: 1 group of 9, 1 across hosts (up to 9 hosts); tp group 0 = [0, 1, 2, 3, 4, 5, 6, 7, 8] spans hosts "
            "0, 1, 2, 3, 4, 5, 6, 7 and 8",
        ),
        ("0,2/1,3", "tp2-pp2@0,2,1,3", ["tp"], "tp: 2 groups of 2, inside hosts"),
    ],
)
def test_what_a_person_reads(hosts, topology, axes, line):
    assert str(Hosts.parse(hosts).spans(ParallelTopology.parse(topology), *axes)) == line


def test_any_ranks_may_be_asked_about():
    assert Hosts.parse("3x2").hosts_of([5, 0, 4]) == [0, 2]
    assert Hosts.parse("3x2").hosts_of([4, 5]) == [2]


def test_orders_that_keep_an_axis_inside():
    topology = ParallelTopology(tp=8, cp=1, dp=4, pp=2, order="pp-cp-tp-dp")
    hosts = Hosts.parse("8x8")
    assert list(orders_inside(topology, hosts, keep="tp")) == ["tp-cp-pp-dp", "tp-cp-dp-pp"]
    assert list(orders_inside(topology, hosts, keep=["tp", "pp"])) == []
    assert next(orders_inside(topology, hosts, keep=["dp"])).split("-")[0] in ("dp", "pp")
    assert list(orders_inside(topology, hosts, keep=[("pp", "dp")])) == ["pp-cp-dp-tp", "dp-cp-pp-tp"]


def test_orders_are_kept_to_what_views_allow():
    topology = ParallelTopology(tp=2, dp=3, pp=2, views={"expert": "etp1-ep6-pp2"})
    orders = list(orders_inside(topology, Hosts.parse("2x6"), keep=["ep"]))
    assert orders == ["tp-dp-pp", "dp-tp-pp"]  # elsewhere pp would not be the expert side's pp
    assert list(orders_inside(topology, Hosts.parse("2x6"), keep=())) == orders
    assert list(orders_inside(topology, Hosts.parse("3x4"), keep=["ep"])) == []


def test_six_axes_and_many_ranks_are_answered_at_once():
    sizes: dict[str, Any] = {"tp": 8, "cp": 4, "ep": 2, "dp": 64, "pp": 16, "zp": 2}
    topology = ParallelTopology(order="-".join(reversed(sizes)), **sizes)
    started = time.perf_counter()
    hosts = Hosts.uniform(count=topology.world_size // 8, ranks_per_host=8)
    orders = list(orders_inside(topology, hosts, keep=["tp"]))
    assert len(orders) == 120
    assert all(order.startswith("tp-") for order in orders)
    axes: Any = [f"a{'x' * number}" for number in range(12)]
    twos: dict[str, Any] = dict.fromkeys(axes, 2)
    many = ParallelTopology(order="-".join(axes), **twos)
    hosts = Hosts.uniform(count=512, ranks_per_host=8)
    assert next(orders_inside(many, hosts, keep=axes[:3])) == many.order
    assert next(orders_inside(many, hosts, keep=axes[-3:])).split("-")[:3] == axes[-3:]
    assert not list(orders_inside(many, hosts, keep=axes[:4]))
    assert time.perf_counter() - started < SOON


@pytest.mark.parametrize("dp", [2, 2**21])
def test_counting_does_not_grow_with_the_world(dp):
    topology = ParallelTopology(tp=12, dp=dp, pp=4)
    hosts = Hosts.uniform(count=topology.world_size // 8, ranks_per_host=8)
    started = time.perf_counter()
    assert hosts.spans(topology, "tp").histogram == {2: topology.world_size // 12}
    assert hosts.spans(topology, "dp", "tp").widest == 3 * dp // 2
    assert len(hosts.hosts_of(topology.group("tp", "pp", rank=5))) == 8
    assert hosts.host_of(topology.world_size - 1) == len(hosts) - 1
    assert time.perf_counter() - started < SOON


def test_worlds_of_any_size_are_answered_at_once():
    started = time.perf_counter()
    part = ParallelTopology(tp=8, dp=2**30, pp=128).subtopology("dp", tp=3, pp=5)
    hosts = Hosts.uniform(count=2**37, ranks_per_host=8)
    hosts.require(part)
    assert hosts.spans(part, "dp").histogram == {2**30: 1}
    with pytest.raises(TopologyError, match="is on no host"):
        Hosts.uniform(count=2**20, ranks_per_host=8).require(part)
    for exponent in (40, 70):
        topology = ParallelTopology(tp=8, dp=2 ** (exponent - 3), first_rank=3)
        hosts = Hosts.uniform(count=2 ** (exponent - 3), ranks_per_host=8, first_rank=3)
        hosts.require(topology)
        assert hosts == Hosts.parse(str(hosts))
        assert hash(hosts) == hash(Hosts.parse(str(hosts)))
        assert hosts.host_count == 2 ** (exponent - 3)
        assert hosts.host_of(2**exponent + 2) == hosts.host_count - 1
        assert hosts.local_rank_of(2**exponent + 2) == 7
        assert next(iter(hosts)) == range(3, 11)
        with pytest.raises(TopologyError, match="rank 3 is on no host"):
            Hosts.uniform(count=2 ** (exponent - 3), ranks_per_host=8, first_rank=4).require(topology)
        with pytest.raises(TopologyError, match="is on no host"):
            Hosts.parse("0,1,2/3,4,6").require(topology)
        with pytest.raises(TopologyError, match="is on no host"):
            Hosts.parse(f"{2**exponent},1").require(topology)
    with pytest.raises(TopologyError, match=r"has more hosts than len\(\) can say: use host_count"):
        len(hosts)
    assert time.perf_counter() - started < SOON


# As a field of a pydantic model


class Deployment(BaseModel):
    hosts: Hosts
    spare: Hosts | None = None


@given(placed_topologies())
def test_a_field_is_its_text_in_json_and_the_value_in_python(placed):
    _, hosts = placed
    deployment = Deployment(hosts=hosts)
    assert deployment.hosts is hosts
    assert json.loads(deployment.model_dump_json()) == {"hosts": str(hosts), "spare": None}
    assert deployment.model_dump() == {"hosts": hosts, "spare": None}
    assert deployment.model_dump(mode="json")["hosts"] == str(hosts)
    for same in (
        Deployment.model_validate({"hosts": str(hosts)}),
        Deployment.model_validate_json(deployment.model_dump_json()),
        Deployment.model_validate(deployment.model_dump()),
        Deployment.model_validate_strings({"hosts": str(hosts)}),
        deployment.model_copy(deep=True),
    ):
        assert same == deployment


BAD_TEXTS = ["", "2x", "x4", "2x4x2", "a", "4,", "2x4@", "2x4@a", "0/1@2", "/", "0,a/1", "4;4", "²x4", "2x4 ", "@3"]


@pytest.mark.parametrize("bad", [*BAD_TEXTS, "0x4", "0,0/1", "9" * 5000, None, 3, 2.0, True, b"2x4", [[0, 1]], {}])
def test_what_makes_no_hosts_is_a_validation_error_in_a_model_and_ours_alone(bad):
    with pytest.raises(ValidationError, match="hosts"):
        Deployment(hosts=bad)
    with pytest.raises(ValidationError):
        TypeAdapter(Hosts).validate_python(bad)
    with pytest.raises(TopologyError):
        Hosts.parse(bad)


@given(placed_topologies(), st.sampled_from(BAD_TEXTS), st.sampled_from(["validation", "serialization"]))
def test_the_schema_holds_for_every_text_and_only_for_texts(placed, bad, mode):
    jsonschema = pytest.importorskip("jsonschema")
    schema = Deployment.model_json_schema(mode=mode)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    described = schema["properties"]["hosts"]
    assert described["type"] == "string"
    assert described["description"].endswith(".")
    for text in (str(placed[1]), *described["examples"]):
        assert Hosts.parse(text)
        assert validator.is_valid({"hosts": text})
    for wrong in (bad, 3, None, [[0, 1]]):
        assert not validator.is_valid({"hosts": wrong})


# Accidents


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hosts.uniform(count=0, ranks_per_host=8), "count=0: expected a whole number of at least 1"),
        (lambda: Hosts.uniform(count=1, ranks_per_host=ODD), "ranks_per_host=1.0: expected a whole number"),
        (lambda: Hosts.uniform(count=1, ranks_per_host=1, first_rank=-1), "first_rank=-1: expected"),
        (lambda: Hosts.uneven([]), "no hosts were given; expected at least one"),
        (lambda: Hosts.uneven([4, 0]), "the number of ranks on host 1=0: expected a whole number of at least 1"),
        (lambda: Hosts.uneven([4, 2], first_rank=-1), "first_rank=-1: expected"),
        (lambda: Hosts.listed([]), "no hosts were given; expected at least one"),
        (lambda: Hosts.listed([[0], []]), "the number of ranks on host 1=0: expected"),
        (lambda: Hosts.listed([[0], [-1]]), "a rank of host 1=-1: expected a whole number of at least 0"),
        (lambda: Hosts.listed([[0, 1], [2, 0]]), "rank 0 stands on hosts 0 and 1; expected each rank once"),
        (lambda: Hosts.uneven(ODD), "the numbers of ranks: 1.0; expected a list of them"),
        (lambda: Hosts.uneven(iter([])), "no hosts were given; expected at least one"),
        (lambda: Hosts.uneven(cast("Any", [2, None])), "the number of ranks on host 1=None: expected a whole number"),
        (lambda: Hosts.uneven([2, True]), "the number of ranks on host 1=True: expected a whole number"),
        (lambda: Hosts.uneven(cast("Any", "22")), "the number of ranks on host 0='2': expected a whole number"),
        (lambda: Hosts.uneven([10**5000]), "host 0=<int with more digits than can be written>: expected a whole"),
        (lambda: Hosts.listed(ODD), "the ranks of all hosts: 1.0; expected a list of them"),
        (lambda: Hosts.listed(cast("Any", [[0], 1])), "the ranks of host 1: 1; expected a list of them"),
        (lambda: Hosts.listed([[0], [ODD]]), "a rank of host 1=1.0: expected a whole number of at least 0"),
        (lambda: Hosts.listed([[False, True]]), "a rank of host 0=False: expected a whole number of at least 0"),
        (lambda: Hosts.uniform(count=1, ranks_per_host=True), "ranks_per_host=True: expected a whole number"),
        (lambda: Hosts.uniform(count=10**99, ranks_per_host=10), "hosts that begin at range(0, 1000"),
        (lambda: Hosts((0, 3, 2)), "hosts that begin at (0, 3, 2): expected where each host begins, ascending, and at"),
        (lambda: Hosts((0, 3, 3)), "hosts that begin at (0, 3, 3): expected"),
        (lambda: Hosts((0,)), "hosts that begin at (0,): expected"),
        (lambda: Hosts(()), "hosts that begin at (): expected"),
        (lambda: Hosts((-1, 3)), "hosts that begin at (-1, 3): expected"),
        (lambda: Hosts((False, 3)), "hosts that begin at (False, 3): expected"),
        (lambda: Hosts((0, ODD, 3)), "hosts that begin at (0, 1.0, 3): expected"),
        (lambda: Hosts((0, 10**100)), "hosts that begin at (0, 1000"),
        (lambda: Hosts(ODD), "where hosts begin: 1.0; expected a list of them"),
        (lambda: Hosts(range(4, 0, -2)), "hosts that begin at range(4, 0, -2): expected"),
        (lambda: Hosts(range(-2, 5, 2)), "hosts that begin at range(-2, 5, 2): expected"),
        (lambda: Hosts(range(1)), "hosts that begin at range(0, 1): expected"),
        (lambda: Hosts((0, 2), [0, 1, 3]), "hosts that begin at range(0, 3, 2) for 3 ranks: expected places from 0 on"),
        (
            lambda: Hosts((1, 2), [0, 3]),
            "hosts that begin at range(1, 3) for 2 ranks: expected places from 0",
        ),
        (lambda: Hosts((0, 2), [3, 3]), "ranks (3, 3): expected each rank once"),
        (lambda: Hosts((0, 2), [3, -3]), "a rank=-3: expected a whole number of at least 0"),
        (lambda: Hosts((0, 2), ODD), "the ranks: 1.0; expected a list of them"),
        (lambda: Hosts.parse(f"{'9' * 101}x4"), "the number '9999"),
        (lambda: Hosts.parse(f"2x4@{'9' * 5000}"), "(5002 characters): expected at most 100 digits"),
        (lambda: Hosts.parse(f"0,{'9' * 5000}/3"), "(5002 characters): expected at most 100 digits"),
    ],
)
def test_hosts_that_cannot_be(make, message):
    with pytest.raises(TopologyError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_text_that_cannot_be_read(text):
    with pytest.raises(TopologyError, match=r"cannot read hosts .*expected hosts x ranks, as in '2x4'"):
        Hosts.parse(text)


@pytest.mark.parametrize(
    ("hosts", "topology", "message"),
    [
        ("2x4", "tp4-pp4", "the hosts 2x4 hold 8 ranks, 0..7, but tp4-pp4 has 16: rank 15 is on no host"),
        ("2x4@8", "tp4-pp2", "the hosts 2x4@8 hold 8 ranks, 8..15, but tp4-pp2 has 8: rank 0 is on no host"),
        ("0,2/1,3", "tp5", "the hosts 0,2/1,3 hold 4 ranks, 0, 2, 1, 3, but tp5 has 5: rank 4 is on no host"),
        ("2x4", "tp2@3,9", "hold 8 ranks, 0..7, but tp2@3,9 has 2: rank 9 is on no host"),
        ("2x4", "tp3@0,9,1", "hold 8 ranks, 0..7, but tp3@0,9,1 has 3: rank 9 is on no host"),
        ("2x4@1", "tp3@2,0,1", "hold 8 ranks, 1..8, but tp3@2,0,1 has 3: rank 0 is on no host"),
        ("0,1/4,5", "tp6", "the hosts 0,1/4,5 hold 4 ranks, 0, 1, 4, 5, but tp6 has 6: rank 2 is on no host"),
    ],
)
def test_hosts_that_lack_ranks_of_the_topology(hosts, topology, message):
    for ask in (lambda *placed: Hosts.spans(*placed, "tp"), lambda topology, hosts: orders_inside(hosts, topology)):
        with pytest.raises(TopologyError) as caught:
            ask(Hosts.parse(hosts), ParallelTopology.parse(topology))
        assert message in str(caught.value)


def test_ranks_and_hosts_that_are_not_there():
    hosts = Hosts.parse("2x4")
    not_there: Any
    for not_there in (8, -1, "0", True, None, 1.0, 10**5000):
        assert not_there not in hosts
        with pytest.raises(RankError, match=r"is on none of the hosts 2x4: they hold 0..7"):
            hosts.host_of(not_there)
    for not_there in (2, -1, "0", True, None, 1.0, 10**5000):
        with pytest.raises(RankError, match=r"is outside 0..1 of the hosts 2x4"):
            hosts.ranks_of(not_there)
    with pytest.raises(RankError, match="rank 9 is on none"):
        hosts.hosts_of(ParallelTopology(tp=10).group("tp", rank=0))
    with pytest.raises(RankError, match="rank 9 is on none"):
        hosts.hosts_of([0, 9])
    with pytest.raises(TopologyError, match=r"the ranks: 1.0; expected a list of them"):
        hosts.hosts_of(ODD)
    with pytest.raises(RankError, match=r"they hold 1, 0, 3, 2, .*15, 14, ...$"):
        Hosts.listed([[rank ^ 1 for rank in range(18)]]).host_of(99)


def test_keeping_an_axis_that_is_not_there():
    with pytest.raises(UnknownAxisError, match="has no axis 'xp'"):
        orders_inside(ParallelTopology(tp=4), Hosts.parse("1x4"), keep=["tp", "xp"])
    with pytest.raises(UnknownAxisError, match="no axis was named"):
        orders_inside(ParallelTopology(tp=4), Hosts.parse("1x4"), keep=[()])


def test_integers_of_numpy_are_ranks_and_hosts():
    for hosts in (Hosts.parse("2x4"), Hosts.parse("0,5,2,3/4,1,6,7")):
        for rank in range(8):
            assert numpys(rank) in hosts
            assert hosts.host_of(numpys(rank)) == hosts.host_of(rank)
            assert hosts.local_rank_of(numpys(rank)) == hosts.local_rank_of(rank)
        assert hosts.ranks_of(numpys(1)) == hosts.ranks_of(1)
        assert list(hosts.hosts_of([*map(numpys, range(8))])) == [0, 1]


@pytest.mark.parametrize("name", ["starts", "ranks", "_placement", "other"])
def test_a_value_cannot_be_changed(name):
    for text in ("2x4", "0,5/1,2"):
        hosts: Any = Hosts.parse(text)
        with pytest.raises(AttributeError, match=f"the hosts {text} cannot be changed"):
            setattr(hosts, name, range(3))
        with pytest.raises(AttributeError, match="cannot be changed"):
            delattr(hosts, name)
        with pytest.raises(TypeError):
            vars(hosts)
        assert hosts == Hosts.parse(text)
    assert Hosts.parse("2x4") != Hosts.parse("4x2")
    assert Hosts.parse("2x4") != "2x4"
    assert len({Hosts.parse("2x4"), Hosts.parse("4,4"), Hosts.parse("2x4@1")}) == 2
