"""Will a model divide over a topology, and what of it crosses hosts? A list of findings, each with what would do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from parallel_topology.hosts.hosts import Hosts
from parallel_topology.hosts.reorder import orders_inside
from parallel_topology.hosts.spans import Spans
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.shares import stage_layers
from parallel_topology.topology.topology import ParallelTopology
from parallel_topology.topology.whole import require

Level = Literal["fits", "note", "fails"]
"""`note`: it works, and somebody should know at what price."""

# The axes that divide a size, by the names the systems give them (see `orders`): the first that is there counts, of
# the data-parallel ones all together.
HEAD_AXES = ("attn_tp", "tp", "model")
TENSOR_AXES = ("tp", "model")
PIPELINE_AXES = ("pp", "pipe")
EXPERT_AXES = ("ep", "moe_ep")
DATA_AXES = ("dp", "data", "dp_shard", "dp_replicate", "external_dp")

LARGEST_PRIME = 1 << 16
"""The largest prime factor that is looked for: nobody divides a model over so many ranks of which none is 2."""

MEGATRON_VOCAB_MULTIPLE = 128
"""Megatron's `--make-vocab-size-divisible-by`, for each tensor-parallel rank (megatron/training/arguments.py)."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What is known of a model; None is left out of the check.

    Attributes:
        heads, kv_heads: attention heads, and those of keys and values where they are fewer
            (grouped queries, https://arxiv.org/abs/2305.13245).
        layers: transformer layers, those of all stages together.
        hidden, ffn: width of the residual stream, and of the feed-forward layers inside.
        vocab: tokens in the embedding.
        experts: routed experts in a layer.
        batch: samples in one step over all data-parallel ranks.

    Raises:
        TopologyError: a size is not a whole number of at least 1.
    """

    heads: int | None = None
    kv_heads: int | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    experts: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, size in self.given.items():
            object.__setattr__(self, name, require(1, name, size))

    @property
    def given(self) -> dict[str, int]:
        """Name -> size, of those that are known."""
        return {name: size for name, size in vars(self).items() if size is not None}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: what was looked at, as in `"kv_heads"` or `"tp groups"`.
        level: whether it fits.
        said: what was given, what it gives or what was expected, and what would do.
        nearest: where it does not divide evenly, the sizes below and above the one given that would; for a
            vocabulary, what to pad it to.
    """

    what: str
    level: Level
    said: str
    nearest: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Parts:
    """Over how many ranks something is divided, along which axes."""

    names: tuple[str, ...]
    count: int
    known: tuple[str, ...]

    @classmethod
    def of(cls, topology: ParallelTopology, known: tuple[str, ...], *, together: bool = False) -> _Parts:
        names = tuple(axis for axis in known if axis in topology.all_axes)[: None if together else 1]
        return cls(names, prod(topology.size(axis) for axis in names), known)

    def __str__(self) -> str:
        return f"{' x '.join(self.names)} {self.count}"


_Look: TypeAlias = Callable[[ParallelTopology, int], Finding]
"""The check of one size."""


def check(topology: ParallelTopology, sizes: ModelSizes, hosts: Hosts | None = None) -> list[Finding]:
    """Look at every size that is given, then at every axis on `hosts`.

    >>> for finding in check(ParallelTopology(tp=8, pp=4), ModelSizes(heads=60, layers=80)):
    ...     print(finding.level, finding.what, finding.said)
    fails heads 60 divided by tp 8 leaves 4 over; expected heads 56 or 64, or tp 6 or 10
    fits layers 80 divided by pp 4: 20 each

    Raises:
        TopologyError: `hosts` do not hold all ranks of the topology.
    """
    require_kind(topology, ParallelTopology, "topology")
    require_kind(sizes, ModelSizes, "sizes")
    findings = [_CHECKS[name](topology, size) for name, size in sizes.given.items()]
    if sizes.heads is not None and sizes.kv_heads is not None:
        findings.append(_queries_per_kv_head(sizes.heads, sizes.kv_heads))
    if hosts is not None:
        require_kind(hosts, Hosts, "hosts").require(topology)
        findings += [_on_hosts(topology, hosts, axis) for axis in topology.all_axes if topology.size(axis) > 1]
        if spare := hosts.rank_count - topology.world_size:
            said = f"{hosts} has {hosts.rank_count:,} places for {topology.world_size:,} ranks: {spare:,} stay idle"
            findings.append(Finding("hosts", "note", said))
    return findings


def fits(findings: list[Finding]) -> bool:
    """Whether nothing among them fails."""
    return all(finding.level != "fails" for finding in findings)


def _divided(
    what: str, known: tuple[str, ...], *, together: bool = False
) -> Callable[[ParallelTopology, int], Finding]:
    """The check of a size that has to divide evenly."""

    def look(topology: ParallelTopology, size: int) -> Finding:
        parts = _Parts.of(topology, known, together=together)
        return _whole(what, size, parts) or _left_over(what, size, parts)

    return look


def _whole(what: str, size: int, parts: _Parts) -> Finding | None:
    if not parts.names:
        return Finding(what, "fits", f"{size} on each rank: there is no axis {' or '.join(parts.known)}")
    if size % parts.count == 0:
        return Finding(what, "fits", f"{size} divided by {parts}: {size // parts.count} each")
    return None


def _left_over(what: str, size: int, parts: _Parts) -> Finding:
    nearest = _multiples(size, parts.count)
    said = (
        f"{size} divided by {parts} leaves {size % parts.count} over; expected {what} {_either(nearest)}, "
        f"or {' x '.join(parts.names)} {_either(_near_divisors(size, parts.count))}"
    )
    return Finding(what, "fails", said, nearest)


def _kv_heads(topology: ParallelTopology, size: int) -> Finding:
    """Divided, or where there are fewer than ranks, each held by equally many: vLLM's QKVParallelLinear does both.

    (vllm/model_executor/layers/linear.py, vllm 0.33)
    """
    parts = _Parts.of(topology, HEAD_AXES)
    if whole := _whole("kv_heads", size, parts):
        return whole
    if parts.count % size == 0:
        said = f"{size} for {parts}: fewer than ranks, so each is held by {parts.count // size} of them"
        return Finding("kv_heads", "note", said)
    nearest = _around(size, {*divisors(parts.count), *_multiples(size, parts.count)})
    ranks = _around(parts.count, {*divisors(size), *_multiples(parts.count, size)})
    said = (
        f"{size} for {parts} can be neither divided nor replicated evenly; expected kv_heads {_either(nearest)}, "
        f"or {parts.names[0]} {_either(ranks)}"
    )
    return Finding("kv_heads", "fails", said, nearest)


def _queries_per_kv_head(heads: int, kv_heads: int) -> Finding:
    what = "heads per kv_head"
    if heads % kv_heads == 0:
        return Finding(what, "fits", f"{heads} divided by {kv_heads} kv_heads: {heads // kv_heads} each")
    nearest = _multiples(heads, kv_heads)
    said = (
        f"{heads} divided by {kv_heads} kv_heads leaves {heads % kv_heads} over; expected heads {_either(nearest)}, or "
        f"kv_heads {_either(_near_divisors(heads, kv_heads))}"
    )
    return Finding(what, "fails", said, nearest)


def _layers(topology: ParallelTopology, layers: int) -> Finding:
    parts = _Parts.of(topology, PIPELINE_AXES)
    if whole := _whole("layers", layers, parts):
        return whole
    if layers < parts.count:
        said = (
            f"{layers} divided by {parts} leaves {parts.count - layers} stages without any; expected layers at least "
            f"{parts.count}, or {parts.names[0]} at most {layers}"
        )
        return Finding("layers", "fails", said, (parts.count,))
    longest, shortest = (len(stage_layers(layers, stage, parts.count)) for stage in (0, parts.count - 1))
    nearest = _multiples(layers, parts.count)
    said = (
        f"{layers} divided by {parts}: {longest} in each of the first {layers % parts.count}, {shortest} in the "
        f"others; even with layers {_either(nearest)}"
    )
    return Finding("layers", "note", said, nearest)


def _vocab(topology: ParallelTopology, vocab: int) -> Finding:
    parts = _Parts.of(topology, TENSOR_AXES)
    if whole := _whole("vocab", vocab, parts):
        return whole
    padded, as_megatron = (_multiples(vocab, step)[-1] for step in (parts.count, parts.count * MEGATRON_VOCAB_MULTIPLE))
    said = (
        f"{vocab} divided by {parts} needs padding by {padded - vocab} to {padded}; "
        f"Megatron pads to {as_megatron}, a multiple of {MEGATRON_VOCAB_MULTIPLE} x {parts.count}"
    )
    return Finding("vocab", "note", said, (padded,))


_CHECKS: dict[str, _Look] = {
    "heads": _divided("heads", HEAD_AXES),
    "kv_heads": _kv_heads,
    "layers": _layers,
    "hidden": _divided("hidden", TENSOR_AXES),
    "ffn": _divided("ffn", TENSOR_AXES),
    "vocab": _vocab,
    "experts": _divided("experts", EXPERT_AXES),
    "batch": _divided("batch", DATA_AXES, together=True),
}


def _on_hosts(topology: ParallelTopology, hosts: Hosts, axis: str) -> Finding:
    spans = hosts.spans(topology, axis)
    said = str(spans).partition(": ")[2]
    if spans.inside:
        return Finding(f"{axis} groups", "fits", said)
    remedy = _remedy(topology, hosts, spans) if axis in TENSOR_AXES else ""
    return Finding(f"{axis} groups", "note", said + remedy)


def _remedy(topology: ParallelTopology, hosts: Hosts, spans: Spans) -> str:
    if order := next(orders_inside(topology, hosts, spans.name), None):
        return f"; the order {order} keeps them inside"
    return "; no order keeps them inside: expected a size that divides the ranks of a host"


def _multiples(size: int, step: int) -> tuple[int, ...]:
    """The multiples of `step` below and above."""
    below = size // step * step
    return (below, below + step) if below else (step,)


def _around(size: int, numbers: Iterable[int]) -> tuple[int, ...]:
    """Those of the numbers that are next below and above `size`, as far as there are any."""
    below = max((number for number in numbers if number < size), default=None)
    above = min((number for number in numbers if number > size), default=None)
    return tuple(number for number in (below, above) if number is not None)


def _near_divisors(number: int, near: int) -> tuple[int, ...]:
    """The divisors of `number` below and above `near`; one far above is of no use."""
    return _around(near, {divisor for divisor in divisors(number) if divisor <= 64 * near})


def divisors(number: int) -> set[int]:
    """The numbers that divide `number`; of its prime factors above `LARGEST_PRIME` only their product is known."""
    found, rest, prime = {1}, number, 2
    while prime <= LARGEST_PRIME and prime * prime <= rest:
        while rest % prime == 0:
            rest //= prime
            found |= {one * prime for one in found}
        prime += 1 + (prime > 2)
    return found | {one * rest for one in found}


def _either(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))
