"""Checks against the arithmetic of shares: what is said to fit can be divided; then the words of each finding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import Hosts, ParallelTopology, TopologyError
from parallel_topology.topology.shares import batch_share, shard, stage_layers
from parallel_topology.weights.checks import DATA_AXES, ModelSizes, check, divisors, fits

sizes = st.integers(1, 200)
parts = st.integers(1, 24)


def only(topology: ParallelTopology, **given: int):
    (finding,) = check(topology, ModelSizes(**given))
    return finding


def divides(cut, *arguments) -> bool:
    try:
        cut(*arguments)
    except TopologyError:
        return False
    return True


# Laws


@given(sizes, parts)
def test_what_fits_is_what_can_be_divided(size, count):
    for name, axis, cut in (
        ("heads", "tp", shard),
        ("hidden", "tp", shard),
        ("ffn", "tp", shard),
        ("batch", "dp", batch_share),
        ("layers", "pp", stage_layers),
    ):
        finding = only(ParallelTopology(**{axis: count}), **{name: size})
        assert (finding.level != "fails") is divides(cut, size, 0, count)
        assert str(size) in finding.said
        assert str(count) in finding.said


@given(st.sampled_from(["heads", "kv_heads", "layers", "hidden", "ffn", "vocab", "experts", "batch"]), sizes, parts)
def test_the_nearest_sizes_fit_and_none_between_does(name, size, count):
    topology = ParallelTopology(order="tp-ep-dp-pp", tp=count, ep=count, dp=count, pp=count)
    finding = only(topology, **{name: size})
    if name == "kv_heads" and finding.level == "note":
        assert not finding.nearest
        return
    assert bool(finding.nearest) is (finding.level != "fits")
    for near in finding.nearest:
        assert only(topology, **{name: near}).level in ("fits", "note" if name == "kv_heads" else "fits")
        assert str(near) in finding.said
        for between in range(min(size, near) + 1, max(size, near)):
            assert only(topology, **{name: between}).level != "fits"


@given(sizes, parts)
def test_kv_heads_are_divided_or_replicated_evenly(kv_heads, tp):
    level = only(ParallelTopology(tp=tp), kv_heads=kv_heads).level
    assert level == ("fits" if kv_heads % tp == 0 else "note" if tp % kv_heads == 0 else "fails")


@given(sizes, parts)
def test_the_axis_sizes_that_are_offered_fit(size, count):
    finding = only(ParallelTopology(tp=count), heads=size)
    if finding.level == "fails":
        for offered in finding.said.rpartition(" tp ")[2].split(" or "):
            assert only(ParallelTopology(tp=int(offered)), heads=size).level == "fits"


# Cases


@pytest.mark.parametrize(
    ("spec", "given", "level", "said"),
    [
        ("tp8", {"heads": 64}, "fits", "64 divided by tp 8: 8 each"),
        ("tp8", {"heads": 60}, "fails", "60 divided by tp 8 leaves 4 over; expected heads 56 or 64, or tp 6 or 10"),
        ("tp8", {"heads": 7}, "fails", "7 divided by tp 8 leaves 7 over; expected heads 8, or tp 7"),
        ("dp8", {"heads": 60}, "fits", "60 on each rank: there is no axis attn_tp or tp or model"),
        ("tp8", {"kv_heads": 2}, "note", "2 for tp 8: fewer than ranks, so each is held by 4 of them"),
        (
            "tp8",
            {"kv_heads": 3},
            "fails",
            "3 for tp 8 can be neither divided nor replicated evenly; expected kv_heads 2 or 4, or tp 6 or 9",
        ),
        (
            "pp4",
            {"layers": 3},
            "fails",
            "3 divided by pp 4 leaves 1 stages without any; expected layers at least 4, or pp at most 3",
        ),
        (
            "pp4",
            {"layers": 82},
            "note",
            "82 divided by pp 4: 21 in each of the first 2, 20 in the others; even with layers 80 or 84",
        ),
        (
            "tp8",
            {"vocab": 50257},
            "note",
            "50257 divided by tp 8 needs padding by 7 to 50264; Megatron pads to 51200, a multiple of 128 x 8",
        ),
        ("model4-data2", {"hidden": 4096}, "fits", "4096 divided by model 4: 1024 each"),
        (
            "dp_shard4-dp_replicate2",
            {"batch": 12},
            "fails",
            "12 divided by dp_shard x dp_replicate 8 leaves 4 over; "
            "expected batch 8 or 16, or dp_shard x dp_replicate 6 or 12",
        ),
        (
            "tp2-dp4/expert:etp1-ep8",
            {"experts": 60},
            "fails",
            "60 divided by ep 8 leaves 4 over; expected experts 56 or 64, or ep 6 or 10",
        ),
        ("tp8/attention:attn_tp2-attn_dp4", {"heads": 10}, "fits", "10 divided by attn_tp 2: 5 each"),
    ],
)
def test_what_a_person_reads(spec, given, level, said):
    finding = only(ParallelTopology.parse(spec), **given)
    assert (finding.level, finding.said) == (level, said)


def test_query_heads_share_kv_heads_evenly():
    *_, finding = check(ParallelTopology(tp=1), ModelSizes(heads=60, kv_heads=8))
    assert (finding.what, finding.level, finding.nearest) == ("heads per kv_head", "fails", (56, 64))
    *_, finding = check(ParallelTopology(tp=1), ModelSizes(heads=64, kv_heads=8))
    assert finding.said == "64 divided by 8 kv_heads: 8 each"


def test_what_crosses_hosts_is_noted_and_tp_has_a_remedy():
    findings = check(ParallelTopology.parse("pp2-tp4"), ModelSizes(), Hosts.parse("2x4"))
    assert [(finding.what, finding.level) for finding in findings] == [("pp groups", "fits"), ("tp groups", "note")]
    assert findings[1].said.endswith("spans hosts 0 and 1; the order tp-pp keeps them inside")
    (tp,) = check(ParallelTopology(tp=8), ModelSizes(), Hosts.parse("2x4"))
    assert tp.said.endswith("no order keeps them inside: expected a size that divides the ranks of a host")
    assert fits([*findings, tp])


def test_hosts_with_room_to_spare_are_noted():
    *_, spare = check(ParallelTopology(tp=4), ModelSizes(), Hosts.parse("2x4"))
    assert (spare.level, spare.said) == ("note", "2x4 has 8 places for 4 ranks: 4 stay idle")


def test_hosts_that_lack_ranks():
    with pytest.raises(TopologyError, match="rank 7 is on no host"):
        check(ParallelTopology(tp=8), ModelSizes(), Hosts.parse("1x4"))


def test_sizes_that_are_none():
    with pytest.raises(TopologyError, match="layers=0: expected a whole number of at least 1"):
        ModelSizes(layers=0)
    assert check(ParallelTopology(tp=8), ModelSizes()) == []


def test_a_prime_that_nothing_divides_is_answered_at_once():
    assert only(ParallelTopology(dp=8), batch=10**12 + 39).level == "fails"


def test_every_data_parallel_axis_counts():
    topology = ParallelTopology(order="-".join(DATA_AXES), **dict.fromkeys(DATA_AXES, 2))
    assert only(topology, batch=2 ** len(DATA_AXES)).level == "fits"
    assert only(topology, batch=2 ** len(DATA_AXES) // 2).level == "fails"


# Sizes where nothing can be tried one by one


@pytest.mark.timeout(10)
@pytest.mark.parametrize("ranks", [12_800_000, 2**40, 2**70])
def test_a_large_world_is_checked_as_fast(ranks: int):
    topology = ParallelTopology(tp=8, dp=ranks // 8)
    (finding,) = check(topology, ModelSizes(batch=512))
    assert finding.said.endswith(f"expected batch {ranks // 8}, or dp 512")
    (finding,) = check(ParallelTopology(tp=ranks), ModelSizes(kv_heads=7))
    assert finding.said.endswith(f"expected kv_heads {5 if ranks % 5 == 0 else 4} or 8, or tp {_beside(ranks, 7)}")
    spread = check(topology, ModelSizes(), Hosts.uniform(count=ranks // 8, ranks_per_host=8))
    assert [finding.what for finding in spread] == ["tp groups", "dp groups"]


def _beside(ranks: int, step: int) -> str:
    return f"{ranks // step * step} or {ranks // step * step + step}"


def test_divisors():
    for number in range(1, 600):
        assert divisors(number) == {part for part in range(1, number + 1) if number % part == 0}
    assert len(divisors(2**70)) == 71
    assert divisors(1_000_003 * 1_000_033) == {1, 1_000_003 * 1_000_033}  # both primes are beyond what is looked for
    assert divisors(4 * 1_000_003) == {1, 2, 4, 1_000_003, 2_000_006, 4_000_012}


def test_a_divisor_far_above_is_not_advised():
    (finding,) = check(ParallelTopology(tp=2), ModelSizes(heads=131))
    assert finding.said.endswith("expected heads 130 or 132, or tp 1")
    (finding,) = check(ParallelTopology(tp=2), ModelSizes(heads=127))
    assert finding.said.endswith("expected heads 126 or 128, or tp 1 or 127")
